"""Common to all plots: style and colours, size, markers, intervals and legends."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from llmft.reports.entries import CARD, GRID, INK, MUTED, ReportEntry
from llmft.reports.formatting import shorten
from llmft.results.variant import Interval

WIDTH = 340  # pixels, those of a phone less its margins
_FALLBACK_FONTS = ("Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", "Arial Unicode MS")


class Plot(NamedTuple):
    """A figure before it is saved."""

    name: str
    title: str
    alt: str
    """Alternative text for readers who cannot see the plot."""
    figure: Figure


@contextmanager
def use_style() -> Iterator[None]:
    """Use the style of the reports, and restore the settings of matplotlib afterwards."""
    known = set(get_font_names())
    style: Any = {  # matplotlib 3.11 types every key, earlier ones none
        **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), GRID),
        **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 10),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        "font.family": ["DejaVu Sans", *(f for f in _FALLBACK_FONTS if f in known)],
        "font.size": 11,
        "text.color": INK,
        "text.parse_math": False,  # a name may hold dollar signs
        "axes.facecolor": "none",
        "axes.labelsize": 10.5,
        "figure.facecolor": CARD,
        "figure.constrained_layout.h_pad": 0.07,
        "svg.fonttype": "none",
        "svg.hashsalt": "llmft",
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def make_figure(height: int) -> Figure:
    """Return an empty figure of the common width and a height in pixels."""
    # SVG counts 72 units an inch, so that a figure's unit is a pixel of the page.
    return Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")


def make_squares(titles: Sequence[str], *, same_axes: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a figure of small squares with titles, at most three per line.

    Args:
        titles: One for each square.
        same_axes: Whether all squares have the same axes.
    """
    num_columns = 2 if len(titles) == 4 else min(3, len(titles))
    num_rows = -(-len(titles) // num_columns)
    figure = make_figure(46 + round(num_rows * (WIDTH - 40) / num_columns) + 14 * num_rows)
    grid = figure.subplots(num_rows, num_columns, sharex=same_axes, sharey=same_axes, squeeze=False)
    for axes in grid.flat[len(titles) :]:
        axes.set_visible(False)
    squares = list(grid.flat[: len(titles)])
    for axes, title in zip(squares, titles, strict=True):
        axes.set_title(shorten(title, length=48 // num_columns), loc="left", fontsize=9.5)
        axes.set_box_aspect(1)
        axes.tick_params(labelsize=9)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    return figure, squares


def label_squares(figure: Figure, *, x: str, y: str) -> None:
    """Label the common axes of the squares."""
    figure.supxlabel(x, fontsize=10, color=MUTED)
    figure.supylabel(y, fontsize=10, color=MUTED)


def draw_marker(axes: Axes, x: float, y: float, entry: ReportEntry) -> None:
    """Draw a value with the colour and marker of its entry."""
    size = 11 if entry.marker == "|" else 7.5
    fill = "none" if entry.is_baseline else entry.colour
    axes.plot([x], [y], entry.marker, color=entry.colour, ms=size, mew=1.8, mfc=fill)


def draw_interval(
    axes: Axes,
    y: float,
    value: float,
    interval: Interval | None,
    entry: ReportEntry,
    *,
    height: float = 6,
) -> None:
    """Draw a value, and its interval if there is one."""
    if interval is not None:
        axes.plot(
            interval, [y, y], color=entry.colour, lw=height, alpha=0.35, solid_capstyle="butt"
        )
    draw_marker(axes, value, y, entry)


def add_legend(
    figure: Figure, entries: Sequence[ReportEntry], *, extra: Sequence[Line2D] = ()
) -> None:
    """Put a legend over a figure; `lay_out` makes room for it."""
    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, ls="", ms=7, mew=1.6,
               mfc="none" if s.is_baseline else s.colour)
        for s in entries
    ]  # fmt: skip
    names = [shorten(s.name, length=28) for s in entries] + [
        str(line.get_label()) for line in extra
    ]
    legend = figure.legend(
        [*handles, *extra], [str(i) for i in range(len(names))], loc="outside upper left",
        ncols=2, handletextpad=0.3, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip
    # Matplotlib hides labels with a leading underscore.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


@contextmanager
def lay_out(figure: Figure) -> Iterator[None]:
    """Lay a figure out once, hide its legend for a while, and make room for it afterwards.

    The layout takes longest; without this it would be computed again for every format.
    """
    legends = list(figure.legends)
    figure.legends.clear()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    yield
    for legend in legends:
        figure.legends.append(legend)
        before = figure.get_figheight()
        figure.set_figheight(before + _measure_legend(legend))
        # All else keeps its size, and its distance from the lower edge.
        shrink = before / figure.get_figheight()
        for axes in figure.axes:
            box = axes.get_position(original=True)
            axes.set_position((box.x0, box.y0 * shrink, box.width, box.height * shrink))
        for text in figure.texts:
            text.set_y(text.get_position()[1] * shrink)


def _measure_legend(legend: Legend) -> float:
    """Return the height in inches of a legend in two columns."""
    return -(-len(legend.get_texts()) // 2) * 17 / 72
