"""What costs nothing is fitted on train only, and copes with what train lacks (D9)."""

import warnings

import numpy as np
import pytest

from llmft.config.task import FieldsConfig, LabelsConfig, SourceConfig, Task
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.evaluation.baselines import (
    measure_gains,
    predict_baselines,
    predict_constant,
    predict_tfidf,
)
from llmft.evaluation.rows import LabelledRows
from llmft.results.evaluation import Measurement
from llmft.results.run import PostHocFit
from tests.evaluation.test_rows import SEVERAL, make_scores_config


def test_d9_baselines_are_fitted_on_train_only() -> None:
    train = np.array([[1.0, 9.0], [2.0, 9.0], [9.0, 9.0]])
    assert predict_constant(train, num_rows=2, num_outputs=2).tolist() == [[2, 9], [2, 9]]
    classes = np.array([0, 2, 2, 2])
    assert predict_constant(classes, num_rows=1, num_outputs=3).tolist() == [[0.25, 0, 0.75]]


def test_d9_tfidf_learns_words() -> None:
    texts = ["bad crisis loss", "calm profit growth"] * 10
    scores = np.array([[9.0], [1.0]] * 10)
    found = predict_tfidf(texts, scores, texts=["crisis and loss", "growth"], num_outputs=1)
    assert found[0, 0] > 6 > 4 > found[1, 0]
    classes = np.array([2, 0] * 10)
    probs = predict_tfidf(texts, classes, texts=["crisis and loss"], num_outputs=3)
    assert probs.argmax() == 2
    assert probs[0, 1] == 0.0  # a class that train never shows


def test_tfidf_copes_with_texts_that_share_no_word() -> None:
    found = predict_tfidf(["a", "b"], np.array([0, 0]), texts=["c"], num_outputs=2)
    assert found.tolist() == [[1.0, 0.0]]


LABELS = np.array([[True, False, True, False], [False, True, True, False]] * 10)
"""Of bad and of good texts; the third applies to every row and the fourth to none."""


def test_d9_labels_have_their_frequencies_for_a_baseline() -> None:
    found = predict_constant(LABELS, num_rows=2, num_outputs=4)
    assert found.tolist() == [[0.5, 0.5, 1, 0]] * 2


def test_d9_tfidf_learns_every_label_for_itself() -> None:
    texts = ["bad crisis loss", "calm profit growth"] * 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probs = predict_tfidf(texts, LABELS, texts=["crisis loss", "growth"], num_outputs=4)
    assert ((probs >= 0.5) == [[True, False, True, False], [False, True, True, False]]).all()
    assert probs[:, 2:].tolist() == [[1, 0], [1, 0]]  # always and never
    both = predict_tfidf(["a b", "c d"] * 9, np.ones((18, 2), bool), texts=["a"], num_outputs=2)
    assert both.tolist() == [[1, 1]]


def make_task(labels: LabelsConfig, **fields: str) -> Task:
    return Task(
        name="t", sources=[SourceConfig(path="x.jsonl")], labels=labels, output="prepared",
        fields=FieldsConfig(**fields),
    )  # fmt: skip


def open_all(rows: list[Row], *, names: list[str], task: Task) -> LabelledRows:
    labels = make_targets(rows, label_names=names).numpy()
    return LabelledRows(rows, labels, None, names, task.labels)


def measure_baselines(
    rows: list[Row], *, names: list[str], task: Task, fit: PostHocFit | None = None
) -> dict[str, Measurement]:
    """Measure the baselines on the rows that they are fitted on."""
    opened = open_all(rows, names=names, task=task)
    found = predict_baselines(opened, train_rows=rows, val_rows=rows, task=task, fit=fit)
    return {name: opened.measure([outputs])[0] for name, outputs in found.items()}


def test_d9_the_baselines_read_the_text_pair_as_the_model_does() -> None:
    motives = {"x": "crisis", "y": "profit"}
    rows = [
        {"text": f"act {i}", "motive": word, "labels": [label]}
        for i in range(6)
        for label, word in motives.items()
    ]
    task = make_task(SEVERAL, text_pair="motive")
    found = measure_baselines(rows, names=["x", "y"], task=task)
    assert found["tfidf"].metrics["accuracy"] == 1


