"""Rows with their predictions: those with the largest errors, and the table of all."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

from llmft.reports import formatting as f
from llmft.reports.formatting import MISSING, format_score
from llmft.reports.layout import Cell, Column, HeaderCell, ReportEntry, Table
from llmft.results.comparison import ComparisonResult, SliceTable
from llmft.results.evaluation import EvaluationBase, Labels, RowResult

MAX_OUTPUTS = 12
_NUM_LARGEST = 3
_DECIMALS = 3


class WorstRow(NamedTuple):
    """A row with a large error, and its table of outputs."""

    id: str
    text: str
    labels: Labels
    table: Table


def list_worst_rows(result: EvaluationBase, variants: Sequence[ReportEntry]) -> list[WorstRow]:
    """Return the rows with the largest errors, with outputs and error of every variant."""
    return [
        WorstRow(row.id, row.text, row.labels, _tabulate_outputs(row, result.label_names, variants))
        for row in result.worst_rows
    ]


def _tabulate_outputs(
    row: RowResult, names: Sequence[str], variants: Sequence[ReportEntry]
) -> Table:
    labels = row.labels
    variants = [variant for variant in variants if variant.name in row.outputs]
    heads = [HeaderCell(variant.name, variant) for variant in variants]
    outputs = {
        name: [format_score(row.outputs[variant.name][i]) for variant in variants]
        for i, name in enumerate(names)
    }
    errors = [format_score(row.errors[variant.name]) for variant in variants]
    if isinstance(labels, dict):
        heads.append(HeaderCell("label"))
        columns = [
            Column(
                HeaderCell(name),
                [Cell(text) for text in (*outputs[name], format_score(labels[name]))],
            )
            for name in names
        ]
        errors.append(MISSING)
    else:
        true = [labels] if isinstance(labels, str) else labels
        columns = [
            Column(
                HeaderCell(f"{name} (true)" if name in true else name),
                [Cell(text, name in true) for text in outputs[name]],
            )
            for name in choose_outputs(row, names, true)
        ]
    columns.append(Column(HeaderCell("error"), [Cell(text) for text in errors]))
    return Table(f"Outputs for {row.id}", "variant", heads, columns)


def choose_outputs(row: RowResult, names: Sequence[str], true: Sequence[str]) -> list[str]:
    """Return all classes; of more than 12 only the true and the most probable ones."""
    if len(names) <= MAX_OUTPUTS:
        return list(names)
    chosen = set(true)
    for outputs in row.outputs.values():
        largest = sorted(range(len(names)), key=lambda i: -outputs[i])[:_NUM_LARGEST]
        chosen.update(names[i] for i in largest)
    return [name for name in names if name in chosen]


class RowTable(NamedTuple):
    """Data and script of the table of rows."""

    data: Markup
    """JSON, escaped so that no text can end its script block."""
    script: Markup
    script_hash: str
    """For the Content-Security-Policy, which allows no other script."""
    variants: Sequence[ReportEntry]
    slices: dict[str, list[str]]
    """Name of a slicing -> its slices."""
    num_rows: int
    is_scored: bool
    """Whether the labels are scores, not classes or labels."""


def make_row_table(result: ComparisonResult, variants: Sequence[ReportEntry]) -> RowTable | None:
    """Return the table of the rows; None without rows or without a measured variant."""
    rows = result.rows
    variants = [variant for variant in variants if any(variant.name in row.errors for row in rows)]
    if not variants:
        return None
    slices = _list_slice_values(rows, result.slices)
    is_scored = isinstance(rows[0].labels, dict)
    data = {
        "variants": [{"name": a.name, "glyph": a.glyph, "colour": a.colour} for a in variants],
        "names": result.label_names,
        "slices": list(slices),
        "sortBy": _choose_variant(result, variants),
        "rows": [_pack_row(row, result.label_names, variants, slices) for row in rows],
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    script = files("llmft.reports").joinpath("templates", "rows.js.j2").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return RowTable(
        Markup(text.replace("<", "\\u003c")), Markup(script), f"sha256-{digest}", variants, slices,
        len(rows), is_scored,
    )  # fmt: skip


def _choose_variant(result: ComparisonResult, variants: Sequence[ReportEntry]) -> int:
    """Return the index of the variant to sort by: the winner, else the reference."""
    names = [variant.name for variant in variants]
    for name in (result.winner, result.reference):
        if name in names:
            return names.index(name)
    return 0


def _list_slice_values(
    rows: Sequence[RowResult], slicings: Sequence[SliceTable]
) -> dict[str, list[str]]:
    """Return the slices of each slicing, in the order of the results."""
    known = {s.name: [v.value for v in s.values] for s in slicings}
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.slices.items():
            values.setdefault(name, set()).add(value)
    return {
        name: [*(v for v in known.get(name, []) if v in found),
               *sorted(found.difference(known.get(name, [])))]
        for name, found in values.items()
    }  # fmt: skip


def _pack_row(
    row: RowResult,
    names: Sequence[str],
    variants: Sequence[ReportEntry],
    slices: dict[str, list[str]],
) -> list[Any]:
    """Return id, text, label, true values, slices, errors, outputs, indices and predictions.

    Of many classes only the outputs of `choose_outputs` are kept, with the indices of their names.
    """
    labels, outputs, predicted = row.labels, row.outputs, row.predicted
    if isinstance(labels, list):
        labels = [name for name in names if name in labels]
    true = [labels] if isinstance(labels, str) else labels
    chosen: Sequence[int] = range(len(names))
    if len(names) > MAX_OUTPUTS:
        kept = set(choose_outputs(row, names, list(true)))
        chosen = [i for i, name in enumerate(names) if name in kept]
    errors = [row.errors.get(variant.name) for variant in variants]
    return [
        row.id,
        row.text,
        "" if isinstance(labels, dict) else f.format_labels(labels),
        [labels.get(names[i]) for i in chosen]
        if isinstance(labels, dict)
        else [names[i] in true for i in chosen],
        [row.slices.get(name) for name in slices],
        [None if error is None else round(error, _DECIMALS) for error in errors],
        [
            [round(outputs[variant.name][i], _DECIMALS) for i in chosen]
            if variant.name in outputs
            else None
            for variant in variants
        ],
        None if len(chosen) == len(names) else list(chosen),
        [f.format_labels(predicted[v.name]) if v.name in predicted else None for v in variants],
    ]
