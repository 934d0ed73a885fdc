"""Clusters of rows, metrics without each of them, and the weights of bootstrap draws."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.task import LabelsConfig
from llmft.metrics.definitions import (
    Floats,
    compute_on_draws,
    find_label_type,
    weigh_class_rows,
    weigh_rows,
)
from llmft.metrics.moments import Moments, find_moments, find_part_moments, linearise_auc

Groups = NDArray[np.int64]
MAX_CLUSTERS = 2_000
"""More clusters are merged at random."""
_NUM_RESAMPLES = 4_000
_NUM_BLOCKS = 50


class Clusters(NamedTuple):
    """Clusters of rows, which are drawn together; of one row each if rows are independent."""

    index_N: NDArray[np.int64]
    """Index of each row's cluster, [N]."""
    sizes_G: Floats

    def count_effective(self, weights_N: Floats | None = None) -> float:
        """Return how many clusters of equal weight tell as much of a mean (D21).

        They are fewer where some dominate. Rows of one cluster are taken to be alike, the worst
        case.

        Args:
            weights_N: How much each row weighs in the mean; None if all weigh the same.

        Source:
            Carter, Schnepel and Steigerwald 2017, Asymptotic Behavior of a t-Test Robust to Cluster
            Heterogeneity, doi:10.1162/REST_a_00639: G / (1 + squared coefficient of variation of
            the squared weights).
        """
        weights_G = np.bincount(self.index_N, weights_N, len(self.sizes_G)).astype(np.float64)
        if weights_G.max() <= 0:
            return 0.0
        squares_G = (weights_G / weights_G.max()) ** 2
        return float(squares_G.sum() ** 2 / (squares_G**2).sum())

    def add_up(self, values_NM: Floats) -> Floats:
        """Return the sums over the rows of each cluster, [G, M]."""
        if len(self.sizes_G) == len(values_NM):
            sums_GM = np.empty_like(values_NM)
            sums_GM[self.index_N] = values_NM
            return sums_GM
        sums = [np.bincount(self.index_N, column, len(self.sizes_G)) for column in values_NM.T]
        return np.stack(sums, axis=1)


class Jackknife(NamedTuple):
    """P metrics of the K runs of a variant, on all rows and without each cluster; NaN if undefined.

    They give the influence of each cluster, and with it variances and bootstrap draws.
    """

    values_KP: Floats
    without_GKP: Floats
    """Without each cluster in turn."""
    effective_P: Floats
    """The effective number of clusters for each metric (`Clusters.count_effective`)."""
    stream: int = 0
    """Of the random numbers that seeds are drawn by: another one for each variant."""

    def compute_influences(self, part: int) -> Floats:
        """Return by how much each cluster moves a metric, times the number of clusters, [G, K].

        Their mean is 0.
        """
        apart_GK: Floats = self.without_GKP[:, :, part].mean(axis=0) - self.without_GKP[:, :, part]
        return (len(apart_GK) - 1) * apart_GK


def estimate_variance(influences_G: Floats) -> float:
    """Return the variance over clusters of a number, from their influences on it.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 11.2 (jackknife).
    """
    num_clusters = len(influences_G)
    return float((influences_G**2).sum() / (num_clusters * (num_clusters - 1)))


def find_clusters(
    num_rows: int, groups: Groups | None = None, *, seed: int = 0, most: int | None = MAX_CLUSTERS
) -> Clusters:
    """Return the clusters of rows.

    More than `most` are merged at random, which keeps the variance of a mean and makes a draw
    small.

    Args:
        num_rows: N.
        groups: The cluster of each row, [N]; None if the rows are independent.
        seed: Seed of the merge.
        most: Largest number of clusters; None to merge none, for counts of them.
    """
    index_N = np.arange(num_rows)
    if groups is not None:
        index_N = np.unique(groups, return_inverse=True)[1]
    num_clusters = int(index_N.max()) + 1
    if most is not None and num_clusters > most:
        blocks = np.random.default_rng([seed, num_clusters]).permutation(num_clusters)
        index_N = blocks[index_N] % most
    return Clusters(index_N, np.bincount(index_N).astype(np.float64))


