"""Elements of a report in any format: sections, blocks and tables."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from llmft.reports.entries import ReportEntry
from llmft.reports.formatting import MISSING
from llmft.reports.rendering import SavedPlot


class Cell(NamedTuple):
    """One formatted value."""

    text: str
    is_best: bool = False
    note: str = ""
    """Small text below the value, such as an interval."""
    is_word: bool = False
    """Whether it is a word in a column of numbers."""


class Head(NamedTuple):
    """The first cell of a row or a column."""

    name: str
    entry: ReportEntry | None = None
    """Variant or baseline of the row or column, for its colour and marker."""
    note: str = ""
    tags: tuple[str, ...] = ()


class Column(NamedTuple):
    """A column with its head, and one cell per row."""

    head: Head
    cells: list[Cell]
    group: str = ""
    is_number: bool = True


class Table(NamedTuple):
    """A table whose rows have heads."""

    caption: str
    corner: str
    """Title of the column of heads."""
    heads: list[Head]
    columns: list[Column]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Titles over adjacent columns, and the number of columns of each."""
        return [(name, len(list(found))) for name, found in groupby(c.group for c in self.columns)]

    @property
    def rows(self) -> list[tuple[Head, list[Cell]]]:
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
        Column(Head(name), [Cell(text) for text in found], is_number=name not in words)
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
