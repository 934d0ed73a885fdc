"""Estimates with their bootstrap distributions, their bounds and their p-values."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, ndtr, stdtr, stdtrit

from llmft.metrics.definitions import (
    Floats,
)
from llmft.results.evaluation import Interval
from llmft.statistics.resampling import (
    Jackknife,
    draw_seed_weights,
    draw_weights,
    estimate_variance,
)

_ROUNDING = 1e-9
"""Relative to a metric; a standard error below this is a rounding error."""


class Estimate(NamedTuple):
    """A number with its bootstrap distribution and its variances."""

    value: float
    draws_R: Floats
    """Its bootstrap distribution over rows and seeds, in the order drawn, which is that of all
    estimates on the same rows."""
    influences_G: Floats
    """By how much each cluster moves the value, times the number of clusters; mean 0."""
    pivots_R: Floats
    """Distance of each draw from the value in its own standard errors, sorted."""
    row_variance: float
    """Of the value, over clusters of rows."""
    seed_variance: float
    """Of the value, over seeds, without the noise of single rows; 0 if no variant has several."""
    degrees: float
    """Degrees of freedom of the two variances together."""
    row_degrees: float
    """Degrees of freedom of the variance over clusters."""

    @property
    def error(self) -> float:
        """Standard error."""
        return float(np.sqrt(self.row_variance + self.seed_variance))

    def negate(self) -> "Estimate":
        """Return that of the negative value."""
        return self._replace(
            value=-self.value,
            draws_R=-self.draws_R,
            influences_G=-self.influences_G,
            pivots_R=-self.pivots_R[::-1],
        )

    def grow(self, rows: float, seeds: float) -> "Estimate":
        """Return it with its variances and degrees as with so many times the rows and seeds."""
        of_rows, of_seeds = self.row_variance / rows, self.seed_variance / seeds
        row_degrees = (self.row_degrees + 1) * rows - 1
        below = of_rows**2 / row_degrees
        rest = self.error**4 / self.degrees - self.row_variance**2 / self.row_degrees
        below += max(0.0, rest) / seeds**3  # squared variances over degrees
        return self._replace(
            row_variance=of_rows,
            seed_variance=of_seeds,
            row_degrees=row_degrees,
            degrees=(of_rows + of_seeds) ** 2 / below if below > 0 else row_degrees,
        )


def estimate_contrasts(
    variants: Sequence[Jackknife], signs: Sequence[int], *, seed: int
) -> list[Estimate | None]:
    """Return the signed sum of the means over the runs of some variants, with its distribution.

    Rows and seeds are crossed: every run is measured on the same rows. Each draw resamples the
    clusters of rows by their influences, the same ones for all variants, and moves each variant by
    what its seeds vary. Noise of single rows in single runs is part of both variances, so it is
    subtracted from that of the seeds.

    Args:
        variants: One, or those to compare, with the same clusters and parts.
        signs: 1 for a variant to add, -1 for one to subtract.
        seed: Seed of the draws.

    Returns:
        Per part; None if the value is undefined, or is so without one of the clusters.

    Source:
        Owen 2007, The Pigeonhole Bootstrap, doi:10.1214/07-AOAS122: resampling rows and seeds
        counts the noise of single cells more than once. Searle, Casella and McCulloch 1992,
        Variance Components, section 4.5: two crossed random factors.
    """
    return [
        _estimate_part(variants, signs, part, seed=seed)
        for part in range(variants[0].values_KP.shape[1])
    ]


def _estimate_part(
    variants: Sequence[Jackknife], signs: Sequence[int], part: int, *, seed: int
) -> Estimate | None:
    num_clusters = len(variants[0].without_GKP)
    runs_VS = [variant.values_KP[:, part] for variant in variants]
    value = sum(sign * values_S.mean() for sign, values_S in zip(signs, runs_VS, strict=True))
    influences_VGS = [variant.compute_influences(part) for variant in variants]
    influences_G = sum(
        sign * influences_GS.mean(axis=1)
        for sign, influences_GS in zip(signs, influences_VGS, strict=True)
    )
    if num_clusters < 2 or np.isnan(value) or np.isnan(influences_G).any():
        return None
    by_seeds: list[_SeedVariance] = []
    seeds_R = np.zeros(1)
    for variant, sign, values_S, influences_GS in zip(
        variants, signs, runs_VS, influences_VGS, strict=True
    ):
        if len(values_S) > 1:
            by_seeds.append(_find_seed_variance(values_S, influences_GS))
            weights_RS = draw_seed_weights(len(values_S), seed, variant.stream)
            seeds_R = seeds_R + sign * by_seeds[-1].share * (weights_RS @ values_S)
    size = max(float(np.abs(values_S).max()) for values_S in runs_VS)
    influences_G[np.abs(influences_G) <= _ROUNDING * size] = 0
    row_variance = estimate_variance(influences_G)
    seed_variance = sum(found.net for found in by_seeds)
    # Satterthwaite, for a sum of mean squares of which one is subtracted
    row_degrees = max(1.0, float(variants[0].effective_P[part]) - 1)
    below = row_variance**2 / row_degrees
    for found in by_seeds:
        below += found.of_means**2 / (found.num_seeds - 1)
        below += found.of_cells**2 / ((found.num_seeds - 1) * row_degrees)
    total = row_variance + seed_variance
    moved_R, errors_R = _resample_influences(influences_G, seed=seed)
    errors_R = np.hypot(errors_R, math.sqrt(seed_variance))
    moved_R = moved_R + seeds_R
    return Estimate(
        value=float(value),
        draws_R=value + moved_R,
        influences_G=influences_G,
        pivots_R=np.sort(moved_R / np.where(errors_R > 0, errors_R, 1.0)),
        row_variance=row_variance,
        seed_variance=seed_variance,
        degrees=max(1.0, total**2 / below) if below > 0 else row_degrees,
        row_degrees=row_degrees,
    )


def _resample_influences(influences_G: Floats, *, seed: int) -> tuple[Floats, Floats]:
    """Return the means of R draws of clusters, and the standard error in each draw, [R].

    A draw in which nothing varies gets the error of a single cluster that does.
    """
    num_clusters = len(influences_G)
    weights_RG = draw_weights(num_clusters, seed)
    sums_R2 = weights_RG @ np.stack([influences_G, influences_G**2], axis=1) / num_clusters
    variances_R = (sums_R2[:, 1] - sums_R2[:, 0] ** 2) / (num_clusters - 1)
    least = float(np.abs(influences_G).max()) / num_clusters
    varies_R = variances_R > _ROUNDING * sums_R2[:, 1] / num_clusters
    errors_R = np.where(varies_R, np.sqrt(np.abs(variances_R)), least)
    return sums_R2[:, 0], errors_R


class _SeedVariance(NamedTuple):
    """Variance of the mean over a variant's runs, by what its seeds vary."""

    of_means: float
    """Estimated from the values of the runs; the noise of single rows in them included."""
    of_cells: float
    """Part of it that is the noise of single rows, which the variance over rows has as well."""
    num_seeds: int

    @property
    def net(self) -> float:
        """Without the noise of single rows."""
        return max(0.0, self.of_means - self.of_cells)

    @property
    def share(self) -> float:
        """Standard deviation without the noise of single rows, relative to that with it."""
        return float(np.sqrt(self.net / self.of_means)) if self.of_means > 0 else 0.0


