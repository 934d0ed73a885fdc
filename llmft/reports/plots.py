"""The plots of the reports and of `llmft bench`, saved as PNG; a page has them as inline SVG."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from llmft.config.metrics import METRICS
from llmft.config.suite import HIGHER_IS_BETTER
from llmft.files import replace_file
from llmft.reports.formatting import format_interval, format_metric, format_quantity, shorten
from llmft.reports.layout import (
    BAD,
    CARD,
    GOOD,
    GRID,
    INK,
    MARKER_STYLES,
    MAX_COUNTED_CLASSES,
    MUTED,
    ReportEntry,
    SavedPlot,
    choose_parts,
    is_higher_better,
)
from llmft.results.comparison import Pair
from llmft.results.evaluation import (
    GateResult,
    Interval,
    Matrix,
    Reliability,
    RowResult,
    ScoreCalibration,
    TierConfusion,
)
from llmft.results.run import CurvePoint, LearningCurve

_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", CARD: "card", GOOD: "good", BAD: "bad"}
WIDTH = 340  # pixels, those of a phone less its margins
DPI = 144  # of PNG files
_FALLBACK_FONTS = ("Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", "Arial Unicode MS")
_COLOURS = {"DEPLOY": GOOD, "REVIEW": MUTED, "FAIL": BAD}
_MAX_VECTOR_POINTS = 300
_LINE: Any = {"color": INK, "lw": 0.8, "ls": "--", "zorder": 3}  # above the dots
_MAX_NAMED_CLASSES = 30
_MAX_LABELS = 12
_Read = Callable[[CurvePoint], float | None]
_LABELS = {"prompt_tokens": "tokens of the prompt", "batch_size": "articles in a batch"}


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
        "axes.unicode_minus": False,  # one sign in plots, tables and text
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
    """Lay out a figure once, without its legend, and make room for the legend afterwards.

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


def draw_parts(entries: Sequence[ReportEntry], *, metric: str, kind: str) -> Plot:
    """Draw one metric by dimension, class or label, a marker per variant and baseline."""
    entries = [s for s in entries if s.parts]
    parts = choose_parts(entries, metric=metric)
    figure = make_figure(44 + 34 * len(parts))
    axes = figure.subplots()
    for i, s in enumerate(entries):
        shift = 0.11 * (i - (len(entries) - 1) / 2)
        for y, part in enumerate(parts):
            value = s.get_part(part, metric)
            if value is not None:
                draw_interval(axes, y + shift, value, s.part_intervals.get(part), s, height=3)
    axes.set_yticks(range(len(parts)), [shorten(part, length=22) for part in parts])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.hlines(np.arange(len(parts) - 1) + 0.5, 0, 1, transform=axes.get_yaxis_transform(),
                color=GRID, lw=0.8)  # fmt: skip
    if metric not in METRICS or not METRICS[metric].lowest < 0:
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.set_xlabel(f"{metric} ({'higher' if is_higher_better(metric) else 'lower'} is better)")
    axes.spines["left"].set_visible(False)
    add_legend(figure, entries)
    alt = f"{metric} by {kind} for {', '.join(s.name for s in entries)}; the table has the numbers"
    return Plot("parts", f"{metric} by {kind}", alt, figure)


class _Scores(NamedTuple):
    """True and predicted scores of a variant."""

    true_ND: NDArray[np.float64]
    predicted_ND: NDArray[np.float64]


def draw_predicted(
    rows: Sequence[RowResult], variant: ReportEntry, *, label_names: Sequence[str], name: str
) -> Plot:
    """Draw predicted against true scores, a square per dimension, all variants on one scale."""
    scores = [_read_scores(rows, shown, label_names) for shown in _list_variants(rows)]
    own = _read_scores(rows, variant.name, label_names)
    low = min(float(array.min()) for pair in scores for array in pair)
    high = max(float(array.max()) for pair in scores for array in pair)
    figure, squares = make_squares(label_names)
    for i, axes in enumerate(squares):
        axes.plot([low, high], [low, high], **_LINE)
        _scatter(axes, own.true_ND[:, i], own.predicted_ND[:, i], variant)
    add_legend(figure, [variant])
    label_squares(figure, x="true (jittered)", y="predicted")
    alt = f"Predicted against true scores of {variant.name}, with the line where they agree"
    return Plot(name, f"{variant.name}: predicted against true", alt, figure)


