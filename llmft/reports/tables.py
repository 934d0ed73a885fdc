"""The tables of the reports: cells hold text that was formatted, and nothing is computed."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from llmft.evaluation.metrics import HIGHER_IS_BETTER
from llmft.reports.formatting import (
    MISSING,
    format_interval,
    format_metric,
    format_score,
    format_share,
    format_threshold,
)
from llmft.reports.series import Metrics, Series, list_metrics

_EXPLAINED = {
    "skill": "skill: 1 is perfect, 0 is no better than the best constant guess, below 0 is worse",
    "mae": "mae: how far a score is from its label on average",
    "rmse": "rmse: as mae, but large misses weigh more",
    "r2": "r2: share of the labels' variance that is explained",
    "spearman": "spearman: whether rows are put in the right order, 1 at best",
    "accuracy": "accuracy: share of rows put into the right class",
    "balanced_accuracy": "balanced_accuracy: accuracy with every class weighing the same",
    "f1_macro": "f1_macro: precision and recall in one, every class weighing the same",
}


class Cell(NamedTuple):
    """One value, as it is shown."""

    text: str
    is_best: bool = False


class Column(NamedTuple):
    """A column and what stands in it, one cell a row."""

    name: str
    cells: list[Cell]
    group: str = ""
    is_number: bool = True
    series: Series | None = None
    """Whose column it is, for its colour and marker."""


class Head(NamedTuple):
    """The first cell of a row."""

    name: str
    series: Series | None = None
    """Whose row it is, for its colour and marker."""
    note: str = ""
    tags: tuple[str, ...] = ()


class Table(NamedTuple):
    """A table whose rows have heads."""

    caption: str
    corner: str
    """The title over the heads."""
    heads: list[Head]
    columns: list[Column]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Titles over neighbouring columns, and how many columns each spans."""
        return [(name, len(list(found))) for name, found in groupby(c.group for c in self.columns)]

    @property
    def rows(self) -> list[tuple[Head, list[Cell]]]:
        """Head and cells of every row."""
        return [(head, [c.cells[i] for c in self.columns]) for i, head in enumerate(self.heads)]


def is_higher_better(metric: str) -> bool:
    """Return the direction of a metric; those of one class are all better when higher."""
    return HIGHER_IS_BETTER.get(metric, True)


def explain_metrics(metrics: Sequence[str]) -> list[str]:
    """Return one line for each metric that a reader may not know."""
    return [_EXPLAINED[metric] for metric in metrics if metric in _EXPLAINED]


def make_cells(
    values: Sequence[float | None],
    *,
    show: Callable[[float | None], str],
    higher_is_better: bool | None = None,
    excluded: Sequence[bool] | None = None,
) -> list[Cell]:
    """Return formatted cells; those that show the best value are marked, unless all do.

    Args:
        values: What to show.
        show: How to write a value.
        higher_is_better: Which one is best; None if that cannot be said.
        excluded: Per value whether it takes no part in being the best.
    """
    texts = [show(value) for value in values]
    excluded = excluded or [False] * len(values)
    known = [
        (value, text)
        for value, text, is_out in zip(values, texts, excluded, strict=True)
        if text != MISSING and not is_out
    ]
    if higher_is_better is None or len({text for _, text in known}) < 2:
        return [Cell(text) for text in texts]
    _, best = (max if higher_is_better else min)(known, key=lambda pair: pair[0] or 0.0)
    return [Cell(text, text == best and not out) for text, out in zip(texts, excluded, strict=True)]


def make_columns(texts: dict[str, list[str]], *, words: Sequence[str] = ()) -> list[Column]:
    """Return columns of formatted texts; `words` names those that hold no numbers."""
    return [
        Column(name, [Cell(text) for text in found], is_number=name not in words)
        for name, found in texts.items()
    ]


def make_metric_columns(
    series: Sequence[Series], *, intervals: dict[str, list[list[float] | None]]
) -> list[Column]:
    """Return a column per metric; a metric with intervals is followed by theirs."""
    columns = []
    for metric in list_metrics(series):
        values = [s.metrics.get(metric) for s in series]
        higher = is_higher_better(metric)
        cells = make_cells(values, show=format_metric, higher_is_better=higher)
        columns.append(
            Column(f"{metric}\N{NO-BREAK SPACE}{'↑' if higher else '↓'}", cells, "Quality")
        )
        if metric in intervals:
            texts = [format_interval(interval) for interval in intervals[metric]]
            columns.append(Column("95 % interval", [Cell(text) for text in texts], "Quality"))
    return columns


