"""The table of all scored rows, which a small script sorts, filters and opens."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

from llmft.data.labels import LABEL_THRESHOLD
from llmft.reports import formatting as f
from llmft.reports.series import Series
from llmft.reports.worst_rows import MAX_OUTPUTS, choose_outputs
from llmft.results.comparison import ComparisonResult, SliceTable
from llmft.results.variant import Labels, RowResult

_DECIMALS = 3


class RowTable(NamedTuple):
    """What the page needs for its table of rows."""

    data: Markup
    """JSON in which no text can end the script block that it stands in."""
    script: Markup
    script_hash: str
    """As a Content-Security-Policy names it: no other script may run."""
    arms: Sequence[Series]
    slices: dict[str, list[str]]
    """Slice -> its values, to choose from."""
    num_rows: int
    is_scored: bool
    """Whether the labels are scores, and neither a class nor labels that can be wrong."""


def make_row_table(result: ComparisonResult, arms: Sequence[Series]) -> RowTable | None:
    """Return the table of the rows; None if the file holds none, or no arm that was scored."""
    rows = result.rows
    arms = [arm for arm in arms if any(arm.name in row.errors for row in rows)]
    if not arms:
        return None
    slices = _list_slice_values(rows, result.slices)
    is_scored = isinstance(rows[0].labels, dict)
    data = {
        "arms": [{"name": a.name, "glyph": a.glyph, "colour": a.colour} for a in arms],
        "names": result.label_names,
        "slices": list(slices),
        "sortBy": _choose_arm(result, arms),
        "rows": [_pack_row(row, result.label_names, arms, slices) for row in rows],
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    script = files("llmft.reports").joinpath("rows.js.j2").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return RowTable(
        Markup(text.replace("<", "\\u003c")), Markup(script), f"sha256-{digest}", arms, slices,
        len(rows), is_scored,
    )  # fmt: skip


def _choose_arm(result: ComparisonResult, arms: Sequence[Series]) -> int:
    """Return whose largest errors come first: the arm that the verdict names."""
    names = [arm.name for arm in arms]
    for name in (result.winner, result.reference):
        if name in names:
            return names.index(name)
    return 0


def _list_slice_values(
    rows: Sequence[RowResult], slicings: Sequence[SliceTable]
) -> dict[str, list[str]]:
    """Return the values of each slice, in the order of the slicings as far as they name them."""
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
    row: RowResult, names: Sequence[str], arms: Sequence[Series], slices: dict[str, list[str]]
) -> list[Any]:
    """Return id, text, label, true values, slices, errors, outputs and what each arm predicts.

    Of many classes only the outputs that matter are kept, each with the place of its name.
    """
    labels, outputs = row.labels, row.outputs
    if isinstance(labels, list):
        labels = [name for name in names if name in labels]
    true = [labels] if isinstance(labels, str) else labels
    chosen: Sequence[int] = range(len(names))
    if len(names) > MAX_OUTPUTS:
        kept = set(choose_outputs(row, names, list(true)))
        chosen = [i for i, name in enumerate(names) if name in kept]
    errors = [row.errors.get(arm.name) for arm in arms]
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
            [round(outputs[arm.name][i], _DECIMALS) for i in chosen]
            if arm.name in outputs
            else None
            for arm in arms
        ],
        None if len(chosen) == len(names) else list(chosen),
        [_read_predicted(labels, outputs.get(arm.name), names) for arm in arms],
    ]


def _read_predicted(
    labels: Labels, outputs: list[float] | None, names: Sequence[str]
) -> str | None:
    """Return the class or the labels that outputs stand for; None for scores."""
    if isinstance(labels, dict) or outputs is None:
        return None
    if isinstance(labels, str):
        return names[outputs.index(max(outputs))]
    return f.format_labels(
        [name for name, output in zip(names, outputs, strict=True) if output >= LABEL_THRESHOLD]
    )
