"""Confidence intervals of metrics, by the bootstrap over rows and seeds."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import expit, logit, ndtr, ndtri, stdtr, stdtrit
from scipy.stats import binomtest

from llmft.config.metrics import METRICS
from llmft.config.task import LabelsConfig
from llmft.metrics.definitions import (
    Floats,
    compute_metric,
    compute_on_draws,
    find_label_type,
    weigh_class_rows,
    weigh_rows,
)
from llmft.metrics.moments import Moments, find_moments, find_part_moments, linearise_auc
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

_OF_RANKINGS = ("roc_auc", "average_precision")
_ALMOST = 1e-9
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
    joint_R: Floats
    """The same in the order drawn, which is that of all estimates on the same rows; NaN where
    undefined."""
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
    variants: Sequence[Resamples],
    signs: Sequence[int],
    *,
    seed: int,
    streams: Sequence[int] = (0, 1),
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
        streams: Number of each variant, so that the seeds of different ones are drawn apart.

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
        for variant, sign, stream in zip(variants, signs, streams, strict=False):
            values_S, draws_RS = variant.values_KP[:, part], variant.draws_RKP[:, :, part]
            value += sign * values_S.mean()
            draws_R = draws_R + sign * draws_RS.mean(axis=1)
            by_rows = by_rows + sign * variant.resampled[:, :, part].mean(axis=1)
            if len(values_S) > 1:
                found = _find_seed_variance(variant, part)
                seed_variances.append(found)
                weights_RS = draw_seed_weights(len(values_S), seed, stream)[: len(draws_RS)]
                draws_R = draws_R + sign * found.share * (weights_RS @ values_S)
        estimates.append(_estimate(variants[0], part, value, draws_R, by_rows, seed_variances))
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
    part: int,
    value: float,
    draws_R: Floats,
    by_rows: Floats,
    seed_variances: list[_SeedVariance],
) -> Estimate | None:
    """Describe a number by its draws, by its jackknife (or draws of rows), and by its seeds."""
    known_R = np.sort(draws_R[~np.isnan(draws_R)])
    if variant.num_clusters < 2 or np.isnan(value) or 2 * len(known_R) < len(draws_R):
        return None
    row_variance = variant.find_variance(by_rows)
    total = row_variance + sum(found.net for found in seed_variances)
    # Satterthwaite, for a sum of mean squares of which one is subtracted
    row_degrees = max(1.0, float(variant.effective_P[part]) - 1)
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
        draws_R,
        bias,
        acceleration,
        row_variance,
        total - row_variance,
        max(1.0, total**2 / below) if below > 0 else row_degrees,
        row_degrees,
        has_seeds=bool(seed_variances),
    )


def find_interval(estimate: Estimate, *, confidence: float = 0.95) -> Interval:
    """Return the two-sided interval."""
    tail = (1 - confidence) / 2
    return Interval(find_quantile(estimate, tail), find_quantile(estimate, 1 - tail))


def find_logit_interval(estimate: Estimate, *, confidence: float = 0.95) -> Interval:
    """Return the two-sided interval of an area in (0, 1), by Student's t on the logit scale.

    Source:
        Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2.3 (areas under the ROC
        curve).
    """
    slope = estimate.value * (1 - estimate.value)
    half = float(stdtrit(estimate.degrees, (1 + confidence) / 2)) * estimate.error / slope
    middle = float(logit(estimate.value))
    return Interval(float(expit(middle - half)), float(expit(middle + half)))


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
    joint_ER = np.array([estimate.joint_R for estimate in estimates])
    joint_ER = joint_ER[:, ~np.isnan(joint_ER).any(axis=0)]
    errors_E = joint_ER.std(axis=1)
    varies_E = errors_E > _ROUNDING * np.abs(joint_ER).max(axis=1)
    if varies_E.sum() < 2:
        return tail
    moved_ER = joint_ER[varies_E] - joint_ER[varies_E].mean(axis=1, keepdims=True)
    sizes_ER = moved_ER / errors_E[varies_E, None]
    if two_sided:
        sizes_ER, tail = np.abs(sizes_ER), 2 * tail
    critical = float(np.quantile(sizes_ER.max(axis=0), 1 - tail))
    most = tail / 2 if two_sided else tail
    return float(np.clip(ndtr(-critical), most / len(estimates), most))


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
    return float(np.sqrt((estimate.row_degrees + 1) / estimate.row_degrees))


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

    By the bootstrap over rows and, with several runs, over seeds; areas under curves by Student's t
    on the logit scale, and balanced accuracy from proportions (D20). For a proportion of
    independent rows of one run the exact one of Clopper and Pearson (1934), which is also used if
    no run has an error (D14).

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
    exact = _find_exact_interval(metric, labels, float(np.mean(values)), len(runs), groups)
    if exact is not None:
        return exact
    clusters = find_clusters(len(labels), groups, seed=seed)
    variant = resample_metric(metric, labels, runs, clusters=clusters, config=config, seed=seed)
    estimate = estimate_contrasts([variant], [1], seed=seed)[0]
    if estimate is None:
        return None
    match metric:
        case "balanced_accuracy":
            return bound_mean_recall(labels, runs, clusters=clusters, estimate=estimate)
        case "roc_auc" | "average_precision":
            return find_logit_interval(estimate)
    return _bound_mean(variant, seed=seed)[0]


def _find_exact_interval(
    metric: str, labels: NDArray[Any], value: float, num_runs: int, groups: Groups | None
) -> Interval | None:
    """Return the interval where it is exact: of a metric at its end, or of a fraction of rows."""
    flawless, is_higher_better = METRICS[metric].flawless, METRICS[metric].higher_is_better
    is_at_end = flawless is not None and abs(value - flawless) < 1e-9
    if is_at_end or (metric in _OF_RANKINGS and value <= 0):  # 0: every pair is ranked wrongly
        low, high = bound_flawless(*_count_evidence(metric, labels, groups))
        return Interval(low, high) if is_at_end and is_higher_better else Interval(0.0, 1 - low)
    if METRICS[metric].is_row_fraction and num_runs == 1 and groups is None:
        return bound_proportion(round(value * len(labels)), len(labels))
    return None


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
    if metric == "roc_auc":
        moments = [linearise_auc(labels, outputs, clusters.index_N) for outputs in runs]
    else:
        found = [find_moments(metric, labels, outputs, config=config) for outputs in runs]
        moments = [m for m in found if m is not None]

    def compute(rows_RM: NDArray[np.int64]) -> Floats:
        values = [compute_on_draws(metric, labels, o, rows_RM, config=config) for o in runs]
        return np.stack(values, axis=1)[:, :, None]

    if moments:
        resampled = resample_moments(moments, clusters=clusters, seed=seed)
    else:
        resampled = resample_rows(compute, clusters=clusters, seed=seed)
    weights_N = weigh_rows(metric, labels)
    if weights_N is None:
        return resampled
    effective = clusters.count_effective(weights_N)
    return resampled._replace(effective_P=np.minimum(resampled.effective_P, effective))


def resample_parts(
    labels: NDArray[Any], runs: Sequence[Floats], *, clusters: Clusters, seed: int
) -> Resamples:
    """Resample each dimension's mae, or each class's or label's f1, of the runs of a variant."""
    moments = [find_part_moments(labels, outputs) for outputs in runs]
    resampled = resample_moments(moments, clusters=clusters, seed=seed)
    if find_label_type(labels) == "scores":
        return resampled
    weights_NC = weigh_class_rows(labels, runs[0].shape[1])
    effective = [clusters.count_effective(weights_N) for weights_N in weights_NC.T]
    return resampled._replace(effective_P=np.array(effective))


