"""The sections that both pages have: by dimension or class, predictions, curves and rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft.reports import plots, tables
from llmft.reports.rendering import name_file, save_plot
from llmft.reports.series import Series, list_metrics


def make_sections(
    results: dict[str, Any],
    arms: Sequence[Series],
    baselines: Sequence[Series],
    *,
    parts_key: str,
    metric: str,
) -> dict[str, Any]:
    """Return the tables and words for the templates.

    Args:
        results: The results file.
        arms: Who was trained.
        baselines: Whom they have to beat.
        parts_key: `per_dimension` or `per_class`.
        metric: The metric to show by dimension or class.
    """
    series, kind = [*arms, *baselines], parts_key.removeprefix("per_")
    return {
        "arms": arms,
        "series": series,
        "kind": kind,
        "explained": tables.explain_metrics(list_metrics(series)),
        "parts_table": tables.make_parts_table(series, metric=metric, kind=kind),
        "all_parts_table": tables.make_all_parts_table(series, kind=kind),
        "worst_rows": tables.list_worst_rows(results, arms),
    }


def draw_sections(
    results: dict[str, Any],
    arms: Sequence[Series],
    baselines: Sequence[Series],
    *,
    parts_key: str,
    metric: str,
    variants: dict[str, Any],
) -> dict[str, list[plots.Plot]]:
    """Return the plots; `variants` holds per arm its `histories` and `confusion_matrix`."""
    series, names = [*arms, *baselines], results["label_names"]
    predicted = []
    for i, arm in enumerate(arms, start=1):
        name = f"predicted-{i}-{name_file(arm.name)}"
        matrix = variants[arm.name].get("confusion_matrix")
        rows = [row for row in results["rows"] if arm.name in row["outputs"]]
        if matrix is not None:
            predicted.append(plots.draw_confusion(matrix, arm, label_names=names, name=name))
        elif rows and parts_key == "per_dimension":
            predicted.append(plots.draw_predicted(rows, arm, label_names=names, name=name))
    by_part = plots.draw_parts(series, metric=metric, kind=parts_key.removeprefix("per_"))
    return {
        "parts": [by_part] if any(s.parts for s in series) else [],
        "predicted": predicted,
        "curves": plots.draw_curves([(arm, variants[arm.name]["histories"]) for arm in arms]),
    }


def save_plots(
    drawn: dict[str, list[plots.Plot]], *, folder: Path, prefix: str = ""
) -> dict[str, Any]:
    """Save the plots of every section."""
    return {
        key: [save_plot(plot, folder=folder, prefix=prefix) for plot in found]
        for key, found in drawn.items()
    }
