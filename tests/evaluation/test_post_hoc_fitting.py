"""`evaluate --fit`: fitted on val, applied by predict, judged on other rows only (D7, D12)."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import f1_score, mean_absolute_error

import llmft
from llmft.cli import main
from llmft.evaluation.post_hoc_fitting import name_fit
from llmft.prediction.inference import Predictor
from llmft.results.run import PostHocFit
from tests.evaluation.conftest import write_rows
from tests.training.test_probe import make_recipe

SUITE = (
    "task: {kind}-task.yaml\nvariants: {{one: runs/{kind}, two: runs/{kind}-again}}\n"
    "reference: one\nmetric: {metric}\nmargin: 0.01\noutput_dir: reports\n"
    "waive: [{{check: collapsed_predictions, reason: toy}}, "
    "{{check: identical_inputs, reason: toy}}]\n"
)


@pytest.fixture(scope="module")
def home(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The trained runs in a working folder of our own, those of three types with a fit."""
    folder = tmp_path_factory.mktemp("fits") / "home"
    shutil.copytree(trained_home, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_rows("new.jsonl", range(1000, 1030))
        for kind, method in (("tiered", "isotonic"), ("several", "f1"), ("ordered", "precision")):
            assert main(["evaluate", f"runs/{kind}", "--fit", method]) == 0
        assert main(["evaluate", "runs/several-again", "--fit", "none"]) == 0
        yield folder


def load(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def read_split(kind: str, split: str) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Return the prepared rows of a split, and what the model itself says of them."""
    lines = Path(f"prepared/{kind}/{split}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    stored = pd.read_parquet(f"runs/{kind}/predictions/{split}.parquet").set_index("id")
    return rows, stored.loc[[row["id"] for row in rows]]


def predict(run: str) -> pd.DataFrame:
    Path("out.jsonl").unlink(missing_ok=True)
    assert main(["predict", f"runs/{run}", "--input", "new.jsonl", "--output", "out.jsonl"]) == 0
    return pd.read_json("out.jsonl", lines=True)


def test_scores_are_calibrated_as_scikit_learn_would(home: Path) -> None:
    results, fit = load("runs/tiered/evaluation/test.json"), load("runs/tiered/fit.json")
    assert (fit["method"], fit["split"], fit["num_rows"]) == ("isotonic", "val", 24)
    val, test = read_split("tiered", "val"), read_split("tiered", "test")
    theirs = IsotonicRegression(out_of_bounds="clip").fit(
        val[1]["score_risk"].astype(float), [row["labels"]["risk"] for row in val[0]]
    )
    true = [row["labels"]["risk"] for row in test[0]]
    fitted = theirs.predict(test[1]["score_risk"].astype(float))
    assert results["metrics"]["mae"] == pytest.approx(mean_absolute_error(true, fitted))
    said = results["fit"]
    assert (said["method"], said["split"]) == ("isotonic", "val")
    own = mean_absolute_error(true, test[1]["score_risk"])
    assert said["metrics_before"]["mae"] == pytest.approx(own)
    assert set(said["metrics_before"]) == set(results["metrics"])
    assert own > 4 and results["metrics"]["mae"] < 1e-6  # it ranked the rows well, but compressed
    assert results["calibration"]["risk"]["slope"] == pytest.approx(1)
    assert results["rows"][0]["outputs"]["tiered"] == pytest.approx([fitted[0]], abs=1e-4)
    assert results["intervals"]["mae"][1] < 2, "no error in 24 rows"


def test_predict_gives_calibrated_scores_and_their_tier(home: Path) -> None:
    found, own = predict("tiered"), predict("tiered-again")
    curve = load("runs/tiered/fit.json")["curves"]["risk"]
    wanted = np.interp(own["score_risk"], curve["x"], curve["y"])
    assert list(found["score_risk"]) == pytest.approx(list(wanted), abs=1e-3)
    assert list(found["prediction"]) == pytest.approx(list(found["score_risk"]), abs=1e-3)
    assert set(found["tier"]) == {"low", "high"}
    assert len(set(own["tier"])) == 1


def test_labels_are_chosen_by_thresholds_and_probabilities_stay(home: Path) -> None:
    results, fit = load("runs/several/evaluation/test.json"), load("runs/several/fit.json")
    rows, stored = read_split("several", "test")
    names = ["crisis", "profit"]
    true = np.array([[name in row["labels"] for name in names] for row in rows])
    probs = stored[[f"prob_{name}" for name in names]].to_numpy()
    thresholds = [fit["thresholds"][name] for name in names]
    after = f1_score(true, probs >= thresholds, average="micro")
    before = f1_score(true, probs >= 0.5, average="micro")
    assert results["metrics"]["f1_micro"] == pytest.approx(after)
    assert results["fit"]["metrics_before"]["f1_micro"] == pytest.approx(before)
    assert after > before
    assert [row["outputs"]["several"] for row in results["rows"]] == pytest.approx(
        probs.round(4), abs=1e-4
    )
    for metric in ("roc_auc", "average_precision"):  # of the order alone
        assert results["metrics"][metric] == results["fit"]["metrics_before"][metric]
    found, own = predict("several"), predict("several-again")
    for i, name in enumerate(names):
        assert list(found[f"prob_{name}"]) == list(own[f"prob_{name}"])
        applies = [name in labels for labels in found["prediction"]]
        assert applies == list(own[f"prob_{name}"] >= thresholds[i])


def test_precision_keeps_its_recall_on_val(home: Path) -> None:
    fit = load("runs/ordered/fit.json")
    assert (fit["method"], fit["min_recall"]) == ("precision", 0.9)
    assert fit["thresholds"]["bad"] == 0.5
    rows, stored = read_split("ordered", "val")
    true = np.array([row["labels"] == "good" for row in rows])
    chosen = stored["prob_good"].to_numpy() > fit["thresholds"]["good"]
    assert chosen[true].mean() >= 0.9
    results = load("runs/ordered/evaluation/test.json")
    assert results["reliability"]["ece"] == load("runs/ordered-again/evaluation/test.json")[
        "reliability"
    ]["ece"]  # fmt: skip
    found = predict("ordered")
    assert list(found["prediction"] == "good") == list(
        found["prob_good"] > round(fit["thresholds"]["good"], 6)
    )


def test_reports_show_before_and_after(home: Path) -> None:
    html = Path("runs/tiered/evaluation/report.html").read_text()
    assert "Before and after calibrators or thresholds" in html
    assert (
        "tiered: isotonic regression of the scores, one calibrator per dimension; fitted on val"
        in html
    )
    assert "## Calibrators and thresholds" in Path("runs/tiered/evaluation/report.md").read_text()
    again = Path("runs/tiered-again/evaluation/report.html").read_text()
    assert "Post-hoc" not in again


def test_d7_a_fit_is_never_judged_on_its_own_rows(home: Path, capsys) -> None:
    assert main(["evaluate", "runs/tiered", "--split", "val"]) == 0
    found = load("runs/tiered/evaluation/val.json")
    assert found["fit"] is None
    assert found["metrics"]["mae"] > 4  # the model's own outputs
    (said,) = [f["message"] for f in found["audit"] if f["check"] == "post_hoc_fit"]
    assert "fitted on val, so val is measured without them" in said
    capsys.readouterr()
    before = Path("runs/tiered/fit.json").read_bytes()
    for split in ("val", "train"):
        assert main(["evaluate", "runs/tiered", "--split", split, "--fit", "isotonic"]) == 2
        assert f"measured on test, not on {split} (D7)" in capsys.readouterr().err
    assert Path("runs/tiered/fit.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["runs/several", "--fit", "isotonic"], "multilabel head of several; choose f1 or precisi"),
        (["runs/tiered", "--fit", "f1"], "f1 is not for the regression head of tiered; choose iso"),
        (
            ["runs/several", "--fit", "f1", "--min-recall", "0.9"],
            "min_recall: is for precision only, not for f1",
        ),
        (["runs/several", "--fit", "precision", "--min-recall", "1.5"], "less than or equal to 1"),
        (["runs/several", "--min-recall", "0.9"], "min_recall: is for the fit `precision` only"),
    ],
)
def test_a_fit_that_cannot_be_made_changes_nothing(
    home: Path, arguments: list[str], complaint: str, capsys
) -> None:
    before = {path: path.read_bytes() for path in Path("runs").glob("*/fit.json")}
    assert main(["evaluate", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("runs").glob("*/fit.json")} == before


def test_d7_a_fit_of_another_model_is_refused_until_it_is_made_again(home: Path, capsys) -> None:
    fit = load("runs/tiered/fit.json")
    stale = Path("runs/tiered-again/fit.json")
    stale.write_text(json.dumps({**fit, "model_hash": "another"}))
    Path("suite.yaml").write_text(SUITE.format(kind="tiered", metric="mae"))
    for arguments in (
        ["evaluate", "runs/tiered-again"],
        ["predict", "runs/tiered-again", "--input", "new.jsonl", "--output", "out.jsonl"],
        ["compare", "suite.yaml"],
    ):
        assert main(arguments) == 2
        assert "fit.json: was fitted to another model" in capsys.readouterr().err
    assert main(["evaluate", "runs/tiered-again", "--fit", "isotonic"]) == 0
    assert load(str(stale))["model_hash"] == fit["model_hash"]
    assert main(["evaluate", "runs/tiered-again", "--fit", "none"]) == 0
    assert not stale.exists()
    assert load("runs/tiered-again/evaluation/test.json")["fit"] is None


def test_a_prediction_under_way_is_not_gone_on_with_under_another_fit(home: Path, capsys) -> None:
    Path("in").mkdir()
    shutil.copy("new.jsonl", "in")
    arguments = ["predict", "runs/several", "--input", "in/new.jsonl", "--output", "parts"]
    assert main(arguments) == 0
    (part,) = Path("parts").glob("new-*")
    kept, first = part.read_bytes(), Path("runs/several/fit.json").read_bytes()
    assert main(["evaluate", "runs/several", "--fit", "precision", "--min-recall", "1"]) == 0
    capsys.readouterr()
    assert main(arguments) == 2
    assert "with another fit.json" in capsys.readouterr().err
    assert part.read_bytes() == kept
    Path("runs/several/fit.json").write_bytes(first)
    assert main(arguments) == 0
    Path("parts").rename(".out.jsonl.partial")  # what a killed command leaves of one file
    assert main(["evaluate", "runs/several", "--fit", "none"]) == 0
    assert list(predict("several")["prediction"]) == list(predict("several-again")["prediction"])
    assert main(["evaluate", "runs/several", "--fit", "f1"]) == 0
    assert Path("runs/several/fit.json").read_bytes() == first


def test_one_answer_wherever_a_fitted_run_is_asked(home: Path) -> None:
    """The predictor, `llmft.load` and `llmft predict`; the model itself is asked by its name."""
    lines = Path("new.jsonl").read_text().splitlines()
    rows, written = [json.loads(line) for line in lines], predict("tiered")
    found = Predictor.open(Path("runs/tiered")).predict(rows)
    loaded = llmft.load("runs/tiered").predict(rows)
    for scores in (found.outputs[:, 0], found.final.decision_scores_NC[:, 0], loaded["score_risk"]):
        assert list(scores) == pytest.approx(list(written["score_risk"]))
    assert np.abs(found.outputs - found.raw_outputs).max() > 0.1
    several = Predictor.open(Path("runs/several")).predict(rows)
    assert several.outputs == pytest.approx(several.raw_outputs), "thresholds change no probability"
    decided = several.final.decision_scores_NC >= 0.5
    named = [[n for n, d in zip(("crisis", "profit"), row, strict=True) if d] for row in decided]
    assert named == list(predict("several")["prediction"])


def test_d24_training_fits_thresholds_for_several_labels(
    lively_bert: Path, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(lively_bert, head="multilabel")
    with caplog.at_level(logging.INFO, logger="llmft"):
        run = llmft.train(recipe)
    assert "f1 thresholds, fitted on 33 rows of val; there f1_micro is" in caplog.text
    found = llmft.evaluate(run)
    assert found.fit is not None
    assert (found.fit.method, found.fit.split) == ("f1", "val")
    assert found.metrics["f1_micro"] != found.fit.metrics_before["f1_micro"]
    assert found.record.is_frozen
    before = Path("runs/probe/fit.json").read_bytes()
    assert llmft.train(recipe).path == run.path, "finished already"
    assert Path("runs/probe/fit.json").read_bytes() == before


@pytest.mark.parametrize(
    ("head", "metric"),
    [("multilabel", "hamming_loss"), ("multiclass", None), ("regression", None)],
)
def test_other_heads_and_metrics_get_no_thresholds(
    head: str, metric: str | None, lively_bert: Path, workspace: Path
) -> None:
    train = {"precision": "float32", "metric": metric}
    llmft.train(make_recipe(lively_bert, head=head, train=train))
    assert not Path("runs/probe/fit.json").exists()


def test_variants_are_compared_as_they_would_be_deployed(home: Path) -> None:
    """One variant is fitted, the other is not: more than the treatment differs (D2).

    The edge case is a text for which a fitted threshold decides otherwise than 0.5 does.
    """
    rows, stored = read_split("several", "test")
    thresholds = load("runs/several/fit.json")["thresholds"]
    text, name, applies = next(
        (row["text"], name, prob >= thresholds[name])
        for name in ("crisis", "profit")
        for row, prob in zip(rows, stored[f"prob_{name}"], strict=True)
        if (prob >= thresholds[name]) != (prob >= 0.5)
    )
    expect = {"labels" if applies else "not_labels": [name]}
    Path("cases.jsonl").write_text(json.dumps({"id": "case", "text": text, "expect": expect}))
    suite = SUITE.format(kind="several", metric="f1_micro") + "edge_cases: cases.jsonl\n"
    Path("suite.yaml").write_text(suite)
    assert main(["compare", "suite.yaml"]) == 0
    found = load("reports/comparison.json")
    assert found["verdict"] == "CONFOUNDED"
    assert "the fit (calibrator or thresholds) is none in two and f1 in one" in found["why"]
    one, two = found["variants"]["one"], found["variants"]["two"]
    assert one["fit"]["metrics_before"] == pytest.approx(two["metrics"])
    assert (one["fit"]["method"], two["fit"]) == ("f1", None)
    gained = one["metrics"]["f1_micro"] - two["metrics"]["f1_micro"]
    assert gained > 0.2
    assert found["pairs"][0]["gain"] == pytest.approx(-gained)
    assert one["reliability"] == two["reliability"]
    assert all(row["outputs"]["one"] == row["outputs"]["two"] for row in found["rows"])
    passed = {variant: cases["num_passed"] for variant, cases in found["edge_cases"].items()}
    assert passed == {"one": 1, "two": 0}
    assert "Before and after calibrators or thresholds" in Path("reports/report.html").read_text()


def make_fit(method: str, **changes: Any) -> PostHocFit:
    made = {"llmft_version": "0", "num_rows": 9, "model_hash": "m", "data_fingerprint": "f"}
    found = {
        "isotonic": {"head": "regression", "curves": {"a": {"x": [1], "y": [1]}}},
    }.get(method, {"head": "multilabel", "thresholds": {"a": 0.5}})
    return PostHocFit.model_validate({**made, **found, "method": method, **changes})


def test_d2_fits_of_one_method_that_keep_another_recall_are_reported_apart() -> None:
    assert name_fit(None) is None
    assert name_fit(make_fit("f1")) == "f1"
    kept = name_fit(make_fit("precision", min_recall=0.9))
    assert kept == "precision at a recall of 0.9"