def make_parts_table(series: Sequence[Series], *, metric: str, kind: str) -> Table:
    """Return a row per dimension or class and a column per series, best value a row marked."""
    series = [s for s in series if s.parts]
    parts = list(dict.fromkeys(part for s in series for part in s.parts))
    rows = [
        make_cells(
            [s.parts.get(part, {}).get(metric) for s in series],
            show=format_metric,
            higher_is_better=is_higher_better(metric),
        )
        for part in parts
    ]
    columns = [Column(s.name, [row[i] for row in rows], series=s) for i, s in enumerate(series)]
    found = [next((s.parts[part] for s in series if part in s.parts), {}) for part in parts]
    if any("support" in metrics for metrics in found):
        support = [metrics.get("support") for metrics in found]
        columns.append(Column("rows", make_cells(support, show=format_threshold)))
    direction = "higher is better" if is_higher_better(metric) else "lower is better"
    caption = f"{metric} by {kind}, {direction}"
    return Table(caption, kind, [Head(part) for part in parts], columns)


def make_all_parts_table(series: Sequence[Series], *, kind: str) -> Table:
    """Return every metric of every series by dimension or class."""
    found: list[tuple[str, Series, Metrics]] = [
        (part, s, s.parts[part])
        for part in dict.fromkeys(part for s in series for part in s.parts)
        for s in series
        if part in s.parts
    ]
    names = dict.fromkeys(key for _, _, metrics in found for key in metrics)
    columns = make_columns({"of": [s.name for _, s, _ in found]}, words=["of"])
    for name in names:
        show = format_threshold if name == "support" else format_metric
        columns.append(Column(name, make_cells([m.get(name) for _, _, m in found], show=show)))
    return Table(f"All metrics by {kind}", kind, [Head(part) for part, _, _ in found], columns)


def make_edge_case_table(edge_cases: dict[str, Any], series: Sequence[Series]) -> Table:
    """Return how many edge cases each arm passed."""
    arms = [s for s in series if s.name in edge_cases and not s.is_baseline]
    found = [edge_cases[s.name] for s in arms]
    texts = {
        "passed": [f"{f['num_passed']} of {f['num_cases']}" for f in found],
        "pass rate, 95 % interval": [
            " to ".join(format_share(end) for end in f["pass_rate_interval"]) for f in found
        ],
        "must-pass cases failed": [", ".join(f["must_pass_failed"]) or "none" for f in found],
    }
    columns = make_columns(texts, words=["must-pass cases failed"])
    return Table("Edge cases passed", "arm", [Head(s.name, s) for s in arms], columns)


class WorstRow(NamedTuple):
    """A row that went wrong, with its table of outputs."""

    id: str
    text: str
    labels: dict[str, float] | str
    table: Table


def list_worst_rows(results: dict[str, Any], series: Sequence[Series]) -> list[WorstRow]:
    """Return the worst rows; per arm its outputs and its error."""
    return [
        WorstRow(row["id"], row["text"], row["labels"], _tabulate_outputs(row, results, series))
        for row in results["worst_rows"]
    ]


def _tabulate_outputs(
    row: dict[str, Any], results: dict[str, Any], series: Sequence[Series]
) -> Table:
    names, labels = results["label_names"], row["labels"]
    arms = [s for s in series if s.name in row["outputs"]]
    heads = [Head(s.name, s) for s in arms]
    outputs = [[format_score(row["outputs"][s.name][i]) for s in arms] for i in range(len(names))]
    errors = [format_score(row["errors"][s.name]) for s in arms]
    if isinstance(labels, dict):
        heads.append(Head("label"))
        outputs = [[*o, format_score(labels[k])] for o, k in zip(outputs, names, strict=True)]
        errors.append(MISSING)
    columns = [
        Column(
            f"{name} (true)" if name == labels else name, [Cell(o, name == labels) for o in found]
        )
        for name, found in zip(names, outputs, strict=True)
    ]
    columns.append(Column("error", [Cell(text) for text in errors]))
    return Table(f"Outputs for {row['id']}", "arm", heads, columns)
