"""The sections on slices, rare events, noise, gates and fits: tables of what the file holds."""

from collections.abc import Sequence
from typing import Any

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

_NOISE_SAID = {
    "repeated": "the same oracle, asked again",
    "second oracle": "another oracle",
}


def make_slices(results: dict[str, Any], series: Sequence[Series]) -> Section:
    """Return a metric of every arm by the values of each slice: each slicing names its own."""
    leading = results["metric"]
    tables = [_make_slice_table(found, series, leading) for found in results.get("slices") or []]
    return Section(
        "Slices",
        "Parts of the test rows; the best of a row is marked. With few rows the interval is wide; "
        "nothing is corrected for the number of slices.",
        [Block(table, is_named=True) for table in tables],
    )


def _make_slice_table(found: dict[str, Any], series: Sequence[Series], leading: str) -> Table:
    values, metric = found["values"], found.get("metric") or leading
    direction = "higher" if is_higher_better(metric) else "lower"
    caption = f"{metric} by {found['name']}, {direction} is better"
    if metric != leading:
        caption += f" ({leading} says nothing within one {found['name'].removeprefix('true ')})"
    columns = [_count_rows(values)]
    for s in series:
        if any(s.name in value["metrics"] for value in values):
            columns.append(Column(Head(s.name, s), []))
    for value in values:
        measured = [value["metrics"].get(column.head.name) or {} for column in columns[1:]]
        cells = make_cells(
            [m.get("value") for m in measured],
            show=f.format_metric,
            higher_is_better=is_higher_better(metric),
        )
        for column, cell, m in zip(columns[1:], cells, measured, strict=True):
            column.cells.append(cell._replace(note=_note(m.get("interval"))))
    heads = [Head(f.join_values(value["value"])) for value in values]
    return Table(caption, found["name"], heads, columns)


def _count_rows(values: Sequence[dict[str, Any]]) -> Column:
    return Column(Head("rows"), make_cells([v["num_rows"] for v in values], show=f.format_count))


def make_rare_events(results: dict[str, Any], series: Sequence[Series]) -> Section:
    """Return recall and precision among the rows that are rare, and of the highest k."""
    rare = results.get("rare") or {}
    arms = [s for s in series if s.name in (rare.get("arms") or {})]
    found = [rare["arms"][s.name] for s in arms]
    columns = [
        Column(Head(key), [_measure(arm, key) for arm in found], "all rows")
        for key in ("recall", "precision")
    ]
    for k in dict.fromkeys(at["k"] for arm in found for at in arm.get("at_k") or []):
        by_k: list[dict[str, Any]] = [
            next((at for at in arm["at_k"] if at["k"] == k), {}) for arm in found
        ]
        title = f"highest {k}" + (" (as many as there are)" if k == rare["num_high"] else "")
        columns += [
            Column(Head(key), [_measure(at, key) for at in by_k], title)
            for key in ("recall", "precision")
        ]
    table = Table("Rare events", "arm", [Head(s.name, s) for s in arms], columns)
    return Section(
        "Rare events",
        f"Rare: {rare.get('what')}, which {rare.get('num_high')} of {rare.get('num_rows')} rows "
        "are. Recall: the share of them that an arm finds; precision: the share of what it calls "
        "rare that is. Highest k: among the k rows that it scores highest.",
        [Block(table)],
    )


def _measure(found: dict[str, Any], key: str) -> Cell:
    return Cell(f.format_metric(found.get(key)), note=_note(found.get(f"{key}_interval")))


def make_noise(results: dict[str, Any], series: Sequence[Series]) -> Section:
    """Return the error of second scores beside that of the arms on the same rows."""
    noise = results.get("noise") or []
    columns = make_columns({"rows": [f.format_count(n["num_rows"]) for n in noise]})
    columns.append(Column(Head("oracle"), [_read_error(n) for n in noise]))
    for s in series:
        if any(s.name in n["arms"] for n in noise):
            cells = [_read_error(n["arms"].get(s.name) or {}) for n in noise]
            columns.append(Column(Head(s.name, s), cells))
    heads = [Head(_NOISE_SAID.get(n["kind"], n["kind"]), note=n["file"]) for n in noise]
    blocks = [Block(Table("mae of second scores", "scored again by", heads, columns))]
    names = list(dict.fromkeys(name for n in noise for name in n.get("per_dimension") or {}))
    by_dimension = [
        Column(head, [_read_error(n["per_dimension"].get(name) or {}) for name in names])
        for head, n in zip(heads, noise, strict=True)
        if n.get("per_dimension")
    ]
    if by_dimension:
        table = Table("mae of second scores by dimension", "dimension",
                      [Head(name) for name in names], by_dimension)  # fmt: skip
        blocks.append(Block(table, summary="By dimension"))
    return Section(
        "Noise of the labels",
        "How far the labels are from scores that were asked for a second time (oracle), beside how "
        "far each arm is from the labels of the same rows. Nothing is subtracted.",
        blocks,
    )


def _read_error(found: dict[str, Any]) -> Cell:
    return Cell(f.format_metric(found.get("mae")), note=_note(found.get("interval")))


def make_gates(variants: dict[str, Any], arms: Sequence[Series]) -> Section:
    """Return the gates of every arm: value, result and bound, beside the thresholds."""
    found = {arm.name: {g["name"]: g for g in variants[arm.name].get("gates") or []}
             for arm in arms}  # fmt: skip
    judged = [arm for arm in arms if found[arm.name]]
    first = {name: gate for arm in judged for name, gate in found[arm.name].items()}
    heads = [Head(name) for name in first]
    columns = []
    for arm in judged:
        gates = [found[arm.name].get(name) or {} for name in first]
        texts = {
            key: [f.format_metric(gate.get(key)) for gate in gates]
            for key in ("value", "bound", "deploy", "review")
        }
        texts["result"] = [gate.get("result", "") for gate in gates]
        made = make_columns(texts, words=["result"])
        columns += [column._replace(group=arm.name) for column in made]
    decisions = [
        f"{arm.name}: {variants[arm.name]['decision']}"
        for arm in judged
        if variants[arm.name].get("decision")
    ]
    reasons = [
        f"{arm.name}: {gate['reason']}"
        for arm in judged
        for gate in found[arm.name].values()
        if gate["result"] != "DEPLOY" and gate.get("reason")
    ]
    return Section(
        "Gates",
        "Bound: the worse end of the 95 % interval, which has to pass the deploy threshold; a "
        "value that is worse than the review threshold fails. Gaps: 2 standard errors are always "
        "allowed, so thresholds differ between arms.",
        [
            Block(Table("Gates of every arm", "gate", heads, columns), lines=decisions),
            Block(lines=reasons, summary="What stands against a deployment"),
        ]
        if judged
        else [],
    )


def _note(interval: list[float] | None) -> str:
    return f.format_interval(interval) if interval else ""
