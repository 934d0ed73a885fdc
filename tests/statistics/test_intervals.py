"""Intervals against closed forms, and differences on paired rows."""

import numpy as np
import pytest
from scipy import special, stats

from llmft.config.metrics import METRICS
from llmft.config.task import ClassConfig, LabelsConfig, ScoresConfig
from llmft.metrics.definitions import compute_metric
from llmft.results.evaluation import Interval
from llmft.statistics.intervals import (
    bootstrap_mean,
    bound_flawless,
    bound_proportion,
    estimate_interval,
    estimate_part_intervals,
)
from llmft.statistics.shortages import find_shortage
from tests.evaluation.shortcuts import compare_runs, jackknife_interval

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def _draw_again() -> None:
    """No test may depend on what others drew before it."""
    global RNG
    RNG = np.random.default_rng(3)


TIERED = ScoresConfig.model_validate(
    {"type": "scores", "from": "x", "dimensions": ["a", "b"], "tiers": {"low": 0, "high": 5}}
)
ORDERED = ClassConfig.model_validate({"type": "class", "from": "y", "order": list("abcd")})


def make_variants(
    label_type: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, LabelsConfig | None]:
    """Return labels, outputs of a good and a bad variant, and what the task says of the labels."""
    if label_type == "scores":
        labels = RNG.uniform(0, 10, size=(120, 2))
        noise = RNG.normal(size=labels.shape)
        return labels, labels + 0.5 * noise, labels + 5 * noise, TIERED
    if label_type == "class":
        labels = RNG.integers(0, 4, size=120)
        logits, noise = np.eye(4)[labels], RNG.normal(size=(120, 4))
        return labels, logits + 0.5 * noise, logits + 5 * noise, ORDERED
    labels = RNG.random((120, 4)) < 0.4
    noise = RNG.normal(size=labels.shape)
    return labels, labels + 0.3 * noise, labels + 2 * noise, None


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = RNG.normal(3.0, 2.0, size=400)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    found = bootstrap_mean(values, seed=0)
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_any_statistic_of_rows_gets_the_same_interval_as_a_mean() -> None:
    values = RNG.normal(size=300)
    mean = bootstrap_mean(values, seed=0)
    (rows,) = jackknife_interval(lambda index: float(values[index].mean()), 300)
    assert rows == pytest.approx(mean, abs=0.02)
    several = np.stack([values, values + 1], axis=1)
    first, second = jackknife_interval(lambda index: several[index].mean(axis=0), 300)
    assert first == pytest.approx(rows)
    assert second == pytest.approx([end + 1 for end in rows])


def test_what_rests_on_a_single_row_has_no_interval() -> None:
    values = np.arange(50.0)
    rests = jackknife_interval(lambda index: values[index].mean() if 0 in index else np.nan, 50)
    assert rests == [None]
    assert jackknife_interval(lambda index: np.nan, 50) == [None]


@pytest.mark.parametrize("num_wrong", [0, 1, 3])
def test_d14_hardly_any_error_is_not_known_to_be_small(num_wrong: int) -> None:
    """With 3 % of the rows wrong the bootstrap of 55 rows covers 79 %."""
    labels, outputs = np.full((55, 2), 4.0), np.full((55, 2), 4.0)
    outputs[:num_wrong] = [6.0, 5.0]
    high = bound_proportion(num_wrong, 55).high
    config = TIERED.model_copy(update={"range": [0, 20]})
    for metric, expected in (("mae", 20 * high), ("rmse", 20 * np.sqrt(high))):
        found = estimate_interval(metric, labels, [outputs], config=config)
        assert found == pytest.approx((0, expected))
    parts = estimate_part_intervals(labels, [outputs], names=["a", "b"], config=config)
    assert parts.intervals["b"] == pytest.approx((0, 20 * high))
    groups = np.arange(55) // 5
    clustered = estimate_interval("mae", labels, [outputs], config=config, groups=groups)
    assert clustered.high > 2 * 20 * high


