"""Ensembles: the mean of all variants, and a routed one: the best variant per dimension or label.

Routes are chosen on validation; ensembles are measured on test like any variant.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.metrics.definitions import compute_parts, find_label_type, is_better
from llmft.results.comparison import Cost, Pair

Floats = NDArray[np.floating[Any]]
ENSEMBLE, ROUTING = "mean ensemble", "routed ensemble"
"""Names of the ensembles; no variant can have them, since a variant's name has no space."""


class Ensemble(NamedTuple):
    """Decision scores that are computed from those of several variants."""

    kind: Literal["ensemble", "routing"]
    made_of: list[str]
    """Its members: the variants that have to run for it."""
    routes: dict[str, str] | None
    """Dimension or label -> the variant that predicts it."""
    fitted_on: Literal["val"] | None
    """Split that chose the routes (D7)."""
    runs: list[Floats]
    """Decision scores [N, C] of each run; run i is computed from run i of every member."""


def make_ensembles(
    variants: dict[str, list[Floats]],
    *,
    val_variants: dict[str, list[Floats]],
    val_labels: NDArray[Any],
    names: list[str],
) -> dict[str, Ensemble]:
    """Make a mean ensemble and a routed ensemble of variants.

    The mean ensemble averages the scores or probabilities of all variants. The routed ensemble
    takes each dimension or label from the variant with the lowest `mae` or highest `f1` on
    validation, on average over its runs; the first of equal ones. It is left out for classes, for a
    single dimension or label, and if one variant is best at all of them. An ensemble has as many
    runs as the member with the fewest.

    Args:
        variants: Valid variant -> outputs [N, C] of each of its runs on test.
        val_variants: The same on validation, [V, C].
        val_labels: Scores [V, D], classes [V], or labels [V, L].
        names: Of the dimensions, classes or labels.

    Returns:
        Name -> ensemble; empty for fewer than two variants.
    """
    if len(variants) < 2:
        return {}
    by_run = list(zip(*variants.values(), strict=False))
    means = [np.asarray(np.mean(outputs, axis=0)) for outputs in by_run]
    ensembles = {ENSEMBLE: Ensemble("ensemble", list(variants), None, None, means)}
    routes = _choose_routes({variant: val_variants[variant] for variant in variants}, val_labels)
    used = [variant for variant in variants if variant in routes]
    if len(used) > 1:
        places = [list(variants).index(variant) for variant in routes]
        routed = [
            np.stack([outputs[place][:, i] for i, place in enumerate(places)], axis=1)
            for outputs in by_run
        ]
        named = dict(zip(names, routes, strict=True))
        ensembles[ROUTING] = Ensemble("routing", used, named, "val", routed)
    return ensembles


def _choose_routes(val_variants: dict[str, list[Floats]], val_labels: NDArray[Any]) -> list[str]:
    """Return the best variant of every dimension or label; empty for classes."""
    label_type = find_label_type(val_labels)
    if label_type == "class":
        return []
    metric, sign = ("mae", -1) if label_type == "scores" else ("f1", 1)
    values_AC = np.array(
        [
            np.mean([compute_parts(metric, val_labels, outputs) for outputs in runs], axis=0)
            for runs in val_variants.values()
        ]
    )
    # Without a row or a prediction of a label its f1 is undefined: such a variant is never best.
    best_C = np.where(np.isnan(values_AC), -np.inf, sign * values_AC).argmax(axis=0)
    return [list(val_variants)[place] for place in best_C]


def find_best_variant(metric: str, values: dict[str, float | None]) -> str:
    """Return the variant with the best value of a metric; the first of equal ones.

    If the values are from test, the choice favours the single variant over the ensembles.
    """
    best, *others = values
    for variant in others:
        if is_better(metric, values[variant], values[best]):
            best = variant
    return best


def recommend(pairs: Mapping[str, Pair], *, best_variant: str) -> str:
    """Return the ensemble to use, or the best single variant if no ensemble beats it.

    Args:
        pairs: Ensemble -> its gain over the best single variant, by the rules of any pair.
        best_variant: The best single variant.
    """
    gains = {name: pair.gain for name, pair in pairs.items() if pair.finding == "better"}
    return max(gains, key=lambda name: gains[name], default=best_variant)


def sum_costs(members: Sequence[Cost]) -> Cost:
    """Return the total cost of members that are all loaded and run one after another."""

    def add(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    num_parameters = add([cost.num_parameters for cost in members])
    return Cost(
        single_p50_ms=add([cost.single_p50_ms for cost in members]),
        peak_memory_gib=add([cost.peak_memory_gib for cost in members]),
        num_parameters=None if num_parameters is None else int(num_parameters),
    )
