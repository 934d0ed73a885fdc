"""Two variants by themselves, and any statistic of rows, as the tests of intervals want them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from llmft.evaluation.verdict import Rules, compare_with_reference, jackknife_variants
from llmft.results.comparison import Pair
from llmft.results.evaluation import Interval
from llmft.statistics.estimates import estimate_contrasts, find_interval
from llmft.statistics.resampling import find_clusters, jackknife_rows


def compare_all(
    variants: dict[str, list[np.ndarray]], labels: np.ndarray, rules: Rules, **options: Any
) -> dict[str, Pair]:
    """Compare variants with the reference of the rules."""
    return compare_with_reference(jackknife_variants(variants, labels, rules=rules, **options))


def compare_runs(
    metric: str,
    labels: np.ndarray,
    *,
    reference: list[np.ndarray],
    challenger: list[np.ndarray],
    margin: float,
    **options: Any,
) -> Pair | None:
    """Compare two variants only."""
    variants = {"reference": reference, "challenger": challenger}
    rules = Rules(metric, "reference", margin, min_difference=0.0)
    return compare_all(variants, labels, rules, **options).get("challenger")


def jackknife_interval(
    statistic: Callable[[np.ndarray], Any], num_rows: int
) -> list[Interval | None]:
    """Return the intervals of any statistics of row positions, or of one."""
    variant = jackknife_rows(
        lambda draws: np.array([statistic(rows) for rows in draws], dtype=np.float64).reshape(
            len(draws), 1, -1
        ),
        clusters=find_clusters(num_rows),
        seed=0,
    )
    return [e and find_interval(e) for e in estimate_contrasts([variant], [1], seed=0)]
