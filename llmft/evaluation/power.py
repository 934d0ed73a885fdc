"""What a pair of arms could have shown with its rows, and what would settle it."""

import math

from scipy.special import ndtr, stdtrit

from llmft.evaluation.estimates import Estimate
from llmft.results.comparison import Needed, Power

_MOST = 1_000
"""Times as many rows or seeds as there are is no advice."""


def estimate_power(estimate: Estimate, *, effect: float, tail: float) -> Power | None:
    """Return the chance that a lower bound is above the margin, if the true gain is by the effect.

    By the normal approximation with the standard error seen; None without an effect.
    """
    if effect <= 0:
        return None
    if estimate.error == 0:
        return Power(effect=effect, power=1.0)
    quantile = stdtrit(estimate.degrees, 1 - tail)
    return Power(effect=effect, power=float(ndtr(effect / estimate.error - quantile)))


def find_needed(
    estimate: Estimate, *, margin: float, tail: float, num_rows: int, num_seeds: int
) -> Needed:
    """Return how many rows or seeds would bring the bound of a gain to its side of the margin.

    Named is what dominates the variance: rows or seeds, or both if that alone would not do.

    Args:
        estimate: The gain.
        margin: What has to be gained.
        tail: Of the one-sided bound.
        num_rows: Now.
        num_seeds: Of the arm with the fewest, now.
    """
    quantile = stdtrit(estimate.degrees, 1 - tail)
    wanted = (abs(estimate.value - margin) / quantile) ** 2
    rows, seeds = estimate.row_variance, estimate.seed_variance
    if wanted * _MOST < rows + seeds or wanted == 0:
        return Needed(rows=None, seeds=None)
    if seeds <= rows and seeds < wanted:
        factor = rows / (wanted - seeds)
        if factor <= _MOST:
            return Needed(rows=max(num_rows + 1, math.ceil(num_rows * factor)), seeds=None)
    if seeds > rows and rows < wanted:
        factor = seeds / (wanted - rows)
        if factor <= _MOST:
            return Needed(rows=None, seeds=max(num_seeds + 1, math.ceil(num_seeds * factor)))
    factor = (rows + seeds) / wanted
    return Needed(rows=math.ceil(num_rows * factor), seeds=math.ceil(num_seeds * factor))
