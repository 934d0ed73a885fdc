"""Paired tests of two variants on the same rows, their power, and the sample size they need."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from scipy.special import stdtrit

from llmft.metrics.definitions import Floats
from llmft.metrics.moments import Moments
from llmft.results.comparison import McNemar, Power, SampleSize
from llmft.results.evaluation import Interval
from llmft.statistics.intervals import Estimate
from llmft.statistics.resampling import Clusters, Groups

_NUM_SWAPS = 9_999
_MAX_EXACT_CLUSTERS = 15
"""Up to this many clusters G, all 2^G swaps are enumerated."""
_MOST = 1_000
"""A sample size of more than this many times the current one is not reported."""
WANTED_POWER = 0.8
"""Of the sample sizes that are advised."""


def permute_moments(
    reference: Sequence[Moments],
    challenger: Sequence[Moments],
    *,
    clusters: Clusters,
    seed: int = 0,
) -> Floats:
    """Return the two-sided p-values of no difference, [P], by swapping the variants in clusters.

    Under the null hypothesis the outputs of the two variants are exchangeable. All swaps are
    enumerated for up to 15 clusters; else 9,999 are drawn, and the observed one counts too. The
    test is conditional on these runs: it does not cover other seeds.

    Args:
        reference: Moments of each run; if the variants have different numbers of runs and the
            metric is not a mean, the runs of the smaller one are repeated.
        challenger: The same.
        clusters: Rows that are swapped together.
        seed: Seed of the swaps.

    Source:
        Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses, section 3.6; Phipson
        and Smyth 2010, doi:10.2202/1544-6115.1585 (the observed one is counted).
    """
    combine = reference[0].combine
    pairs = _pair_runs(_average_means(reference), _average_means(challenger))
    theirs_GKM, ours_GKM = (
        np.stack([clusters.add_up(run.values_NM) for run in runs], axis=1)
        for runs in zip(*pairs, strict=True)
    )
    num_rows = clusters.sizes_G.sum()
    swapped_RG = draw_swaps(len(clusters.sizes_G), seed)
    apart_GX = (ours_GKM - theirs_GKM).reshape(len(ours_GKM), -1)
    moved_RX = swapped_RG @ apart_GX.astype(np.float32)
    moved_RKM = moved_RX.reshape(-1, *ours_GKM.shape[1:])
    ours_RKM = (ours_GKM.sum(axis=0) - moved_RKM) / num_rows
    theirs_RKM = (theirs_GKM.sum(axis=0) + moved_RKM) / num_rows
    return _count_extremes((combine(ours_RKM) - combine(theirs_RKM)).mean(axis=1))


def permute_outputs(
    compute: Callable[[Floats], float | None],
    reference: Sequence[Floats],
    challenger: Sequence[Floats],
    *,
    clusters: Clusters,
    seed: int = 0,
) -> float:
    """Return the same p-value for a metric of the ranking of the rows, by at most 1,024 swaps.

    Args:
        compute: Outputs [N, C] -> the metric.
        reference: Outputs of each run.
        challenger: The same.
        clusters: Rows that are swapped together.
        seed: Seed of the swaps.
    """
    pairs = _pair_runs(reference, challenger)
    swapped_RG = draw_swaps(len(clusters.sizes_G), seed, num_swaps=999, max_exact=10)
    gains = []
    for swapped_G in swapped_RG:
        swapped_N1 = swapped_G[clusters.index_N, None] > 0
        found = [
            (
                compute(np.where(swapped_N1, theirs, ours)),
                compute(np.where(swapped_N1, ours, theirs)),
            )
            for theirs, ours in pairs
        ]
        known = [ours - theirs for ours, theirs in found if ours is not None and theirs is not None]
        gains.append(np.mean(known) if len(known) == len(found) else np.nan)
    return float(_count_extremes(np.array(gains)[:, None])[0])


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


def _pair_runs(one: Sequence[Any], other: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return pairs of runs; those of the smaller variant are repeated."""
    num_runs = max(len(one), len(other))
    return [(one[i % len(one)], other[i % len(other)]) for i in range(num_runs)]


def _average_means(runs: Sequence[Moments]) -> list[Moments]:
    """Return one run whose values are the mean over the runs, if the metric is a mean."""
    if not runs[0].is_mean:
        return list(runs)
    return [runs[0]._replace(values_NM=np.mean([m.values_NM for m in runs], axis=0))]


def _count_extremes(gains_RP: Floats) -> Floats:
    """Return the fraction of gains that are at least as large as the first, the observed one.

    Undefined gains count as large, and so do those that are smaller by a rounding error.
    """
    sizes_RP = np.abs(gains_RP)
    tolerance_P = 1e-5 * np.fmax.reduce(sizes_RP)
    return np.asarray((~(sizes_RP < sizes_RP[0] - tolerance_P)).mean(axis=0))


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


@lru_cache(maxsize=2)
def draw_swaps(
    num_clusters: int,
    seed: int,
    *,
    num_swaps: int = _NUM_SWAPS,
    max_exact: int = _MAX_EXACT_CLUSTERS,
) -> NDArray[np.float32]:
    """Return in which clusters the variants are swapped, 1 or 0, [R, G]; in the first row in none.

    All 2^G swaps for up to `max_exact` clusters, else `num_swaps` random ones. At most 80 MB.
    """
    if num_clusters <= max_exact:
        bits_RG = np.arange(2**num_clusters)[:, None] >> np.arange(num_clusters) & 1
        swapped_RG = bits_RG.astype(np.float32)
    else:
        bits = np.random.default_rng(seed).bytes(num_swaps * -(-num_clusters // 8))
        drawn = np.unpackbits(np.frombuffer(bits, dtype=np.uint8).reshape(num_swaps, -1), axis=1)
        swapped_RG = np.zeros((num_swaps + 1, num_clusters), dtype=np.float32)
        swapped_RG[1:] = drawn[:, :num_clusters]
    swapped_RG.flags.writeable = False
    return swapped_RG


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
    degrees = estimate.degrees

    def find(error: float) -> float:
        return _find_power(effect / error, degrees, tail)

    high, low = (
        estimate.error * math.sqrt(degrees / stats.chi2.ppf(q, degrees)) for q in (0.975, 0.025)
    )
    return Power(
        effect=effect, power=find(estimate.error), interval=Interval(find(low), find(high))
    )


def _find_power(distance: float, degrees: float, tail: float) -> float:
    """Return the power for an effect of so many standard errors."""
    quantile = float(stdtrit(degrees, 1 - tail))
    return float(stats.nct.sf(quantile, degrees, distance))


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

    def find(*, rows: bool, seeds: bool) -> float | None:
        """Return by which factor to grow these."""

        def lack(factor: float) -> float:
            more = estimate.grow(factor if rows else 1.0, factor if seeds else 1.0)
            return _find_power(effect / more.error, more.degrees, tail) - WANTED_POWER

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
