"""Elements of a report in any format: entries, tables, sections; and the templates they fill."""

import importlib.util
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmft.config.metrics import METRICS
from llmft.files import write_text
from llmft.reports.formatting import (
    MISSING,
    escape_markdown,
    format_labels,
    format_threshold,
    make_breakable,
    shorten,
)
from llmft.results.comparison import EnsembleResult
from llmft.results.evaluation import (
    EvaluationBase,
    Finding,
    Interval,
    LabelType,
    Measurement,
    Metrics,
    Parts,
    VariantResult,
)

logger = logging.getLogger(__name__)
MAX_PARTS = 20
NUM_WORST, NUM_BEST = 15, 5
GAP = "⋯"
"""Shown in place of the dimensions, classes or labels that are left out."""
MAX_POINTS = 2000
"""Of more rows, only so many are drawn."""
MAX_COUNTED_CLASSES = 12
"""With more, the cells of a confusion matrix are too small for their counts."""
INK, MUTED, GRID, CARD = "#1c2026", "#667080", "#e3e6eb", "#fefefe"
GOOD, BAD = "#2e7d4f", "#b3261e"
# After Okabe and Ito, without the tones that are faint on white or on black; markers differ too.
MARKER_STYLES = (
    ("#0072b2", "o", "●"),
    ("#d55e00", "s", "■"),
    ("#009e73", "^", "▲"),
    ("#b65a9c", "D", "◆"),
    ("#a67c00", "v", "▼"),
    ("#3b9fd4", "P", "✚"),
    ("#8a5a44", "X", "✖"),
    ("#6a6fd0", "*", "★"),
)
_BASELINES = {
    "constant": ("best constant", "#8b929c", "|", "┃"),
    "tfidf": ("TF-IDF", "#8b929c", "d", "◇"),
    "probe": ("probe", "#8b929c", "p", "⬠"),
}


class ReportEntry(NamedTuple):
    """A variant, an ensemble or a baseline, with its colour and marker."""

    name: str
    metrics: Metrics
    """Empty for a variant that the audit excluded."""
    parts: Parts
    colour: str
    marker: str
    """Marker of matplotlib."""
    glyph: str
    """The same marker as a character."""
    intervals: dict[str, Interval | None]
    """Metric -> its interval."""
    part_intervals: dict[str, Interval | None]
    """Dimension, class or label -> the interval of its metric in the report."""
    is_baseline: bool = False

    def get_part(self, part: str, metric: str) -> float | None:
        """Return a metric of a dimension, class or label; None where there is none."""
        return self.parts[part].get(metric) if part in self.parts else None


def is_higher_better(metric: str) -> bool:
    """Return the direction of a metric; metrics of a single class are better when higher."""
    return METRICS[metric].higher_is_better if metric in METRICS else True


def style_variant(index: int, *, name: str, found: VariantResult, metric: str) -> ReportEntry:
    """Return a variant with the colour and marker of its position in the suite.

    Args:
        index: Its position.
        name: Its name.
        found: Its results.
        metric: The metric per dimension, class or label.
    """
    by_part = found.part_intervals
    return ReportEntry(
        name,
        found.metrics,
        found.parts,
        *MARKER_STYLES[index % len(MARKER_STYLES)],
        intervals=found.intervals,
        part_intervals=by_part.intervals if by_part and by_part.metric == metric else {},
    )


def style_ensemble(index: int, *, name: str, found: EnsembleResult) -> ReportEntry:
    """Return an ensemble with a colour and marker of its own."""
    look = MARKER_STYLES[index % len(MARKER_STYLES)]
    return ReportEntry(name, found.metrics, {}, *look, intervals=found.intervals, part_intervals={})


def list_baselines(baselines: Mapping[str, Measurement]) -> list[ReportEntry]:
    """Return the baselines with their colours and markers."""
    entries = []
    for key, found in baselines.items():
        name, colour, marker, glyph = _BASELINES.get(key, (key, "#8b929c", "d", "◇"))
        entries.append(
            ReportEntry(name, found.metrics, found.parts, colour, marker, glyph, {}, {}, True)
        )
    return entries


def list_metric_names(entries: Sequence[ReportEntry]) -> list[str]:
    """Return the names of the metrics, in the order of the file."""
    return list(dict.fromkeys(key for s in entries for key in s.metrics))


def choose_part_metric(leading: str, *, parts: Sequence[Parts], label_type: LabelType) -> str:
    """Return the metric per dimension or class: a single class has an f1, but no f1_macro."""
    if any(leading in metrics for found in parts for metrics in found.values()):
        return leading
    return "mae" if label_type == "scores" else "f1"


def choose_parts(entries: Sequence[ReportEntry], *, metric: str) -> list[str]:
    """Return the dimensions, classes or labels of the main table.

    Up to `MAX_PARTS` are all there, in the order of the file. Of more, those with the worst value
    of a variant come first, then a gap, then those with the best.
    """
    parts = list(dict.fromkeys(part for s in entries for part in s.parts))
    if len(parts) <= MAX_PARTS:
        return parts
    higher = is_higher_better(metric)
    ranked_by = [s for s in entries if not s.is_baseline] or entries
    ranks: dict[str, float] = {}
    for part in parts:
        found = [s.get_part(part, metric) for s in ranked_by]
        known = [value if higher else -value for value in found if value is not None]
        if known:
            ranks[part] = min(known)
    ranked = sorted(ranks, key=lambda part: ranks[part])
    return [*ranked[:NUM_WORST], GAP, *ranked[NUM_WORST:][-NUM_BEST:]]


