"""The plots of the reports: each one narrow, for a phone, and drawn from numbers that are known."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from llmft.reports.formatting import format_interval, format_metric, shorten
from llmft.reports.series import Series
from llmft.reports.tables import is_higher_better

INK, MUTED, GRID, CARD, GOOD = "#1c2026", "#667080", "#e3e6eb", "#fefefe", "#2e7d4f"
_WIDTH = 340  # pixels, those of a phone less its margins
_FALLBACK_FONTS = ("Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", "Arial Unicode MS")
_MAX_VECTOR_POINTS = 300
_MAX_COUNTED_CLASSES = 12


class Plot(NamedTuple):
    """A figure before it is saved."""

    name: str
    title: str
    alt: str
    """What a reader who cannot see it has to know."""
    figure: Figure


@contextmanager
def use_style() -> Iterator[None]:
    """Draw and save in the style of the reports, and leave matplotlib as it was."""
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


def draw_gains(pairs: Sequence[dict[str, Any]], arms: Sequence[Series], *, metric: str,
               margin: float) -> Plot:  # fmt: skip
    """Draw every challenger's gain over the reference, with its interval, zero and the margin."""
    figure = _make_figure(70 + 46 * len(pairs))
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
        _draw_interval(axes, y, pair["gain"], pair["interval"], arm)
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
    gates: Sequence[dict[str, Any]], intervals: dict[str, list[float]], *, series: Sequence[Series]
) -> Plot:
    """Draw for each gate the value with its interval, the thresholds and the baselines."""
    figure = _make_figure(12 + 84 * len(gates))
    for axes, gate in zip(np.ravel(figure.subplots(len(gates), squeeze=False)), gates, strict=True):
        metric = gate["metric"]
        axes.axvline(gate["review"], color=MUTED, lw=1.4, ls=(0, (4, 2)))
        axes.axvline(gate["deploy"], color=GOOD, lw=1.4)
        for s in series:
            value = s.metrics.get(metric)
            if s.is_baseline and value is not None:
                _draw_marker(axes, value, 0.55, s)
        arm = next(s for s in series if not s.is_baseline)
        _draw_interval(axes, 0, gate["value"], intervals.get(metric), arm)
        axes.set(ylim=(1, -0.6), yticks=[])
        axes.margins(x=0.08)
        axes.set_title(f"{metric}  {format_metric(gate['value'])} · {gate['result']}",
                       loc="left", fontsize=11)  # fmt: skip
        axes.set_xlabel(f"{'right' if is_higher_better(metric) else 'left'} is better")
        axes.spines["left"].set_visible(False)
    deploy = Line2D([], [], color=GOOD, lw=1.4, label="deploy")
    review = Line2D([], [], color=MUTED, lw=1.4, ls="--", label="review")
    _add_legend(figure, series, extra=[deploy, review])
    alt = "; ".join(f"{g['metric']} {format_metric(g['value'])}: {g['result']}" for g in gates)
    return Plot("gates", "Gates", alt, figure)


def draw_parts(series: Sequence[Series], *, metric: str, kind: str) -> Plot:
    """Draw one metric by dimension or class, a marker per arm and baseline."""
    series = [s for s in series if s.parts]
    parts = list(dict.fromkeys(part for s in series for part in s.parts))
    figure = _make_figure(44 + 34 * len(parts))
    axes = figure.subplots()
    for i, s in enumerate(series):
        shift = 0.11 * (i - len(series) / 2)
        for y, part in enumerate(parts):
            value = s.parts.get(part, {}).get(metric)
            if value is not None:
                _draw_marker(axes, value, y + shift, s)
    axes.set_yticks(range(len(parts)), [shorten(part, length=22) for part in parts])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.hlines(np.arange(len(parts) - 1) + 0.5, 0, 1, transform=axes.get_yaxis_transform(),
                color=GRID, lw=0.8)  # fmt: skip
    if metric not in ("skill", "r2", "spearman"):
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.set_xlabel(f"{metric} ({'higher' if is_higher_better(metric) else 'lower'} is better)")
    axes.spines["left"].set_visible(False)
    _add_legend(figure, series)
    alt = f"{metric} by {kind} for {', '.join(s.name for s in series)}; the table has the numbers"
    return Plot("parts", f"{metric} by {kind}", alt, figure)