def bootstrap_mean(
    values_N: Floats, *, groups: Groups | None = None, seed: int = 0
) -> Interval | None:
    """Return the 95 % interval of a mean over rows; None if all of them are one cluster."""
    clusters = find_clusters(len(values_N), groups, seed=seed)
    mean = Moments(np.asarray(values_N, dtype=np.float64)[:, None], lambda means: means)
    return _bound_mean(resample_moments([mean], clusters=clusters, seed=seed), seed=seed)[0]


def bound_flawless(*counts: float) -> Interval:
    """Return the exact 95 % interval of a mean of proportions that are all 1 (D14).

    The lower bound is the lowest mean with which rows without any error are as probable as 2.5 %;
    for a single proportion that of Clopper and Pearson (1934).

    Args:
        counts: Number of rows of each proportion, such as the rows of each class.
    """
    counts_C = np.array(counts, dtype=np.float64)

    def log_probability(log_rate: float) -> float:
        """Return that of no error where each class is right with probability rate times count."""
        return float((counts_C * np.minimum(0.0, log_rate + np.log(counts_C))).sum())

    # By Lagrange: the mean is lowest where the probability of a class grows with its rows.
    end = -math.log(counts_C.min())
    start = end + math.log(0.025) / counts_C.min() - 1
    log_rate = optimize.brentq(lambda x: log_probability(x) - math.log(0.025), start, end)
    return Interval(float(np.minimum(1.0, np.exp(log_rate) * counts_C).mean()), 1.0)


