"""Plots of predictions against labels: scores, classes, and metrics per dimension or class."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from llmft.reports.entries import (
    CARD,
    GRID,
    INK,
    MAX_COUNTED_CLASSES,
    MUTED,
    ReportEntry,
    choose_parts,
    is_higher_better,
)
from llmft.reports.formatting import format_metric, shorten
from llmft.reports.plots.figures import (
    WIDTH,
    Plot,
    add_legend,
    draw_interval,
    label_squares,
    make_figure,
    make_squares,
)
from llmft.results.evaluation import RowResult
from llmft.results.variant import Matrix, Reliability, ScoreCalibration, TierConfusion

_MAY_BE_NEGATIVE = ("skill", "r2", "spearman")


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
    if metric not in _MAY_BE_NEGATIVE:
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.set_xlabel(f"{metric} ({'higher' if is_higher_better(metric) else 'lower'} is better)")
    axes.spines["left"].set_visible(False)
    add_legend(figure, entries)
    alt = f"{metric} by {kind} for {', '.join(s.name for s in entries)}; the table has the numbers"
    return Plot("parts", f"{metric} by {kind}", alt, figure)


_MAX_VECTOR_POINTS = 300
_LINE: Any = {"color": INK, "lw": 0.8, "ls": "--", "zorder": 3}  # above the dots


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
    label_squares(figure, x="true (moved a little sideways)", y="predicted")
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
    label_squares(figure, x="true (moved a little sideways)", y="predicted minus true")
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


_MAX_NAMED_CLASSES = 30
_MAX_LABELS = 12


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
