"""Confidence intervals of metrics, by the bootstrap over rows and seeds."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import binomtest

from llmft.config.metrics import METRICS
from llmft.config.task import LabelsConfig
from llmft.metrics.definitions import (
    Floats,
    compute_metric,
    compute_on_draws,
    find_label_type,
)
from llmft.metrics.moments import Moments, find_moments, find_part_moments
from llmft.results.evaluation import Interval, PartIntervals
from llmft.statistics.resampling import (
    Clusters,
    Groups,
    Resamples,
    draw_seed_weights,
    find_clusters,
    resample_moments,
    resample_rows,
)

_ROUNDING = 1e-9
"""Relative to a metric; a standard error below this is a rounding error."""
MIN_ROWS = 20
"""With fewer rows nothing is decided: no variant is better and none is deployed."""
MIN_CLUSTERS = 10
"""The same for clusters of rows: they, not the rows, are the sample size."""


class Estimate(NamedTuple):
    """A number with its bootstrap distribution and its variances."""

    value: float
    draws_R: Floats
    """Its bootstrap distribution over rows and seeds, sorted."""
    bias: float
    """z0 of BCa: how far the median of the draws is below the value."""
    acceleration: float
    """a of BCa: how fast the standard error grows with the value."""
    row_variance: float
    """Of the value, over clusters of rows."""
    seed_variance: float
    """Of the value, over seeds, without the noise of single rows; 0 if no variant has several."""
    degrees: float
    """Degrees of freedom of the two variances together."""
    num_clusters: int
    row_degrees: float
    """Degrees of freedom of the variance over clusters."""
    has_seeds: bool
    """Whether a variant has several."""

    @property
    def error(self) -> float:
        """Standard error."""
        return float(np.sqrt(self.row_variance + self.seed_variance))

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
    variants: Sequence[Resamples], signs: Sequence[int], *, seed: int
) -> list[Estimate | None]:
    """Return the signed sum of the means over the runs of some variants, with its distribution.

    Rows and seeds are crossed: every run is measured on the same rows. Each draw resamples the
    rows, the same ones for all variants, and moves each variant by what its seeds vary. Noise of
    single rows in single runs is part of both variances, so it is subtracted from that of the
    seeds.

    Args:
        variants: One, or those to compare, with the same clusters, seed and parts.
        signs: 1 for a variant to add, -1 for one to subtract.
        seed: Seed of the draws of seeds.

    Returns:
        Per part; None if the value is undefined, or is so in more than half of the draws.

    Source:
        Owen 2007, The Pigeonhole Bootstrap, doi:10.1214/07-AOAS122: resampling rows and seeds
        counts the noise of single cells more than once. Searle, Casella and McCulloch 1992,
        Variance Components, section 4.5: two crossed random factors.
    """
    num_parts = variants[0].values_KP.shape[1]
    estimates: list[Estimate | None] = []
    for part in range(num_parts):
        if any(np.isnan(variant.values_KP[:, part]).any() for variant in variants):
            estimates.append(None)
            continue
        value, seed_variances = 0.0, []
        draws_R, by_rows = np.zeros(1), np.zeros(1)
        for i, (variant, sign) in enumerate(zip(variants, signs, strict=True)):
            values_S, draws_RS = variant.values_KP[:, part], variant.draws_RKP[:, :, part]
            value += sign * values_S.mean()
            draws_R = draws_R + sign * draws_RS.mean(axis=1)
            by_rows = by_rows + sign * variant.resampled[:, :, part].mean(axis=1)
            if len(values_S) > 1:
                found = _find_seed_variance(variant, part)
                seed_variances.append(found)
                weights_RS = draw_seed_weights(len(values_S), seed, i)[: len(draws_RS)]
                draws_R = draws_R + sign * found.share * (weights_RS @ values_S)
        estimates.append(_estimate(variants[0], value, draws_R, by_rows, seed_variances))
    return estimates


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


def _find_seed_variance(variant: Resamples, part: int) -> _SeedVariance:
    values_S, resampled_XS = variant.values_KP[:, part], variant.resampled[:, :, part]
    num_seeds = len(values_S)
    apart_XS = resampled_XS - resampled_XS.mean(axis=1, keepdims=True)
    over_rows = sum(variant.find_variance(apart_X) for apart_X in apart_XS.T)
    return _SeedVariance(
        of_means=float(values_S.var(ddof=1) / num_seeds),
        of_cells=over_rows / (num_seeds * (num_seeds - 1)),
        num_seeds=num_seeds,
    )


def _estimate(
    variant: Resamples,
    value: float,
    draws_R: Floats,
    by_rows: Floats,
    seed_variances: list[_SeedVariance],
) -> Estimate | None:
    """Describe a number by its draws, by its jackknife (or draws of rows), and by its seeds."""
    num_clusters = variant.num_clusters
    known_R = np.sort(draws_R[~np.isnan(draws_R)])
    if num_clusters < 2 or np.isnan(value) or 2 * len(known_R) < len(draws_R):
        return None
    row_variance = variant.find_variance(by_rows)
    total = row_variance + sum(found.net for found in seed_variances)
    # Satterthwaite, for a sum of mean squares of which one is subtracted
    row_degrees = max(1.0, variant.effective_clusters - 1)
    below = row_variance**2 / row_degrees
    for found in seed_variances:
        below += found.of_means**2 / (found.num_seeds - 1)
        below += found.of_cells**2 / ((found.num_seeds - 1) * row_degrees)
    from_mean = by_rows[~np.isnan(by_rows)] - np.nanmean(by_rows)
    bias = acceleration = 0.0
    if variant.is_corrected and total > 0:
        fraction_below = np.mean(known_R < value) + np.mean(known_R == value) / 2
        # Draws that differ by rounding errors alone are neither biased nor skewed.
        is_varied = np.sqrt(row_variance) > _ROUNDING * float(np.nanmax(np.abs(variant.values_KP)))
        if 0 < fraction_below < 1 and is_varied:
            skewness = -(from_mean**3).sum() / (from_mean**2).sum() ** 1.5
            bias = float(ndtri(fraction_below))
            # The error from seeds is taken as symmetric.
            acceleration = float(skewness / 6 * (row_variance / total) ** 1.5)
    return Estimate(
        float(value),
        known_R,
        bias,
        acceleration,
        row_variance,
        total - row_variance,
        max(1.0, total**2 / below) if below > 0 else row_degrees,
        num_clusters,
        row_degrees,
        has_seeds=bool(seed_variances),
    )


def find_interval(estimate: Estimate, *, confidence: float = 0.95) -> Interval:
    """Return the two-sided interval."""
    tail = (1 - confidence) / 2
    return Interval(find_quantile(estimate, tail), find_quantile(estimate, 1 - tail))


def find_quantile(estimate: Estimate, tail: float) -> float:
    """Return a confidence bound: the true value is below it with the probability `tail`.

    By BCa up to 2,000 rows, else by percentiles. The bootstrap of G clusters is too narrow by
    sqrt((G - 1) / G), and lacks the tails of Student's t; the level is expanded for both.

    Source:
        Efron 1987, Better Bootstrap Confidence Intervals (BCa); Hesterberg 2015, What Teachers
        Should Know About the Bootstrap, arXiv:1411.5279, section 5.3 (expanded percentiles).
    """
    from_bias = estimate.bias + _find_expansion(estimate) * stdtrit(estimate.degrees, tail)
    below = 1 - estimate.acceleration * from_bias
    adjusted = from_bias / below if below > 0 else np.copysign(np.inf, from_bias)
    position = ndtr(estimate.bias + adjusted) * (len(estimate.draws_R) - 1)
    return float(np.interp(position, np.arange(len(estimate.draws_R)), estimate.draws_R))


def find_tail(estimate: Estimate, value: float) -> float:
    """Return the probability that the true value is below `value`: `find_quantile` inverted."""
    draws_R = estimate.draws_R
    i = int(np.searchsorted(draws_R, value, side="right"))
    if i == 0:
        position = 0.0
    elif i == len(draws_R):
        position = i - 1.0
    else:
        position = i - 1 + (value - draws_R[i - 1]) / (draws_R[i] - draws_R[i - 1])
    # R draws cannot show a probability below 1 in R + 1.
    rarest = 1 / (len(draws_R) + 1)
    level = np.clip(position / (len(draws_R) - 1), rarest, 1 - rarest)
    adjusted = ndtri(level) - estimate.bias
    below = 1 + estimate.acceleration * adjusted
    from_bias = adjusted / below if below > 0 else np.copysign(np.inf, adjusted)
    expanded = (from_bias - estimate.bias) / _find_expansion(estimate)
    return float(stdtr(estimate.degrees, expanded))


def _find_expansion(estimate: Estimate) -> float:
    return float(np.sqrt(estimate.num_clusters / (estimate.num_clusters - 1)))


def estimate_interval(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    groups: Groups | None = None,
    config: LabelsConfig | None = None,
    seed: int = 0,
) -> Interval | None:
    """Return the 95 % interval of a metric, the mean over the runs.

    By the bootstrap over rows and, with several runs, over seeds; for a proportion of independent
    rows of one run the exact one of Clopper and Pearson (1934), which is also used if no run has an
    error (D14).

    Args:
        metric: Name of the metric.
        labels: Scores [N, D], classes [N], or labels [N, L].
        runs: Outputs [N, C] of each run (seed).
        groups: The cluster of each row, [N]; None if rows are independent.
        config: The task's labels.
        seed: Seed of the resampling.

    Returns:
        None if the metric is undefined, or is so in more than half of the resamples, or if all rows
        are one cluster.
    """
    found = [compute_metric(metric, labels, outputs, config=config) for outputs in runs]
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        return None
    groups = _drop_single_rows(groups)
    flawless = METRICS[metric].flawless
    if flawless is not None and abs(float(np.mean(values)) - flawless) < 1e-9:
        low, high = bound_flawless(_count_evidence(metric, labels, groups))
        return Interval(low, high) if METRICS[metric].higher_is_better else Interval(0.0, 1 - low)
    if METRICS[metric].is_row_fraction and len(runs) == 1 and groups is None:
        return bound_proportion(round(values[0] * len(labels)), len(labels))
    clusters = find_clusters(len(labels), groups, seed=seed)
    variant = resample_metric(metric, labels, runs, clusters=clusters, config=config, seed=seed)
    return _bound_mean(variant, seed=seed)[0]


def estimate_part_intervals(
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    names: list[str],
    groups: Groups | None = None,
    seed: int = 0,
) -> PartIntervals:
    """Return the 95 % intervals of each dimension's mae, or each class's or label's f1."""
    clusters = find_clusters(len(labels), groups, seed=seed)
    variant = resample_parts(labels, runs, clusters=clusters, seed=seed)
    found = _bound_mean(variant, seed=seed)
    is_scores = find_label_type(labels) == "scores"
    if not is_scores:
        support_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(len(names))
        for i, f1 in enumerate(variant.values_KP.mean(axis=0)):
            if f1 == 1:
                found[i] = bound_flawless(count_clusters(support_NC[:, i], groups))
    metric = "mae" if is_scores else "f1"
    return PartIntervals(metric=metric, intervals=dict(zip(names, found, strict=True)))


