"""Arms put together: the mean of all, and for each dimension or label the arm that is best at it.

What they are made of is chosen on validation, and they are scored on test like any arm.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.evaluation.metrics import compute_parts, find_label_type, is_better
from llmft.results.comparison import Cost, Pair

Floats = NDArray[np.floating[Any]]
ENSEMBLE, ROUTING = "mean ensemble", "best arm by part"
"""Names of the rows; no arm can have them, since a variant's name holds no blank."""


class Ensemble(NamedTuple):
    """Outputs that are made from those of several arms."""

    kind: Literal["ensemble", "routing"]
    made_of: list[str]
    """The arms that have to run for it."""
    routes: dict[str, str] | None
    """Dimension or label -> the arm whose output is taken."""
    fitted_on: Literal["val"] | None
    """Split that chose the routes (D7)."""
    runs: list[Floats]
    """Outputs [N, C] of each run: the first is made from the arms' first runs, and so on."""


def mix_arms(
    arms: dict[str, list[Floats]],
    *,
    val_arms: dict[str, list[Floats]],
    val_labels: NDArray[Any],
    names: list[str],
) -> dict[str, Ensemble]:
    """Put arms together.

    The ensemble averages the scores or probabilities of all arms. The routing takes each dimension
    or label from the arm with the lowest `mae` or highest `f1` on validation, on average over its
    runs; the first of equal ones. It is left out for classes, for a single dimension or label, and
    where one arm is best at all of them. There are as many runs as the arm with the fewest has.

    Args:
        arms: Valid arm -> outputs [N, C] of each of its runs on test.
        val_arms: The same on validation, [V, C].
        val_labels: Scores [V, D], classes [V], or labels [V, L].
        names: Of the dimensions, classes or labels.

    Returns:
        Name of the row -> how it is made, and its outputs; empty for fewer than two arms.
    """
    if len(arms) < 2:
        return {}
    by_run = list(zip(*arms.values(), strict=False))
    means = [np.asarray(np.mean(outputs, axis=0)) for outputs in by_run]
    mixed = {ENSEMBLE: Ensemble("ensemble", list(arms), None, None, means)}
    routes = _choose_routes({arm: val_arms[arm] for arm in arms}, val_labels)
    used = [arm for arm in arms if arm in routes]
    if len(used) > 1:
        places = [list(arms).index(arm) for arm in routes]
        routed = [
            np.stack([outputs[place][:, i] for i, place in enumerate(places)], axis=1)
            for outputs in by_run
        ]
        named = dict(zip(names, routes, strict=True))
        mixed[ROUTING] = Ensemble("routing", used, named, "val", routed)
    return mixed


def _choose_routes(val_arms: dict[str, list[Floats]], val_labels: NDArray[Any]) -> list[str]:
    """Return the best arm of every dimension or label; empty for classes."""
    label_type = find_label_type(val_labels)
    if label_type == "class":
        return []
    metric, sign = ("mae", -1) if label_type == "scores" else ("f1", 1)
    values_AC = np.array(
        [
            np.mean([compute_parts(metric, val_labels, outputs) for outputs in runs], axis=0)
            for runs in val_arms.values()
        ]
    )
    # Without a row or a prediction of a label its f1 is undefined, which speaks for no arm.
    best_C = np.where(np.isnan(values_AC), -np.inf, sign * values_AC).argmax(axis=0)
    return [list(val_arms)[place] for place in best_C]


def find_best_arm(metric: str, values: dict[str, float | None]) -> str:
    """Return the arm with the best value of a metric; the first of equal ones.

    Where the values are those on test, the choice favours the arm that a mixed row has to beat.
    """
    best, *others = values
    for arm in others:
        if is_better(metric, values[arm], values[best]):
            best = arm
    return best


def recommend(pairs: Mapping[str, Pair], *, best_arm: str) -> str:
    """Return the mixed row to use, or the best single arm where no row is better by the margin.

    Args:
        pairs: Mixed row -> its gain over the best single arm, by the rules of any pair.
        best_arm: The best single arm.
    """
    gains = {name: pair.gain for name, pair in pairs.items() if pair.finding == "better"}
    return max(gains, key=lambda name: gains[name], default=best_arm)


def sum_costs(members: Sequence[Cost]) -> Cost:
    """Return what members cost together, each loaded for itself and run one after another."""

    def add(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    num_parameters = add([cost.num_parameters for cost in members])
    return Cost(
        single_p50_ms=add([cost.single_p50_ms for cost in members]),
        peak_memory_gib=add([cost.peak_memory_gib for cost in members]),
        num_parameters=None if num_parameters is None else int(num_parameters),
    )
