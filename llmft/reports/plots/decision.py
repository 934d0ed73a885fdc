"""The plots on the first screen: gains with the margin, and gates with their thresholds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from llmft.config.gates import HIGHER_IS_BETTER
from llmft.reports.entries import BAD, GOOD, MUTED, ReportEntry
from llmft.reports.formatting import format_interval, format_metric, shorten
from llmft.reports.plots.figures import (
    Plot,
    add_legend,
    draw_interval,
    draw_marker,
    make_figure,
)
from llmft.results.comparison import Pair
from llmft.results.variant import GateResult, Interval

_COLOURS = {"DEPLOY": GOOD, "REVIEW": MUTED, "FAIL": BAD}


def draw_gains(pairs: Sequence[Pair], variants: Sequence[ReportEntry], *, metric: str,
               margin: float) -> Plot:  # fmt: skip
    """Draw every challenger's gain over the reference, with its interval, zero and the margin."""
    figure = make_figure(70 + 46 * len(pairs))
    axes = figure.subplots()
    ends = [0.0, margin, *(end for pair in pairs for end in pair.interval)]
    room = 0.12 * (max(ends) - min(ends) or 1.0)
    low, high = min(ends) - room, max(ends) + room
    axes.set(xlim=(low, high), ylim=(len(pairs) - 0.45, -0.7), yticks=[])
    axes.axvspan(margin, high, color=GOOD, alpha=0.1, lw=0)
    rows = np.arange(len(pairs))
    for x, colour, style in ((0.0, MUTED, "-"), (margin, GOOD, (0, (4, 2)))):
        # Faint where names and findings are written over it.
        axes.axvline(x, color=colour, lw=1.2, ls=style, alpha=0.3)
        axes.vlines(np.full(len(pairs), x), rows - 0.22, rows + 0.3, color=colour, lw=1.4, ls=style)
    _label_line(axes, margin, f"margin {margin:g}", colour=GOOD, height=3)
    _label_line(axes, 0, "no difference", colour=MUTED, height=16)
    by_name = {s.name: s for s in variants}
    for y, pair in enumerate(pairs):
        variant = by_name[pair.challenger]
        axes.plot([pair.lower, pair.upper], [y, y], color=variant.colour, lw=1.6)
        draw_interval(axes, y, pair.gain, pair.interval, variant)
        text: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
        axes.text(0, y - 0.42, shorten(variant.name, length=26), fontsize=10.5, **text)
        finding = f"{format_metric(pair.gain)} · {pair.finding}"
        axes.text(1, y - 0.42, finding, ha="right", fontsize=10.5, color=MUTED, **text)
    axes.set_xlabel(f"gain in {metric} over the reference (right is better)")
    axes.spines["left"].set_visible(False)
    alt = "; ".join(
        f"{p.challenger} gains {format_interval(p.interval)}: {p.finding}" for p in pairs
    )
    return Plot("gains", "Gains over the reference", f"{alt}; margin {margin:g}", figure)


def draw_gates(gates: Sequence[GateResult], *, entries: Sequence[ReportEntry]) -> Plot:
    """Draw for each gate the value with its interval or bound, the thresholds and the baselines.

    Every gate has a scale of its own.
    """
    figure = make_figure(12 + 54 * len(gates))
    variant = next(s for s in entries if not s.is_baseline)
    baselines = [s for s in entries if s.is_baseline]
    for axes, gate in zip(np.ravel(figure.subplots(len(gates), squeeze=False)), gates, strict=True):
        name, value, bound = gate.name, gate.value, gate.bound
        if gate.review is not None:
            axes.axvline(gate.review, color=MUTED, lw=1.4, ls=(0, (4, 2)))
        axes.axvline(gate.deploy, color=GOOD, lw=1.4)
        for s in baselines:
            other = s.metrics.get(name)
            if other is not None:
                draw_marker(axes, other, 0.55, s)
        if value is not None:
            # Without an interval, draw one to the bound.
            ends = Interval(value, bound) if bound is not None else None
            draw_interval(axes, 0, value, gate.interval or ends, variant)
        axes.set(ylim=(1, -0.6), yticks=[])
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if axes.dataLim.width == 0:  # a threshold alone spans no axis
            axes.set_xticks([gate.deploy])
        arrow = "↑" if HIGHER_IS_BETTER.get(name, True) else "↓"
        axes.set_title(f"{name} {arrow}  {format_metric(value)}", loc="left", fontsize=10.5, pad=3)
        axes.set_title(gate.result, loc="right", fontsize=10.5, pad=3, color=_COLOURS[gate.result])
        axes.tick_params(labelsize=9, pad=2)
        axes.spines["left"].set_visible(False)
    deploy = Line2D([], [], color=GOOD, lw=1.4, label="deploy")
    review = Line2D([], [], color=MUTED, lw=1.4, ls="--", label="review")
    add_legend(figure, entries, extra=[deploy, review])
    alt = "; ".join(f"{g.name} {format_metric(g.value)}: {g.result}" for g in gates)
    return Plot("gates", "Gates", alt, figure)


def _label_line(axes: Axes, x: float, text: str, *, colour: str, height: int) -> None:
    """Write at the upper end of a vertical line, on the side with more room."""
    low, high = axes.get_xlim()
    on_left = x - low > high - x
    axes.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
        xytext=(-4 if on_left else 4, height), ha="right" if on_left else "left",
        color=colour, fontsize=9.5,
    )  # fmt: skip