def resample_metric(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    clusters: Clusters,
    config: LabelsConfig | None,
    seed: int,
) -> Resamples:
    """Resample an overall metric of the runs of a variant, as its only part."""
    found = [find_moments(metric, labels, outputs, config=config) for outputs in runs]
    moments = [m for m in found if m is not None]
    if moments:
        return resample_moments(moments, clusters=clusters, seed=seed)

    def compute(rows_RM: NDArray[np.int64]) -> Floats:
        values = [compute_on_draws(metric, labels, o, rows_RM, config=config) for o in runs]
        return np.stack(values, axis=1)[:, :, None]

    return resample_rows(compute, clusters=clusters, seed=seed)


def resample_parts(
    labels: NDArray[Any], runs: Sequence[Floats], *, clusters: Clusters, seed: int
) -> Resamples:
    """Resample each dimension's mae, or each class's or label's f1, of the runs of a variant."""
    moments = [find_part_moments(labels, outputs) for outputs in runs]
    return resample_moments(moments, clusters=clusters, seed=seed)


def bootstrap_mean(
    values_N: Floats, *, groups: Groups | None = None, seed: int = 0
) -> Interval | None:
    """Return the 95 % interval of a mean over rows; None if all of them are one cluster."""
    clusters = find_clusters(len(values_N), groups, seed=seed)
    mean = Moments(np.asarray(values_N, dtype=np.float64)[:, None], lambda means: means)
    return _bound_mean(resample_moments([mean], clusters=clusters, seed=seed), seed=seed)[0]


