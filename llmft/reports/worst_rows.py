"""The rows that went worst, each with what the arms said of it."""

from collections.abc import Sequence
from typing import NamedTuple

from llmft.reports.formatting import MISSING, format_score
from llmft.reports.series import Series
from llmft.reports.tables import Cell, Column, Head, Table
from llmft.results.variant import Judgement, Labels, RowResult

MAX_OUTPUTS = 12
_NUM_LARGEST = 3


class WorstRow(NamedTuple):
    """A row that went wrong, with its table of outputs."""

    id: str
    text: str
    labels: Labels
    table: Table


def list_worst_rows(result: Judgement, arms: Sequence[Series]) -> list[WorstRow]:
    """Return the worst rows; per arm its outputs and its error."""
    return [
        WorstRow(row.id, row.text, row.labels, _tabulate_outputs(row, result.label_names, arms))
        for row in result.worst_rows
    ]


def _tabulate_outputs(row: RowResult, names: Sequence[str], arms: Sequence[Series]) -> Table:
    labels = row.labels
    arms = [arm for arm in arms if arm.name in row.outputs]
    heads = [Head(arm.name, arm) for arm in arms]
    outputs = {
        name: [format_score(row.outputs[arm.name][i]) for arm in arms]
        for i, name in enumerate(names)
    }
    errors = [format_score(row.errors[arm.name]) for arm in arms]
    if isinstance(labels, dict):
        heads.append(Head("label"))
        columns = [
            Column(
                Head(name), [Cell(text) for text in (*outputs[name], format_score(labels[name]))]
            )
            for name in names
        ]
        errors.append(MISSING)
    else:
        true = [labels] if isinstance(labels, str) else labels
        columns = [
            Column(
                Head(f"{name} (true)" if name in true else name),
                [Cell(text, name in true) for text in outputs[name]],
            )
            for name in choose_outputs(row, names, true)
        ]
    columns.append(Column(Head("error"), [Cell(text) for text in errors]))
    return Table(f"Outputs for {row.id}", "arm", heads, columns)


def choose_outputs(row: RowResult, names: Sequence[str], true: Sequence[str]) -> list[str]:
    """Return all classes, or of many the true ones and those that an arm finds most probable."""
    if len(names) <= MAX_OUTPUTS:
        return list(names)
    chosen = set(true)
    for outputs in row.outputs.values():
        largest = sorted(range(len(names)), key=lambda i: -outputs[i])[:_NUM_LARGEST]
        chosen.update(names[i] for i in largest)
    return [name for name in names if name in chosen]
