"""Curves are scikit-learn's; thresholds are the best of all that there are."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import f1_score, precision_score, recall_score

from llmft.evaluation.post_hoc_fitting import (
    choose_threshold,
    fit_calibrators,
    fit_class_thresholds,
    fit_label_thresholds,
)
from llmft.metrics.definitions import compute_metric
from llmft.prediction.post_hoc_fit import apply_fit
from llmft.results.run import PostHocFit

PROVENANCE = {"llmft_version": "0", "num_rows": 1, "model_hash": "m", "data_fingerprint": "f"}


def make_fit(method: str, head: str, **found: object) -> PostHocFit:
    return PostHocFit.model_validate({**PROVENANCE, "method": method, "head": head, **found})


def draw_scored(seed: int, num_rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return what is true and scores that say something of it, with ties."""
    generator = np.random.default_rng(seed)
    true = generator.random(num_rows) < 0.3
    scores = np.clip(generator.normal(0.25 + 0.2 * true, 0.15), 0, 1).round(2)
    return true, scores.astype(np.float32)


def test_curves_predict_what_scikit_learn_predicts() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 11, size=(200, 2)).astype(np.float64)
    outputs = (4 + 0.3 * labels + generator.normal(size=labels.shape)).astype(np.float32)
    names, new = ["risk", "calm"], generator.normal(5, 4, size=(500, 2)).astype(np.float32)
    curves = fit_calibrators(labels, outputs, names=names)
    found = apply_fit(new, make_fit("isotonic", "regression", curves=curves)).probabilities_NC
    for i in range(2):
        theirs = IsotonicRegression(out_of_bounds="clip")
        theirs.fit(outputs[:, i].astype(np.float64), labels[:, i])
        assert found[:, i] == pytest.approx(theirs.predict(new[:, i].astype(np.float64)))
    assert found.min() >= 0 and found.max() <= 10


def test_a_curve_pools_the_scores_that_are_in_the_wrong_order() -> None:
    labels, outputs = np.array([[1.0], [3.0], [2.0], [6.0]]), np.array([[1.0], [2.0], [3.0], [4.0]])
    (curve,) = fit_calibrators(labels, outputs, names=["risk"]).values()
    assert (curve.x, curve.y) == ([1, 2, 3, 4], [1, 2.5, 2.5, 6])


def test_a_constant_gets_the_mean_of_the_labels() -> None:
    (curve,) = fit_calibrators(
        np.array([[1.0], [4.0]]), np.full((2, 1), 3.0), names=["risk"]
    ).values()
    assert (curve.x, curve.y) == ([3], [2.5])


@pytest.mark.parametrize("seed", range(8))
def test_no_threshold_has_a_higher_f1(seed: int) -> None:
    true, scores = draw_scored(seed)
    found, _ = choose_threshold(true, scores)
    every = [f1_score(true, scores >= t, zero_division=0) for t in np.unique(scores) if t > 0]
    assert f1_score(true, scores >= found) == pytest.approx(max(every))
    assert not np.isclose(scores, found).any() or found == 0.5


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_recall", [0.5, 0.9])
def test_no_threshold_that_keeps_the_recall_has_a_higher_precision(
    seed: int, min_recall: float
) -> None:
    true, scores = draw_scored(seed)
    found, is_kept = choose_threshold(true, scores, min_recall=min_recall)
    every = [scores >= t for t in np.unique(scores) if t > 0]
    if not is_kept:
        assert max(recall_score(true, hits) for hits in every) < min_recall
        return
    keeping = [
        precision_score(true, hits) for hits in every if recall_score(true, hits) >= min_recall
    ]
    assert recall_score(true, scores >= found) >= min_recall
    assert precision_score(true, scores >= found) == pytest.approx(max(keeping))


@pytest.mark.parametrize(
    ("true", "scores", "threshold"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9], 0.25),  # halfway between the last no and the first yes
        ([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], 0.5),  # 0.5 does as well
        ([1, 1, 0, 0], [0.2, 0.2, 0.2, 0.2], 0.1),  # all are taken, or none
        ([0, 1, 0, 1], [0.1, 0.6, 0.6, 0.6], 0.5),  # ties stay together
        ([1, 0], [0.0, 0.7], 0.5),  # the only hit has no chance
        ([1, 0], [0.0, 0.0], 0.5),
    ],
)
def test_thresholds_by_hand(true: list[int], scores: list[float], threshold: float) -> None:
    found, _ = choose_threshold(np.array(true, dtype=bool), np.array(scores))
    assert found == pytest.approx(threshold)


