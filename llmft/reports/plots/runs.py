"""Plots of runs: learning curves, latency, and the time of a step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from llmft.reports.entries import GRID, INK, LOOKS, MUTED, ReportEntry, is_higher_better
from llmft.reports.formatting import format_metric, format_quantity, shorten
from llmft.reports.plots.figures import Plot, add_legend, make_figure
from llmft.results.run import CurvePoint, LearningCurve

_Read = Callable[[CurvePoint], float | None]


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


_LABELS = {"prompt_tokens": "tokens of the prompt", "batch_size": "articles in a batch"}


def draw_growth(found: Sequence[dict[str, Any]]) -> Plot:
    """Draw the seconds of a training step, shared and unshared, over prompts and over batches.

    Args:
        found: The figures of `measure_growth`.
    """
    figure = make_figure(430)
    for axes, (growing, label) in zip(figure.subplots(2, 1), _LABELS.items(), strict=True):
        points = [entry for entry in found if entry["growing"] == growing]
        sizes = [entry[growing] for entry in points]
        for way, (colour, marker, _) in zip(("unshared", "shared"), LOOKS, strict=False):
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
