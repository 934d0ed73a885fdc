"""The tables of a results file, for every type of labels."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from pydantic import TypeAdapter

from llmft.config.task import (
    ClassConfig,
    LabelsConfig,
    MultilabelConfig,
    ScoresConfig,
    SourceConfig,
    Task,
)
from llmft.data.prepared import PreparedData
from llmft.evaluation.baselines import measure_gains
from llmft.evaluation.rows import (
    LabelledRows,
    compute_row_errors,
    count_confusions,
    count_label_confusions,
    count_tier_confusions,
    describe_rows,
    open_rows,
    pick_worst,
)
from llmft.metrics.definitions import measure
from llmft.prediction.post_hoc_fit import FinalOutputs, weigh_classes
from llmft.results.evaluation import RowResult, TierConfusion

SEVERAL = MultilabelConfig.model_validate({"type": "multilabel", "from": ["x", "y"]})


def make_scores_config(**given) -> ScoresConfig:
    return ScoresConfig.model_validate(
        {"type": "scores", "from": "s", "dimensions": ["a", "b"], **given}
    )


def test_confusions_of_classes_are_summed_over_runs() -> None:
    labels = np.array([0, 1, 1])
    runs = [np.eye(2)[[0, 1, 0]], np.eye(2)[[0, 1, 1]]]
    assert count_confusions(labels, runs, num_classes=2) == [[2, 0], [1, 3]]  # rows are true


def test_every_label_has_its_own_confusions() -> None:
    labels = np.array([[True, False], [True, True], [False, False]])
    outputs = np.array([[0.9, 0.5], [0.1, 0.8], [0.2, 0.1]])
    found = count_label_confusions(labels, [outputs, outputs], names=["x", "y"])
    assert found == {"x": [[2, 0], [2, 2]], "y": [[2, 2], [0, 2]]}


def test_tiers_are_confused_by_the_overall_score() -> None:
    labels = np.array([[0.0, 2.0], [8.0, 9.0], [4.0, 5.0]], dtype=np.float32)
    outputs = np.array([[0.0, 0.0], [6.0, 6.0], [4.0, 2.0]], dtype=np.float32)
    config = make_scores_config(tiers={"low": 0, "middle": 4, "high": 7})
    assert count_tier_confusions(labels, [outputs], config) == TierConfusion(
        names=["low", "middle", "high"], confusion_matrix=[[1, 0, 0], [1, 0, 0], [0, 1, 0]]
    )
    assert count_tier_confusions(labels, [outputs], make_scores_config()) is None


def test_a_row_of_labels_is_as_wrong_as_what_it_gives_to_what_is_not_true() -> None:
    labels = np.array([[True, False], [False, False]])
    outputs = np.array([[0.9, 0.5], [0.0, 0.8]], dtype=np.float32)
    assert compute_row_errors(labels, outputs) == pytest.approx([0.3, 0.4])
    rows = [
        {"id": "r1", "text": "one", "labels": ["x"]},
        {"id": "r2", "text": "two", "labels": []},
    ]
    found = {"variant": [FinalOutputs(outputs, outputs)]}
    described = describe_rows(rows, labels, found, names=["x", "y"], slices=[{"tier": "a"}, {}])
    assert described[0] == RowResult(
        id="r1", labels=["x"], outputs={"variant": [0.9, 0.5]}, errors={"variant": 0.3},
        predicted={"variant": ["x", "y"]}, text="one", slices={"tier": "a"},
    )  # fmt: skip
    assert [row.id for row in pick_worst(described)] == ["r2", "r1"]


def test_d10_the_errors_of_rows_have_the_mean_that_the_metric_has() -> None:
    labels = np.zeros((1, 1), dtype=np.float32)
    runs = [FinalOutputs(o, o) for o in (np.array([[2.0]]), np.array([[-1.0]]))]
    rows = [{"id": "r", "text": "", "labels": {"x": 0.0}}]
    (row,) = describe_rows(rows, labels, {"variant": runs}, names=["x"])
    assert row.predicted == {}
    assert row.outputs == {"variant": [0.5]}
    assert row.errors == {"variant": 1.5}  # mae of the runs: 2 and 1


def test_d10_a_row_is_predicted_by_the_thresholds_as_the_metrics_are() -> None:
    rows = [{"id": "r", "text": "", "labels": "calm"}]
    probs = np.array([[0.6, 0.4]])
    runs = [FinalOutputs(probs, weigh_classes(probs, np.array([0.5, t]))) for t in (0.2, 0.3)]
    (row,) = describe_rows(rows, np.array([0]), {"variant": runs}, names=["calm", "loud"])
    assert row.outputs == {"variant": [0.6, 0.4]}
    assert row.predicted == {"variant": "loud"}
    assert measure(np.array([0]), runs[0].decision_scores_NC, names=["calm", "loud"]).metrics[
        "accuracy"
    ] == 0  # fmt: skip


def test_d24_classes_that_the_model_does_not_know_are_out_of_order() -> None:
    labels = {"type": "class", "from": "x", "order": ["bad", "poor", "good"]}
    task = Task(
        name="t", sources=[SourceConfig(path="x.jsonl")], output="prepared",
        labels=ClassConfig.model_validate(labels),
    )  # fmt: skip
    data = cast(PreparedData, SimpleNamespace(label_names=["poor", "good"], task=task))
    rows = [{"id": str(i), "labels": name} for i, name in enumerate(["poor", "good", "bad"])]
    known, all_rows = open_rows(rows[:2], data), open_rows(rows, data, unknown=["bad"])
    assert (all_rows.names, list(all_rows.labels)) == (["poor", "good", "bad"], [0, 1, 2])
    outputs = np.eye(3)[[0, 1, 1]]
    assert known.measure([outputs[:2, :2]])[0].metrics["quadratic_kappa"] == 1
    assert "quadratic_kappa" not in all_rows.measure([outputs])[0].metrics
    gains = measure_gains(
        {"tfidf": outputs[::-1]}, {"v": [outputs]}, all_rows, metric="quadratic_kappa"
    )
    assert gains == {"v": {}}


@pytest.mark.parametrize(
    ("labels", "config"),
    [
        (np.zeros(60, dtype=np.int64), {"type": "class", "from": "x"}),
        (np.full((60, 2), 3.0), {"type": "scores", "dimensions": ["a", "b"]}),
        (np.ones((60, 2), dtype=bool), {"type": "multilabel", "from": ["a", "b"]}),
    ],
)
def test_d24_rows_whose_labels_do_not_vary_tell_nothing(labels, config) -> None:
    parsed = TypeAdapter(LabelsConfig).validate_python(config)
    rows = LabelledRows([{"id": str(i)} for i in range(60)], labels, None, ["a", "b"], parsed)
    assert "all rows have the same labels" in str(rows.shortage)
    gates = ["accuracy"] if config["type"] == "class" else ["convergence"]
    assert all(rows.find_shortages(gates, metric="accuracy").values())
    varied = labels.copy()
    varied[::2] = 1 - varied[::2]
    assert rows._replace(labels=varied).shortage is None
