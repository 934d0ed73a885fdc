"""Gates in a report: value, bound, thresholds and result, of one run or of every variant."""

from collections.abc import Mapping, Sequence

from llmft.config.suite import HIGHER_IS_BETTER
from llmft.reports import formatting as f
from llmft.reports.layout import (
    Block,
    Column,
    HeaderCell,
    ReportEntry,
    Section,
    Table,
    make_columns,
)
from llmft.results.evaluation import GateResult, VariantResult


def make_gates_table(gates: Sequence[GateResult], baselines: Sequence[ReportEntry]) -> Table:
    """Return the gates of a single run, next to the baselines' values of the same metrics."""
    texts = {
        "value": [f.format_metric(gate.value) for gate in gates],
        "95 % interval": [f.format_interval(gate.interval) for gate in gates],
        "bound": [f.format_metric(gate.bound) for gate in gates],
        "deploy": [f.format_threshold(gate.deploy) for gate in gates],
        "review": [f.format_threshold(gate.review) for gate in gates],
    }
    for s in baselines:
        texts[s.name] = [f.format_metric(s.metrics.get(gate.name)) for gate in gates]
    texts["result"] = [gate.result for gate in gates]
    arrows = {True: "↑", False: "↓"}
    heads = [HeaderCell(f"{gate.name} {arrows[HIGHER_IS_BETTER[gate.name]]}") for gate in gates]
    return Table("Gates", "gate", heads, make_columns(texts, words=["result"]))


def make_gates(variants: Mapping[str, VariantResult], shown: Sequence[ReportEntry]) -> Section:
    """Return the gates of every variant: value, bound, thresholds and result."""
    found = {
        variant.name: {gate.name: gate for gate in variants[variant.name].gates}
        for variant in shown
    }
    gated = [variant for variant in shown if found[variant.name]]
    names = list(dict.fromkeys(name for variant in gated for name in found[variant.name]))
    columns = []
    for variant in gated:
        gates = [found[variant.name].get(name) for name in names]
        columns += [c._replace(group=variant.name) for c in _list_gate_columns(gates)]
    decisions = [f"{variant.name}: {variants[variant.name].decision}" for variant in gated]
    reasons = [
        f"{variant.name}: {gate.reason}"
        for variant in gated
        for gate in found[variant.name].values()
        if gate.result != "DEPLOY"
    ]
    return Section(
        "Gates",
        "Bound: the worse end of the two-sided 95 % interval, by itself; of convergence, which has "
        "none, the value. It has to reach the deploy threshold. A value worse than the review "
        "threshold fails, a gap only if its interval is above 0, edge_cases also by a case that "
        "must pass, and dimensions by its worst dimension; the value and bound shown there are "
        "those of the last dimension that has to pass. Thresholds that the suite does not name are "
        "defaults.",
        [
            Block(
                Table(
                    "Gates of every variant", "gate", [HeaderCell(name) for name in names], columns
                ),
                lines=decisions,
            ),
            Block(lines=reasons, summary="Gates that prevent a deployment"),
        ]
        if gated
        else [],
    )


def _list_gate_columns(gates: Sequence[GateResult | None]) -> list[Column]:
    """Return the columns of a variant; None for gates that only other variants have."""
    texts = {
        "value": [f.format_metric(gate.value if gate else None) for gate in gates],
        "bound": [f.format_metric(gate.bound if gate else None) for gate in gates],
        "deploy": [f.format_metric(gate.deploy if gate else None) for gate in gates],
        "review": [f.format_metric(gate.review if gate else None) for gate in gates],
        "result": [gate.result if gate else "" for gate in gates],
    }
    return make_columns(texts, words=["result"])