def draw_curves(histories: Sequence[tuple[Series, Sequence[dict[str, Any]]]]) -> list[Plot]:
    """Draw losses and validation metric by epoch, one thin line per run."""
    metric = next((h["metric"] for _, runs in histories for h in runs), None)
    wanted = {"train_loss": "Training loss", "val_loss": "Validation loss"}
    if metric is not None:
        wanted[f"val_{metric}"] = f"Validation {metric}"
    plots = []
    for key, title in wanted.items():
        figure = _make_figure(236)
        axes = figure.subplots()
        for s, runs in histories:
            for history in runs:
                points = [(e["epoch"], e[key]) for e in history["epochs"] if e.get(key) is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), color=s.colour, marker=s.marker,
                              ms=4.5, lw=1.3, alpha=0.85)  # fmt: skip
        axes.grid(axis="y", lw=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("epoch")
        axes.set_title(title, loc="left", fontsize=11)
        _add_legend(figure, [s for s, _ in histories])
        alt = f"{title} by epoch of {', '.join(s.name for s, _ in histories)}"
        plots.append(Plot(f"curve-{key}", title, alt, figure))
    return plots


def draw_predicted(
    rows: Sequence[dict[str, Any]], arm: Series, *, label_names: Sequence[str], name: str
) -> Plot:
    """Draw predicted against true scores, one small square per dimension, all arms on one scale."""
    true = np.array([[row["labels"][key] for key in label_names] for row in rows], dtype=float)
    found = np.array([row["outputs"][arm.name] for row in rows], dtype=float)
    num_columns = min(3, len(label_names))
    num_rows = -(-len(label_names) // num_columns)
    figure = _make_figure(46 + round(num_rows * (_WIDTH - 40) / num_columns) + 14 * num_rows)
    grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, size=true.shape)
    shown = [*true.flat, *(v for row in rows for values in row["outputs"].values() for v in values)]
    ends = [min(shown), max(shown)]
    for i, axes in enumerate(grid.flat):
        if i >= len(label_names):
            axes.set_visible(False)
            continue
        axes.plot(ends, ends, color=MUTED, lw=0.8, ls="--")
        axes.plot(true[:, i] + jitter[:, i], found[:, i], "o", color=arm.colour, ms=3.2,
                  alpha=0.55, mew=0, rasterized=len(rows) > _MAX_VECTOR_POINTS)  # fmt: skip
        axes.set_title(shorten(label_names[i], length=48 // num_columns), loc="left", fontsize=9.5)
        axes.set_box_aspect(1)
        axes.tick_params(labelsize=9)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    figure.supxlabel("true (moved a little sideways)", fontsize=10, color=MUTED)
    _add_legend(figure, [arm])
    figure.supylabel("predicted", fontsize=10, color=MUTED)
    alt = f"Predicted against true scores of {arm.name}, with the line where they agree"
    return Plot(name, arm.name, alt, figure)


def draw_confusion(
    matrix: Sequence[Sequence[int]], arm: Series, *, label_names: Sequence[str], name: str
) -> Plot:
    """Draw a confusion matrix; the larger a cell is in its row, the stronger its colour."""
    figure = _make_figure(_WIDTH - 20)
    axes = figure.subplots()
    num_classes = len(label_names)
    for y, row in enumerate(np.array(matrix)):
        for x, count in enumerate(row):
            strength = 0.04 + 0.91 * count / max(1, row.max())
            axes.add_patch(Rectangle((x, y), 1, 1, fc=(arm.colour, strength), ec=CARD, lw=1.5))
            if num_classes <= _MAX_COUNTED_CLASSES:
                colour = "white" if strength > 0.6 else INK if count else MUTED
                axes.text(x + 0.5, y + 0.5, str(count), ha="center", va="center", color=colour)
    centres = np.arange(num_classes) + 0.5
    names = [shorten(label, length=14) for label in label_names]
    axes.set_xticks(centres, names, rotation=35 if num_classes > 3 else 0,
                    ha="right" if num_classes > 3 else "center")  # fmt: skip
    axes.set_yticks(centres, names)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set(xlim=(0, num_classes), ylim=(num_classes, 0), xlabel="predicted", ylabel="true")
    axes.set_box_aspect(1)
    axes.spines[:].set_visible(False)
    _add_legend(figure, [arm])
    alt = f"Confusion matrix of {arm.name}: rows are true classes, columns predicted ones"
    return Plot(name, arm.name, alt, figure)


def _make_figure(height: int) -> Figure:
    # SVG counts 72 units an inch, so that a figure's unit is a pixel of the page.
    return Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")


def _draw_marker(axes: Axes, x: float, y: float, series: Series) -> None:
    size = 11 if series.marker == "|" else 7.5
    fill = "none" if series.is_baseline else series.colour
    axes.plot([x], [y], series.marker, color=series.colour, ms=size, mew=1.8, mfc=fill)


def _draw_interval(
    axes: Axes, y: float, value: float, interval: Sequence[float] | None, series: Series
) -> None:
    if interval is not None:
        axes.plot(interval, [y, y], color=series.colour, lw=6, alpha=0.35, solid_capstyle="butt")
    _draw_marker(axes, value, y, series)


def _label_line(axes: Axes, x: float, text: str, *, colour: str, height: int) -> None:
    """Write at the upper end of an upright line, on the side that has room."""
    low, high = axes.get_xlim()
    on_left = x - low > high - x
    axes.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
        xytext=(-4 if on_left else 4, height), ha="right" if on_left else "left",
        color=colour, fontsize=9.5,
    )  # fmt: skip


def _add_legend(figure: Figure, series: Sequence[Series], *, extra: Sequence[Line2D] = ()) -> None:
    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, ls="", ms=7, mew=1.6,
               mfc="none" if s.is_baseline else s.colour)
        for s in series
    ]  # fmt: skip
    names = [shorten(s.name, length=28) for s in series] + [str(line.get_label()) for line in extra]
    legend = figure.legend(
        [*handles, *extra], [str(i) for i in range(len(names))], loc="outside upper left",
        ncols=2, handletextpad=0.3, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip
    figure.set_figheight(figure.get_figheight() + _measure_legend(legend))
    # A name with a leading underscore would be hidden if it were given as a label.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def remove_legend(figure: Figure) -> None:
    """Take the legend away, and the room that was made for it."""
    for legend in figure.legends:
        figure.set_figheight(figure.get_figheight() - _measure_legend(legend))
        legend.remove()


def _measure_legend(legend: Legend) -> float:
    """Return the height in inches of a legend in two columns."""
    return -(-len(legend.get_texts()) // 2) * 17 / 72
