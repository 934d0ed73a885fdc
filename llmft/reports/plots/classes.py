"""Plots of classes, tiers and labels: confusion and reliability."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from llmft.reports.formatting import format_metric, shorten
from llmft.reports.plots.figures import (
    WIDTH,
    Plot,
    add_legend,
    label_squares,
    make_figure,
    make_squares,
)
from llmft.reports.series import CARD, INK, MAX_COUNTED_CLASSES, MUTED, Series
from llmft.results.variant import Matrix, Reliability, TierConfusion

_MAX_NAMED_CLASSES = 30
_MAX_LABELS = 12


def draw_confusion(matrix: Matrix, arm: Series, *, label_names: Sequence[str], name: str) -> Plot:
    """Draw a confusion matrix; the larger a cell is in its row, the stronger its colour."""
    figure = make_figure(WIDTH - 20)
    axes = figure.subplots()
    num_classes = len(label_names)
    if num_classes <= MAX_COUNTED_CLASSES:
        _fill_cells(axes, np.array(matrix), arm)
    else:
        _fill_pixels(axes, np.array(matrix), arm)
    if num_classes <= _MAX_NAMED_CLASSES:
        _name_classes(axes, label_names)
    else:
        axes.set(xticks=[], yticks=[])
    axes.set(xlim=(0, num_classes), ylim=(num_classes, 0), xlabel="predicted", ylabel="true")
    axes.set_box_aspect(1)
    axes.spines[:].set_visible(False)
    add_legend(figure, [arm])
    alt = f"Confusion matrix of {arm.name}: rows are true classes, columns predicted ones"
    return Plot(name, f"{arm.name}: confusion matrix", alt, figure)


def draw_tiers(tiers: TierConfusion, arm: Series, *, name: str) -> Plot:
    """Draw the confusion matrix of the tiers."""
    plot = draw_confusion(tiers.confusion_matrix, arm, label_names=tiers.names, name=name)
    return plot._replace(title=f"{arm.name}: tiers")


def draw_label_confusions(confusions: Mapping[str, Matrix], arm: Series, *, name: str) -> Plot:
    """Draw whether each label applied and was predicted, for the most frequent labels."""
    frequent = sorted(confusions, key=lambda label: -sum(confusions[label][1]))[:_MAX_LABELS]
    figure, squares = make_squares(frequent, share=False)
    for axes, label in zip(squares, frequent, strict=True):
        _fill_cells(axes, np.array(confusions[label]), arm)
        axes.set(xlim=(0, 2), ylim=(2, 0))
        axes.set_xticks([0.5, 1.5], ["no", "yes"])
        axes.set_yticks([0.5, 1.5], ["no", "yes"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    add_legend(figure, [arm])
    label_squares(figure, x="predicted", y="true")
    alt = f"Confusions of {arm.name} by label: whether it applies, against whether it was predicted"
    return Plot(name, f"{arm.name}: labels", alt, figure)


def draw_reliability(reliability: Reliability, arm: Series, *, name: str) -> Plot:
    """Draw the share that was true against the predicted probability, and the size of the bins."""
    bins = reliability.bins
    predicted, true = [b.mean_predicted for b in bins], [b.share_true for b in bins]
    figure = make_figure(WIDTH + 40)
    above, below = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    above.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls="--")
    above.plot(predicted, true, color=arm.colour, marker=arm.marker, ms=6, lw=1.3)
    above.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="share that was true")
    above.grid(lw=0.8)
    widths = [b.high - b.low for b in bins]
    lows, sizes = [b.low for b in bins], [b.num_rows for b in bins]
    below.bar(lows, sizes, width=widths, align="edge", color=arm.colour, alpha=0.55, ec=CARD, lw=1)
    below.set(xlabel="predicted probability", ylabel="number")
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    below.set_axisbelow(True)
    below.grid(axis="y", lw=0.8)
    figure.align_ylabels()
    add_legend(figure, [arm])
    title = f"{arm.name}: ece {format_metric(reliability.ece)}"
    alt = f"Reliability of {title}: how often it was right, by the probability that it gave"
    return Plot(name, title, alt, figure)


def _weigh(counts_CC: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how strong the colour of each cell is, by its share of the largest of its row."""
    strengths: NDArray[np.float64] = 0.04 + 0.91 * counts_CC / counts_CC.max(
        axis=1, keepdims=True, initial=1
    )
    return strengths


def _fill_cells(axes: Axes, counts_CC: NDArray[np.int64], arm: Series) -> None:
    for (y, x), strength in np.ndenumerate(_weigh(counts_CC)):
        count = counts_CC[y, x]
        axes.add_patch(Rectangle((x, y), 1, 1, fc=(arm.colour, strength), ec=CARD, lw=1.5))
        colour = "white" if strength > 0.6 else INK if count else MUTED
        axes.text(x + 0.5, y + 0.5, str(count), ha="center", va="center", color=colour)


def _fill_pixels(axes: Axes, counts_CC: NDArray[np.int64], arm: Series) -> None:
    size = len(counts_CC)
    image_CCK = np.full((size, size, 4), to_rgba(arm.colour))
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