def _find_seed_variance(values_S: Floats, influences_GS: Floats) -> _SeedVariance:
    num_seeds = len(values_S)
    apart_GS = influences_GS - influences_GS.mean(axis=1, keepdims=True)
    over_rows = sum(estimate_variance(apart_G) for apart_G in apart_GS.T)
    return _SeedVariance(
        of_means=float(values_S.var(ddof=1) / num_seeds),
        of_cells=over_rows / (num_seeds * (num_seeds - 1)),
        num_seeds=num_seeds,
    )


def bound(estimate: Estimate, *, tail: float) -> Interval:
    """Return one-sided lower and upper bounds, each with an error rate of `tail`.

    The more cautious of Student's t, which knows how many clusters and seeds there are, and of the
    bootstrap-t, which knows how skewed they are.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 12.5; Hall 1988,
        Theoretical Comparison of Bootstrap Confidence Intervals, doi:10.1214/aos/1176350933.
    """
    if estimate.error == 0:
        return Interval(estimate.value, estimate.value)
    return Interval(
        estimate.value - estimate.error * find_critical(estimate, tail=tail),
        estimate.value + estimate.error * find_critical(estimate.negate(), tail=tail),
    )


def find_critical(estimate: Estimate, *, tail: float) -> float:
    """Return how many standard errors the lower bound is below the value."""
    of_t = float(stdtrit(estimate.degrees, 1 - tail))
    return max(of_t, float(np.quantile(estimate.pivots_R, 1 - tail)))