def jackknife_moments(runs: Sequence[Moments], *, clusters: Clusters) -> Jackknife:
    """Leave each cluster out of metrics that are functions of means over rows.

    For clusters of unequal size the mean is the ratio of two sums.
    """
    sizes_G = clusters.sizes_G
    num_rows = sizes_G.sum()
    values, without = [], []
    for values_NM, combine in runs:
        sums_GM = clusters.add_up(values_NM)
        mean_M = sums_GM.sum(axis=0) / num_rows
        # Constant values must stay exactly constant.
        centred_GM = sums_GM - sizes_G[:, None] * mean_M
        centred_GM[np.abs(centred_GM) <= 1e-9 * np.abs(sums_GM).max()] = 0
        values.append(combine(mean_M))
        others_G1 = np.maximum(num_rows - sizes_G[:, None], 1)
        without.append(combine(mean_M - centred_GM / others_G1))
    effective_P = np.full(values[0].shape, clusters.count_effective())
    return Jackknife(np.stack(values), np.stack(without, axis=1), effective_P)


def jackknife_rows(
    statistic: Callable[[NDArray[np.int64]], Floats], *, clusters: Clusters, seed: int
) -> Jackknife:
    """Leave each cluster out of metrics of the ranking of the rows.

    Of more than 2,000 rows blocks of clusters are left out, since the statistic is computed anew.

    Args:
        statistic: Row positions of R draws [R, M] -> metrics [R, K, P], NaN if undefined.
        clusters: Rows that are left out together.
        seed: Seed of the blocks.

    Source:
        Shao and Tu 1995, The Jackknife and Bootstrap, section 2.1 (blocks).
    """
    num_rows, index_N = len(clusters.index_N), clusters.index_N
    if num_rows > MAX_CLUSTERS:
        index_N = find_clusters(num_rows, index_N, seed=seed, most=_NUM_BLOCKS).index_N
    rows_of = [np.flatnonzero(index_N != i) for i in range(index_N.max() + 1)]
    values_KP = statistic(np.arange(num_rows)[None])[0]
    if len(rows_of) == 1:
        without_GKP = np.full((1, *values_KP.shape), np.nan)
    elif len(set(map(len, rows_of))) == 1:
        without_GKP = statistic(np.stack(rows_of))
    else:  # clusters of several sizes leave several numbers of rows
        without_GKP = np.concatenate([statistic(rows_M[None]) for rows_M in rows_of])
    effective = find_clusters(num_rows, index_N, most=None).count_effective()
    return Jackknife(values_KP, without_GKP, np.full(values_KP.shape[1], effective))


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


@lru_cache(maxsize=4)
def draw_weights(num_clusters: int, seed: int) -> Floats:
    """Return the count of each cluster in each resample, [R, G]; at most 64 MB."""
    generator = np.random.default_rng(seed)
    weights_RG = np.empty((_NUM_RESAMPLES, num_clusters))
    for i in range(_NUM_RESAMPLES):
        drawn = generator.integers(num_clusters, size=num_clusters)
        weights_RG[i] = np.bincount(drawn, minlength=num_clusters)
    weights_RG.flags.writeable = False
    return weights_RG


@lru_cache(maxsize=4)
def draw_seed_weights(num_seeds: int, seed: int, stream: int) -> Floats:
    """Return the weight of each seed in each resample, minus 1 / S, [R, S].

    A few seeds have only a handful of different resamples, so they get normal multipliers, under
    which the mean over the seeds has the variance estimated from its seeds.

    Source:
        van der Vaart and Wellner 1996, Weak Convergence and Empirical Processes, section 2.9.
    """
    drawn_RS = np.random.default_rng([seed, stream]).normal(size=(_NUM_RESAMPLES, num_seeds))
    centred_RS = drawn_RS - drawn_RS.mean(axis=1, keepdims=True)
    return np.asarray(centred_RS / np.sqrt(num_seeds * max(1, num_seeds - 1)))
