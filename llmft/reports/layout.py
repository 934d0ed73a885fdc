"""Elements of a report in any format (sections, blocks, tables), and the templates they fill."""

import importlib.util
import logging
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmft.files import write_text
from llmft.reports.entries import GAP, ReportEntry
from llmft.reports.formatting import (
    MISSING,
    escape_markdown,
    format_labels,
    format_threshold,
    make_breakable,
    shorten,
)
from llmft.results.evaluation import EvaluationBase, Finding

logger = logging.getLogger(__name__)


def has_package(name: str, *, needed_for: str) -> bool:
    """Return whether a package of the extra `report` is installed; warn if it is not."""
    module = {"matplotlib": "matplotlib", "python-docx": "docx"}[name]
    if importlib.util.find_spec(module) is not None:
        return True
    logger.info(
        "warning: no %s, since %s is not installed; run `pip install 'llmft[report]'`",
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
    name: str, *, folder: Path, result: EvaluationBase, content: dict[str, Any]
) -> Path:
    """Fill in the HTML and the Markdown template of a report.

    Args:
        name: `comparison` or `evaluation`.
        folder: Where to write `report.html` and `report.md`.
        result: The results.
        content: Tables, saved plots and texts for the templates.

    Returns:
        Path of `report.html`.
    """
    for ending in ("html", "md"):
        template = _make_environment(ending).get_template(f"{name}.{ending}.j2")
        text = template.render(r=result, **content)
        write_text(folder / f"report.{ending}", re.sub(r"\n{3,}", "\n\n", text))
    return folder / "report.html"


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
