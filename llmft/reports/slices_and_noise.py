"""The sections on slices, rare events and label noise."""

from collections.abc import Sequence

from llmft.config.suite import NoiseKind
from llmft.reports import formatting as f
from llmft.reports.entries import ReportEntry, is_higher_better
from llmft.reports.layout import (
    Block,
    Cell,
    Column,
    Head,
    Section,
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
from llmft.results.variant import MetricValue

_ORACLES: dict[NoiseKind, str] = {
    "repeated": "the same oracle, asked again",
    "second_oracle": "another oracle",
}


def make_slices(result: ComparisonResult, entries: Sequence[ReportEntry]) -> Section:
    """Return one table per slicing: the metric of every variant by slice."""
    return Section(
        "Slices",
        "Subsets of the test rows; the best value of a row is marked. With few rows the interval "
        "is wide; intervals are not corrected for the number of slices.",
        [
            Block(_make_slice_table(found, entries, result.metric), is_named=True)
            for found in result.slices
        ],
    )


def _make_slice_table(found: SliceTable, entries: Sequence[ReportEntry], leading: str) -> Table:
    metric = found.metric
    direction = "higher" if is_higher_better(metric) else "lower"
    caption = f"{metric} by {found.name}, {direction} is better"
    if metric != leading:
        caption += f" ({leading} is meaningless within one {found.name.removeprefix('true ')})"
    counts = make_cells([value.num_rows for value in found.values], show=f.format_count)
    shown = [s for s in entries if any(s.name in value.metrics for value in found.values)]
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


def make_rare_events(rare: RareEvents | None, entries: Sequence[ReportEntry]) -> Section:
    """Return precision and recall for the rare rows: of the decisions, and at k."""
    if rare is None:
        return Section("Rare events", "", [])
    variants = [s for s in entries if s.name in rare.variants]
    found = [rare.variants[s.name] for s in variants]
    columns = _list_qualities(found, "all rows")
    lengths = [top.k for top in found[0].at_k]
    for i, k in enumerate(lengths):
        title = f"at k = {k}" + (" (number of rare rows)" if k == rare.num_high else "")
        columns += _list_qualities([variant.at_k[i] for variant in found], title)
    table = Table("Rare events", "variant", [Head(s.name, s) for s in variants], columns)
    return Section(
        "Rare events",
        f"Rare: {rare.what}, {rare.num_high} of {rare.num_rows} rows. Recall: the fraction of the "
        "rare rows that a variant predicts as rare; precision: the fraction of the rows predicted "
        "as rare that are. At k: of the k rows with the highest predictions.",
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


def make_noise(noise: Sequence[NoiseResult], entries: Sequence[ReportEntry]) -> Section:
    """Return the error of second labels against the first, and of variants on the same rows."""
    if not noise:
        return Section("Label noise", "", [])
    metric = noise[0].metric
    columns = make_columns(
        {
            "rows": [f.format_count(n.num_rows) for n in noise],
            "left out": [f.format_count(n.num_left_out) for n in noise],
        }
    )
    columns.append(Column(Head("oracle"), [_show(n.oracle) for n in noise]))
    for s in entries:
        if s.name in noise[0].variants:
            columns.append(Column(Head(s.name, s), [_show(n.variants[s.name]) for n in noise]))
    heads = [Head(_ORACLES[n.kind], note=n.file) for n in noise]
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
    error = "mae" if metric == "mae" else "disagreement, the fraction of rows that differ"
    return Section(
        "Label noise",
        "Error of second labels (oracle) against the first ones, next to the error of each variant "
        f"against the first labels of the same rows, as {error}. Nothing is subtracted.",
        blocks,
    )


def _show(found: MetricValue) -> Cell:
    return Cell(f.format_metric(found.value), note=f.note_interval(found.interval))
