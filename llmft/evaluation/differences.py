"""By how much arms differ on the same rows, and whether that is more than chance."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from llmft.config.labels import LabelsConfig
from llmft.config.metrics import METRICS
from llmft.evaluation.estimates import Estimate, find_quantile, find_tail, weigh_arms
from llmft.evaluation.intervals import MIN_ROWS, resample_metric
from llmft.evaluation.metrics import compute_metric
from llmft.evaluation.moments import find_moments
from llmft.evaluation.paired_tests import permute_moments, permute_outputs
from llmft.evaluation.power import estimate_power, find_needed
from llmft.evaluation.resampling import MAX_CLUSTERS, Clusters, Groups, find_clusters
from llmft.results.comparison import Needed, Pair
from llmft.results.variant import Interval

Floats = NDArray[np.floating[Any]]
Outputs = dict[str, list[Floats]]
"""Arm -> what decides, [N, C], of each of its runs (seeds)."""
MIN_GROUPS = 10
"""In fewer clusters of rows nothing is found: their number, not that of the rows, is the size."""
ERROR_RATE = 0.05
_CAUTION = 1.25
"""How much more error is feared than the formulas say: bounds are drawn at 4 instead of 5 %, and
p-values of the margin multiplied. On skewed errors in few clusters a nominal 95 % is less; with
this, false winners stay under 5 % (tests/evaluation/test_false_winners.py). Calibrating a level by
simulation: Loh 1987, doi:10.1080/01621459.1987.10478408."""


class Rules(NamedTuple):
    """By what arms are compared, as the suite says."""

    metric: str
    reference: str
    """The arm to beat."""
    margin: float
    """What has to be gained."""
    min_difference: float
    """What matters: the effect that power is stated for, and the least difference of a part."""


def compare_with_reference(
    arms: Outputs,
    labels: NDArray[Any],
    *,
    rules: Rules,
    groups: Groups | None = None,
    config: LabelsConfig | None = None,
    seed: int = 0,
) -> dict[str, Pair]:
    """Compare every challenger with the reference on the same rows, by Holm over challengers.

    Rows are resampled in pairs, so what makes a row hard for both arms cancels out. The value of an
    arm is the mean over its runs; of several, seeds are resampled too. A bound of a gain is the
    more cautious of BCa's and Student's t's, at 96 instead of 95 %, which is what it takes to be
    right 19 times in 20 on skewed errors in few clusters.

    Args:
        arms: Arm -> outputs of each of its runs; the reference and the valid challengers.
        labels: Scores [N, D], classes [N], or labels [N, L].
        rules: By what they are compared.
        groups: The cluster of each row, [N]; None if rows are independent.
        config: What the task says of its labels.
        seed: Seed of the resampling.

    Returns:
        Challenger -> its gain; without those for which the metric is not defined.
    """
    rows = _Rows(labels, find_clusters(len(labels), groups, seed=seed), config, seed)
    sampled = {
        arm: resample_metric(
            rules.metric, labels, runs, clusters=rows.clusters, config=config, seed=seed
        )
        for arm, runs in arms.items()
    }
    sign = 1 if METRICS[rules.metric].higher_is_better else -1
    estimates = {}
    for arm in arms:
        both = [sampled[rules.reference], sampled[arm]]
        estimate = weigh_arms(both, [-sign, sign], seed=seed)[0]
        if arm != rules.reference and estimate is not None:
            estimates[arm] = estimate
    adjusted = adjust_by_holm([find_margin_p(e, rules.margin) for e in estimates.values()])
    found = {}
    for (arm, estimate), p_adjusted in zip(estimates.items(), adjusted, strict=True):
        runs = _Runs(arms[rules.reference], arms[arm])
        found[arm] = _judge(
            arm,
            estimate,
            rules,
            p_value=_test_equality(rules.metric, runs, estimate, rows),
            p_adjusted=p_adjusted,
            num_challengers=len(estimates),
            runs=runs,
            rows=rows,
        )
    return found


def adjust_by_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all of them together.

    Source:
        Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = np.argsort(p_values)
    stepped = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return [float(p) for p in adjusted]


def bound_gain(estimate: Estimate, *, tail: float) -> tuple[float, float]:
    """Return one-sided bounds, each missed with no more than a probability."""
    feared = tail / _CAUTION
    half = estimate.error * float(stdtrit(estimate.degrees, 1 - feared))
    return (
        min(find_quantile(estimate, feared), estimate.value - half),
        max(find_quantile(estimate, 1 - feared), estimate.value + half),
    )


def find_margin_p(estimate: Estimate, margin: float) -> float:
    """Return the p-value of a gain that is not above the margin: `bound_gain` inverted."""
    p_value = find_tail(estimate, margin)
    if estimate.error > 0:
        from_margin = (margin - estimate.value) / estimate.error
        p_value = max(p_value, float(stdtr(estimate.degrees, from_margin)))
    return min(1.0, _CAUTION * p_value)


def find_equality_p(estimate: Estimate) -> float:
    """Return the two-sided p-value of no difference, by Student's t over rows and seeds."""
    if estimate.error == 0:
        return 1.0
    distance = -abs(estimate.value) / estimate.error
    return min(1.0, _CAUTION * 2 * float(stdtr(estimate.degrees, distance)))


