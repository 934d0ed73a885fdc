"""The metric on parts of the rows: which rows a slice holds, and what is said of it."""

from typing import Any

import numpy as np
import pytest

from llmft.config.task import ClassConfig, MultilabelConfig, ScoresConfig
from llmft.evaluation.slices import list_row_slices, measure_slices, slice_rows
from llmft.metrics.definitions import compute_metric
from llmft.results.evaluation import MetricValue
from llmft.statistics.intervals import estimate_interval

RNG = np.random.default_rng(5)
TIERED = ScoresConfig.model_validate(
    {"type": "scores", "from": "x", "dimensions": ["a", "b"], "tiers": {"low": 0, "high": 5}}
)
PLAIN = ScoresConfig.model_validate({"type": "scores", "from": "x", "dimensions": ["a", "b"]})
CLASSES = ClassConfig.model_validate({"type": "class", "from": "y"})


def make_rows(num_words: list[int], **fields: list[str]) -> list[dict[str, Any]]:
    return [
        {"text": "word " * n, **{name: values[i] for name, values in fields.items()}}
        for i, n in enumerate(num_words)
    ]


def count(slicing: Any) -> dict[str, int]:
    return {value: slicing.by_row.count(value) for value in slicing.values}


def test_a_field_gives_its_eight_most_frequent_values_the_rest_and_the_rows_without() -> None:
    values = [f"v{i}" for i in range(10) for _ in range(12 - i)] + ["", ""]
    rows = make_rows([3] * len(values), source=values)
    del rows[-1]["source"]  # absent is as good as empty
    (found,) = slice_rows(rows, np.zeros((len(rows), 2)), fields=["source", "source"],
                          names=["a", "b"], config=PLAIN)  # fmt: skip
    expected = {f"v{i}": 12 - i for i in range(8)} | {"other": 4 + 3, "none": 2}
    assert count(found) == expected
    assert list(count(found)) == list(expected)
    assert not found.is_true_label


def test_values_that_are_called_other_and_none_stay_apart() -> None:
    values = ["other"] * 3 + ["none"] * 3 + [c for c in "abcdef" for _ in range(3)] + ["z", ""]
    rows = make_rows([3] * len(values), topic=values)
    (found,) = slice_rows(rows, np.zeros((len(rows), 2)), fields=["topic"], names=["a", "b"],
                          config=PLAIN)  # fmt: skip
    counts = count(found)
    assert (counts["other"], counts["none"]) == (3, 3)
    assert (counts["other values"], counts["no value"]) == (1, 1)


def test_lengths_are_thirds_with_round_limits() -> None:
    rows = make_rows([*range(1, 39), *range(110, 148), *range(300, 338)])
    (found,) = slice_rows(rows, np.zeros((114, 2)), fields=[], names=["a", "b"], config=PLAIN)
    assert found.name == "length"
    # Between the lumps the thirds end at 38 + 2/3 of 72 and 147 + 1/3 of 153: 86 and 198.
    assert count(found) == {"up to 85 words": 38, "86 to 200 words": 38, "over 200 words": 38}
    assert [found.by_row[i] for i in (0, -1)] == ["up to 85 words", "over 200 words"]


@pytest.mark.parametrize(
    ("num_words", "expected"),
    [
        ([1, 2, 2, 2, 9], {"up to 2 words": 4, "over 2 words": 1}),  # both thirds at 2
        ([0, 0, 7, 7], {"up to 0 words": 2, "1 to 7 words": 2}),
    ],
)
def test_lengths_that_hardly_vary_have_fewer_slices(
    num_words: list[int], expected: dict[str, int]
) -> None:
    labels = np.zeros((len(num_words), 2))
    (found,) = slice_rows(make_rows(num_words), labels, fields=[], names=["a"], config=PLAIN)
    assert count(found) == expected


def test_equal_lengths_are_no_slices_and_a_field_may_be_called_length() -> None:
    rows = make_rows([4] * 6, length=["short"] * 6)
    labels = np.zeros((6, 2))
    assert slice_rows(rows, labels, fields=[], names=["a", "b"], config=PLAIN) == []
    rows = make_rows([1, 1, 1, 9, 9, 9], length=["short"] * 6)
    (found,) = slice_rows(rows, labels, fields=["length"], names=["a", "b"], config=PLAIN)
    assert count(found) == {"short": 6}


def test_true_tiers_and_classes_stand_in_their_order() -> None:
    rows = make_rows([4] * 4)
    labels = np.array([[9.0, 9], [8, 8], [6, 6], [1, 1]])
    (tiers,) = slice_rows(rows, labels, fields=[], names=["a", "b"], config=TIERED)
    assert (tiers.name, count(tiers)) == ("true tier", {"low": 1, "high": 3})
    names = [f"c{i}" for i in range(10)] + ["none"]
    true = np.array([10, 0, 1, 2, 3, 4, 5, 6, 9, 9, 9, 10, 10, 10, 10])
    (classes,) = slice_rows(make_rows([4] * 15), true, fields=[], names=names, config=CLASSES)
    assert list(count(classes)) == ["c0", "c1", "c2", "c3", "c4", "c5", "c9", "none", "other"]
    assert (count(classes)["none"], count(classes)["other"]) == (5, 1)
    several = MultilabelConfig.model_validate({"type": "multilabel", "from": ["p", "q"]})
    marks = np.ones((4, 2), dtype=bool)
    assert slice_rows(rows, marks, fields=[], names=["p", "q"], config=several) == []