def bound_flawless(num_rows: int) -> Interval:
    """Return the exact 95 % interval of a proportion of 1, for rows without any error (D14)."""
    return bound_proportion(num_rows, num_rows)


def bound_proportion(num_hits: int, num_rows: int) -> Interval:
    """Return the exact 95 % interval of a proportion, of Clopper and Pearson (1934)."""
    found = binomtest(num_hits, num_rows).proportion_ci(0.95, method="exact")
    return Interval(float(found.low), float(found.high))


def bound_fraction(
    hits_N: NDArray[np.bool_], *, groups: Groups | None = None, seed: int = 0
) -> Interval | None:
    """Return the 95 % interval of the fraction of rows that are hits.

    Exact for independent rows; of clusters by the bootstrap, and exact for their number if all
    rows are hits, or none is.

    Args:
        hits_N: Whether each row is one.
        groups: The cluster of each row, [N]; None if rows are independent.
        seed: Seed of the resampling.

    Returns:
        None without rows.
    """
    if len(hits_N) == 0:
        return None
    groups = _drop_single_rows(groups)
    if groups is not None and 0 < hits_N.sum() < len(hits_N):
        return bootstrap_mean(hits_N.astype(np.float64), groups=groups, seed=seed)
    num_units = count_clusters(np.ones(len(hits_N), dtype=bool), groups)
    return bound_proportion(round(float(hits_N.mean()) * num_units), num_units)