def draw_residuals(
    rows: Sequence[RowResult], variant: ReportEntry, *, label_names: Sequence[str], name: str
) -> Plot:
    """Draw predicted minus true against true scores, all variants on one scale."""
    scores = [_read_scores(rows, shown, label_names) for shown in _list_variants(rows)]
    own = _read_scores(rows, variant.name, label_names)
    reach = 1.05 * max(float(np.abs(s.predicted_ND - s.true_ND).max()) for s in scores) or 1.0
    figure, squares = make_squares(label_names)
    for i, axes in enumerate(squares):
        axes.axhline(0, **_LINE)
        _scatter(axes, own.true_ND[:, i], (own.predicted_ND - own.true_ND)[:, i], variant)
        axes.set_ylim(-reach, reach)
    add_legend(figure, [variant])
    label_squares(figure, x="true (jittered)", y="predicted minus true")
    alt = f"Residuals of {variant.name} against the true scores; above zero is predicted too high"
    return Plot(name, f"{variant.name}: residuals", alt, figure)


def draw_strata(
    calibrations: Mapping[str, Mapping[str, ScoreCalibration]],
    variants: Sequence[ReportEntry],
    *,
    names: Sequence[str],
) -> Plot:
    """Draw mean predicted against mean true score by stratum, one square per dimension.

    Args:
        calibrations: Variant -> dimension -> calibration of its scores.
        variants: The variants to draw, all in the same squares.
        names: The dimensions.
    """
    figure, squares = make_squares(names)
    ends = [
        end
        for found in calibrations.values()
        for name in names
        for stratum in found[name].strata
        for end in (stratum.mean_true, stratum.mean_predicted)
    ]
    for axes, name in zip(squares, names, strict=True):
        if ends:
            axes.plot([min(ends), max(ends)], [min(ends), max(ends)], **_LINE)
        for variant in variants:
            strata = calibrations[variant.name][name].strata
            x, y = [s.mean_true for s in strata], [s.mean_predicted for s in strata]
            axes.plot(x, y, color=variant.colour, marker=variant.marker, ms=5, lw=1.3, alpha=0.85)
    add_legend(figure, variants)
    label_squares(figure, x="mean true score of a stratum", y="mean predicted")
    shown = ", ".join(variant.name for variant in variants)
    alt = f"Mean predicted against mean true score by stratum of {shown}; flat is compressed"
    return Plot("calibration", "Calibration", alt, figure)


def _list_variants(rows: Sequence[RowResult]) -> list[str]:
    return list(rows[0].outputs)


def _read_scores(rows: Sequence[RowResult], variant: str, names: Sequence[str]) -> _Scores:
    labels = [row.labels for row in rows if isinstance(row.labels, dict)]
    true_ND = np.array([[scores[name] for name in names] for scores in labels], dtype=float)
    return _Scores(true_ND, np.array([row.outputs[variant] for row in rows], dtype=float))


def _scatter(
    axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], variant: ReportEntry
) -> None:
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, size=x.shape)
    axes.plot(x + jitter, y, "o", color=variant.colour, ms=3.2, alpha=0.55, mew=0,
              rasterized=len(x) > _MAX_VECTOR_POINTS)  # fmt: skip


