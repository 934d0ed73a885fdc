"""Learning curves."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from llmft.reports.plots.figures import Plot, add_legend, make_figure
from llmft.reports.series import Series


def draw_curves(histories: Sequence[tuple[Series, Sequence[dict[str, Any]]]]) -> list[Plot]:
    """Draw losses and validation metric by epoch, one thin line per run."""
    metric = next((h["metric"] for _, runs in histories for h in runs), None)
    wanted = {"train_loss": "Training loss", "val_loss": "Validation loss"}
    if metric is not None:
        wanted[f"val_{metric}"] = f"Validation {metric}"
    plots = []
    for key, title in wanted.items():
        figure = make_figure(236)
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
        add_legend(figure, [s for s, _ in histories])
        alt = f"{title} by epoch of {', '.join(s.name for s, _ in histories)}"
        plots.append(Plot(f"curve-{key}", title, alt, figure))
    return plots
