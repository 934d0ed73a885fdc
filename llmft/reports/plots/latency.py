"""How good every arm is against how long it takes."""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from llmft.reports.formatting import format_metric, format_quantity, shorten
from llmft.reports.plots.figures import Plot, add_legend, make_figure
from llmft.reports.series import GRID, INK, MUTED, Series, is_higher_better


def draw_latency(series: Sequence[Series], times_ms: Mapping[str, float], *, metric: str) -> Plot:
    """Draw the leading metric with its interval against the time of one article.

    A line joins the arms that no other one beats in both; those behind it buy nothing.

    Args:
        series: The arms and mixed rows, all of which have the metric and a time.
        times_ms: Name -> median time of one article, in milliseconds.
        metric: The one that decides.
    """
    figure = make_figure(300)
    axes = figure.subplots()
    axes.set_xscale("log")
    points = {s.name: (times_ms[s.name], s.metrics[metric] or 0.0) for s in series}
    front = find_front(points, higher_is_better=is_higher_better(metric))
    best = [points[name] for name in front]
    axes.plot(*zip(*best, strict=True), color=MUTED, lw=1.2, ls="--", zorder=1,
              drawstyle="steps-post")  # fmt: skip
    for s in series:
        x, y = points[s.name]
        interval = s.intervals.get(metric)
        if interval is not None:
            axes.plot([x, x], interval, color=s.colour, lw=5, alpha=0.3, solid_capstyle="butt")
        fill = s.colour if s.name in front else "none"
        axes.plot([x], [y], s.marker, color=s.colour, ms=8, mew=1.8, mfc=fill)
        if s.name in front:  # the others may lie upon each other; the legend names them
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
    add_legend(figure, series)
    alt = "; ".join(
        f"{name}: {metric} {format_metric(y)} at {format_quantity(x)} ms"
        for name, (x, y) in points.items()
    )
    alt += f"; none is both better and faster than {', '.join(front)}"
    return Plot("latency", f"{metric} against latency", alt, figure)


def find_front(points: Mapping[str, tuple[float, float]], *, higher_is_better: bool) -> list[str]:
    """Return the names that no other beats in both time and metric, the fastest first."""
    sign = -1 if higher_is_better else 1
    front: list[str] = []
    for name, (_, y) in sorted(points.items(), key=lambda p: (p[1][0], sign * p[1][1])):
        if not front or sign * y < sign * points[front[-1]][1]:
            front.append(name)
    return front
