"""Tests of variants on the same rows, Holm's correction, power and sample size."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from scipy.special import nctdtr, stdtrit

from llmft.metrics.definitions import Floats
from llmft.results.comparison import McNemar, Power, SampleSize
from llmft.results.evaluation import Interval
from llmft.statistics.estimates import Estimate, find_critical
from llmft.statistics.resampling import Groups

_MOST = 1_000
"""A sample size of more than this many times the current one is not reported."""
WANTED_POWER = 0.8
"""Of the sample sizes that are advised."""


def compute_mcnemar(
    labels_N: NDArray[np.int64],
    *,
    reference: Sequence[Floats],
    challenger: Sequence[Floats],
    groups: Groups | None = None,
) -> McNemar:
    """Return McNemar's exact test of the first runs.

    It is a test of two models. The mean of several runs is an ensemble, which is better than any of
    them, so it would favour the variant with more seeds.

    Args:
        labels_N: Classes.
        reference: Decision scores [N, C] of each run.
        challenger: The same.
        groups: The cluster of each row, [N]; None if rows are independent. If two rows of a cluster
            are right in one of the models only, there is no p-value.

    Source:
        McNemar 1947, doi:10.1007/BF02295996: if the accuracies are equal, each variant is the right
        one with probability 1/2 in rows where exactly one is right.
    """
    theirs_N, ours_N = (runs[0].argmax(axis=1) == labels_N for runs in (reference, challenger))
    only_ours, only_theirs = int(np.sum(ours_N & ~theirs_N)), int(np.sum(~ours_N & theirs_N))
    p_value, num_apart = None, only_ours + only_theirs
    if groups is None or len(np.unique(groups[ours_N != theirs_N])) == num_apart:
        p_value = float(stats.binomtest(only_ours, num_apart).pvalue) if num_apart else 1.0
    return McNemar(
        both_right=int(np.sum(ours_N & theirs_N)),
        only_challenger=only_ours,
        only_reference=only_theirs,
        both_wrong=int(np.sum(~ours_N & ~theirs_N)),
        p_value=p_value,
    )


def adjust_by_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple comparisons.

    Source:
        Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = np.argsort(p_values)
    stepped = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return [float(p) for p in adjusted]


def estimate_power(estimate: Estimate, *, effect: float, tail: float) -> Power | None:
    """Return the power: the probability that the lower bound exceeds the margin, for an effect.

    By the noncentral t with the observed standard error, and its 95 % interval by that of the
    error, whose square has nearly a chi-squared distribution; None without an effect.

    Source:
        Lehmann and Romano 2005, Testing Statistical Hypotheses, section 5.2.
    """
    if effect <= 0:
        return None
    if estimate.error == 0:
        return Power(effect=effect, power=1.0, interval=Interval(1.0, 1.0))
    degrees, critical = estimate.degrees, find_critical(estimate, tail=tail)

    def find(error: float) -> float:
        return _find_power(effect / error, degrees, critical)

    high, low = (
        estimate.error * math.sqrt(degrees / stats.chi2.ppf(q, degrees)) for q in (0.975, 0.025)
    )
    return Power(
        effect=effect, power=find(estimate.error), interval=Interval(find(low), find(high))
    )


def _find_power(distance: float, degrees: float, critical: float) -> float:
    """Return the power for an effect of so many standard errors."""
    power = 1 - float(nctdtr(degrees, distance, critical))
    return float(distance > critical) if math.isnan(power) else power


def find_sample_size(
    estimate: Estimate, *, margin: float, tail: float, num_rows: int, num_seeds: int
) -> SampleSize:
    """Return how many rows or seeds would resolve a gain of this size with 80 % power.

    Only the one that dominates the variance is returned, rows or seeds, or both if one alone is not
    enough. The degrees of freedom grow with them.

    Args:
        estimate: The gain.
        margin: Gain that a challenger has to exceed.
        tail: Error rate of the one-sided bound.
        num_rows: Current number of rows.
        num_seeds: Current number of seeds of the variant with the fewest.
    """
    effect = abs(estimate.value - margin)
    ahead = estimate if estimate.value > margin else estimate.negate()
    # What skewed rows need on top of Student's t shrinks with the root of their number.
    on_top = find_critical(ahead, tail=tail) - float(stdtrit(estimate.degrees, 1 - tail))

    def find(*, rows: bool, seeds: bool) -> float | None:
        """Return by which factor to grow these."""

        def lack(factor: float) -> float:
            more = estimate.grow(factor if rows else 1.0, factor if seeds else 1.0)
            critical = float(stdtrit(more.degrees, 1 - tail))
            critical += on_top / math.sqrt(factor if rows else 1.0)
            return _find_power(effect / more.error, more.degrees, critical) - WANTED_POWER

        if effect == 0:
            return None
        if estimate.error == 0:
            return 1.0
        if lack(_MOST) < 0:
            return None
        return 1.0 if lack(1.0) >= 0 else float(optimize.brentq(lack, 1.0, _MOST, rtol=1e-4))

    few_rows = estimate.seed_variance <= estimate.row_variance
    factor = find(rows=few_rows, seeds=not few_rows)
    if factor is None:
        few_rows, few_seeds, factor = True, True, find(rows=True, seeds=True)
    else:
        few_seeds = not few_rows
    if factor is None:
        return SampleSize(rows=None, seeds=None)
    return SampleSize(
        rows=max(num_rows + 1, math.ceil(num_rows * factor)) if few_rows else None,
        seeds=max(num_seeds + 1, math.ceil(num_seeds * factor)) if few_seeds else None,
    )
