"""The table of post-hoc fits: every metric before and after."""

from collections.abc import Mapping, Sequence

from llmft.reports.formatting import format_metric
from llmft.reports.outline import Block, Section
from llmft.reports.series import Series, is_higher_better, list_metrics
from llmft.reports.tables import Column, Head, Table, make_cells
from llmft.results.variant import VariantResult

_METHODS = {
    "isotonic": "scores bent by isotonic regression, one curve a dimension",
    "f1": "one threshold a class or label, for the highest F1",
    "precision": "one threshold a class or label, for the highest precision that keeps a recall",
}


def make_fits(variants: Mapping[str, VariantResult], arms: Sequence[Series]) -> Section:
    """Return every metric of each fitted arm before and after its fit.

    Args:
        variants: All of them.
        arms: The arms.
    """
    fits = {arm.name: fit for arm in arms if (fit := variants[arm.name].fit)}
    fitted = [arm for arm in arms if arm.name in fits]
    metrics = list_metrics(fitted)
    columns = []
    for arm in fitted:
        pairs = [
            make_cells(
                [fits[arm.name].metrics_before.get(metric), arm.metrics.get(metric)],
                show=format_metric,
                higher_is_better=is_higher_better(metric),
            )
            for metric in metrics
        ]
        for i, title in enumerate(("before", "after")):
            columns.append(Column(Head(title), [cells[i] for cells in pairs], arm.name))
    names = [f"{m}\N{NO-BREAK SPACE}{'↑' if is_higher_better(m) else '↓'}" for m in metrics]
    table = Table("Before and after the fit", "metric", [Head(name) for name in names], columns)
    lines = [f"{name}: {_METHODS[fit.method]}; fitted on {fit.split}" for name, fit in fits.items()]
    return Section(
        "Post-hoc fits",
        "Calibration or thresholds that predictions go through. They were fitted on other rows "
        "than those that are scored here; every other number of this report is after the fit.",
        [Block(table, lines=lines)] if fitted else [],
    )