def test_d9_baselines_are_measured_as_the_models_are() -> None:
    scores = [{"text": f"bad {i}", "labels": {"a": 9.0, "b": 8.0}} for i in range(6)]
    scores += [{"text": f"calm {i}", "labels": {"a": 1.0, "b": 0.0}} for i in range(5)]
    tiered = make_task(make_scores_config(tiers={"low": 0, "high": 5}))
    found = measure_baselines(scores, names=["a", "b"], task=tiered)
    assert found["constant"].metrics["tier_accuracy"] == pytest.approx(6 / 11)
    assert found["tfidf"].metrics["tier_accuracy"] == 1

    several = [{"text": f"bad {i}", "labels": ["x"]} for i in range(6)]
    several += [{"text": f"calm {i}", "labels": ["x", "y"]} for i in range(5)]
    measured = measure_baselines(several, names=["x", "y"], task=make_task(SEVERAL))
    assert measured["constant"].metrics["accuracy"] == pytest.approx(6 / 11)
    assert measured["tfidf"].metrics["accuracy"] == 1
    assert measured["tfidf"].parts["x"]["roc_auc"] is None


def make_fit(method: str, head: str, **fitted: object) -> PostHocFit:
    return PostHocFit(
        method=method, head=head, num_rows=9, model_hash="m", data_fingerprint="d", **fitted
    )  # fmt: skip


def test_d9_the_baselines_get_thresholds_as_the_run_has_them() -> None:
    """Of 200 texts every tenth is rare; its word has a probability below a half."""
    rows = [
        {"text": f"fine day {i}" if i % 10 else "storm day", "labels": ["x"] if i % 10 else ["y"]}
        for i in range(200)
    ]
    rows += [{"text": "storm day", "labels": ["x"]} for _ in range(30)]
    task = make_task(SEVERAL)
    plain = measure_baselines(rows, names=["x", "y"], task=task)
    thresholds = make_fit("f1", "multilabel", thresholds={"x": 0.9, "y": 0.9})
    fitted = measure_baselines(rows, names=["x", "y"], task=task, fit=thresholds)
    assert plain["tfidf"].parts["y"]["recall"] == 0
    assert fitted["tfidf"].parts["y"]["recall"] == 1, "thresholds of its own, not the run's"


def test_d9_calibrators_do_not_move_the_best_constant() -> None:
    rows = [
        {"text": f"bad {i}" if s > 2 else f"calm {i}", "labels": {"a": s, "b": s}}
        for i, s in enumerate([0.0, 1.0, 1.0, 9.0] * 6)
    ]
    curve = {"x": [0.0, 1.0], "y": [0.0, 0.0]}
    fit = make_fit("isotonic", "regression", curves={"a": curve, "b": curve})
    task = make_task(make_scores_config())
    plain = measure_baselines(rows, names=["a", "b"], task=task)
    fitted = measure_baselines(rows, names=["a", "b"], task=task, fit=fit)
    assert fitted["constant"] == plain["constant"]
    assert fitted["tfidf"].metrics["mae"] < plain["tfidf"].metrics["mae"]


@pytest.mark.parametrize(("sign", "finding"), [(1, "better"), (-1, "worse")])
def test_gains_over_baselines_are_paired_and_have_a_sign(sign: int, finding: str) -> None:
    generator = np.random.default_rng(3)
    labels = generator.uniform(0, 10, (60, 2)).astype(np.float32)
    noise = generator.normal(0, 1, (60, 2))
    good, bad = labels + 0.2 * noise, labels + noise
    config = make_scores_config()
    rows = LabelledRows([{"id": str(i)} for i in range(60)], labels, None, ["a", "b"], config)
    own, other = (good, bad) if sign == 1 else (bad, good)
    found = measure_gains({"tfidf": other, "constant": np.tile(labels.mean(0), (60, 1))},
                          {"v": [own], "w": [own]}, rows, metric="mae")  # fmt: skip
    gain = found["v"]["tfidf"]
    difference = np.abs(other - labels).mean() - np.abs(own - labels).mean()
    assert gain.gain == pytest.approx(difference, abs=1e-6)
    assert gain.finding == finding
    assert found["w"]["tfidf"].gain == gain.gain
    assert found["v"]["constant"].finding == "better"
    ranked = measure_gains({"constant": np.zeros((60, 2))}, {"v": [own]}, rows, metric="spearman")
    assert ranked == {"v": {}}, "a constant has no rank correlation"