def draw_confusion(
    matrix: Matrix, variant: ReportEntry, *, label_names: Sequence[str], name: str
) -> Plot:
    """Draw a confusion matrix; the larger a cell is in its row, the stronger its colour."""
    figure = make_figure(WIDTH - 20)
    axes = figure.subplots()
    num_classes = len(label_names)
    if num_classes <= MAX_COUNTED_CLASSES:
        _fill_cells(axes, np.array(matrix), variant)
    else:
        _fill_pixels(axes, np.array(matrix), variant)
    if num_classes <= _MAX_NAMED_CLASSES:
        _name_classes(axes, label_names)
    else:
        axes.set(xticks=[], yticks=[])
    axes.set(xlim=(0, num_classes), ylim=(num_classes, 0), xlabel="predicted", ylabel="true")
    axes.set_box_aspect(1)
    axes.spines[:].set_visible(False)
    add_legend(figure, [variant])
    alt = f"Confusion matrix of {variant.name}: rows are true classes, columns predicted ones"
    return Plot(name, f"{variant.name}: confusion matrix", alt, figure)


def draw_tiers(tiers: TierConfusion, variant: ReportEntry, *, name: str) -> Plot:
    """Draw the confusion matrix of the tiers."""
    plot = draw_confusion(tiers.confusion_matrix, variant, label_names=tiers.names, name=name)
    return plot._replace(title=f"{variant.name}: tiers")


def draw_label_confusions(
    confusions: Mapping[str, Matrix], variant: ReportEntry, *, name: str
) -> Plot:
    """Draw the 2 x 2 confusion matrices of the most frequent labels."""
    frequent = sorted(confusions, key=lambda label: -sum(confusions[label][1]))[:_MAX_LABELS]
    figure, squares = make_squares(frequent, same_axes=False)
    for axes, label in zip(squares, frequent, strict=True):
        _fill_cells(axes, np.array(confusions[label]), variant)
        axes.set(xlim=(0, 2), ylim=(2, 0))
        axes.set_xticks([0.5, 1.5], ["no", "yes"])
        axes.set_yticks([0.5, 1.5], ["no", "yes"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    add_legend(figure, [variant])
    label_squares(figure, x="predicted", y="true")
    alt = f"Confusion matrices of {variant.name} by label: whether it applies and is predicted"
    return Plot(name, f"{variant.name}: labels", alt, figure)


def draw_reliability(reliability: Reliability, variant: ReportEntry, *, name: str) -> Plot:
    """Draw the fraction true against the predicted probability, and the size of the bins."""
    bins = reliability.bins
    predicted, true = [b.mean_predicted for b in bins], [b.fraction_true for b in bins]
    figure = make_figure(WIDTH + 40)
    above, below = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    above.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls="--")
    above.plot(predicted, true, color=variant.colour, marker=variant.marker, ms=6, lw=1.3)
    above.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="fraction true")
    above.grid(lw=0.8)
    widths = [b.high - b.low for b in bins]
    lows, sizes = [b.low for b in bins], [b.num_rows for b in bins]
    below.bar(
        lows, sizes, width=widths, align="edge", color=variant.colour, alpha=0.55, ec=CARD, lw=1
    )
    below.set(xlabel="predicted probability", ylabel="number")
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    below.set_axisbelow(True)
    below.grid(axis="y", lw=0.8)
    figure.align_ylabels()
    add_legend(figure, [variant])
    title = f"{variant.name}: ece {format_metric(reliability.ece)}"
    alt = f"Reliability of {title}: fraction true by predicted probability"
    return Plot(name, title, alt, figure)