def respect_seeds(p_value: float, estimate: Estimate) -> float:
    """Return the p-value of a permutation, which is of these very runs, made to hold for others."""
    return max(p_value, find_equality_p(estimate)) if estimate.seed_variance > 0 else p_value


class _Rows(NamedTuple):
    """What arms are compared on."""

    labels: NDArray[Any]
    clusters: Clusters
    config: LabelsConfig | None
    seed: int


class _Runs(NamedTuple):
    """The runs of two arms."""

    reference: list[Floats]
    challenger: list[Floats]


def _test_equality(metric: str, runs: _Runs, estimate: Estimate, rows: _Rows) -> float:
    """Return the two-sided p-value of no difference."""
    labels, clusters, config, seed = rows
    moments = [
        [find_moments(metric, labels, o, config=config) for o in outputs] for outputs in runs
    ]
    theirs, ours = ([m for m in found if m is not None] for found in moments)
    if theirs and ours:
        p_value = float(permute_moments(theirs, ours, clusters=clusters, seed=seed)[0])
        return respect_seeds(p_value, estimate)
    if len(labels) > MAX_CLUSTERS:  # swapping would take minutes; here Student's t is as good
        return find_equality_p(estimate)
    compute = partial(compute_metric, metric, labels, config=config)
    p_value = permute_outputs(compute, *runs, clusters=clusters, seed=seed)
    return respect_seeds(p_value, estimate)


def is_small(clusters: Clusters) -> bool:
    """Return whether there are too few rows or clusters to find anything."""
    return len(clusters.index_N) < MIN_ROWS or len(clusters.sizes_G) < MIN_GROUPS


def _judge(
    challenger: str,
    estimate: Estimate,
    rules: Rules,
    *,
    p_value: float,
    p_adjusted: float,
    num_challengers: int,
    runs: _Runs,
    rows: _Rows,
) -> Pair:
    """Say what is found, and with how much power."""
    lower, upper = bound_gain(estimate, tail=ERROR_RATE)
    too_few = is_small(rows.clusters)
    finding: Literal["better", "not better", "unresolved"] = "unresolved"
    if p_adjusted < ERROR_RATE and not too_few:
        finding = "better"
    elif upper <= rules.margin and not too_few:
        finding = "not better"
    tail = ERROR_RATE / _CAUTION / num_challengers
    needed = None
    if finding == "unresolved":
        needed = find_needed(
            estimate,
            margin=rules.margin,
            tail=tail if estimate.value > rules.margin else ERROR_RATE / _CAUTION,
            num_rows=len(rows.labels),
            num_seeds=min(len(outputs) for outputs in runs),
        )
    if needed is not None and too_few:
        num_rows, num_clusters = len(rows.labels), len(rows.clusters.sizes_G)
        least = math.ceil(max(MIN_ROWS, num_rows * MIN_GROUPS / num_clusters))
        needed = Needed(rows=max(least, needed.rows or 0), seeds=needed.seeds)
    return Pair(
        challenger=challenger,
        reference=rules.reference,
        gain=estimate.value,
        interval=Interval(*bound_gain(estimate, tail=ERROR_RATE / 2)),
        lower=lower,
        upper=upper,
        p_value=p_value,
        p_margin=find_margin_p(estimate, rules.margin),
        p_margin_adjusted=p_adjusted,
        finding=finding,
        power=estimate_power(estimate, effect=rules.min_difference, tail=tail),
        needed=needed,
        is_small=too_few,
    )
