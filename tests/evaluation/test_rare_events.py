"""Rare rows: lists of the highest, the decision, and exact intervals."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score

from llmft.config.task import ClassConfig, LabelsConfig, MultilabelConfig, ScoresConfig
from llmft.evaluation.rare_events import measure_rare
from llmft.statistics.intervals import bound_proportion

RNG = np.random.default_rng(7)
BINARY = ClassConfig.model_validate({"type": "class", "from": "y"})
ORDERED = ClassConfig.model_validate({"type": "class", "from": "y", "order": ["low", "mid", "top"]})
WEIGHTED = ScoresConfig.model_validate(
    {
        "type": "scores",
        "from": "x",
        "dimensions": ["a", "b"],
        "weights": {"a": 0.75, "b": 0.25},
        "tiers": {"noise": 0, "blue": 3, "red": 7},
    }
)
NAMES = {"binary": ["no", "yes"], "ordered": ["low", "mid", "top"], "scores": ["a", "b"]}


def measure(
    labels: np.ndarray, runs: list[np.ndarray], kind: str, config: LabelsConfig, **changes: Any
) -> Any:
    ids = changes.pop("ids", [f"row{i:03}" for i in range(len(labels))])
    found = measure_rare(
        labels, {"variant": runs}, ids=ids, names=NAMES[kind], config=config,
        **{"high": None, "top_k": [10, 50], **changes},
    )  # fmt: skip
    if found is not None:
        own = dict(found) | dict(found.variants["variant"])
        return SimpleNamespace(**own)
    return None


def make_probs(last: list[float]) -> np.ndarray:
    return np.stack([1 - np.array(last), np.array(last)], axis=1)


def test_precision_and_recall_at_k_are_counted_by_hand() -> None:
    labels = np.array([1, 0, 1, 0, 0, 0, 0, 0, 1, 0])
    probs = make_probs([0.9, 0.8, 0.7, 0.4, 0.3, 0.2, 0.1, 0.05, 0.04, 0.01])
    found = measure(labels, [probs], "binary", BINARY, top_k=[1, 2, 5, 6])
    assert (found.what, found.num_rows, found.num_high) == ("class yes", 10, 3)
    at_k = {item.k: (item.precision, item.recall) for item in found.at_k}
    # 6 is more than half of the rows; 3 rows are high
    assert at_k == {1: (1, 1 / 3), 2: (1 / 2, 1 / 3), 3: (2 / 3, 2 / 3), 5: (2 / 5, 2 / 3)}


def test_d15_lists_of_rows_in_clusters_are_as_certain_as_their_clusters() -> None:
    labels = np.array([1, 0] * 20)
    probs = make_probs([0.9, 0.2] * 10 + [0.1, 0.8] * 10)
    once = measure(labels, [probs], "binary", BINARY, top_k=[])
    clusters = np.repeat(np.arange(40), 5)
    many = [np.repeat(part, 5, axis=0) for part in (labels, probs)]
    taken = measure(many[0], [many[1]], "binary", BINARY, top_k=[])
    found = measure(many[0], [many[1]], "binary", BINARY, top_k=[], groups=clusters)
    for name in ("precision", "recall"):
        assert getattr(found, name) == getattr(once, name) == 0.5
        width, taken_width, once_width = (
            np.diff(getattr(f, f"{name}_interval"))[0] for f in (found, taken, once)
        )
        assert taken_width < 0.5 * once_width, "as if independent"
        assert width == pytest.approx(once_width, rel=0.2)
    flawless = measure(many[0], [make_probs(list(many[0]))], "binary", BINARY, groups=clusters)
    assert flawless.recall_interval == bound_proportion(20, 20), "20 clusters, not 100 rows"


def test_the_decision_agrees_with_scikit_learn() -> None:
    labels = (RNG.random(200) < 0.1).astype(int)
    probs = make_probs(list(np.clip(labels * 0.3 + RNG.random(200) * 0.6, 0, 1)))
    found = measure(labels, [probs], "binary", BINARY)
    predicted = probs.argmax(axis=1)
    assert found.precision == pytest.approx(precision_score(labels, predicted))
    assert found.recall == pytest.approx(recall_score(labels, predicted))


def test_d14_the_intervals_are_those_of_clopper_and_pearson() -> None:
    labels = np.array([1] * 10 + [0] * 90)
    probs = make_probs([0.9] * 10 + [0.1] * 90)
    found = measure(labels, [probs], "binary", BINARY, top_k=[20])
    assert found.recall == 1
    assert found.recall_interval == pytest.approx([0.025 ** (1 / 10), 1])
    of_20 = found.at_k[1]
    assert of_20.precision == 0.5
    assert of_20.precision_interval == pytest.approx([0.2720, 0.7280], abs=1e-4)  # 10 in 20
    # nothing found of 27 proves a share below 12.8 %, not 0 (the two-sided bound)
    nothing = measure(np.array([1] * 27 + [0] * 73), [make_probs([0.1] * 27 + [0.9] * 73)],
                      "binary", BINARY)  # fmt: skip
    assert nothing.recall == 0
    assert nothing.recall_interval == pytest.approx([0, 1 - 0.025 ** (1 / 27)])


def test_high_scores_reach_the_last_tier_or_the_bound_of_the_suite() -> None:
    labels = np.array([[8.0, 4], [7, 7], [9, 0], [2, 2], [5, 5], [0, 0]])
    # overall: 7.0, 7.0, 6.75, 2, 5, 0
    outputs = np.array([[7.0, 7], [6, 6], [8, 8], [1, 1], [9, 9], [0, 0]])
    found = measure(labels, [outputs], "scores", WEIGHTED, top_k=[1])
    assert (found.what, found.num_high) == ("overall score of at least 7", 2)
    assert (found.precision, found.recall) == (1 / 3, 1 / 2)  # called: rows 0, 2, 4
    assert [(item.k, item.precision) for item in found.at_k] == [(1, 0), (2, 0)]
    lower = measure(labels, [outputs], "scores", WEIGHTED, high=6.5)
    assert (lower.what, lower.num_high) == ("overall score of at least 6.5", 3)
    assert (lower.precision, lower.recall) == (2 / 3, 2 / 3)


def test_a_weighted_mean_of_equal_scores_reaches_them() -> None:
    """In float32 the mean of 6.9, 6.9 and 6.9 may come out below 6.9."""
    thirds = {"a": 0.1, "b": 0.2}
    config = WEIGHTED.model_copy(update={"weights": thirds, "tiers": None})
    labels = np.full((40, 2), 6.9, dtype=np.float32)
    found = measure(labels, [labels], "scores", config, high=6.9)
    assert (found.num_high, found.recall) == (40, 1)


def test_of_ordered_classes_the_last_is_high() -> None:
    labels = np.array([0, 1, 2, 2])
    probs = np.array([[0.8, 0.1, 0.1], [0.1, 0.4, 0.5], [0.1, 0.1, 0.8], [0.1, 0.5, 0.4]])
    found = measure(labels, [probs], "ordered", ORDERED, top_k=[1])
    assert found.what == "class top"
    assert (found.precision, found.recall) == (0.5, 0.5)
    assert [(i.k, i.precision, i.recall) for i in found.at_k] == [
        (1, 1, 0.5), (2, 0.5, 0.5),
    ]  # fmt: skip


def test_ties_stand_by_id_in_whatever_order_the_rows_come() -> None:
    labels = np.array([0, 1, 0, 1])
    probs = make_probs([0.5, 0.5, 0.5, 0.1])
    first = measure(labels, [probs], "binary", BINARY, top_k=[1], ids=["a", "b", "c", "d"])
    assert first.at_k[0].precision == 0
    renamed = measure(labels, [probs], "binary", BINARY, top_k=[1], ids=["b", "a", "c", "d"])
    assert renamed.at_k[0].precision == 1
    order = [2, 0, 3, 1]
    moved = measure(labels[order], [probs[order]], "binary", BINARY, top_k=[1],
                    ids=["c", "a", "d", "b"])  # fmt: skip
    assert moved.variants == first.variants


def test_more_seeds_do_not_find_more() -> None:
    labels = np.array([1, 0, 0, 0])
    one, two = make_probs([0.6, 0.9, 0.1, 0.1]), make_probs([0.8, 0.1, 0.1, 0.1])
    found = measure(labels, [one, two], "binary", BINARY, top_k=[1])
    assert found.at_k[0].precision == 0  # the mean of the two would find it
    assert found == measure(labels, [one], "binary", BINARY, top_k=[1])


def test_shares_of_no_rows_are_undefined() -> None:
    labels = np.zeros(8, dtype=int)
    found = measure(labels, [make_probs([0.1] * 8)], "binary", BINARY, top_k=[4, 5])
    assert found.num_high == 0
    assert (found.precision, found.precision_interval) == (None, None)
    assert (found.recall, found.recall_interval) == (None, None)
    (only,) = found.at_k  # 5 is more than half, and no row is high
    assert (only.k, only.precision, only.recall) == (4, 0, None)


def test_labels_without_a_high_end_have_no_rare_rows() -> None:
    classes, several = np.zeros(4, dtype=int), np.zeros((4, 2), dtype=bool)
    no_tiers = WEIGHTED.model_copy(update={"tiers": None})
    three = BINARY  # three classes without an order
    assert measure(classes, [np.eye(3)[classes]], "ordered", three) is None
    assert measure(np.zeros((4, 2)), [np.zeros((4, 2))], "scores", no_tiers) is None
    marked = MultilabelConfig.model_validate({"type": "multilabel", "from": ["a", "b"]})
    assert measure(several, [np.zeros((4, 2))], "scores", marked) is None