def has_package(name: str, *, needed_for: str) -> bool:
    """Return whether a package of the extra `report` is installed; warn if it is not."""
    module = {"matplotlib": "matplotlib", "python-docx": "docx"}[name]
    if importlib.util.find_spec(module) is not None:
        return True
    logger.warning(
        "no %s, since %s is not installed; run `pip install 'llmft[report]'`",
        needed_for, name,
    )  # fmt: skip
    return False


class SavedPlot(NamedTuple):
    """A plot for the templates."""

    title: str
    alt: str
    svg: Markup
    """Inline SVG, in the page's font and colours, light or dark."""
    path: str
    """Path of the PNG, relative to the folder of the report."""


def write_report(
    name: str,
    *,
    folder: Path,
    result: EvaluationBase,
    content: dict[str, Any],
    stem: str = "report",
) -> Path:
    """Fill in the HTML and the Markdown template of a report.

    Args:
        name: `comparison` or `evaluation`.
        folder: Where to write `STEM.html` and `STEM.md`.
        result: The results.
        content: Tables, saved plots and texts for the templates.
        stem: Name of the files without their endings.

    Returns:
        Path of `STEM.html`.
    """
    for ending in ("html", "md"):
        template = _make_environment(ending).get_template(f"{name}.{ending}.j2")
        text = template.render(r=result, **content)
        write_text(folder / f"{stem}.{ending}", re.sub(r"\n{3,}", "\n\n", text))
    return folder / f"{stem}.html"


def name_file(text: str) -> str:
    """Return text as part of a file name that needs no quoting in a URL."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)[:40].strip("-")


def _make_environment(ending: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("llmft.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Escapes all values in Markdown, as autoescape does in HTML.
        finalize=escape_markdown if ending == "md" else None,
    )
    environment.filters.update(
        breakable=make_breakable,
        labels=format_labels,
        shorten=shorten,
        threshold=format_threshold,
    )
    environment.globals.update(gap=GAP, missing=MISSING)
    return environment


class Cell(NamedTuple):
    """One formatted value."""

    text: str
    is_best: bool = False
    note: str = ""
    """Small text below the value, such as an interval."""
    is_word: bool = False
    """Whether it is a word in a column of numbers."""


class HeaderCell(NamedTuple):
    """The first cell of a row or a column."""

    name: str
    entry: ReportEntry | None = None
    """Variant or baseline of the row or column, for its colour and marker."""
    note: str = ""
    tags: tuple[str, ...] = ()


class Column(NamedTuple):
    """A column with its head, and one cell per row."""

    head: HeaderCell
    cells: list[Cell]
    group: str = ""
    is_number: bool = True


class Table(NamedTuple):
    """A table whose rows have heads."""

    caption: str
    corner: str
    """Title of the column of heads."""
    heads: list[HeaderCell]
    columns: list[Column]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Titles over adjacent columns, and the number of columns of each."""
        return [(name, len(list(found))) for name, found in groupby(c.group for c in self.columns)]

    @property
    def rows(self) -> list[tuple[HeaderCell, list[Cell]]]:
        """Head and cells of every row."""
        return [(head, [c.cells[i] for c in self.columns]) for i, head in enumerate(self.heads)]


def make_cells(
    values: Sequence[float | None],
    *,
    show: Callable[[float | None], str],
    higher_is_better: bool | None = None,
) -> list[Cell]:
    """Return formatted cells; those with the best value are marked, unless all have it.

    Args:
        values: The values.
        show: Formats a value.
        higher_is_better: Direction of the best value; None to mark none.
    """
    texts = [show(value) for value in values]
    known = [pair for pair in zip(values, texts, strict=True) if pair[1] != MISSING]
    if higher_is_better is None or len({text for _, text in known}) < 2:
        return [Cell(text) for text in texts]
    _, best = (max if higher_is_better else min)(known, key=lambda pair: pair[0] or 0.0)
    return [Cell(text, text == best) for text in texts]


def make_columns(texts: dict[str, list[str]], *, words: Sequence[str] = ()) -> list[Column]:
    """Return columns of formatted texts; `words` names the columns of words."""
    return [
        Column(HeaderCell(name), [Cell(text) for text in found], is_number=name not in words)
        for name, found in texts.items()
    ]


def keep_known_rows(table: Table) -> Table:
    """Return a table without its empty rows."""
    known = [
        i
        for i in range(len(table.heads))
        if any(c.cells[i].text not in ("", MISSING) for c in table.columns)
    ]
    columns = [c._replace(cells=[c.cells[i] for i in known]) for c in table.columns]
    return table._replace(heads=[table.heads[i] for i in known], columns=columns)


def keep_known_columns(table: Table) -> Table:
    """Return a table without its empty columns."""
    known = [c for c in table.columns if any(cell.text not in ("", MISSING) for cell in c.cells)]
    return table._replace(columns=known)


class Block(NamedTuple):
    """A table with its plots and remarks; each may be absent."""

    table: Table | None = None
    plots: Sequence[SavedPlot] = ()
    lines: Sequence[str] = ()
    legend: Sequence[ReportEntry] = ()
    """Legend of the plots, if no table next to them has the colours and markers."""
    titled: bool = False
    """Whether to show the titles of the plots."""
    is_named: bool = False
    """Whether to show the caption of the table even if it is the only one."""
    summary: str = ""
    """If not empty, the block is collapsed under this title."""


class Section(NamedTuple):
    """A heading of a report, with an introduction and blocks."""

    title: str
    intro: str
    blocks: Sequence[Block]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not any(
            (block.table and block.table.heads) or block.plots or block.lines
            for block in self.blocks
        )

    @property
    def num_tables(self) -> int:
        """Number of tables that are not collapsed."""
        return sum(1 for b in self.blocks if b.table and b.table.heads and not b.summary)


class AuditGroup(NamedTuple):
    """The findings of one check with one status."""

    status: str
    """`waived` if the suite waives the findings, else their status."""
    check: str
    findings: list[Finding]
