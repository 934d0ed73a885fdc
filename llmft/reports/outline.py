"""What a report consists of, whichever format it is written in: sections, and blocks within."""

from collections.abc import Sequence
from typing import NamedTuple

from llmft.reports.rendering import SavedPlot
from llmft.reports.series import Series
from llmft.reports.tables import Table


class Block(NamedTuple):
    """A table with the plots and remarks that belong to it; each may be absent."""

    table: Table | None = None
    plots: Sequence[SavedPlot] = ()
    lines: Sequence[str] = ()
    legend: Sequence[Series] = ()
    """Whose colours and markers the plots use, where no table beside them says it."""
    titled: bool = False
    """Whether the plots need their titles."""
    is_named: bool = False
    """Whether the caption of the table is shown, even if there is no other table."""
    summary: str = ""
    """If not empty, the block is folded away beneath this title."""


class Section(NamedTuple):
    """A part of a report under one heading."""

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
        """How many tables there are that are not folded away."""
        return sum(1 for b in self.blocks if b.table and b.table.heads and not b.summary)
