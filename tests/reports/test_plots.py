import numpy as np
import pytest
from matplotlib.axes import Axes

from llmft.reports.layout import MARKER_STYLES, ReportEntry
from llmft.reports.plots import (
    draw_confusion,
    draw_predicted,
    draw_reliability,
    draw_residuals,
    draw_strata,
)
from llmft.results.evaluation import (
    Reliability,
    ReliabilityBin,
    RowResult,
    ScoreCalibration,
    Stratum,
)
from tests.reports.made_up_parts import make_matrix

pytestmark = pytest.mark.with_packages("matplotlib")

VARIANT = ReportEntry("a", {}, {}, *MARKER_STYLES[0], {}, {})
NAMES = ["severity", "stress"]
ROWS = [
    RowResult(
        id=f"row-{i}",
        labels={"stress": 10.0 - i, "severity": float(i)},
        outputs={"a": [0.5 * i, 4.25], "b": [9.0, 20.0]},
        errors={"a": 1.0, "b": 2.0},
        predicted={},
        text="text",
    )
    for i in range(11)
]


def read_line(axes: Axes, marker: str) -> tuple[list[float], list[float]]:
    """Return what was drawn with a marker."""
    line = next(line for line in axes.lines if line.get_marker() == marker)
    return list(np.asarray(line.get_xdata())), list(np.asarray(line.get_ydata()))


def test_predicted_scores_stand_over_their_own_labels() -> None:
    """D11: joined by the name of the dimension and the row, never by position."""
    severity, stress = draw_predicted(ROWS, VARIANT, label_names=NAMES, name="p").figure.axes
    x, y = read_line(severity, "o")
    assert np.allclose(x, range(11), atol=0.16)
    assert y == [0.5 * i for i in range(11)]
    assert np.allclose(read_line(stress, "o")[0], range(10, -1, -1), atol=0.16)


def test_residuals_are_predicted_minus_true_on_one_scale_for_all_variants() -> None:
    severity, stress = draw_residuals(ROWS, VARIANT, label_names=NAMES, name="r").figure.axes
    assert read_line(severity, "o")[1] == [-0.5 * i for i in range(11)]
    assert read_line(stress, "o")[1] == [4.25 - (10 - i) for i in range(11)]
    assert severity.get_ylim()[1] > 20


def test_strata_are_drawn_as_the_file_has_them() -> None:
    """D12: a flat line beside the diagonal is a compressed range."""
    strata = [
        Stratum(low=0, high=5, num_rows=4, mean_true=1.0, mean_predicted=3.0),
        Stratum(low=5, high=10, num_rows=4, mean_true=9.0, mean_predicted=5.0),
    ]
    flat = ScoreCalibration(slope=0.25, intercept=2.75, bias=-1.0, strata=strata)
    calibrations = {"a": {"severity": flat, "stress": flat.replace(strata=[])}}
    severity, stress = draw_strata(calibrations, [VARIANT], names=NAMES).figure.axes
    assert read_line(severity, "o") == ([1.0, 9.0], [3.0, 5.0])
    assert read_line(stress, "o") == ([], [])


def test_reliability_has_bins_and_their_sizes() -> None:
    filled = ReliabilityBin(low=0.5, high=1.0, num_rows=7, mean_predicted=0.75, fraction_true=0.6)
    found = Reliability(ece=0.15, ece_by_chance=0.1, bins=[filled], brier=0.2, brier_interval=None)
    plot = draw_reliability(found, VARIANT, name="c")
    above, below = plot.figure.axes
    assert plot.title == "a: ece 0.150"
    assert read_line(above, "o") == ([0.75], [0.6])
    assert [(bar.get_x(), bar.get_height()) for bar in below.patches] == [(0.5, 7)]


def test_only_a_small_confusion_matrix_has_counts() -> None:
    for size, num_counts, num_ticks in ((12, 144, 12), (30, 0, 30), (77, 0, 0)):
        names = [f"class {i}" for i in range(size)]
        plot = draw_confusion(make_matrix(size), VARIANT, label_names=names, name="m")
        (axes,) = plot.figure.axes
        assert len(axes.texts) == num_counts
        assert len(axes.get_xticks()) == len(axes.get_yticks()) == num_ticks


def test_the_colour_of_a_cell_is_its_share_of_the_row() -> None:
    matrix = [[0] * 40 for _ in range(40)]
    matrix[2][3], matrix[2][5] = 10, 5
    plot = draw_confusion(matrix, VARIANT, label_names=["x"] * 40, name="m")
    image = np.asarray(plot.figure.axes[0].images[0].get_array())
    assert np.allclose([image[2, 3, 3], image[2, 5, 3], image[2, 4, 3]], [0.95, 0.495, 0.04])
