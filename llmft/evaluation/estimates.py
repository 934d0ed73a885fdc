"""What resampling says of one number: its bounds, and how surely it lies above a value."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from llmft.evaluation.resampling import Resampled, draw_seed_weights
from llmft.results.variant import Interval

Floats = NDArray[np.floating[Any]]
_ROUNDING = 1e-9
"""Of a metric; a standard error below this part of it is none."""


class Estimate(NamedTuple):
    """A number with what is known of its error."""

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
    """Of the value, over seeds; 0 if no arm has several."""
    degrees: float
    """Of freedom of the two variances together."""
    num_clusters: int

    @property
    def error(self) -> float:
        """Standard error."""
        return float(np.sqrt(self.row_variance + self.seed_variance))


def weigh_arms(
    arms: Sequence[Resampled], signs: Sequence[int], *, seed: int
) -> list[Estimate | None]:
    """Add up the means over the runs of some arms, each times its sign.

    The bootstrap is hierarchical: each draw takes other rows, the same ones for all arms, and
    weighs the seeds of each arm otherwise.

    Args:
        arms: One, or those to compare, with the same clusters, seed and parts.
        signs: 1 for an arm to add, -1 for one to take off.
        seed: Seed of the draws of seeds.

    Returns:
        Per part; None where the value is not defined, be it in more than half of the draws.

    Source:
        Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8.
    """
    num_parts = arms[0].values_KP.shape[1]
    estimates = []
    for part in range(num_parts):
        value, seed_variances = 0.0, []
        draws_R, by_rows = np.zeros(1), np.zeros(1)
        for i, (arm, sign) in enumerate(zip(arms, signs, strict=True)):
            values_S, draws_RS = arm.values_KP[:, part], arm.draws_RKP[:, :, part]
            num_seeds = len(values_S)
            value += sign * values_S.mean()
            seed_weights_RS = draw_seed_weights(num_seeds, seed, i)[: len(draws_RS)]
            draws_R = draws_R + sign * ((1 / num_seeds + seed_weights_RS) * draws_RS).sum(axis=1)
            resampled = arm.jackknife_GKP if arm.jackknife_GKP is not None else arm.draws_RKP
            by_rows = by_rows + sign * resampled[:, :, part].mean(axis=1)
            if num_seeds > 1:
                seed_variances.append((values_S.var(ddof=1) / num_seeds, num_seeds - 1))
        estimates.append(_estimate(arms[0], value, draws_R, by_rows, seed_variances))
    return estimates


def _estimate(
    arm: Resampled,
    value: float,
    draws_R: Floats,
    by_rows: Floats,
    seed_variances: list[tuple[float, int]],
) -> Estimate | None:
    """Describe a number by its draws, by its jackknife (or draws of rows), and by its seeds."""
    num_clusters = arm.num_clusters
    known_R = np.sort(draws_R[~np.isnan(draws_R)])
    if num_clusters < 2 or np.isnan(value) or 2 * len(known_R) < len(draws_R):
        return None
    from_mean = by_rows - np.nanmean(by_rows)
    from_mean = from_mean[~np.isnan(from_mean)]
    if arm.jackknife_GKP is not None:
        row_variance = (num_clusters - 1) / num_clusters * float((from_mean**2).sum())
    else:
        row_variance = num_clusters / (num_clusters - 1) * float((from_mean**2).mean())
    variances = [(row_variance, num_clusters - 1), *seed_variances]
    total = sum(variance for variance, _ in variances)
    # Welch and Satterthwaite
    below = sum(variance**2 / degrees for variance, degrees in variances)
    bias = acceleration = 0.0
    if arm.is_corrected and total > 0:
        share_below = np.mean(known_R < value) + np.mean(known_R == value) / 2
        # Draws that differ by rounding errors alone are neither biased nor skewed.
        is_varied = np.sqrt(row_variance) > _ROUNDING * float(np.nanmax(np.abs(arm.values_KP)))
        if 0 < share_below < 1 and is_varied:
            skewness = -(from_mean**3).sum() / (from_mean**2).sum() ** 1.5
            bias = float(ndtri(share_below))
            # The seeds' part of the error is taken for symmetric.
            acceleration = float(skewness / 6 * (row_variance / total) ** 1.5)
    return Estimate(
        float(value),
        known_R,
        bias,
        acceleration,
        row_variance,
        total - row_variance,
        total**2 / below if below > 0 else num_clusters - 1,
        num_clusters,
    )


def find_interval(estimate: Estimate, *, confidence: float = 0.95) -> Interval:
    """Return the two-sided interval."""
    tail = (1 - confidence) / 2
    return Interval(find_quantile(estimate, tail), find_quantile(estimate, 1 - tail))


def find_quantile(estimate: Estimate, tail: float) -> float:
    """Return the value below which the true one lies with a probability.

    By BCa up to 2,000 rows, else by percentiles. The bootstrap of G clusters is too narrow by
    sqrt((G - 1) / G), and like a normal where Student's t is due; the level is expanded for both.

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
    """Return how probable it is that the true value lies below one: `find_quantile` inverted."""
    draws_R = estimate.draws_R
    i = int(np.searchsorted(draws_R, value, side="right"))
    if i == 0:
        position = 0.0
    elif i == len(draws_R):
        position = i - 1.0
    else:
        position = i - 1 + (value - draws_R[i - 1]) / (draws_R[i] - draws_R[i - 1])
    # No share of R draws is known to be smaller than 1 in R + 1.
    rarest = 1 / (len(draws_R) + 1)
    level = np.clip(position / (len(draws_R) - 1), rarest, 1 - rarest)
    adjusted = ndtri(level) - estimate.bias
    below = 1 + estimate.acceleration * adjusted
    from_bias = adjusted / below if below > 0 else np.copysign(np.inf, adjusted)
    expanded = (from_bias - estimate.bias) / _find_expansion(estimate)
    return float(stdtr(estimate.degrees, expanded))


def _find_expansion(estimate: Estimate) -> float:
    return float(np.sqrt(estimate.num_clusters / (estimate.num_clusters - 1)))
