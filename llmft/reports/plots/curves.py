"""Learning curves."""

from collections.abc import Callable, Sequence

from matplotlib.ticker import MaxNLocator

from llmft.reports.plots.figures import Plot, add_legend, make_figure
from llmft.reports.series import Series
from llmft.results.run import CurvePoint, LearningCurve

_Read = Callable[[CurvePoint], float | None]


def draw_curves(curves: Sequence[tuple[Series, Sequence[LearningCurve]]]) -> list[Plot]:
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
