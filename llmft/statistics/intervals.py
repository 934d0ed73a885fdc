"""Confidence intervals of metrics, by the bootstrap over rows and seeds."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import expit, logit, ndtr, stdtr, stdtrit
from scipy.stats import binomtest

from llmft.config.metrics import METRICS
from llmft.config.task import LabelsConfig, ScoresConfig
from llmft.metrics.definitions import (
    Floats,
    compute_metric,
    compute_on_draws,
    compute_row_values,
    find_label_type,
    weigh_class_rows,
    weigh_rows,
)
from llmft.metrics.moments import Moments, find_moments, find_part_moments, linearise_auc
from llmft.results.evaluation import Interval, PartIntervals
from llmft.statistics.resampling import (
    Clusters,
    Groups,
    Jackknife,
    draw_seed_weights,
    draw_weights,
    estimate_variance,
    find_clusters,
    jackknife_moments,
    jackknife_rows,
)

_ALMOST = 1e-9
FEWEST_DIFFERENT = 4
"""Rows, or clusters, that a mean over mostly equal rows has to rest on. With fewer, more than
exp(-4) of the bootstrap draws have none of them."""
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

    By the bootstrap-t over rows and, with several runs, over seeds; areas under curves by Student's
    t on the logit scale, and balanced accuracy from proportions (D20). For a proportion of
    independent rows of one run the exact one of Clopper and Pearson (1934), which is also used if
    no run has an error, or hardly any (D14).

    Args:
        metric: Name of the metric.
        labels: Scores [N, D], classes [N], or labels [N, L].
        runs: Outputs [N, C] of each run (seed).
        groups: The cluster of each row, [N]; None if rows are independent.
        config: The task's labels.
        seed: Seed of the resampling.

    Returns:
        None if the metric is undefined, or is so without one of the clusters, or if all rows are
        one cluster.
    """
    found = [compute_metric(metric, labels, outputs, config=config) for outputs in runs]
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        return None
    groups = _drop_single_rows(groups)
    exact = _find_exact_interval(metric, labels, float(np.mean(values)), len(runs), groups)
    if exact is None:
        exact = _bound_rare_errors(metric, labels, runs, groups=groups, config=config)
    if exact is not None:
        return exact
    clusters = find_clusters(len(labels), groups, seed=seed)
    variant = jackknife_metric(metric, labels, runs, clusters=clusters, config=config, seed=seed)
    estimate = estimate_contrasts([variant], [1], seed=seed)[0]
    if estimate is None:
        return None
    match metric:
        case "balanced_accuracy":
            return bound_mean_recall(labels, runs, clusters=clusters, estimate=estimate)
        case "roc_auc" | "average_precision":
            return find_logit_interval(estimate)
    return _clip(find_interval(estimate), METRICS[metric].lowest, METRICS[metric].highest)


def _find_exact_interval(
    metric: str, labels: NDArray[Any], value: float, num_runs: int, groups: Groups | None
) -> Interval | None:
    """Return the interval where it is exact: of a metric at its end, or of a fraction of rows."""
    flawless, is_higher_better = METRICS[metric].flawless, METRICS[metric].higher_is_better
    is_at_end = flawless is not None and abs(value - flawless) < 1e-9
    if is_at_end or (METRICS[metric].is_area and value <= 0):  # 0: every pair is ranked wrongly
        low, high = bound_flawless(*_count_evidence(metric, labels, groups))
        return Interval(low, high) if is_at_end and is_higher_better else Interval(0.0, 1 - low)
    if METRICS[metric].is_row_fraction and num_runs == 1 and groups is None:
        return bound_proportion(round(value * len(labels)), len(labels))
    return None


def _bound_rare_errors(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    groups: Groups | None,
    config: LabelsConfig | None,
) -> Interval | None:
    """Return the interval of a mean over rows where hardly any row is wrong (D14); else None.

    Then more than 1.8 % of all bootstrap draws are without an error. The error is at most the upper
    bound of the fraction of wrong rows, times the largest possible error of a row.
    """
    best = METRICS[metric].flawless or 0.0
    values = [
        np.abs(labels - outputs).max(axis=1) if metric == "rmse"
        else compute_row_values(metric, labels, outputs, config=config)
        for outputs in runs
    ]  # fmt: skip
    known = [np.abs(values_N - best) for values_N in values if values_N is not None]
    if not known:
        return None
    rate = _bound_rare_fraction(np.max(known, axis=0) > _ALMOST, groups)
    if rate is None:
        return None
    error = find_largest_error(metric, labels, runs, config=config)
    error *= math.sqrt(rate) if metric == "rmse" else rate
    error = max(error, float(np.mean([values_N.mean() for values_N in known])))
    return Interval(best - error, best) if METRICS[metric].higher_is_better else Interval(0, error)


def find_largest_error(
    metric: str, labels: NDArray[Any], runs: Sequence[Floats], *, config: LabelsConfig | None
) -> float:
    """Return the largest possible error of a row, in the units of the metric."""
    if find_label_type(labels) != "scores" or METRICS[metric].is_row_fraction:
        return 1.0
    if isinstance(config, ScoresConfig):
        return config.range[1] - config.range[0]
    return float(max(np.ptp([labels, outputs_ND]) for outputs_ND in runs))


def _bound_rare_fraction(wrong_N: NDArray[np.bool_], groups: Groups | None) -> float | None:
    """Return the upper bound of the fraction of wrong rows; None unless hardly any is wrong.

    All wrong clusters are taken to be as large as the largest.
    """
    sizes_G = find_clusters(len(wrong_N), groups, most=None).sizes_G
    num_wrong = count_clusters(wrong_N, groups)
    if num_wrong >= min(FEWEST_DIFFERENT, len(sizes_G) / 2):
        return None
    weight = float(sizes_G.max() / sizes_G.mean())
    return min(1.0, weight * bound_proportion(num_wrong, len(sizes_G)).high)


