"""How time grows with the size of a batch: measured, and as the FLOP count says."""

from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D

from llmft.reports.plots.figures import Plot, make_figure
from llmft.reports.series import LOOKS

_LABELS = {"prompt_tokens": "tokens of the prompt", "batch_size": "articles in a batch"}


def draw_growth(found: Sequence[dict[str, Any]]) -> Plot:
    """Draw the seconds of a training step, shared and plain, over prompts and over batches.

    Args:
        found: What `measure_growth` returns.
    """
    figure = make_figure(430)
    for axes, (growing, label) in zip(figure.subplots(2, 1), _LABELS.items(), strict=True):
        points = [entry for entry in found if entry["growing"] == growing]
        sizes = [entry[growing] for entry in points]
        for way, (colour, marker, _) in zip(("plain", "shared"), LOOKS, strict=False):
            seconds = [entry[f"seconds_{way}"] for entry in points]
            model = [entry[f"model_seconds_{way}"] for entry in points]
            axes.plot(sizes, seconds, marker, color=colour, ms=6, label=f"prompt {way}")
            axes.plot(sizes, model, color=colour, lw=1.2)
        axes.set(xlabel=label, ylabel="seconds a step", ylim=(0, None))
        axes.grid(axis="y", lw=0.8)
    handles, _ = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles=[*handles, Line2D([], [], color="grey", lw=1.2, label="FLOP count")],
        loc="outside upper left", ncols=3, handletextpad=0.3, columnspacing=1.2,
    )  # fmt: skip
    alt = "Seconds of a training step by prompt length and by batch, shared and plain"
    return Plot("growth", "How a step grows", alt, figure)
