"""The bootstrap: metrics of runs on resampled rows."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.metrics.definitions import Floats
from llmft.metrics.moments import Moments

Groups = NDArray[np.int64]
MAX_CLUSTERS = 2_000
"""Intervals are corrected for skewness up to this many rows; more clusters are merged at random."""
_NUM_RESAMPLES = 4_000
_NUM_ROW_RESAMPLES = 1_000
"""For metrics that have to be recomputed on each resample."""
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


class Resamples(NamedTuple):
    """P metrics of the K runs of a variant, on the rows and on resamples; NaN if undefined."""

    values_KP: Floats
    draws_RKP: Floats
    """On R draws of the rows. Two variants with the same clusters and seed have the same draws."""
    jackknife_GKP: Floats | None
    """Leaving out each cluster in turn; None if that is too costly."""
    num_clusters: int
    effective_P: Floats
    """Their effective number for each metric (`Clusters.count_effective`)."""
    is_corrected: bool
    """Whether to correct intervals for bias and skewness (BCa)."""

    @property
    def resampled(self) -> Floats:
        """The metrics without each cluster, [G, K, P], or on draws of the rows, [R, K, P]."""
        return self.draws_RKP if self.jackknife_GKP is None else self.jackknife_GKP

    def find_variance(self, values_X: Floats) -> float:
        """Return the variance over rows of a number that was computed on `resampled`, [X].

        NaN for a single cluster.
        """
        if self.num_clusters < 2:
            return math.nan
        squares = (values_X[~np.isnan(values_X)] - np.nanmean(values_X)) ** 2
        if self.jackknife_GKP is None:
            return self.num_clusters / (self.num_clusters - 1) * float(squares.mean())
        return (self.num_clusters - 1) / self.num_clusters * float(squares.sum())


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


def resample_moments(runs: Sequence[Moments], *, clusters: Clusters, seed: int) -> Resamples:
    """Resample metrics that are functions of means over rows.

    For clusters of unequal size the mean is the ratio of two sums. One matrix product gives all
    draws: the count of each cluster in each draw, times the sums of the clusters.

    Source:
        Davison and Hinkley 1997, Bootstrap Methods and their Application, section 2.4 (ratios)
        and 3.8 (clusters).
    """
    sizes_G = clusters.sizes_G
    num_clusters, num_rows = len(sizes_G), sizes_G.sum()
    weights_RG = draw_weights(num_clusters, seed)
    drawn_R1 = weights_RG @ sizes_G[:, None]
    values, draws, jackknife = [], [], []
    for values_NM, combine, _ in runs:
        sums_GM = clusters.add_up(values_NM)
        mean_M = sums_GM.sum(axis=0) / num_rows
        # Constant values must stay exactly constant.
        centred_GM = sums_GM - sizes_G[:, None] * mean_M
        centred_GM[np.abs(centred_GM) <= 1e-9 * np.abs(sums_GM).max()] = 0
        values.append(combine(mean_M))
        draws.append(combine(mean_M + (weights_RG @ centred_GM) / drawn_R1))
        if num_clusters > 1:
            others_G1 = num_rows - sizes_G[:, None]
            jackknife.append(combine(mean_M - centred_GM / others_G1))
    return Resamples(
        np.stack(values),
        np.stack(draws, axis=1),
        np.stack(jackknife, axis=1) if jackknife else None,
        num_clusters,
        np.full(values[0].shape, clusters.count_effective()),
        is_corrected=num_rows <= MAX_CLUSTERS,
    )


def resample_rows(
    statistic: Callable[[NDArray[np.int64]], Floats], *, clusters: Clusters, seed: int
) -> Resamples:
    """Resample metrics of the ranking of the rows.

    The draws are shifted so that their median is the metric itself: repeated rows in a draw are
    enough to raise an average precision.

    Args:
        statistic: Row positions of R draws [R, M] -> metrics [R, K, P], NaN if undefined.
        clusters: Rows that are drawn together.
        seed: Seed of the draws.
    """
    num_rows, num_clusters = len(clusters.index_N), len(clusters.sizes_G)
    values_KP = statistic(np.arange(num_rows)[None])[0]
    if num_rows > MAX_CLUSTERS and num_clusters > _NUM_BLOCKS:
        return _resample_blocks(statistic, values_KP, clusters, seed)
    order_N = np.argsort(clusters.index_N, kind="stable")
    rows_of = np.split(order_N, np.cumsum(clusters.sizes_G.astype(int))[:-1])
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(_NUM_ROW_RESAMPLES):
        drawn_G = generator.integers(num_clusters, size=num_clusters)
        drawn.append(np.concatenate([rows_of[i] for i in drawn_G]))
    if len(set(map(len, rows_of))) == 1:
        draws_RKP = statistic(np.stack(drawn))
    else:  # draws of clusters of several sizes differ in their number of rows
        draws_RKP = np.concatenate([statistic(rows_M[None]) for rows_M in drawn])
    is_known = ~np.isnan(draws_RKP).all(axis=0)
    middle_KP = np.full(values_KP.shape, np.nan)
    middle_KP[is_known] = np.nanmedian(draws_RKP[:, is_known], axis=0)
    # If no draw is below 0 or above 1, the metric is taken to be bounded there.
    low_KP = np.fmin(0.0, np.fmin.reduce(draws_RKP))
    high_KP = np.fmax(1.0, np.fmax.reduce(draws_RKP))
    shifted_RKP = np.clip(draws_RKP + (values_KP - middle_KP), low_KP, high_KP)
    effective_P = np.full(values_KP.shape[1], clusters.count_effective())
    return Resamples(values_KP, shifted_RKP, None, num_clusters, effective_P, is_corrected=False)


def _resample_blocks(
    statistic: Callable[[NDArray[np.int64]], Floats],
    values_KP: Floats,
    clusters: Clusters,
    seed: int,
) -> Resamples:
    """Resample the pseudo-values of blocks of rows: the statistic is computed 51 times only.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 11.5 (pseudo-values);
        Shao and Tu 1995, The Jackknife and Bootstrap, section 2.1 (blocks).
    """
    block_N = np.random.default_rng(seed).permutation(len(clusters.sizes_G)) % _NUM_BLOCKS
    block_N = block_N[clusters.index_N]
    others = [statistic(np.flatnonzero(block_N != i)[None]) for i in range(_NUM_BLOCKS)]
    others_GKP = np.concatenate(others)
    from_mean_GX = (others_GKP.mean(axis=0) - others_GKP).reshape(_NUM_BLOCKS, -1)
    moved_RX = draw_weights(_NUM_BLOCKS, seed) @ from_mean_GX * (_NUM_BLOCKS - 1) / _NUM_BLOCKS
    draws_RKP = values_KP + moved_RX.reshape(-1, *values_KP.shape)
    effective_P = np.full(values_KP.shape[1], _NUM_BLOCKS)
    return Resamples(values_KP, draws_RKP, others_GKP, _NUM_BLOCKS, effective_P, is_corrected=False)


@lru_cache(maxsize=2)
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
def draw_seed_weights(num_seeds: int, seed: int, variant: int) -> Floats:
    """Return the weight of each seed in each resample, minus 1 / S, [R, S].

    A few seeds have only a handful of different resamples, so they get normal multipliers, under
    which the mean over the seeds has the variance estimated from its seeds.

    Source:
        van der Vaart and Wellner 1996, Weak Convergence and Empirical Processes, section 2.9.
    """
    drawn_RS = np.random.default_rng([seed, variant]).normal(size=(_NUM_RESAMPLES, num_seeds))
    centred_RS = drawn_RS - drawn_RS.mean(axis=1, keepdims=True)
    return np.asarray(centred_RS / np.sqrt(num_seeds * max(1, num_seeds - 1)))