def estimate_part_intervals(
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    names: list[str],
    groups: Groups | None = None,
    config: LabelsConfig | None = None,
    seed: int = 0,
) -> PartIntervals:
    """Return the 95 % intervals of each dimension's mae, or each class's or label's f1."""
    clusters = find_clusters(len(labels), groups, seed=seed)
    variant = jackknife_parts(labels, runs, clusters=clusters)
    is_scores = find_label_type(labels) == "scores"
    found = [
        interval and _clip(interval, 0.0, math.inf if is_scores else 1.0)
        for interval in _bound_mean(variant, seed=seed)
    ]
    if is_scores:
        errors_ND = np.max([np.abs(labels - outputs) for outputs in runs], axis=0)
        span = find_largest_error("mae", labels, runs, config=config)
        for i, errors_N in enumerate(errors_ND.T):
            rate = _bound_rare_fraction(errors_N > _ALMOST, groups)
            found[i] = found[i] if rate is None else Interval(0.0, rate * span)
    else:
        support_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(len(names))
        for i, f1 in enumerate(variant.values_KP.mean(axis=0)):
            if f1 == 1:
                found[i] = bound_flawless(count_clusters(support_NC[:, i], groups))
    metric = "mae" if is_scores else "f1"
    return PartIntervals(metric=metric, intervals=dict(zip(names, found, strict=True)))


def jackknife_metric(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    clusters: Clusters,
    config: LabelsConfig | None,
    seed: int,
) -> Jackknife:
    """Leave each cluster out of an overall metric of the runs of a variant, its only part."""
    if metric == "roc_auc":
        moments = [linearise_auc(labels, outputs, clusters.index_N) for outputs in runs]
    else:
        known = [find_moments(metric, labels, outputs, config=config) for outputs in runs]
        moments = [m for m in known if m is not None]

    def compute(rows_RM: NDArray[np.int64]) -> Floats:
        values = [compute_on_draws(metric, labels, o, rows_RM, config=config) for o in runs]
        return np.stack(values, axis=1)[:, :, None]

    if moments:
        found = jackknife_moments(moments, clusters=clusters)
    else:
        found = jackknife_rows(compute, clusters=clusters, seed=seed)
    weights_N = weigh_rows(metric, labels)
    if weights_N is None:
        return found
    effective = clusters.count_effective(weights_N)
    return found._replace(effective_P=np.minimum(found.effective_P, effective))


def jackknife_parts(
    labels: NDArray[Any], runs: Sequence[Floats], *, clusters: Clusters
) -> Jackknife:
    """Leave each cluster out of each dimension's mae, or each class's or label's f1."""
    moments = [find_part_moments(labels, outputs) for outputs in runs]
    found = jackknife_moments(moments, clusters=clusters)
    if find_label_type(labels) == "scores":
        return found
    weights_NC = weigh_class_rows(labels, runs[0].shape[1])
    effective = [clusters.count_effective(weights_N) for weights_N in weights_NC.T]
    return found._replace(effective_P=np.array(effective))


def bootstrap_mean(
    values_N: Floats, *, groups: Groups | None = None, seed: int = 0
) -> Interval | None:
    """Return the 95 % interval of a mean over rows; None if all of them are one cluster.

    If no value is below 0 or above 1, the mean is taken to be bounded there.
    """
    clusters = find_clusters(len(values_N), groups, seed=seed)
    mean = Moments(np.asarray(values_N, dtype=np.float64)[:, None], lambda means: means)
    interval = _bound_mean(jackknife_moments([mean], clusters=clusters), seed=seed)[0]
    ends = float(np.min(values_N, initial=0.0)), float(np.max(values_N, initial=1.0))
    return interval and _clip(interval, *ends)


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


def _bound_mean(variant: Jackknife, *, seed: int) -> list[Interval | None]:
    """Return the interval of the mean over the runs, per part."""
    return [
        estimate and find_interval(estimate)
        for estimate in estimate_contrasts([variant], [1], seed=seed)
    ]


def _clip(interval: Interval, low: float, high: float) -> Interval:
    return Interval(max(interval.low, low), min(interval.high, high))


def _count_evidence(metric: str, labels: NDArray[Any], groups: Groups | None) -> list[float]:
    """Return the independent rows behind a flawless value, of each class or label that it weighs.

    For areas under curves and for labels those of the rarer side.
    """
    num_units = count_clusters(np.ones(len(labels), dtype=bool), groups)
    if METRICS[metric].weighs != "classes":
        return [num_units]
    is_area = METRICS[metric].is_area
    true_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)
    if labels.ndim == 1 and true_NC.shape[1] == 2 and is_area:
        true_NC = true_NC[:, 1:]  # the ranking of one class reverses the other's
    counted_NC = true_NC.copy()
    if labels.ndim == 2 or is_area:
        for i, true_N in enumerate(true_NC.T):
            if count_clusters(true_N, groups) > count_clusters(~true_N, groups):
                counted_NC[:, i] = ~true_N
    known = [n for counted_N in counted_NC.T if (n := count_clusters(counted_N, groups)) > 0]
    # The labels of a row are not independent of each other.
    num_units = count_clusters(np.asarray(counted_NC.any(axis=1)), groups)
    return [count * min(1.0, num_units / sum(known)) for count in known] or [1.0]
