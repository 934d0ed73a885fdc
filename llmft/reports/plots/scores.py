"""Plots of scores: predicted and residual against true, and calibration by stratum."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from llmft.reports.plots.figures import Plot, add_legend, label_squares, make_squares
from llmft.reports.series import INK, Series
from llmft.results.variant import RowResult, ScoreCalibration

_MAX_VECTOR_POINTS = 300
_LINE: Any = {"color": INK, "lw": 0.8, "ls": "--", "zorder": 3}  # seen through a cloud of dots


class _Scores(NamedTuple):
    """What an arm said of its rows."""

    true_ND: NDArray[np.float64]
    predicted_ND: NDArray[np.float64]


def draw_predicted(
    rows: Sequence[RowResult], arm: Series, *, label_names: Sequence[str], name: str
) -> Plot:
    """Draw predicted against true scores, one small square per dimension, all arms on one scale."""
    scores = [_read_scores(rows, shown, label_names) for shown in _list_arms(rows)]
    own = _read_scores(rows, arm.name, label_names)
    low = min(float(array.min()) for pair in scores for array in pair)
    high = max(float(array.max()) for pair in scores for array in pair)
    figure, squares = make_squares(label_names)
    for i, axes in enumerate(squares):
        axes.plot([low, high], [low, high], **_LINE)
        _scatter(axes, own.true_ND[:, i], own.predicted_ND[:, i], arm)
    add_legend(figure, [arm])
    label_squares(figure, x="true (moved a little sideways)", y="predicted")
    alt = f"Predicted against true scores of {arm.name}, with the line where they agree"
    return Plot(name, f"{arm.name}: predicted against true", alt, figure)


def draw_residuals(
    rows: Sequence[RowResult], arm: Series, *, label_names: Sequence[str], name: str
) -> Plot:
    """Draw predicted minus true against true scores, all arms on one scale."""
    scores = [_read_scores(rows, shown, label_names) for shown in _list_arms(rows)]
    own = _read_scores(rows, arm.name, label_names)
    reach = 1.05 * max(float(np.abs(s.predicted_ND - s.true_ND).max()) for s in scores) or 1.0
    figure, squares = make_squares(label_names)
    for i, axes in enumerate(squares):
        axes.axhline(0, **_LINE)
        _scatter(axes, own.true_ND[:, i], (own.predicted_ND - own.true_ND)[:, i], arm)
        axes.set_ylim(-reach, reach)
    add_legend(figure, [arm])
    label_squares(figure, x="true (moved a little sideways)", y="predicted minus true")
    alt = f"Residuals of {arm.name} against the true scores; above zero is predicted too high"
    return Plot(name, f"{arm.name}: residuals", alt, figure)


def draw_strata(
    calibrations: Mapping[str, Mapping[str, ScoreCalibration]],
    arms: Sequence[Series],
    *,
    names: Sequence[str],
) -> Plot:
    """Draw mean predicted against mean true score by stratum, one square per dimension.

    Args:
        calibrations: Arm -> dimension -> how its scores follow the true ones.
        arms: Who is drawn, all in the same squares.
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
        for arm in arms:
            strata = calibrations[arm.name][name].strata
            x, y = [s.mean_true for s in strata], [s.mean_predicted for s in strata]
            axes.plot(x, y, color=arm.colour, marker=arm.marker, ms=5, lw=1.3, alpha=0.85)
    add_legend(figure, arms)
    label_squares(figure, x="mean true score of a stratum", y="mean predicted")
    shown = ", ".join(arm.name for arm in arms)
    alt = f"Mean predicted against mean true score by stratum of {shown}; flat is compressed"
    return Plot("calibration", "Calibration", alt, figure)


def _list_arms(rows: Sequence[RowResult]) -> list[str]:
    return list(rows[0].outputs)


def _read_scores(rows: Sequence[RowResult], arm: str, names: Sequence[str]) -> _Scores:
    labels = [row.labels for row in rows if isinstance(row.labels, dict)]
    true_ND = np.array([[scores[name] for name in names] for scores in labels], dtype=float)
    return _Scores(true_ND, np.array([row.outputs[arm] for row in rows], dtype=float))


def _scatter(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], arm: Series) -> None:
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, size=x.shape)
    axes.plot(x + jitter, y, "o", color=arm.colour, ms=3.2, alpha=0.55, mew=0,
              rasterized=len(x) > _MAX_VECTOR_POINTS)  # fmt: skip
