"""The sections on slices, rare events, noise and gates: tables of what was found."""

from collections.abc import Mapping, Sequence

from llmft.config.suite import NoiseKind
from llmft.reports import formatting as f
from llmft.reports.outline import Block, Section
from llmft.reports.series import Series, is_higher_better
from llmft.reports.tables import (
    Cell,
    Column,
    Head,
    Table,
    make_cells,
    make_columns,
)
from llmft.results.comparison import (
    ComparisonResult,
    ListQuality,
    NoiseResult,
    RareEvents,
    SliceTable,
)
from llmft.results.variant import GateResult, MetricValue, VariantResult

_NOISE_SAID: dict[NoiseKind, str] = {
    "repeated": "the same oracle, asked again",
    "second_oracle": "another oracle",
}


def make_slices(result: ComparisonResult, series: Sequence[Series]) -> Section:
    """Return a metric of every arm by the values of each slice: each slicing names its own."""
    return Section(
        "Slices",
        "Parts of the test rows; the best of a row is marked. With few rows the interval is wide; "
        "nothing is corrected for the number of slices.",
        [
            Block(_make_slice_table(found, series, result.metric), is_named=True)
            for found in result.slices
        ],
    )


def _make_slice_table(found: SliceTable, series: Sequence[Series], leading: str) -> Table:
    metric = found.metric
    direction = "higher" if is_higher_better(metric) else "lower"
    caption = f"{metric} by {found.name}, {direction} is better"
    if metric != leading:
        caption += f" ({leading} says nothing within one {found.name.removeprefix('true ')})"
    counts = make_cells([value.num_rows for value in found.values], show=f.format_count)
    shown = [s for s in series if any(s.name in value.metrics for value in found.values)]
    columns = [Column(Head(s.name, s), []) for s in shown]
    for value in found.values:
        measured = [value.metrics[s.name] for s in shown]
        cells = make_cells(
            [m.value for m in measured],
            show=f.format_metric,
            higher_is_better=is_higher_better(metric),
        )
        for column, cell, m in zip(columns, cells, measured, strict=True):
            column.cells.append(cell._replace(note=f.note_interval(m.interval)))
    heads = [Head(value.value) for value in found.values]
    return Table(caption, found.name, heads, [Column(Head("rows"), counts), *columns])


def make_rare_events(rare: RareEvents | None, series: Sequence[Series]) -> Section:
    """Return recall and precision among the rows that are rare, and of the highest k."""
    if rare is None:
        return Section("Rare events", "", [])
    arms = [s for s in series if s.name in rare.variants]
    found = [rare.variants[s.name] for s in arms]
    columns = _list_qualities(found, "all rows")
    lengths = [top.k for top in found[0].at_k]
    for i, k in enumerate(lengths):
        title = f"highest {k}" + (" (as many as there are)" if k == rare.num_high else "")
        columns += _list_qualities([variant.at_k[i] for variant in found], title)
    table = Table("Rare events", "arm", [Head(s.name, s) for s in arms], columns)
    return Section(
        "Rare events",
        f"Rare: {rare.what}, which {rare.num_high} of {rare.num_rows} rows "
        "are. Recall: the share of them that an arm finds; precision: the share of what it calls "
        "rare that is. Highest k: among the k rows that it scores highest.",
        [Block(table)],
    )


def _list_qualities(found: Sequence[ListQuality], title: str) -> list[Column]:
    recall = [
        Cell(f.format_metric(q.recall), note=f.note_interval(q.recall_interval)) for q in found
    ]
    precision = [
        Cell(f.format_metric(q.precision), note=f.note_interval(q.precision_interval))
        for q in found
    ]
    return [Column(Head("recall"), recall, title), Column(Head("precision"), precision, title)]


def make_noise(noise: Sequence[NoiseResult], series: Sequence[Series]) -> Section:
    """Return how far second labels are from the first, and the arms on the same rows."""
    if not noise:
        return Section("Noise of the labels", "", [])
    metric = noise[0].metric
    columns = make_columns(
        {
            "rows": [f.format_count(n.num_rows) for n in noise],
            "left out": [f.format_count(n.num_left_out) for n in noise],
        }
    )
    columns.append(Column(Head("oracle"), [_show(n.oracle) for n in noise]))
    for s in series:
        if s.name in noise[0].variants:
            columns.append(Column(Head(s.name, s), [_show(n.variants[s.name]) for n in noise]))
    heads = [Head(_NOISE_SAID[n.kind], note=n.file) for n in noise]
    blocks = [Block(Table(f"{metric} of second labels", "labelled again by", heads, columns))]
    parts = list(noise[0].parts)
    if parts:
        by_part = [
            Column(head, [_show(n.parts[part]) for part in parts])
            for head, n in zip(heads, noise, strict=True)
        ]
        kind = "dimension" if metric == "mae" else "label"
        table = Table(
            f"{metric} of second labels by {kind}", kind, [Head(part) for part in parts], by_part
        )
        blocks.append(Block(table, summary=f"By {kind}"))
    said = "mae" if metric == "mae" else "disagreement, the share of rows that differ"
    return Section(
        "Noise of the labels",
        "How far labels that were asked for a second time (oracle) are from the first ones, beside "
        f"how far each arm is from the first labels of the same rows, as {said}. Nothing is "
        "subtracted.",
        blocks,
    )


def _show(found: MetricValue) -> Cell:
    return Cell(f.format_metric(found.value), note=f.note_interval(found.interval))


def make_gates(variants: Mapping[str, VariantResult], arms: Sequence[Series]) -> Section:
    """Return the gates of every arm: value, result and bound, beside the thresholds."""
    found = {arm.name: {gate.name: gate for gate in variants[arm.name].gates} for arm in arms}
    judged = [arm for arm in arms if found[arm.name]]
    names = list(dict.fromkeys(name for arm in judged for name in found[arm.name]))
    columns = []
    for arm in judged:
        gates = [found[arm.name].get(name) for name in names]
        columns += [c._replace(group=arm.name) for c in _list_gate_columns(gates)]
    decisions = [f"{arm.name}: {variants[arm.name].decision}" for arm in judged]
    reasons = [
        f"{arm.name}: {gate.reason}"
        for arm in judged
        for gate in found[arm.name].values()
        if gate.result != "DEPLOY"
    ]
    return Section(
        "Gates",
        "Bound: the worse end of the 95 % interval, which has to pass the deploy threshold; a "
        "value that is worse than the review threshold fails. Gaps: 2 standard errors are always "
        "allowed, so thresholds differ between arms.",
        [
            Block(
                Table("Gates of every arm", "gate", [Head(name) for name in names], columns),
                lines=decisions,
            ),
            Block(lines=reasons, summary="What stands against a deployment"),
        ]
        if judged
        else [],
    )


def _list_gate_columns(gates: Sequence[GateResult | None]) -> list[Column]:
    """Return the columns of an arm; a gate that another arm has may be missing."""
    texts = {
        "value": [f.format_metric(gate.value if gate else None) for gate in gates],
        "bound": [f.format_metric(gate.bound if gate else None) for gate in gates],
        "deploy": [f.format_metric(gate.deploy if gate else None) for gate in gates],
        "review": [f.format_metric(gate.review if gate else None) for gate in gates],
        "result": [gate.result if gate else "" for gate in gates],
    }
    return make_columns(texts, words=["result"])