def _weigh(counts_CC: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the opacity of each cell, proportional to its fraction of the largest of its row."""
    strengths: NDArray[np.float64] = 0.04 + 0.91 * counts_CC / counts_CC.max(
        axis=1, keepdims=True, initial=1
    )
    return strengths


def _fill_cells(axes: Axes, counts_CC: NDArray[np.int64], variant: ReportEntry) -> None:
    for (y, x), strength in np.ndenumerate(_weigh(counts_CC)):
        count = counts_CC[y, x]
        axes.add_patch(Rectangle((x, y), 1, 1, fc=(variant.colour, strength), ec=CARD, lw=1.5))
        colour = "white" if strength > 0.6 else INK if count else MUTED
        axes.text(x + 0.5, y + 0.5, str(count), ha="center", va="center", color=colour)


def _fill_pixels(axes: Axes, counts_CC: NDArray[np.int64], variant: ReportEntry) -> None:
    size = len(counts_CC)
    image_CCK = np.full((size, size, 4), to_rgba(variant.colour))
    image_CCK[..., 3] = _weigh(counts_CC)
    axes.imshow(image_CCK, extent=(0, size, size, 0), interpolation="none")


def _name_classes(axes: Axes, label_names: Sequence[str]) -> None:
    centres = np.arange(len(label_names)) + 0.5
    match len(label_names):
        case few if few <= 3:
            length, size, rotation, end = 14, 10, 0, "center"
        case some if some <= MAX_COUNTED_CLASSES:
            length, size, rotation, end = 14, 10, 35, "right"
        case _:
            length, size, rotation, end = 18, 7, 90, "center"
    names = [shorten(label, length=length) for label in label_names]
    axes.set_xticks(centres, names, rotation=rotation, ha=end)
    axes.set_yticks(centres, names)
    axes.tick_params(length=0, labelcolor=INK, labelsize=size)


def draw_curves(curves: Sequence[tuple[ReportEntry, Sequence[LearningCurve]]]) -> list[Plot]:
    """Draw losses and validation metric by epoch, one thin line per run."""
    metric = curves[0][1][0].metric
    wanted: dict[str, tuple[str, _Read]] = {
        "train_loss": ("Training loss", lambda point: point.train_loss),
        "val_loss": ("Validation loss", lambda point: point.val.get("loss")),
        f"val_{metric}": (f"Validation {metric}", lambda point: point.val.get(metric)),
    }
    plots = []
    for key, (title, read) in wanted.items():
        figure = make_figure(236)
        axes = figure.subplots()
        for s, runs in curves:
            for curve in runs:
                points = [(p.epoch, y) for p in curve.epochs if (y := read(p)) is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), color=s.colour, marker=s.marker,
                              ms=4.5, lw=1.3, alpha=0.85)  # fmt: skip
        axes.grid(axis="y", lw=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("epoch")
        axes.set_title(title, loc="left", fontsize=11)
        add_legend(figure, [s for s, _ in curves])
        alt = f"{title} by epoch of {', '.join(s.name for s, _ in curves)}"
        plots.append(Plot(f"curve-{key}", title, alt, figure))
    return plots


def draw_latency(
    entries: Sequence[ReportEntry], times_ms: Mapping[str, float], *, metric: str
) -> Plot:
    """Draw the leading metric with its interval against the time of one article.

    A line is drawn through the Pareto front.

    Args:
        entries: The variants and ensembles, all with the metric and a latency.
        times_ms: Name -> median latency of a single article, in milliseconds.
        metric: The leading metric.
    """
    figure = make_figure(300)
    axes = figure.subplots()
    axes.set_xscale("log")
    points = {s.name: (times_ms[s.name], s.metrics[metric] or 0.0) for s in entries}
    front = find_front(points, higher_is_better=is_higher_better(metric))
    best = [points[name] for name in front]
    axes.plot(*zip(*best, strict=True), color=MUTED, lw=1.2, ls="--", zorder=1,
              drawstyle="steps-post")  # fmt: skip
    for s in entries:
        x, y = points[s.name]
        interval = s.intervals.get(metric)
        if interval is not None:
            axes.plot([x, x], interval, color=s.colour, lw=5, alpha=0.3, solid_capstyle="butt")
        fill = s.colour if s.name in front else "none"
        axes.plot([x], [y], s.marker, color=s.colour, ms=8, mew=1.8, mfc=fill)
        if s.name in front:  # labels of the others may overlap; the legend has them
            axes.annotate(shorten(s.name, length=22), (x, y), xytext=(8, 5), fontsize=9.5,
                          color=INK, textcoords="offset points")  # fmt: skip
    axes.margins(x=0.28, y=0.14)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(lw=0.8, color=GRID)
    better = "higher" if is_higher_better(metric) else "lower"
    axes.set(xlabel="one article, ms (p50, log scale; left is faster)",
             ylabel=f"{metric} ({better} is better)")  # fmt: skip
    add_legend(figure, entries)
    alt = "; ".join(
        f"{name}: {metric} {format_metric(y)} at {format_quantity(x)} ms"
        for name, (x, y) in points.items()
    )
    alt += f"; none is both better and faster than {', '.join(front)}"
    return Plot("latency", f"{metric} against latency", alt, figure)


def find_front(points: Mapping[str, tuple[float, float]], *, higher_is_better: bool) -> list[str]:
    """Return the Pareto front of time and metric, the fastest first."""
    sign = -1 if higher_is_better else 1
    front: list[str] = []
    for name, (_, y) in sorted(points.items(), key=lambda p: (p[1][0], sign * p[1][1])):
        if not front or sign * y < sign * points[front[-1]][1]:
            front.append(name)
    return front


def draw_growth(found: Sequence[dict[str, Any]]) -> Plot:
    """Draw the seconds of a training step, shared and unshared, over prompts and over batches.

    Args:
        found: The figures of `measure_growth`.
    """
    figure = make_figure(430)
    for axes, (growing, label) in zip(figure.subplots(2, 1), _LABELS.items(), strict=True):
        points = [entry for entry in found if entry["growing"] == growing]
        sizes = [entry[growing] for entry in points]
        for way, (colour, marker, _) in zip(("unshared", "shared"), MARKER_STYLES, strict=False):
            seconds = [entry[f"seconds_{way}"] for entry in points]
            model = [entry[f"model_seconds_{way}"] for entry in points]
            axes.plot(sizes, seconds, marker, color=colour, ms=6, label=f"{way} prompt")
            axes.plot(sizes, model, color=colour, lw=1.2)
        axes.set(xlabel=label, ylabel="seconds per step", ylim=(0, None))
        axes.grid(axis="y", lw=0.8)
    handles, _ = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles=[*handles, Line2D([], [], color="grey", lw=1.2, label="FLOP count")],
        loc="outside upper left", ncols=3, handletextpad=0.3, columnspacing=1.2,
    )  # fmt: skip
    alt = "Seconds of a training step by prompt length and by batch, shared and unshared"
    return Plot("growth", "Time of a training step", alt, figure)


def save_plots(
    drawn: dict[str, list[Plot]], *, folder: Path, prefix: str = ""
) -> dict[str, list[SavedPlot]]:
    """Save the plots of every section."""
    return {
        key: [_save_plot(plot, folder=folder, prefix=prefix) for plot in found]
        for key, found in drawn.items()
    }


def _save_plot(plot: Plot, *, folder: Path, prefix: str = "") -> SavedPlot:
    """Save a plot as PNG with a legend; return it as SVG without, since the page has one."""
    path = f"plots/{prefix}{plot.name}.png"
    buffer = StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # `savefig` would draw each twice, since the layout of a figure may change while it is drawn.
    with lay_out(plot.figure):
        plot.figure.set_facecolor("none")
        canvas: Any = FigureCanvasSVG(plot.figure)
        canvas.print_svg(buffer, metadata=nothing)
    plot.figure.set(facecolor=CARD, dpi=DPI)
    with replace_file(folder / path) as file:
        canvas = FigureCanvasAgg(plot.figure)
        canvas.print_png(file)
    return SavedPlot(plot.title, plot.alt, _inline_svg(buffer.getvalue(), plot), path)


def _inline_svg(text: str, plot: Plot) -> Markup:
    """Return SVG for inline use in HTML: unique ids, no namespaces, the colours of the page."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.S)
    opening, body = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', opening)
    assert view_box is not None
    # Only within tags: the text between them may be the name of a variant.
    body = re.sub(r"<[^>]+>", lambda tag: _adapt_tag(tag.group(), plot.name), body)
    start = Markup('<svg {} role="img" aria-label="{}">').format(Markup(view_box.group()), plot.alt)
    return start + Markup(body)


def _adapt_tag(tag: str, name: str) -> str:
    tag = re.sub(r' id="[^"]*_\d+"', "", tag)
    tag = tag.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-")
    tag = tag.replace('xlink:href="#', f'href="#{name}-').replace("xlink:href", "href")
    tag = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag
