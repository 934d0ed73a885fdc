"""The tables of metrics: overall, by dimension or class, calibration, and what was confused."""

from collections.abc import Mapping, Sequence

from llmft.reports.formatting import format_count, format_metric, note_interval
from llmft.reports.series import (
    Series,
    choose_parts,
    is_higher_better,
    list_metrics,
)
from llmft.reports.tables import (
    Cell,
    Column,
    Head,
    Table,
    make_cells,
    make_columns,
)
from llmft.results.variant import Interval, Matrix, Metrics, Reliability, ScoreCalibration

_EXPLAINED = {
    "mae": "how far a score is from its label on average",
    "rmse": "as mae, but large misses weigh more",
    "r2": "share of the labels' variance that is explained",
    "spearman": "whether rows are put in the right order, 1 at best",
    "skill": "1 is perfect, 0 is no better than the best constant guess, below 0 is worse",
    "overall_mae": "mae of the weighted mean of the dimensions",
    "tier_accuracy": "share of rows put into the right tier",
    "accuracy": "share of rows that are right; of several labels a row, all have to be",
    "balanced_accuracy": "accuracy with every class weighing the same",
    "f1_macro": "precision and recall in one, every class or label weighing the same",
    "f1_micro": "precision and recall in one, every decision weighing the same",
    "hamming_loss": "share of the yes-or-no decisions, one a label and row, that are wrong",
    "roc_auc": "chance that a row of a class gets a higher probability than another row; 0.5 is "
    "guessing",
    "average_precision": "area under the precision-recall curve; guessing gets the share of rows "
    "that are of the class",
    "top_3_accuracy": "share of rows whose class is among the three most probable ones",
    "quadratic_kappa": "agreement beyond chance, far misses in the order of classes weighing more",
}
_NUM_CONFUSED = 8


def explain_metrics(metrics: Sequence[str]) -> list[str]:
    """Return one line for each metric that a reader may not know."""
    return [f"{metric}: {_EXPLAINED[metric]}" for metric in metrics if metric in _EXPLAINED]


def make_metric_table(heads: Sequence[Head], series: Sequence[Series], *, caption: str) -> Table:
    """Return a row per metric and a column per series, intervals beneath, best value marked.

    Args:
        heads: The heads of the columns.
        series: Whose columns they are.
        caption: What the table shows.
    """
    metrics = list_metrics(series)
    rows = [
        _make_row(
            metric,
            [s.metrics.get(metric) for s in series],
            [s.intervals.get(metric) for s in series],
        )
        for metric in metrics
    ]
    names = [f"{m}\N{NO-BREAK SPACE}{'↑' if is_higher_better(m) else '↓'}" for m in metrics]
    columns = [Column(head, [row[i] for row in rows]) for i, head in enumerate(heads)]
    return Table(caption, "metric", [Head(name) for name in names], columns)


def make_parts_table(series: Sequence[Series], *, metric: str, kind: str) -> Table:
    """Return a row per dimension or class and a column per series, best value a row marked."""
    series = [s for s in series if s.parts]
    parts = choose_parts(series, metric=metric)
    rows = [
        _make_row(
            metric,
            [s.get_part(part, metric) for s in series],
            [s.part_intervals.get(part) for s in series],
        )
        for part in parts
    ]
    columns = [Column(Head(s.name, s), [row[i] for row in rows]) for i, s in enumerate(series)]
    found = [next((s.parts[part] for s in series if part in s.parts), {}) for part in parts]
    if any("support" in metrics for metrics in found):
        support = [metrics.get("support") for metrics in found]
        columns.append(Column(Head("rows"), make_cells(support, show=format_count)))
    direction = "higher is better" if is_higher_better(metric) else "lower is better"
    caption = f"{metric} by {kind}, {direction}"
    return Table(caption, kind, [Head(part) for part in parts], columns)


def make_all_parts_table(series: Sequence[Series], *, kind: str) -> Table:
    """Return every metric of every series by dimension or class."""
    found: list[tuple[str, Series, Metrics]] = [
        (part, s, s.parts[part])
        for part in dict.fromkeys(part for s in series for part in s.parts)
        for s in series
        if part in s.parts
    ]
    names = dict.fromkeys(key for _, _, metrics in found for key in metrics)
    columns = make_columns({"of": [s.name for _, s, _ in found]}, words=["of"])
    for name in names:
        show = format_count if name == "support" else format_metric
        values = [metrics.get(name) for _, _, metrics in found]
        columns.append(Column(Head(name), make_cells(values, show=show)))
    return Table(f"All metrics by {kind}", kind, [Head(part) for part, _, _ in found], columns)


def make_calibration_table(
    calibrations: Mapping[str, Mapping[str, ScoreCalibration]],
    arms: Sequence[Series],
    *,
    names: Sequence[str],
) -> Table:
    """Return slope and bias of every arm by dimension."""
    columns = []
    for arm in arms:
        found = [calibrations[arm.name][name] for name in names]
        for key, values in (
            ("slope", [calibration.slope for calibration in found]),
            ("bias", [calibration.bias for calibration in found]),
        ):
            columns.append(Column(Head(key), make_cells(values, show=format_metric), arm.name))
    return Table("Slope and bias", "dimension", [Head(name) for name in names], columns)


def make_reliability_table(found: Mapping[str, Reliability], arms: Sequence[Series]) -> Table:
    """Return how far the probabilities of every arm are from what comes true."""
    shown = [found[arm.name] for arm in arms]
    ece = [
        Cell(format_metric(r.ece), note=f"chance alone: up to {format_metric(r.ece_by_chance)}")
        for r in shown
    ]
    brier = [Cell(format_metric(r.brier), note=note_interval(r.brier_interval)) for r in shown]
    columns = [Column(Head("ece\N{NO-BREAK SPACE}↓"), ece),
               Column(Head("Brier\N{NO-BREAK SPACE}↓"), brier)]  # fmt: skip
    heads = [Head(arm.name, arm) for arm in arms]
    return Table("Errors of the probabilities", "arm", heads, columns)


def make_confused_table(
    matrices: Mapping[str, Matrix], arms: Sequence[Series], *, names: Sequence[str]
) -> Table:
    """Return the pairs of classes that were confused most often, and how often by each arm."""
    pairs = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    counts = {pair: [matrices[arm.name][pair[0]][pair[1]] for arm in arms] for pair in pairs}
    most = sorted(pairs, key=lambda pair: -max(counts[pair]))[:_NUM_CONFUSED]
    shown = [pair for pair in most if max(counts[pair])]
    columns = make_columns({"taken for": [names[j] for _, j in shown]}, words=["taken for"])
    for i, arm in enumerate(arms):
        cells = make_cells([counts[pair][i] for pair in shown], show=format_count)
        columns.append(Column(Head(arm.name, arm), cells))
    return Table("Most confused classes", "class", [Head(names[i]) for i, _ in shown], columns)


def _make_row(
    metric: str, values: Sequence[float | None], intervals: Sequence[Interval | None]
) -> list[Cell]:
    cells = make_cells(values, show=format_metric, higher_is_better=is_higher_better(metric))
    return [
        cell._replace(note=note_interval(interval))
        for cell, interval in zip(cells, intervals, strict=True)
    ]
