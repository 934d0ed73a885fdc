"""Ensembles: the mean of all variants, and a routed one: the best variant per dimension or label.

Routes are chosen on validation; ensembles are measured on test like any variant.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.task import Split
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.evaluation.rows import LabelledRows, average_metrics
from llmft.evaluation.verdict import (
    OutputsByVariant,
    Rules,
    compare_with_reference,
    jackknife_variants,
)
from llmft.metrics.definitions import Floats, compute_parts, find_label_type, is_better
from llmft.prediction.stored import StoredPredictions
from llmft.results.comparison import Cost, EnsembleResult, Pair
from llmft.results.evaluation import VariantResult

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


def measure_ensembles(
    rules: Rules,
    outputs: OutputsByVariant,
    rows: LabelledRows,
    *,
    train_val_predictions: Mapping[str, Sequence[Mapping[Split, StoredPredictions]]],
    val_rows: Sequence[Row],
    costs: Mapping[str, Cost],
    may_recommend: bool,
) -> dict[str, EnsembleResult]:
    """Make ensembles of the valid variants, and compare each with the best single variant.

    An ensemble is recommended only if it beats the best single variant. Routes are chosen on the
    model outputs for validation without calibrators or thresholds, which were fitted on it.

    Args:
        rules: Metric, margin and minimum difference.
        outputs: Decision scores of the valid variants.
        rows: The test rows.
        train_val_predictions: Variant -> predictions of each of its runs for validation.
        val_rows: The validation rows; only those that every run predicted are used.
        costs: Cost of one prediction of each variant.
        may_recommend: Whether the comparison is fair, so that an ensemble may be recommended.
    """
    on_val = {
        variant: [found["val"] for found in train_val_predictions[variant]] for variant in outputs
    }
    shared = _pick_shared(val_rows, [run for runs in on_val.values() for run in runs])
    ensembles = make_ensembles(
        outputs,
        val_variants={
            variant: [_pick_outputs(run, shared) for run in on_val[variant]] for variant in outputs
        },
        val_labels=make_targets(shared, label_names=rows.names).numpy(),
        names=rows.names,
    )
    everyone = {**outputs, **{name: ensemble.runs for name, ensemble in ensembles.items()}}
    measured = {
        name: average_metrics([m.metrics for m in rows.measure(runs)])
        for name, runs in everyone.items()
    }
    best_variant = find_best_variant(
        rules.metric, {variant: measured[variant].get(rules.metric) for variant in outputs}
    )
    jackknifed = jackknife_variants(
        {name: everyone[name] for name in (best_variant, *ensembles)},
        rows.labels,
        rules=rules._replace(reference=best_variant),
        groups=rows.groups,
        config=rows.config,
    )
    pairs = compare_with_reference(jackknifed)
    best = recommend(pairs, best_variant=best_variant) if may_recommend else best_variant
    return {
        name: EnsembleResult(
            kind=ensemble.kind,
            made_of=ensemble.made_of,
            routes=ensemble.routes,
            fitted_on=ensemble.fitted_on,
            metrics=measured[name],
            intervals=rows.estimate_intervals(ensemble.runs),
            pair=pairs.get(name),
            recommended=name == best,
            cost=sum_costs([costs[variant] for variant in ensemble.made_of]),
        )
        for name, ensemble in ensembles.items()
    }


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
    runs as the member with the fewest, where a member with one run, such as that of a frozen base,
    is part of each.

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
    means = [np.asarray(np.mean(outputs, axis=0)) for outputs in _pair_runs(variants.values())]
    ensembles = {ENSEMBLE: Ensemble("ensemble", list(variants), None, None, means)}
    routes = _choose_routes({variant: val_variants[variant] for variant in variants}, val_labels)
    used = [variant for variant in variants if variant in routes]
    if len(used) > 1:
        places = [used.index(variant) for variant in routes]
        routed = [
            np.stack([outputs[place][:, i] for i, place in enumerate(places)], axis=1)
            for outputs in _pair_runs([variants[variant] for variant in used])
        ]
        named = dict(zip(names, routes, strict=True))
        ensembles[ROUTING] = Ensemble("routing", used, named, "val", routed)
    return ensembles


def _pair_runs(members: Collection[list[Floats]]) -> Iterator[list[Floats]]:
    """Yield the outputs of all members, run by run; a single run is repeated."""
    num_runs = min((len(runs) for runs in members if len(runs) > 1), default=1)
    for i in range(num_runs):
        yield [runs[i % len(runs)] for runs in members]


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


def _pick_shared(rows: Sequence[Row], runs: Sequence[StoredPredictions]) -> list[Row]:
    """Return the rows that all runs predicted: runs with a row limit have few of them."""
    everywhere = set.intersection(*(set(run.ids) for run in runs))
    return [row for row in rows if row["id"] in everywhere]


def _pick_outputs(run: StoredPredictions, rows: Sequence[Row]) -> Floats:
    places = {row_id: i for i, row_id in enumerate(run.ids)}
    return run.outputs[[places[row["id"]] for row in rows]]


def find_cost(variant: VariantResult) -> Cost:
    """Return time and memory of one prediction of a variant."""
    latency = variant.latency
    return Cost(
        single_p50_ms=None if latency is None else latency.single_p50_ms,
        peak_memory_gib=None if latency is None else latency.peak_memory_gib,
        num_parameters=variant.record.num_parameters,
    )