def _drop_single_rows(groups: Groups | None) -> Groups | None:
    """Return None for clusters of one row each, such as those of a slice."""
    return None if groups is None or len(np.unique(groups)) == len(groups) else groups


def describe_shortage(clusters: Clusters) -> str | None:
    """Return why rows, in clusters, are too few for evidence; None if they suffice.

    Large clusters among small ones count for less than their number (D21).
    """
    num_rows, num_clusters = len(clusters.index_N), len(clusters.sizes_G)
    if num_rows < MIN_ROWS:
        return f"{num_rows} rows are too few for evidence; at least {MIN_ROWS} are needed"
    if clusters.effective >= MIN_CLUSTERS - 1e-9:
        return None
    known = ""
    if num_clusters >= MIN_CLUSTERS:
        known = (
            f", of which the largest has {clusters.sizes_G.max():.0f}, so that they tell as much "
            f"as {clusters.effective:.1f} of equal size,"
        )
    return (
        f"{num_rows} rows in {num_clusters} clusters{known} are too few for evidence; at least "
        f"{MIN_CLUSTERS} clusters are needed"
    )


def count_clusters(chosen_N: NDArray[np.bool_], groups: Groups | None) -> int:
    """Return the number of independent rows among the chosen ones: clusters count once."""
    return int(chosen_N.sum()) if groups is None else len(np.unique(groups[chosen_N]))


def _bound_mean(variant: Resamples, *, seed: int) -> list[Interval | None]:
    """Return the interval of the mean over the runs, per part."""
    found: list[Interval | None] = []
    for part, estimate in enumerate(estimate_contrasts([variant], [1], seed=seed)):
        if estimate is None:
            found.append(None)
            continue
        # If no draw of a run is below 0 or above 1, the metric is taken to be bounded there.
        drawn_RK = variant.draws_RKP[:, :, part]
        least, most = float(np.nanmin(drawn_RK)), float(np.nanmax(drawn_RK))
        low, high = find_interval(estimate)
        found.append(Interval(max(low, min(0.0, least)), min(high, max(1.0, most))))
    return found


def _count_evidence(metric: str, labels: NDArray[Any], groups: Groups | None) -> int:
    """Return the number of rows behind a flawless value: for rankings those of the rarer side."""
    if metric not in ("roc_auc", "average_precision"):
        return count_clusters(np.ones(len(labels), dtype=bool), groups)
    true_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)
    if labels.ndim == 1 and true_NC.shape[1] == 2:  # the ranking of one class reverses the other's
        true_NC = true_NC[:, 1:]
    rarer = [
        min(count_clusters(true_N, groups), count_clusters(~true_N, groups)) for true_N in true_NC.T
    ]
    return min(count_clusters(np.ones(len(labels), dtype=bool), groups), sum(rarer))
