"""By how much two arms differ in each dimension, class or label."""

from typing import Any, Literal

from numpy.typing import NDArray

from llmft.evaluation.differences import (
    ERROR_RATE,
    Floats,
    adjust_by_holm,
    bound_gain,
    is_small,
    respect_seeds,
)
from llmft.evaluation.estimates import weigh_arms
from llmft.evaluation.intervals import resample_parts
from llmft.evaluation.metrics import find_label_type
from llmft.evaluation.moments import find_part_moments
from llmft.evaluation.paired_tests import permute_moments
from llmft.evaluation.resampling import Groups, find_clusters
from llmft.results.comparison import PartGain
from llmft.results.variant import Interval


def compare_parts(
    labels: NDArray[Any],
    *,
    names: list[str],
    reference: list[Floats],
    challenger: list[Floats],
    min_difference: float,
    groups: Groups | None = None,
    seed: int = 0,
) -> dict[str, PartGain]:
    """Compare two arms in each dimension (mae), or in each class or label (f1).

    One of them is better in a part only if Holm's p is below 0.05 and the difference matters.

    Args:
        labels: Scores [N, D], classes [N], or labels [N, L].
        names: Of the dimensions, classes or labels.
        reference: Outputs of each run.
        challenger: The same.
        min_difference: Smaller differences are ties.
        groups: The cluster of each row, [N]; None if rows are independent.
        seed: Seed of the resampling and of the swaps.

    Returns:
        Name -> difference; without the classes that never occur.
    """
    clusters = find_clusters(len(labels), groups, seed=seed)
    arms = [
        resample_parts(labels, runs, clusters=clusters, seed=seed)
        for runs in (reference, challenger)
    ]
    is_error = find_label_type(labels) == "scores"
    sign = -1 if is_error else 1
    estimates = weigh_arms(arms, [-sign, sign], seed=seed)
    p_values_P = permute_moments(
        *([find_part_moments(labels, o) for o in runs] for runs in (reference, challenger)),
        clusters=clusters,
        seed=seed,
    )
    known = [
        (name, estimate, respect_seeds(float(p_value), estimate))
        for name, estimate, p_value in zip(names, estimates, p_values_P, strict=True)
        if estimate is not None
    ]
    found = {}
    for (name, estimate, p_value), p_adjusted in zip(
        known, adjust_by_holm([p_value for _, _, p_value in known]), strict=True
    ):
        finding: Literal["challenger", "reference", "tie"] = "tie"
        is_sure = p_adjusted < ERROR_RATE and not is_small(clusters)
        if is_sure and abs(estimate.value) >= min_difference:
            finding = "challenger" if estimate.value > 0 else "reference"
        interval = Interval(*bound_gain(estimate, tail=ERROR_RATE / 2))
        metric = "mae" if is_error else "f1"
        found[name] = PartGain(
            metric=metric,
            gain=estimate.value,
            interval=interval,
            p_value=p_value,
            p_adjusted=p_adjusted,
            finding=finding,
        )
    return found