def test_d14_rare_errors_in_large_clusters_are_covered() -> None:
    """97 right rows, and 3 clusters of 4 that are all wrong: 89 % of the rows are right."""
    groups = np.r_[np.arange(97), 97 + np.arange(12) // 4]
    labels = np.zeros(109, dtype=int)
    outputs = np.eye(2)[np.r_[np.zeros(97, dtype=int), np.ones(12, dtype=int)]]
    low, high = estimate_interval("accuracy", labels, [outputs], groups=groups)
    assert low < 97 / 109 - 0.05
    assert high == 1


def test_repeated_rows_alone_do_not_move_an_interval() -> None:
    """A resampled positive stands twice at its rank, which raises its precision."""
    labels = np.arange(300) % 30 == 0
    probs = RNG.random((300, 1)).astype(np.float32)
    value = compute_metric("average_precision", labels[:, None], probs)
    found = estimate_interval("average_precision", labels[:, None], [probs])
    assert found.low < value < found.high
    generator = np.random.default_rng(3)
    draws = [generator.integers(300, size=300) for _ in range(300)]
    raised = [compute_metric("average_precision", labels[d][:, None], probs[d]) for d in draws]
    assert np.median(raised) > value * 1.05


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_mean(np.full(5, 2.0), seed=0) == Interval(2.0, 2.0)


def test_values_that_hardly_vary_still_have_an_interval() -> None:
    found = bootstrap_mean(np.array([1.0] * 54 + [1.0 + 1e-6]), seed=0)
    assert 1.0 - 1e-6 <= found.low < found.high <= 1.0 + 1e-6


def test_clusters_of_one_row_each_are_no_clusters() -> None:
    labels, outputs = np.array([0, 1] * 10), np.eye(2)[[0, 1, 1, 1] * 5]
    alone = estimate_interval("accuracy", labels, [outputs])
    assert alone == bound_proportion(15, 20)
    assert estimate_interval("accuracy", labels, [outputs], groups=np.arange(20) * 7) == alone


def test_the_same_seed_gives_the_same_interval() -> None:
    labels, outputs = RNG.normal(size=(60, 2)), RNG.normal(size=(60, 2))
    for metric in ("mae", "rmse", "skill"):
        found = [estimate_interval(metric, labels, [outputs]) for _ in range(2)]
        assert found[0] == found[1]


EVERY = [(metric, kind) for metric, known in METRICS.items() for kind in known.labels]


@pytest.mark.parametrize(("metric", "label_type"), EVERY)
def test_rows_of_a_single_cluster_have_no_interval(metric: str, label_type: str) -> None:
    labels, _, bad, config = make_variants(label_type)
    groups = np.zeros(len(labels), dtype=int)
    assert estimate_interval(metric, labels, [bad], groups=groups, config=config) is None


@pytest.mark.parametrize(("metric", "label_type"), EVERY)
def test_every_metric_has_an_interval_around_its_value(metric: str, label_type: str) -> None:
    labels, good, bad, config = make_variants(label_type)
    for runs in ([good], [good, bad]):
        value = np.mean([compute_metric(metric, labels, o, config=config) for o in runs])
        low, high = estimate_interval(metric, labels, runs, config=config)
        assert low < value < high
        if METRICS[metric].higher_is_better:
            assert high <= 1 + 1e-12


def test_a_share_of_the_rows_has_the_exact_interval() -> None:
    labels = np.zeros(50, dtype=int)
    probs = np.eye(5)[[0] * 45 + [1] * 5]
    found = estimate_interval("accuracy", labels, [probs])
    assert found == pytest.approx((0.7819, 0.9667), abs=1e-4)  # Clopper and Pearson of 45 in 50


def test_d14_a_flawless_metric_rests_on_the_rows_that_it_was_seen_on() -> None:
    labels = np.array([1] * 5 + [0] * 95)
    probs = np.eye(2)[labels]
    by_all, by_five = 0.025 ** (1 / 100), 0.025 ** (1 / 5)
    assert estimate_interval("accuracy", labels, [probs, probs]) == pytest.approx((by_all, 1))
    for metric in ("f1_macro", "balanced_accuracy"):  # D20: half of it rests on five rows
        found = estimate_interval(metric, labels, [probs, probs])
        assert found == pytest.approx(((by_five + 1) / 2, 1), abs=1e-3)
    assert bound_flawless(40, 40, 40) == pytest.approx(bound_flawless(120))
    for metric in ("roc_auc", "average_precision"):
        assert estimate_interval(metric, labels, [probs]) == pytest.approx((by_five, 1))
    several = np.stack([labels == 1, labels == 0], axis=1)
    found = estimate_interval("hamming_loss", several, [several.astype(float)])
    assert found == pytest.approx((0, 1 - by_all))
    found = estimate_interval("roc_auc", several, [several.astype(float)])
    assert found == pytest.approx((by_five, 1)), "the same five rows in both labels"
    parts = estimate_part_intervals(labels, [probs], names=["no", "yes"])
    assert parts.intervals["yes"] == pytest.approx((by_five, 1))


def test_every_dimension_and_class_has_its_own_interval() -> None:
    labels, outputs = np.zeros((60, 2)), np.abs(RNG.normal(size=(60, 2))) * [1, 4]
    found = estimate_part_intervals(labels, [outputs], names=["near", "far"])
    assert found.metric == "mae"
    assert found.intervals["near"] == pytest.approx(bootstrap_mean(outputs[:, 0], seed=0))
    assert found.intervals["near"].high < found.intervals["far"].low

    labels = RNG.integers(0, 3, size=60)
    labels[labels == 2] = 1
    predicted = np.where(RNG.random(60) < 0.2, 1 - labels, labels)
    classes = estimate_part_intervals(labels, [np.eye(3)[predicted]], names=["a", "b", "never"])
    assert classes.metric == "f1"
    assert classes.intervals["never"] is None
    low, high = classes.intervals["a"]
    assert 0 < low < compute_metric("f1_macro", labels, np.eye(3)[predicted]) < high < 1


def test_what_is_undefined_has_no_interval_and_no_difference() -> None:
    labels, probs = np.zeros(30, dtype=int), np.full((30, 2), 0.5)
    assert estimate_interval("roc_auc", labels, [probs]) is None
    assert compare_runs("roc_auc", labels, reference=[probs], challenger=[probs], margin=0) is None
    scores, constant = RNG.normal(size=(30, 1)), np.ones((30, 1))
    compare = {"reference": [scores], "challenger": [constant], "margin": 0}
    assert compare_runs("spearman", scores, **compare) is None
    assert compare_runs("mae", scores, **compare).finding == "not better"


def test_d20_the_error_of_an_area_is_delongs_and_obuchowskis() -> None:
    is_true = np.arange(60) % 4 == 0
    outputs = np.round(RNG.normal(size=60) + is_true, 1)
    positives, negatives = outputs[is_true], outputs[~is_true]
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    area, of_rows = wins.mean(), [(wins.mean(axis=axis), wins.shape[1 - axis]) for axis in (0, 1)]
    error = np.sqrt(sum(v.var(ddof=1) / len(v) for v, _ in of_rows))
    labels, probs = is_true.astype(int), np.stack([-outputs, outputs], axis=1)
    low, high = estimate_interval("roc_auc", labels, [probs])
    # Student's t for the effective number of rows, of which 15 are true and 45 are not
    effective = (15 / 15**2 + 45 / 45**2) ** 2 / (15 / 15**4 + 45 / 45**4)
    half = stats.t.ppf(0.975, effective - 1) * error / (area * (1 - area))
    assert special.logit([low, high]) == pytest.approx(
        special.logit(area) + half * np.r_[-1, 1], rel=0.02
    )
    # Every row twice, in one cluster: as many positives, and the same error
    twice = estimate_interval(
        "roc_auc", labels.repeat(2), [probs.repeat(2, axis=0)], groups=np.arange(60).repeat(2)
    )
    assert twice == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "num_true", "num_rows", "size"),
    [
        ("roc_auc", 5, 100, 1), ("balanced_accuracy", 5, 100, 1), ("average_precision", 6, 100, 1),
        ("balanced_accuracy", 4, 20, 1), ("roc_auc", 12, 60, 3), ("balanced_accuracy", 30, 300, 5),
    ],
)  # fmt: skip
def test_d20_few_positives_are_covered(
    metric: str, num_true: int, num_rows: int, size: int
) -> None:
    """The bootstrap of the rows covered 75 to 87 %."""

    def draw(num_rows: int, num_true: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        groups = np.arange(num_rows) // size
        is_true = groups < num_true // size
        shared, own = RNG.normal(size=groups[-1] + 1)[groups], RNG.normal(size=num_rows)
        noise = own if size == 1 else np.sqrt(0.7) * shared + np.sqrt(0.3) * own
        scores = 1.8 * (is_true - 0.5) + noise
        return is_true.astype(int), np.stack([-scores, scores], axis=1), groups

    labels, outputs, _ = draw(200_000, 200_000 * num_true // num_rows)
    known = compute_metric(metric, labels, outputs)
    num_draws, covered = (100 if metric == "average_precision" else 400), 0
    for _ in range(num_draws):
        labels, outputs, groups = draw(num_rows, num_true)
        low, high = estimate_interval(metric, labels, [outputs], groups=groups)
        covered += low <= known <= high
    assert covered >= 0.92 * num_draws


def test_d20_recalls_vary_with_their_clusters_and_seeds() -> None:
    groups = np.arange(200) // 5
    labels = (groups % 4 == 0).astype(int)
    is_right = RNG.random(40)[groups] < 0.8  # all rows of a cluster, or none
    outputs = np.eye(2)[np.where(is_right, labels, 1 - labels)]
    by_rows = estimate_interval("balanced_accuracy", labels, [outputs])
    by_clusters = estimate_interval("balanced_accuracy", labels, [outputs], groups=groups)
    assert by_clusters.high - by_clusters.low > 1.8 * (by_rows.high - by_rows.low)
    worse = np.eye(2)[np.where(RNG.random(200) < 0.6, labels, 1 - labels)]
    low, high = estimate_interval("balanced_accuracy", labels, [outputs, worse])
    assert high - low > 1.5 * (by_rows.high - by_rows.low), "the runs differ"


@pytest.mark.parametrize(
    ("metric", "labels", "said"),
    [
        ("balanced_accuracy", [1] * 9 + [0] * 91, "its 9 rows"),
        ("roc_auc", [0] * 9 + [1] * 91, "its 9 rows"),
        ("f1_macro", [1] * 10 + [0] * 90, None),
        ("accuracy", [1] * 9 + [0] * 91, None),
        ("balanced_accuracy", [2] * 4 + [1] * 48 + [0] * 48, "mostly on rows of rare classes"),
        ("f1_macro", [3] * 9 + [2] * 30 + [1] * 30 + [0] * 31, None),
    ],
)
def test_d20_metrics_that_weigh_classes_count_the_rarer_one(metric, labels, said) -> None:
    found = find_shortage(100, metric=metric, labels=np.array(labels))
    assert said in found.reason if said else found is None


def test_d20_positives_of_one_cluster_count_once() -> None:
    labels = np.array([1] * 30 + [0] * 90)
    groups = np.r_[np.arange(30) // 5, np.arange(6, 96)]
    found = find_shortage(120, groups, metric="roc_auc", labels=labels)
    assert "its 6 clusters of rows are too few" in found.reason
    assert found.fraction == pytest.approx(0.6)
    assert find_shortage(120, groups, metric="accuracy", labels=labels) is None
    tags = np.stack([labels == 1], axis=1)
    assert "6 clusters" in find_shortage(120, groups, metric="f1_micro", labels=tags).reason


def test_d20_many_rows_are_counted_before_they_are_merged() -> None:
    labels = np.zeros(20_000, dtype=int)
    labels[RNG.choice(20_000, size=10, replace=False)] = 1
    assert find_shortage(20_000, metric="roc_auc", labels=labels) is None
    labels[np.flatnonzero(labels)[0]] = 0
    assert "its 9 rows" in find_shortage(20_000, metric="roc_auc", labels=labels).reason


@pytest.mark.parametrize("classes", [(0, 1), (1, 2), (0, 2)])
def test_d20_two_classes_are_binary_whatever_their_ids(classes: tuple[int, int]) -> None:
    labels = np.repeat(classes, [91, 9])
    assert find_shortage(100, metric="balanced_accuracy", labels=labels) is not None


def test_an_area_at_its_end_has_an_interval() -> None:
    labels = np.arange(30) % 2
    assert estimate_interval("roc_auc", labels, [np.eye(2)[1 - labels]]) == pytest.approx(
        (0, 1 - 0.025 ** (1 / 15))
    )
    lone = np.r_[1, np.zeros(199, dtype=int)]
    outputs = np.stack([np.zeros(200), np.r_[0.8, np.linspace(0, 1, 199)]], axis=1)
    low, high = estimate_interval("roc_auc", lone, [outputs])
    assert high - low > 0.9, "one positive may have been ranked anywhere"


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_the_interval_of_several_runs_is_around_their_mean(metric: str) -> None:
    labels = np.zeros((50, 1))
    runs = [RNG.normal(0, 1, size=(50, 1)), RNG.normal(0, 3, size=(50, 1))]
    mean = np.mean([compute_metric(metric, labels, outputs) for outputs in runs])
    found = estimate_interval(metric, labels, runs)
    assert found.low < mean < found.high
    alone = estimate_interval(metric, labels, runs[:1])
    assert alone.high < mean
