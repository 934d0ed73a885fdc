"""The plots on the first screen: what decided, beside the thresholds that it had to pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from llmft.reports.formatting import format_interval, format_metric, shorten
from llmft.reports.plots.figures import (
    GOOD,
    MUTED,
    Plot,
    add_legend,
    draw_interval,
    draw_marker,
    make_figure,
)
from llmft.reports.series import Interval, Series, is_higher_better


def draw_gains(pairs: Sequence[dict[str, Any]], arms: Sequence[Series], *, metric: str,
               margin: float) -> Plot:  # fmt: skip
    """Draw every challenger's gain over the reference, with its interval, zero and the margin."""
    figure = make_figure(70 + 46 * len(pairs))
    axes = figure.subplots()
    ends = [0.0, margin, *(end for pair in pairs for end in pair["interval"])]
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
    by_name = {s.name: s for s in arms}
    for y, pair in enumerate(pairs):
        arm = by_name[pair["challenger"]]
        draw_interval(axes, y, pair["gain"], pair["interval"], arm)
        text: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
        axes.text(0, y - 0.42, shorten(arm.name, length=26), fontsize=10.5, **text)
        finding = f"{format_metric(pair['gain'])} · {pair['finding']}"
        axes.text(1, y - 0.42, finding, ha="right", fontsize=10.5, color=MUTED, **text)
    axes.set_xlabel(f"gain in {metric} over the reference (right is better)")
    axes.spines["left"].set_visible(False)
    alt = "; ".join(
        f"{p['challenger']} gains {format_interval(p['interval'])}: {p['finding']}" for p in pairs
    )
    return Plot("gains", "Gains over the reference", f"{alt}; margin {margin:g}", figure)


def draw_gates(
    gates: Sequence[dict[str, Any]], intervals: dict[str, Interval], *, series: Sequence[Series]
) -> Plot:
    """Draw for each gate the value with its interval, the thresholds and the baselines."""
    figure = make_figure(12 + 84 * len(gates))
    for axes, gate in zip(np.ravel(figure.subplots(len(gates), squeeze=False)), gates, strict=True):
        metric = gate["metric"]
        axes.axvline(gate["review"], color=MUTED, lw=1.4, ls=(0, (4, 2)))
        axes.axvline(gate["deploy"], color=GOOD, lw=1.4)
        for s in series:
            value = s.metrics.get(metric)
            if s.is_baseline and value is not None:
                draw_marker(axes, value, 0.55, s)
        arm = next(s for s in series if not s.is_baseline)
        if gate["value"] is not None:
            draw_interval(axes, 0, gate["value"], intervals.get(metric), arm)
        axes.set(ylim=(1, -0.6), yticks=[])
        axes.margins(x=0.08)
        axes.set_title(f"{metric}  {format_metric(gate['value'])} · {gate['result']}",
                       loc="left", fontsize=11)  # fmt: skip
        axes.set_xlabel(f"{'right' if is_higher_better(metric) else 'left'} is better")
        axes.spines["left"].set_visible(False)
    deploy = Line2D([], [], color=GOOD, lw=1.4, label="deploy")
    review = Line2D([], [], color=MUTED, lw=1.4, ls="--", label="review")
    add_legend(figure, series, extra=[deploy, review])
    alt = "; ".join(f"{g['metric']} {format_metric(g['value'])}: {g['result']}" for g in gates)
    return Plot("gates", "Gates", alt, figure)


def _label_line(axes: Axes, x: float, text: str, *, colour: str, height: int) -> None:
    """Write at the upper end of an upright line, on the side that has room."""
    low, high = axes.get_xlim()
    on_left = x - low > high - x
    axes.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
        xytext=(-4 if on_left else 4, height), ha="right" if on_left else "left",
        color=colour, fontsize=9.5,
    )  # fmt: skip
