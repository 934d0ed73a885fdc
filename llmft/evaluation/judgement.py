"""What a comparison comes to: pairs of arms, mixed rows, the gates of every arm, the decision."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.gates import GateConfig
from llmft.data.batches import make_targets
from llmft.data.prepared import Row
from llmft.evaluation.arms import Run
from llmft.evaluation.audit import Finding
from llmft.evaluation.differences import Difference, Rules, compare_with_reference
from llmft.evaluation.gate_facts import Estimate, GateFacts, estimate_metric, estimate_parts
from llmft.evaluation.gates import Ruling, apply_gates, decide
from llmft.evaluation.latency import Latency
from llmft.evaluation.metrics import find_label_type, is_better
from llmft.evaluation.mixed import Cost, find_best_arm, mix_arms, recommend, sum_costs
from llmft.evaluation.paired_tests import compare_classes
from llmft.evaluation.pairs import compare_parts, describe_pair
from llmft.evaluation.scored import Scored, average_metrics
from llmft.evaluation.verdict import Verdict
from llmft.prediction.stored import StoredPredictions

Floats = NDArray[np.floating[Any]]
Outputs = dict[str, list[Floats]]
"""Arm -> what decides, [N, C], of each of its runs."""


class Probed(NamedTuple):
    """What a model was run for beside the rows."""

    edge_cases: dict[str, Any] | None = None
    latency: Latency | None = None


def describe_pairs(
    differences: Mapping[str, Difference], outputs: Outputs, scored: Scored, *, rules: Rules
) -> list[dict[str, Any]]:
    """Return `pairs` of the results file: what every challenger gains, overall and by part."""
    reference = outputs.get(rules.reference, [])
    return [
        describe_pair(
            arm,
            rules.reference,
            difference,
            mcnemar=compare_classes(
                scored.labels,
                reference=reference,
                challenger=outputs[arm],
                is_clustered=scored.groups is not None,
            )
            if find_label_type(scored.labels) == "class"
            else None,
            parts=compare_parts(
                scored.labels,
                names=scored.names,
                reference=reference,
                challenger=outputs[arm],
                min_difference=rules.min_difference,
                groups=scored.groups,
            ),
        )
        for arm, difference in differences.items()
    ]


class Mixed(NamedTuple):
    """The rows that are made of several arms."""

    described: dict[str, dict[str, Any]]
    """`mixed` of the results file."""
    best: str | None
    """The arm or mixed row to use: a mixed row only if it beats the best single arm."""


def judge_mixed(
    earlier: Mapping[str, Sequence[StoredPredictions]],
    outputs: Outputs,
    scored: Scored,
    *,
    val_rows: Sequence[Row],
    rules: Rules,
    costs: Mapping[str, Cost],
    may_recommend: bool,
) -> Mixed:
    """Put the valid arms together, and hold each mixed row against the best of them.

    Routes are chosen by what the models themselves say of validation, which post-hoc fits know.

    Args:
        earlier: Arm -> what each of its runs predicted for validation.
        outputs: What decides, of the valid arms.
        scored: The test rows.
        val_rows: The validation rows; those that every run predicted are looked at.
        rules: By what arms are compared.
        costs: What one prediction of each arm takes.
        may_recommend: Whether the arms are fit to be held against each other.
    """
    shared = _pick_shared(val_rows, [run for arm in outputs for run in earlier[arm]])
    mixed = mix_arms(
        outputs,
        val_arms={arm: [_pick_outputs(run, shared) for run in earlier[arm]] for arm in outputs},
        val_labels=make_targets(shared, label_names=scored.names).numpy(),
        names=scored.names,
    )
    everyone = {**outputs, **{name: row.runs for name, row in mixed.items()}}
    measured = {
        name: average_metrics([m.overall for m in scored.measure(runs)])
        for name, runs in everyone.items()
    }
    best_arm = find_best_arm(
        rules.metric, {arm: measured[arm].get(rules.metric) for arm in outputs}
    )
    differences = compare_with_reference(
        {name: everyone[name] for name in (best_arm, *mixed)},
        scored.labels,
        rules=rules._replace(reference=best_arm),
        groups=scored.groups,
        config=scored.config,
    )
    best = recommend(differences, best_arm=best_arm) if may_recommend else best_arm
    described = {}
    for name, row in mixed.items():
        difference = differences.get(name)
        cost = sum_costs([costs[arm] for arm in row.made_of])
        described[name] = {
            "kind": row.kind,
            "made_of": row.made_of,
            "routes": row.routes,
            "fitted_on": row.fitted_on,
            "metrics": measured[name],
            "intervals": scored.estimate_intervals(row.runs),
            "pair": None if difference is None else describe_pair(name, best_arm, difference),
            "recommended": name == best,
            **cost._asdict(),
        }
    return Mixed(described, best if best in mixed else None)


def _pick_shared(rows: Sequence[Row], runs: Sequence[StoredPredictions]) -> list[Row]:
    """Return the rows that all runs predicted: a quick trial saw few of them."""
    everywhere = set.intersection(*(set(run.ids) for run in runs))
    return [row for row in rows if row["id"] in everywhere]


def _pick_outputs(run: StoredPredictions, rows: Sequence[Row]) -> Floats:
    places = {row_id: i for i, row_id in enumerate(run.ids)}
    return run.outputs[[places[row["id"]] for row in rows]]


def find_cost(probed: Probed, variant: Mapping[str, Any]) -> Cost:
    """Return what one prediction of an arm takes."""
    latency = probed.latency
    return Cost(
        None if latency is None else latency.single_p50_ms,
        None if latency is None else latency.peak_memory_gib,
        variant["num_parameters"],
    )


class Judged(NamedTuple):
    """What is known of an arm before its gates are applied."""

    arm: str
    runs: Sequence[Run]
    variant: Mapping[str, Any]
    """What the results say of it: `metrics`, `intervals`, `part_intervals`, `histories`."""
    splits: Mapping[str, Estimate]
    """The metric on `train` and `val`; empty where the gaps mean nothing."""
    probed: Probed
    findings: Sequence[Finding]
    """Of the audit and the baselines, of whatever arm."""
    constant: float | None
    """The metric of the constant baseline."""


def judge_arm(
    it: Judged,
    scored: Scored,
    *,
    gates: Mapping[str, GateConfig],
    metric: str,
    provisional: bool,
) -> dict[str, Any]:
    """Return `gates`, `decision` and `reasons` of an arm, or of a run that stands alone.

    Args:
        it: The arm.
        scored: The rows that it was measured on.
        gates: What it has to pass.
        metric: The metric that decides.
        provisional: Whether it has too few seeds to be deployed.
    """
    outputs, raw = [run.outputs for run in it.runs], [run.raw for run in it.runs]
    labels, names, groups = scored.labels, scored.names, scored.groups
    intervals, metrics = it.variant["part_intervals"]["intervals"], it.variant["metrics"]
    splits = dict(it.splits)
    if splits:
        splits["test"] = estimate_metric(metric, labels, raw, config=scored.config, groups=groups)
    facts = GateFacts(
        num_rows=len(scored.rows),
        metric=metric,
        metrics=metrics,
        intervals=it.variant["intervals"],
        parts=estimate_parts(labels, outputs, names=names, intervals=intervals, groups=groups),
        splits=splits,
        histories=it.variant["histories"],
        latency=it.probed.latency,
        edge_cases=it.probed.edge_cases,
    )
    results = apply_gates(gates, facts)
    ruling = decide(
        results,
        findings=[f for f in it.findings if not f.arms or it.arm in f.arms],
        beats_constant=is_better(metric, metrics.get(metric), it.constant),
        num_rows=len(scored.rows),
        provisional=provisional,
    )
    return {"gates": [gate._asdict() for gate in results], **ruling._asdict()}


def find_deciding_arms(verdict: Verdict, valid_arms: Sequence[str], *, reference: str) -> list[str]:
    """Return the arms that a verdict rests on: winner and reference, or all where none beats it."""
    if verdict.name == "WINNER":
        return [arm for arm in valid_arms if arm in (verdict.winner, reference)]
    return list(valid_arms)


def decide_comparison(
    verdict: Verdict, variants: Mapping[str, Mapping[str, Any]], *, provisional: Sequence[str]
) -> Ruling:
    """Return whether the arm that the verdict names may be deployed.

    A verdict that names none is for a person to look at, an invalid one is no ground to deploy
    anything.

    Args:
        verdict: What the comparison says.
        variants: Arm -> what the results say of it, `decision` and `reasons` among it.
        provisional: Arms that the verdict rests on and that have fewer than three seeds.
    """
    if verdict.name == "INVALID":
        return Ruling("FAIL", ["an invalid comparison is no ground to deploy anything"])
    if verdict.winner is None:
        valid = [v for v in variants.values() if v["valid"]]
        if all(v["decision"] == "FAIL" for v in valid):
            return Ruling("FAIL", ["every arm fails its gates"])
        return Ruling("REVIEW", ["the verdict names no arm, so a person has to decide"])
    chosen = variants[verdict.winner]
    decision, reasons = chosen["decision"], list(chosen["reasons"])
    if provisional and decision == "DEPLOY":
        named = ", ".join(provisional)
        return Ruling(
            "REVIEW",
            [f"provisional: fewer than 3 seeds of {named}, and the verdict rests on them"],
        )
    return Ruling(decision, reasons)
