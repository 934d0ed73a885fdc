"""What a comparison says beside its verdict: gates, mixed rows, rare events, noise, cost."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest

from llmft.cli import main
from llmft.evaluation import comparison, latency
from llmft.evaluation.latency import measure_latencies
from llmft.prediction.inference import Predictor
from llmft.results.evaluation import Latency

SUITE = (
    "task: task.yaml\nvariants: {plain: [runs/plain/seed-1, runs/plain/seed-2], "
    "prompted: runs/prompted/seed-1, bert: runs/bert/seed-1}\n"
    "reference: plain\nmetric: mae\nmargin: 0.1\noutput_dir: reports/risk\n"
    "high: 5\ntop_k: [2]\nlatency: {batch_size: 2, price_per_hour: 3.6}\n"
    "gates: {mae: {deploy: 50, review: 60}, beats_constant: null, beats_tfidf: null}\n"
)


def compare(*arguments: str, extra: str = "", status: int = 0) -> dict[str, Any]:
    Path("own.yaml").write_text(SUITE + extra)
    assert main(["compare", "own.yaml", *arguments]) == status
    results: dict[str, Any] = json.loads(Path("reports/risk/comparison.json").read_text())
    return results


def write_second_scores(*, added: int) -> None:
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    for row in rows:
        row["scores"] = {
            k: v + added if v + added <= 10 else v - added for k, v in row["scores"].items()
        }
    Path("again.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.with_packages("matplotlib", "docx")
def test_d13_a_comparison_says_more_than_its_verdict(copy: Path) -> None:
    write_second_scores(added=1)
    results = compare("--require", "deploy", extra="noise: {repeated: again.jsonl}\n", status=1)
    (noise,) = results["noise"]
    assert (noise["kind"], noise["num_rows"]) == ("repeated", 6)
    assert (noise["metric"], noise["oracle"]["value"]) == ("mae", 1)
    assert set(noise["variants"]) == {"plain", "prompted", "bert"}

    ensemble = results["ensembles"]["mean ensemble"]
    assert ensemble["made_of"] == ["plain", "prompted", "bert"]
    assert not ensemble["recommended"]  # six rows prove nothing
    parts = [results["latency"][name]["single_p50_ms"] for name in ensemble["made_of"]]
    assert ensemble["cost"]["single_p50_ms"] == pytest.approx(sum(parts))

    assert results["rare"]["num_high"] > 0
    assert results["rare"]["variants"]["bert"]["at_k"][0]["k"] == 2

    for variant in results["variants"].values():
        gates = {gate["name"]: gate for gate in variant["gates"]}
        assert gates["mae"]["deploy"] == 50
        assert "skill" not in gates
        assert variant["decision"] in ("REVIEW", "FAIL")
    assert results["decision"] == "REVIEW"
    assert results["scope"] == "models"
    assert results["left_out"] == {"plain": ["runs/plain/seed-2"]}
    assert [len(variant["runs"]) for variant in results["variants"].values()] == [1, 1, 1]
    assert results["why"].startswith(
        "this is about these 3 trained models, not about their recipes: "
    )
    for found in results["latency"].values():
        cost = 3.6 / 3_600 / found["articles_per_second"] * 1e6
        assert found["cost_per_million"] == pytest.approx(cost)
    for name in ("report.html", "report.md", "report.docx", "plots/gains.png"):
        assert Path("reports/risk", name).stat().st_size > 1_000


def test_models_that_do_not_fit_into_memory_together_are_opened_in_turn(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[weakref.ref[Predictor]] = []
    alive: list[int] = []

    def measure(predictors: dict[str, Predictor], *given: Any) -> dict[str, Latency]:
        opened.extend(map(weakref.ref, predictors.values()))
        alive.append(sum(one() is not None for one in opened))
        return measure_latencies(predictors, *given)

    monkeypatch.setattr(comparison, "measure_latencies", measure)
    monkeypatch.setattr(latency, "measure_free_memory", lambda device: 0.1)
    found = compare()
    assert set(found["latency"]) == {"plain", "prompted", "bert"}
    assert alive == [1, 1, 1]
    said = capsys.readouterr().out
    assert (
        "the models do not fit into memory together; plain | prompted | bert are timed one after"
        in said
    )


@pytest.mark.parametrize("gates", ["", ", train_val_gap: {deploy: 0.5}"])
def test_rows_of_train_are_predicted_for_their_gate_only(
    copy: Path, gates: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Path("runs/bert/seed-1/predictions/train-sample.parquet")
    sample.unlink(missing_ok=True)
    monkeypatch.setitem(
        globals(), "SUITE", SUITE.replace(", beats_tfidf: null", f", beats_tfidf: null{gates}")
    )
    variants = compare()["variants"]
    assert sample.exists() is (gates != "")
    names = {gate["name"] for gate in variants["bert"]["gates"]}
    assert ("train_val_gap" in names) is (gates != "")


def test_require_review_is_met_where_nobody_can_tell(copy: Path) -> None:
    assert compare("--require", "review")["verdict"] == "UNRESOLVED"


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ("noise: {repeated: other.jsonl}\n", "none of its 60 rows is in the test split"),
        ("waive: [{check: contaminatio, reason: x}]\n", "Did you mean `contamination`?"),
        ("treatment: [promt]\n", "Did you mean `prompt`?"),
        (
            "variants: {again: ./runs/plain/seed-2}\n",
            "variants.again: uses the run runs/plain/seed-2 of plain; name another run folder",
        ),
        ("variants: {other: runs/plain}\n", "did you mean runs/plain/seed-1 or runs/plain/seed-2?"),
        (
            "variants: {late: {recipe: bert.yaml, seeds: [7]}}\n",
            "runs/bert/seed-7: contains no finished run; train it with `llmft compare SUITE",
        ),
    ],
)
def test_mistakes_of_a_suite_are_reported_at_once(
    copy: Path, capsys: pytest.CaptureFixture[str], extra: str, complaint: str
) -> None:
    text = Path("rows.jsonl").read_text()
    Path("other.jsonl").write_text(text.replace('"id": "row', '"id": "other'))
    Path("base.yaml").write_text(SUITE)
    Path("own.yaml").write_text(f"extends: base.yaml\n{extra}")
    assert main(["compare", "own.yaml"]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert "Traceback" not in said


def test_a_comparison_of_trials_mixes_the_validation_rows_that_all_variants_saw(copy: Path) -> None:
    """Variants of `limit_rows` predicted some validation rows only."""
    Path("short.yaml").write_text(
        "extends: bert.yaml\nname: short\ntrain: {limit_rows: 4}\noutput_dir: runs/short\n"
    )
    assert main(["train", "short.yaml"]) == 0
    text = SUITE.replace("bert: runs/bert/seed-1", "short: runs/short")
    waive = "waive: [{check: collapsed_predictions, reason: toy}, "
    waive += "{check: comparability, reason: toy}]\n"
    Path("own.yaml").write_text(text + waive)
    assert main(["compare", "own.yaml"]) == 0
    results = json.loads(Path("reports/risk/comparison.json").read_text())
    assert results["ensembles"]["mean ensemble"]["made_of"] == ["plain", "prompted", "short"]