def find_p_value(estimate: Estimate, value: float) -> float:
    """Return the p-value of a true value of at most `value`: the lower end of `bound` inverted.

    Beyond all draws it is that of Student's t alone: so few draws cannot show it.
    """
    if estimate.error == 0:
        return float(estimate.value <= value)
    distance = (estimate.value - value) / estimate.error
    pivots_R = estimate.pivots_R
    place = np.interp(distance, pivots_R, np.arange(len(pivots_R)))
    return max(float(stdtr(estimate.degrees, -distance)), 1 - float(place) / (len(pivots_R) - 1))


def find_interval(estimate: Estimate) -> Interval:
    """Return the two-sided 95 % interval."""
    return bound(estimate, tail=0.025)


def bound_by_betting(estimate: Estimate, *, largest: float, tail: float, seed: int = 0) -> float:
    """Return a lower bound of a mean over clusters for any distribution within their range.

    Args:
        estimate: The mean, over clusters of equal size; seeds are not covered.
        largest: Largest size of a cluster's mean, in either direction.
        tail: Error rate of the bound.
        seed: Seed of the order in which clusters are bet on.

    Source:
        Waudby-Smith and Ramdas 2024, Estimating Means of Bounded Random Variables by Betting,
        doi:10.1093/jrsssb/qkad009, with predictable plug-in bets; the bound is the last excluded
        point of a grid.
    """
    values_G = np.clip((estimate.value + estimate.influences_G + largest) / (2 * largest), 0, 1)
    num_clusters = len(values_G)
    values_G = np.random.default_rng(seed).permutation(values_G)
    seen_G = np.arange(1, num_clusters + 1)
    means_G = (0.5 + np.cumsum(values_G)) / (1 + seen_G)
    variances_G = (0.25 + np.cumsum((values_G - means_G) ** 2)) / (1 + seen_G)
    before_G = np.r_[0.25, variances_G[:-1]]
    bets_G = np.sqrt(2 * np.log(1 / tail) / (num_clusters * before_G))
    grid_M = np.linspace(0, 1, 10_001)[1:-1]
    bets_GM = np.minimum(bets_G[:, None], 0.75 / grid_M)
    wealth_GM = np.log1p(bets_GM * (values_G[:, None] - grid_M)).cumsum(axis=0)
    excluded_M = wealth_GM.max(axis=0) >= np.log(1 / tail)
    num_excluded = int(np.argmin(np.append(excluded_M, False)))
    return float(2 * largest * (grid_M[num_excluded - 1] if num_excluded else 0.0) - largest)


def find_logit_interval(estimate: Estimate) -> Interval:
    """Return the two-sided 95 % interval of an area in (0, 1), by Student's t on the logit scale.

    Source:
        Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2.3 (areas under the ROC
        curve).
    """
    slope = estimate.value * (1 - estimate.value)
    half = float(stdtrit(estimate.degrees, 0.975)) * estimate.error / slope
    middle = float(logit(estimate.value))
    return Interval(float(expit(middle - half)), float(expit(middle + half)))


def find_common_tail(
    estimates: Sequence[Estimate], *, tail: float, two_sided: bool = False
) -> float:
    """Return the error rate of each of several bounds, with which all hold together.

    By max-t over the draws, which have the correlation of the estimates, so it is more than the
    `tail` divided by their number (Bonferroni).

    Args:
        estimates: Of the same rows.
        tail: Error rate of all one-sided lower bounds together, or of each side of all intervals.
        two_sided: Whether both sides have to hold.

    Source:
        Westfall and Young 1993, Resampling-Based Multiple Testing, section 2.5; Romano and Wolf
        2005, doi:10.1111/j.1468-0262.2005.00615.x.
    """
    draws_ER = np.array([estimate.draws_R for estimate in estimates])
    errors_E = draws_ER.std(axis=1)
    varies_E = errors_E > _ROUNDING * np.abs(draws_ER).max(axis=1)
    if varies_E.sum() < 2:
        return tail
    moved_ER = draws_ER[varies_E] - draws_ER[varies_E].mean(axis=1, keepdims=True)
    sizes_ER = moved_ER / errors_E[varies_E, None]
    if two_sided:
        sizes_ER, tail = np.abs(sizes_ER), 2 * tail
    critical = float(np.quantile(sizes_ER.max(axis=0), 1 - tail))
    most = tail / 2 if two_sided else tail
    return float(np.clip(ndtr(-critical), most / len(estimates), most))