def test_a_slice_has_the_metric_and_interval_of_its_rows() -> None:
    labels = RNG.uniform(0, 10, size=(90, 2))
    variants = {
        "one": [labels + RNG.normal(size=(90, 2))],
        "two": [labels + RNG.normal(size=(90, 2)) for _ in range(3)],
    }
    language = ["en"] * 60 + ["nl"] * 29 + ["de"]
    rows = make_rows([4] * 90, language=language)
    slicings = slice_rows(rows, labels, fields=["language"], names=["a", "b"], config=TIERED)
    languages, tiers = measure_slices(slicings, labels, variants, metric="mae", config=TIERED)
    assert [(v.value, v.num_rows) for v in languages.values] == [
        ("en", 60), ("nl", 29), ("de", 1),
    ]  # fmt: skip
    for variant, runs in variants.items():
        for value, rows_M in (("en", slice(0, 60)), ("nl", slice(60, 89))):
            of_slice = [o[rows_M] for o in runs]
            found = next(v for v in languages.values if v.value == value).metrics[variant]
            expected = np.mean([compute_metric("mae", labels[rows_M], o) for o in of_slice])
            assert found.value == pytest.approx(expected)
            assert found.interval == estimate_interval("mae", labels[rows_M], of_slice)
            assert found.interval.low < found.value < found.interval.high
        alone = languages.values[2].metrics[variant]
        assert alone.value is not None
        assert alone.interval is None  # one row says nothing of another
    assert sum(v.num_rows for v in tiers.values) == 90


def test_a_small_slice_is_shown_with_a_wide_interval() -> None:
    labels = np.zeros(65, dtype=int)
    probs = np.eye(2)[[0] * 60 + [0, 0, 0, 0, 1]]
    rows = make_rows([4] * 65, source=["big"] * 60 + ["small"] * 5)
    slicings = slice_rows(rows, labels, fields=["source"], names=["n", "y"], config=CLASSES)
    (table,) = measure_slices(
        slicings, labels, {"variant": [probs]}, metric="accuracy", config=CLASSES
    )
    small = table.values[1]
    assert (small.value, small.num_rows) == ("small", 5)
    assert small.metrics["variant"].value == 0.8
    # Clopper and Pearson of 4 in 5
    assert small.metrics["variant"].interval == pytest.approx((0.2836, 0.9949), abs=1e-4)


def test_within_a_true_class_the_accuracy_stands_for_metrics_of_balance_and_order() -> None:
    labels = np.repeat([0, 1, 2], 20)
    probs = RNG.dirichlet(np.ones(3), size=60)
    rows = make_rows([4] * 60, half=["x", "y"] * 30)
    slicings = slice_rows(rows, labels, fields=["half"], names=list("abc"), config=CLASSES)
    halves, classes = measure_slices(
        slicings, labels, {"variant": [probs]}, metric="f1_macro", config=CLASSES
    )
    assert (halves.metric, classes.metric) == ("f1_macro", "accuracy")
    recall = (probs[:20].argmax(axis=1) == 0).mean()
    assert classes.values[0].metrics["variant"].value == pytest.approx(recall)


def test_an_undefined_metric_has_neither_value_nor_interval() -> None:
    labels = np.array([0] * 30 + [0, 1] * 15)
    probs = RNG.dirichlet(np.ones(2), size=60)
    rows = make_rows([4] * 60, source=["one class"] * 30 + ["two"] * 30)
    slicings = slice_rows(rows, labels, fields=["source"], names=["n", "y"], config=CLASSES)
    table, _ = measure_slices(slicings, labels, {"a": [probs]}, metric="roc_auc", config=CLASSES)
    assert table.values[0].metrics["a"] == MetricValue(value=None, interval=None)
    assert table.values[1].metrics["a"].value is not None


def test_every_row_names_its_slices() -> None:
    rows = make_rows([4] * 4, language=["en", "en", "nl", ""])
    labels = np.array([[9.0, 9], [8, 8], [6, 6], [1, 1]])
    slicings = slice_rows(rows, labels, fields=["language"], names=["a", "b"], config=TIERED)
    assert list_row_slices(slicings, num_rows=4) == [
        {"language": "en", "true tier": "high"},
        {"language": "en", "true tier": "high"},
        {"language": "nl", "true tier": "high"},
        {"language": "none", "true tier": "low"},
    ]


def test_rows_of_one_group_count_as_one_in_a_slice() -> None:
    of_group = RNG.normal(size=30)
    labels, errors = np.zeros((120, 1)), np.abs(np.repeat(of_group, 4))[:, None]
    rows = make_rows([4] * 120, source=["x"] * 60 + ["y"] * 56 + ["z"] * 4)
    slicings = slice_rows(rows, labels, fields=["source"], names=["a"], config=PLAIN)

    def measure(groups: np.ndarray | None) -> list[tuple[float, float] | None]:
        (table,) = measure_slices(
            slicings, labels, {"variant": [errors]}, metric="mae", config=PLAIN, groups=groups
        )
        return [value.metrics["variant"].interval for value in table.values]

    alone, clustered = measure(None), measure(np.arange(120) // 4)
    for one, other in zip(alone[:2], clustered[:2], strict=True):
        ratio = (other[1] - other[0]) / (one[1] - one[0])
        assert 1.6 < ratio < 3.2  # four equal rows: twice the standard error, and fewer of them
    assert alone[2] is not None
    assert clustered[2] is None  # the slice is a single group


@pytest.mark.parametrize(
    ("values", "slices"),
    [
        ([0, 0, 1], {"0": 2, "1": 1}),
        ([False, True, True], {"true": 2, "false": 1}),
        ([0.0, None, float("nan")], {"0": 1, "none": 2}),
    ],
)
def test_zero_and_false_are_values_and_null_is_none(
    values: list[Any], slices: dict[str, int]
) -> None:
    rows = make_rows([3] * 3, kept=values)
    (found,) = slice_rows(rows, np.zeros((3, 2)), fields=["kept"], names=["a", "b"], config=PLAIN)
    assert count(found) == slices