def test_a_recall_out_of_reach_is_said_and_the_highest_is_taken() -> None:
    labels = np.array([[True], [True], [False]])
    found = fit_label_thresholds(
        labels, np.array([[0.0], [0.4], [0.2]]), names=["law"], min_recall=0.9
    )
    assert found.values == {"law": pytest.approx(0.3)}
    (warning,) = found.warnings
    assert "law: no threshold has a recall of 0.9" in warning


def test_a_label_that_never_or_always_applies_gets_the_threshold_of_all() -> None:
    labels = np.array([[False, True, True], [False, True, False]] * 5)
    probs = np.array([[0.1, 0.7, 0.6], [0.2, 0.8, 0.2]] * 5, dtype=np.float32)
    found = fit_label_thresholds(labels, probs, names=["a", "b", "c"])
    of_all, _ = choose_threshold(labels.ravel(), probs.ravel())
    assert [found.values[name] for name in ("a", "b")] == pytest.approx([of_all] * 2)
    assert [w.split(" of val")[0] for w in found.warnings] == ["a: no row", "b: every row"]
    nothing = fit_label_thresholds(labels[:, :1], probs[:, :1], names=["a"])
    assert nothing.values == {"a": 0.5}


def test_the_fewer_rows_a_label_has_the_nearer_its_threshold_is_to_that_of_all() -> None:
    """By itself each label would get what its few rows happen to have."""
    labels, probs = np.zeros((400, 3), dtype=bool), np.full((400, 3), 0.05, dtype=np.float32)
    for column, (count, prob) in enumerate([(200, 0.8), (40, 0.3), (2, 0.3)]):
        labels[:count, column] = True
        probs[:count, column] = prob
    found = fit_label_thresholds(labels, probs, names=["often", "some", "rare"]).values
    of_all, _ = choose_threshold(labels.ravel(), probs.ravel())
    alone = {name: choose_threshold(labels[:, i], probs[:, i])[0] for i, name in enumerate(found)}
    odds = {name: np.log(t / (1 - t)) for name, t in {**found, "all": of_all}.items()}
    own = {name: np.log(t / (1 - t)) for name, t in alone.items()}
    for name, count in (("often", 200), ("some", 40), ("rare", 2)):
        weight = count / (count + 10)
        expected = weight * own[name] + (1 - weight) * odds["all"]
        assert odds[name] == pytest.approx(expected)
    by_recall = fit_label_thresholds(labels, probs, names=["often", "some", "rare"], min_recall=0.9)
    assert by_recall.values["rare"] == pytest.approx(alone["rare"])


def test_of_two_classes_the_last_ones_probability_is_judged() -> None:
    true, scores = draw_scored(5, 200)
    probs = np.stack([1 - scores, scores], axis=1)
    found = fit_class_thresholds(true.astype(np.int64), probs, names=["no", "yes"])
    alone, _ = choose_threshold(true, scores)
    assert found.values == {"no": 0.5, "yes": pytest.approx(alone, abs=1e-6)}
    fit = make_fit("f1", "binary", thresholds=found.values)
    chosen = apply_fit(probs, fit).decision_scores_NC.argmax(axis=1)
    assert f1_score(true, chosen) > f1_score(true, probs.argmax(axis=1))


