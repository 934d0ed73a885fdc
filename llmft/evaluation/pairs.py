"""By how much two arms differ in each dimension, class or label; and a pair as results hold it."""

from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from llmft.evaluation.differences import (
    ERROR_RATE,
    Difference,
    Floats,
    adjust_by_holm,
    bound_gain,
    is_small,
    respect_seeds,
)
from llmft.evaluation.estimates import Interval, weigh_arms
from llmft.evaluation.intervals import resample_parts
from llmft.evaluation.metrics import find_label_type
from llmft.evaluation.moments import find_part_moments
from llmft.evaluation.paired_tests import McNemar, permute_moments
from llmft.evaluation.resampling import Groups, find_clusters


class PartDifference(NamedTuple):
    """A difference in one dimension, class or label."""

    metric: str
    gain: float
    interval: Interval
    p_value: float
    p_adjusted: float
    """By Holm over the parts."""
    finding: Literal["challenger", "reference", "tie"]


def compare_parts(
    labels: NDArray[Any],
    *,
    names: list[str],
    reference: list[Floats],
    challenger: list[Floats],
    min_difference: float,
    groups: Groups | None = None,
    seed: int = 0,
) -> dict[str, PartDifference]:
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
        found[name] = PartDifference(metric, estimate.value, interval, p_value, p_adjusted, finding)
    return found


def describe_pair(
    challenger: str,
    reference: str,
    found: Difference,
    *,
    mcnemar: McNemar | None = None,
    parts: dict[str, PartDifference] | None = None,
) -> dict[str, Any]:
    """Return a difference as the results file holds it."""
    return {
        "challenger": challenger,
        "reference": reference,
        "gain": found.estimate,
        "interval": found.interval,
        "lower": found.lower,
        "upper": found.upper,
        "p_value": found.p_value,
        "p_margin": found.p_margin,
        "p_margin_adjusted": found.p_margin_adjusted,
        "finding": found.finding,
        "mcnemar": mcnemar._asdict() if mcnemar is not None else None,
        "power": found.power._asdict() if found.power is not None else None,
        "needed": found.needed._asdict() if found.needed is not None else None,
        "parts": {name: part._asdict() for name, part in (parts or {}).items()},
    }
