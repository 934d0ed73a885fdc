"""One metric by dimension, class or label."""

from collections.abc import Sequence

import numpy as np

from llmft.reports.formatting import shorten
from llmft.reports.plots.figures import Plot, add_legend, draw_interval, make_figure
from llmft.reports.series import GRID, INK, Series, choose_parts, is_higher_better

_MAY_BE_NEGATIVE = ("skill", "r2", "spearman")


def draw_parts(series: Sequence[Series], *, metric: str, kind: str) -> Plot:
    """Draw one metric by dimension, class or label, a marker per arm and baseline."""
    series = [s for s in series if s.parts]
    parts = choose_parts(series, metric=metric)
    figure = make_figure(44 + 34 * len(parts))
    axes = figure.subplots()
    for i, s in enumerate(series):
        shift = 0.11 * (i - (len(series) - 1) / 2)
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
    add_legend(figure, series)
    alt = f"{metric} by {kind} for {', '.join(s.name for s in series)}; the table has the numbers"
    return Plot("parts", f"{metric} by {kind}", alt, figure)
