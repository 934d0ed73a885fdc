"""The tables of the reports: cells hold text that was formatted, and nothing is computed."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from llmft.reports.formatting import MISSING
from llmft.reports.series import Series


class Cell(NamedTuple):
    """One value, as it is shown."""

    text: str
    is_best: bool = False
    note: str = ""
    """What stands small beneath, such as an interval."""
    is_word: bool = False
    """Whether it is no number, in a column of numbers."""


class Head(NamedTuple):
    """The first cell of a row or a column."""

    name: str
    series: Series | None = None
    """Whose row or column it is, for its colour and marker."""
    note: str = ""
    tags: tuple[str, ...] = ()


class Column(NamedTuple):
    """A column and what stands in it, one cell a row."""

    head: Head
    cells: list[Cell]
    group: str = ""
    is_number: bool = True


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


def make_cells(
    values: Sequence[float | None],
    *,
    show: Callable[[float | None], str],
    higher_is_better: bool | None = None,
) -> list[Cell]:
    """Return formatted cells; those that show the best value are marked, unless all do.

    Args:
        values: What to show.
        show: How to write a value.
        higher_is_better: Which one is best; None if that cannot be said.
    """
    texts = [show(value) for value in values]
    known = [pair for pair in zip(values, texts, strict=True) if pair[1] != MISSING]
    if higher_is_better is None or len({text for _, text in known}) < 2:
        return [Cell(text) for text in texts]
    _, best = (max if higher_is_better else min)(known, key=lambda pair: pair[0] or 0.0)
    return [Cell(text, text == best) for text in texts]


def make_columns(texts: dict[str, list[str]], *, words: Sequence[str] = ()) -> list[Column]:
    """Return columns of formatted texts; `words` names those that hold no numbers."""
    return [
        Column(Head(name), [Cell(text) for text in found], is_number=name not in words)
        for name, found in texts.items()
    ]


def keep_known_rows(table: Table) -> Table:
    """Return a table without the rows of which nothing is known."""
    known = [
        i
        for i in range(len(table.heads))
        if any(c.cells[i].text not in ("", MISSING) for c in table.columns)
    ]
    columns = [c._replace(cells=[c.cells[i] for i in known]) for c in table.columns]
    return table._replace(heads=[table.heads[i] for i in known], columns=columns)


def keep_known_columns(table: Table) -> Table:
    """Return a table without the columns of which nothing is known."""
    known = [c for c in table.columns if any(cell.text not in ("", MISSING) for cell in c.cells)]
    return table._replace(columns=known)
