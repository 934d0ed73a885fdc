"""D2: variants that differ in more than the treatment."""

from pathlib import Path

import pytest

from llmft.cli import main
from tests.planting import (
    compare_by_command,
    compare_folders,
    find,
    rewrite_metadata,
    write_suite,
)

PROMPTED = Path("runs/prompted/seed-1")
BERT = Path("runs/bert/seed-1")


def test_d2_a_difference_next_to_the_treatment_is_confounded(copy: Path) -> None:
    def change(metadata: dict) -> None:
        metadata["recipe"]["train"]["weight_decay"] = 0.5

    rewrite_metadata(PROMPTED, change)
    results = compare_folders()
    assert results["verdict"] == "CONFOUNDED"
    assert "train.weight_decay" in results["why"]


def test_d2_what_the_suite_declares_is_the_treatment(copy: Path) -> None:
    def change(metadata: dict) -> None:
        metadata["recipe"]["train"]["weight_decay"] = 0.5

    rewrite_metadata(PROMPTED, change)
    results = compare_folders(extra="treatment: [prompt, base, train.weight_decay]\n")
    assert results["verdict"] not in ("INVALID", "CONFOUNDED")
    declared = [f for f in results["audit"] if f["check"] == "comparability"]
    assert "train.weight_decay" in declared[-1]["message"]
    assert compare_folders(extra="treatment: [train]\n")["verdict"] == "CONFOUNDED"


def test_d2_a_treatment_that_no_recipe_knows_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, expected in (
        ("train.epoch", "Did you mean `train.epochs`?"),
        ("task", "'task' is not a key"),
    ):
        assert main(["compare", write_suite(extra=f"treatment: [{key}]\n")]) == 2
        assert expected in capsys.readouterr().err


def test_d2_another_machine_is_one_note(copy: Path) -> None:
    def change(metadata: dict) -> None:
        metadata["device"], metadata["packages"]["torch"] = "another CPU", "1.0"

    rewrite_metadata(PROMPTED, change)
    finding = find(compare_folders(), "comparability", "prompted")
    assert finding["status"] == "note"
    assert "device (another CPU instead of" in finding["message"]
    assert "packages (torch)" in finding["message"]


def test_d2_a_waiver_with_its_reason_lets_a_difference_pass(copy: Path) -> None:
    def change(metadata: dict) -> None:
        metadata["recipe"]["train"]["weight_decay"] = 0.5

    rewrite_metadata(PROMPTED, change)
    waiver = "{check: comparability, variants: [prompted], reason: it hardly matters}"
    results = compare_folders(extra=f"waive: [{waiver}]\n")
    assert results["verdict"] not in ("INVALID", "CONFOUNDED")
    (waived,) = [f for f in results["audit"] if f["waived"]]
    assert (waived["status"], waived["waived"]) == ("warning", "it hardly matters")
    assert "train.weight_decay" in waived["message"]
    other = "{check: contamination, reason: no need}"
    results = compare_folders(extra=f"waive: [{other}]\n")
    assert results["verdict"] == "CONFOUNDED"
    assert "has no effect" in find(results, "waivers")["message"]


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("comparabilty", "Did you mean `comparability`?"),
        ("same_rows", "cannot be waived"),
    ],
)
def test_d2_a_waiver_of_nothing_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str], check: str, expected: str
) -> None:
    suite = Path("suite.yaml").read_text()
    Path("suite.yaml").write_text(f"{suite}waive: [{{check: {check}, reason: x}}]\n")
    assert main(["compare", "suite.yaml", "--train"]) == 2
    assert expected in capsys.readouterr().err


def test_d2_runs_of_two_kinds_are_no_variant(copy: Path) -> None:
    results = compare_folders(others="mixed: [runs/bert/seed-1, runs/prompted/seed-1]")
    assert results["verdict"] == "INVALID"


def test_d2_a_reference_on_other_data_makes_the_comparison_invalid(copy: Path) -> None:
    for seed in (1, 2):
        run = copy / f"runs/plain/seed-{seed}"
        rewrite_metadata(run, lambda metadata: metadata.update(data_fingerprint="other"))
    results = compare_by_command()
    assert (results["verdict"], results["winner"], results["pairs"]) == ("INVALID", None, [])
    assert (copy / "reports/risk/report.html").is_file()


def test_d2_a_model_that_changed_since_strikes_out_its_variant(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = BERT / "model/llmft.json"
    spec.write_text(spec.read_text().replace('"max_length": 96', '"max_length": 48'))
    results = compare_folders()
    assert not results["variants"]["bert"]["valid"]
    assert results["verdict"] != "INVALID"  # two variants are left
    assert "changed since it was trained" in find(results, "changed_model", "bert")["message"]
    capsys.readouterr()
    assert main(["evaluate", str(BERT)]) == 2
    assert "changed since it was trained" in capsys.readouterr().err