def test_a_class_that_is_too_shy_gains_and_one_without_rows_stays() -> None:
    """The model never names the rare class c, but is surer of it where it is true."""
    generator = np.random.default_rng(1)
    labels = generator.choice(3, size=600, p=[0.5, 0.4, 0.1])
    probs = np.full((600, 4), 0.01)
    probs[np.arange(600), labels] += 0.5
    probs[:, 2] = np.where(labels == 2, 0.25, 0.1)
    probs[labels == 2, :2] += generator.random(((labels == 2).sum(), 2)) * 0.2 + 0.3
    probs = (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
    assert not (probs.argmax(axis=1) == 2).any()
    found = fit_class_thresholds(labels, probs, names=["a", "b", "c", "d"])
    assert found.values["d"] == 0.5
    assert found.warnings == [
        "d: no row of val has this label, so its threshold is not fitted to it"
    ]
    assert found.values["c"] < 0.4
    fit = make_fit("f1", "multiclass", thresholds=found.values)
    fitted = apply_fit(probs, fit).decision_scores_NC
    assert compute_metric("f1_macro", labels, probs) < 0.7
    assert compute_metric("f1_macro", labels, fitted) == pytest.approx(1)
    for metric in ("roc_auc", "average_precision"):  # the order of the rows is the model's
        assert compute_metric(metric, labels, fitted) == compute_metric(metric, labels, probs)


def draw_classes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 5 classes, one of them rare, and probabilities that tell something of them."""
    generator = np.random.default_rng(seed)
    labels = np.append(np.arange(5), generator.choice(5, size=75, p=[0.4, 0.3, 0.14, 0.14, 0.02]))
    logits = generator.normal(size=(80, 5)) + np.eye(5)[labels] - np.arange(5) / 4
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probs.astype(np.float32)


def decide(probs: np.ndarray, thresholds: dict[str, float]) -> np.ndarray:
    fit = make_fit("f1", "multiclass", thresholds=thresholds)
    return apply_fit(probs, fit).decision_scores_NC.argmax(axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_no_single_threshold_of_many_classes_has_a_higher_f1(seed: int) -> None:
    labels, probs = draw_classes(seed)
    found = fit_class_thresholds(labels, probs, names=list("abcde")).values
    best = f1_score(labels, decide(probs, found), average="macro", zero_division=0)
    assert best > f1_score(labels, probs.argmax(axis=1), average="macro", zero_division=0)
    for name in "abcde":
        for threshold in np.linspace(0.02, 0.98, 17):
            chosen = decide(probs, {**found, name: threshold})
            other = f1_score(labels, chosen, average="macro", zero_division=0)
            assert other <= best + 1e-9, (name, threshold)


@pytest.mark.parametrize("seed", range(3))
def test_recalls_of_many_classes_come_as_close_as_they_can(seed: int) -> None:
    labels, probs = draw_classes(seed)

    def judge(chosen: np.ndarray) -> tuple[float, float]:
        scored = {"labels": range(5), "average": None, "zero_division": 0}
        recalls = recall_score(labels, chosen, **scored)
        kept = float(np.minimum(recalls, 0.6).mean().round(9))
        return kept, float(precision_score(labels, chosen, **scored).mean().round(9))

    found = fit_class_thresholds(labels, probs, names=list("abcde"), min_recall=0.6)
    best = judge(decide(probs, found.values))
    assert best >= judge(probs.argmax(axis=1))
    for name in "abcde":
        for threshold in np.linspace(0.02, 0.98, 17):
            assert judge(decide(probs, {**found.values, name: threshold})) <= best
    recalls = recall_score(labels, decide(probs, found.values), average=None)
    assert [w[0] for w in found.warnings] == [
        name for name, recall in zip("abcde", recalls, strict=True) if recall < 0.6
    ]


def test_certainty_breaks_nothing() -> None:
    labels, probs = np.array([0, 1, 2, 2]), np.eye(3)[[0, 1, 1, 2]]
    for min_recall in (None, 0.9):
        found = fit_class_thresholds(labels, probs, names=list("abc"), min_recall=min_recall)
        assert found.values == dict.fromkeys("abc", 0.5)


def test_d7_what_a_threshold_gains_on_noise_is_gone_on_other_rows() -> None:
    """Scores that say nothing of 50 labels: on its own rows a fit promises what it cannot keep."""
    generator = np.random.default_rng(0)
    labels = generator.random((2, 30, 50)) < 0.4
    probs = generator.random((2, 30, 50)).astype(np.float32)
    names = [f"l{i}" for i in range(50)]
    alone = [choose_threshold(labels[0, :, i], probs[0, :, i])[0] for i in range(50)]
    fit = make_fit("f1", "multilabel", thresholds=dict(zip(names, alone, strict=True)))
    own, other = (
        compute_metric("f1_macro", labels[i], apply_fit(probs[i], fit).decision_scores_NC)
        for i in (0, 1)
    )
    assert own - other > 0.03