def bound_mean_recall(
    labels_N: NDArray[np.int64], runs: Sequence[Floats], *, clusters: Clusters, estimate: Estimate
) -> Interval:
    """Return the 95 % interval of the mean recall over classes, the mean over the runs.

    That of each recall is Wilson's, for as many independent rows as its variance over clusters
    says. They are combined by the distances of their ends from the recalls (MOVER), together with
    the variance over seeds.

    Args:
        labels_N: Classes.
        runs: Outputs [N, C] of each run.
        clusters: Rows that are drawn together.
        estimate: The mean recall.

    Source:
        Wilson 1927, doi:10.1080/01621459.1927.10502953; Zou and Donner 2008, Construction of
        Confidence Limits about Effect Measures, doi:10.1002/sim.3095 (MOVER).
    """
    is_clustered = len(clusters.sizes_G) < len(labels_N)
    z = float(stdtrit(estimate.row_degrees if is_clustered else np.inf, 0.975))
    hits_N = np.mean([outputs.argmax(axis=1) == labels_N for outputs in runs], axis=0)
    below, above, moved = [], [], []
    for label in np.unique(labels_N):
        rows_N = labels_N == label
        recall, num_rows = float(hits_N[rows_N].mean()), int(rows_N.sum())
        num_units = len(np.unique(clusters.index_N[rows_N]))
        residuals_N1 = np.where(rows_N, hits_N - recall, 0.0)[:, None] / num_rows
        moved_G = clusters.add_up(residuals_N1)[:, 0]
        variance = float((moved_G**2).sum()) * num_units / max(1, num_units - 1)
        spread, count = recall * (1 - recall), float(num_units)
        if is_clustered and spread > 0:
            count = min(float(num_rows), spread / max(variance, spread / num_rows))
        middle = (recall + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z * math.sqrt(spread / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
        below.append(recall - (middle - half))
        above.append(middle + half - recall)
        moved.append(moved_G)
    # Classes vary together where a cluster has rows of several.
    together = float((np.sum(moved, axis=0) ** 2).sum())
    apart = float((np.array(moved) ** 2).sum())
    ratio = max(1.0, together / apart) if apart > 0 else 1.0
    of_seeds = float(stdtrit(estimate.degrees, 0.975)) * math.sqrt(estimate.seed_variance)
    low, high = (
        math.hypot(math.sqrt(ratio * float((np.array(ends) ** 2).sum())) / len(ends), of_seeds)
        for ends in (below, above)
    )
    return Interval(max(0.0, estimate.value - low), min(1.0, estimate.value + high))


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


class Shortage(NamedTuple):
    """Rows that are too few for evidence."""

    reason: str
    fraction: float
    """The rows there are, of those that are needed."""


def find_shortage(
    num_rows: int,
    groups: Groups | None = None,
    *,
    metric: str = "",
    labels: NDArray[Any] | None = None,
) -> Shortage | None:
    """Return why rows are too few for evidence; None if they suffice.

    Clusters count by their effective number, so large ones among small ones count for less (D21);
    in metrics that weigh classes rows of frequent ones count for less (D20).

    Args:
        num_rows: N.
        groups: The cluster of each row, [N]; None if rows are independent.
        metric: An overall metric.
        labels: Scores [N, D], classes [N], or labels [N, L]; needed for a metric.
    """
    if num_rows < MIN_ROWS:
        reason = f"{num_rows} rows are too few for evidence; at least {MIN_ROWS} are needed"
        return Shortage(reason, num_rows / MIN_ROWS)
    clusters = find_clusters(num_rows, groups, most=None)
    num_clusters, effective = len(clusters.sizes_G), clusters.count_effective()
    counted = f"{num_rows} rows in {num_clusters} clusters"
    if num_clusters >= MIN_CLUSTERS:
        counted += (
            f" tell as much as {effective:.1f} clusters of equal size, since the largest has "
            f"{clusters.sizes_G.max():.0f} rows; these"
        )
    if effective >= MIN_CLUSTERS - _ALMOST and labels is not None:
        counted, effective = _count_for_metric(metric, labels, clusters)
    if effective >= MIN_CLUSTERS - _ALMOST:
        return None
    reason = f"{counted} are too few for evidence; at least {MIN_CLUSTERS} are needed"
    return Shortage(reason, effective / MIN_CLUSTERS)


def _count_for_metric(metric: str, labels: NDArray[Any], clusters: Clusters) -> tuple[str, float]:
    """Return on how many rows, or clusters of rows, a metric rests, in words and as a number."""
    weights_N = weigh_rows(metric, labels)
    if weights_N is None:
        return "", math.inf
    unit = "rows" if len(clusters.sizes_G) == len(labels) else "clusters of rows"
    columns_NC = labels.reshape(len(labels), -1)
    if columns_NC.shape[1] == 1 and len(np.unique(columns_NC)) <= 2:
        effective = count_rarer(columns_NC[:, 0] == columns_NC.max(), clusters)
        return f"{metric} rests on the rarer class, and its {effective:.3g} {unit}", effective
    effective = clusters.count_effective(weights_N)
    return (
        f"{metric} rests mostly on rows of rare classes, so that all rows tell as much as "
        f"{effective:.3g} {unit} of equal weight; these",
        effective,
    )


def count_rarer(true_N: NDArray[np.bool_], clusters: Clusters) -> float:
    """Return the effective number of clusters of the rarer side of a class or label."""
    return min(clusters.count_effective(side_N.astype(float)) for side_N in (true_N, ~true_N))


def list_rare(labels: NDArray[Any], groups: Groups | None, names: Sequence[str]) -> list[str]:
    """Return the classes or labels with too few clusters to find anything by themselves (D20).

    Those that never occur are left out, and all if labels are scores.
    """
    if find_label_type(labels) == "scores":
        return []
    clusters = find_clusters(len(labels), groups, most=None)
    true_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(len(names))
    counts = [count_rarer(true_N, clusters) for true_N in true_NC.T]
    return [
        name
        for name, count, true_N in zip(names, counts, true_NC.T, strict=True)
        if true_N.any() and count < MIN_CLUSTERS - _ALMOST
    ]


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


def _count_evidence(metric: str, labels: NDArray[Any], groups: Groups | None) -> list[float]:
    """Return the independent rows behind a flawless value, of each class or label that it weighs.

    For areas under curves and for labels those of the rarer side.
    """
    num_units = count_clusters(np.ones(len(labels), dtype=bool), groups)
    if metric not in ("f1_macro", "balanced_accuracy", *_OF_RANKINGS):
        return [num_units]
    true_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)
    if labels.ndim == 1 and true_NC.shape[1] == 2 and metric in _OF_RANKINGS:
        true_NC = true_NC[:, 1:]  # the ranking of one class reverses the other's
    counted_NC = true_NC.copy()
    if labels.ndim == 2 or metric in _OF_RANKINGS:
        for i, true_N in enumerate(true_NC.T):
            if count_clusters(true_N, groups) > count_clusters(~true_N, groups):
                counted_NC[:, i] = ~true_N
    known = [n for counted_N in counted_NC.T if (n := count_clusters(counted_N, groups)) > 0]
    # The labels of a row are not independent of each other.
    num_units = count_clusters(np.asarray(counted_NC.any(axis=1)), groups)
    return [count * min(1.0, num_units / sum(known)) for count in known] or [1.0]
