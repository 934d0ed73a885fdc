"""The sections of both reports: audit, metrics per dimension, predictions, calibration, cases."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llmft.reports.formatting import (
    format_interval,
    format_metric,
    format_percent_interval,
    format_seconds,
)
from llmft.reports.layout import (
    GAP,
    MAX_COUNTED_CLASSES,
    MAX_POINTS,
    AuditGroup,
    Block,
    Cell,
    Column,
    HeaderCell,
    ReportEntry,
    SavedPlot,
    Section,
    Table,
    choose_part_metric,
    is_higher_better,
    list_baselines,
    list_metric_names,
    make_cells,
    make_columns,
    name_file,
    style_variant,
)
from llmft.reports.rows import list_worst_rows
from llmft.reports.variant_tables import (
    explain_metrics,
    make_all_parts_table,
    make_calibration_table,
    make_confused_table,
    make_parts_table,
    make_reliability_table,
)
from llmft.results.evaluation import EdgeCases, EvaluationBase, Finding, PassCount, VariantResult

if TYPE_CHECKING:
    from llmft.reports.plots import Plot
_ORDER = ("invalid", "confounded", "waived", "warning", "note", "ok")
_METHODS = {
    "isotonic": "isotonic regression of the scores, one calibrator per dimension",
    "f1": "one threshold per class or label, for the highest F1",
    "precision": "one threshold per class or label, for the highest precision at a minimum recall",
}
Found = TypeVar("Found")
_KINDS = {"scores": "dimension", "class": "class", "multilabel": "label"}
_PREDICTED = {
    "scores": "Every dot is a row, the mean over several runs; of more than "
    f"{MAX_POINTS} rows, an evenly spaced sample is drawn. Perfect predictions are on the dashed "
    "line; in a flat cloud they are nearly constant. Residuals are predicted minus true: if they "
    "fall from left to right, low scores are predicted too high and high ones too low.",
    "class": "Confusion matrices: rows are true classes, columns predicted ones, summed over "
    "several runs. The larger a cell is within its row, the stronger its colour; good predictions "
    "colour the diagonal only.",
    "multilabel": "Confusion matrices of the most frequent labels: whether a label applies to a "
    "row, against whether it is predicted, summed over several runs. Good predictions colour the "
    "diagonal only.",
}
_RELIABLE = (
    "Of predictions{what} with a probability of 0.8, 80 % should be true; calibrated probabilities "
    "are on the dashed line, overconfident ones below it. The bars are the number of predictions "
    "of each point. ece: the expected calibration error, the mean distance of the points from the "
    "line; by chance: its 95th percentile if the probabilities were perfectly calibrated. Brier: "
    "the mean squared error of the probabilities."
)
_CALIBRATED = {
    "scores": "Each point is a stratum of rows with similar labels. On the dashed line, their mean "
    "prediction is right; a flatter line is compressed: low scores are predicted too high and high "
    "ones too low. Slope: of the regression of the prediction on the label, 1 at best. Bias: the "
    "mean of predicted minus true.",
    "class": _RELIABLE.format(what=" of the most probable class, or of the last of two classes,"),
    "multilabel": _RELIABLE.format(what=" of any label"),
}


def group_findings(audit: Sequence[Finding]) -> list[AuditGroup]:
    """Return the findings by status and check, the most severe first."""
    groups: dict[tuple[str, str], AuditGroup] = {}
    for finding in audit:
        status = "waived" if finding.waived else finding.status
        group = groups.setdefault((status, finding.check), AuditGroup(status, finding.check, []))
        group.findings.append(finding)
    return sorted(groups.values(), key=lambda group: _ORDER.index(group.status))


def make_fits(variants: Mapping[str, VariantResult], shown: Sequence[ReportEntry]) -> Section:
    """Return every metric with and without calibrators or thresholds, of each variant with them.

    Args:
        variants: Name -> variant.
        shown: The variants in the report.
    """
    fits = {variant.name: fit for variant in shown if (fit := variants[variant.name].fit)}
    with_fit = [variant for variant in shown if variant.name in fits]
    metrics = list_metric_names(with_fit)
    columns = []
    for variant in with_fit:
        pairs = [
            make_cells(
                [fits[variant.name].metrics_before.get(metric), variant.metrics.get(metric)],
                show=format_metric,
                higher_is_better=is_higher_better(metric),
            )
            for metric in metrics
        ]
        for i, title in enumerate(("before", "after")):
            columns.append(Column(HeaderCell(title), [cells[i] for cells in pairs], variant.name))
    names = [f"{m}\N{NO-BREAK SPACE}{'↑' if is_higher_better(m) else '↓'}" for m in metrics]
    table = Table(
        "Before and after calibrators or thresholds",
        "metric",
        [HeaderCell(name) for name in names],
        columns,
    )
    lines = [f"{name}: {_METHODS[fit.method]}; fitted on {fit.split}" for name, fit in fits.items()]
    return Section(
        "Calibrators and thresholds",
        "Applied to the model's outputs, and fitted on other rows than those that are measured "
        "here. All other numbers of this report are with them, and the constant and TF-IDF "
        "have some by the same method.",
        [Block(table, lines=lines)] if with_fit else [],
    )


def make_edge_cases(variants: Mapping[str, VariantResult], shown: Sequence[ReportEntry]) -> Section:
    """Return the section on edge cases: passes overall and by category, and failures."""
    pairs = [(variant, variants[variant.name].edge_cases) for variant in shown]
    shown = [variant for variant, cases in pairs if cases]
    found = [cases for _, cases in pairs if cases]
    blocks = [
        Block(_make_table(found, shown)),
        Block(_make_category_table(found, shown)),
        Block(_make_failed_table(found, shown)),
    ]
    return Section(
        "Edge cases",
        "Rows with an expected answer. The 95 % interval is exact; with few cases it is wide.",
        [block for block in blocks if block.table and block.table.heads],
    )


def _make_table(found: Sequence[EdgeCases], variants: Sequence[ReportEntry]) -> Table:
    texts = {
        "passed": [_count(f) for f in found],
        "pass rate, 95 % interval": [format_percent_interval(f.pass_rate_interval) for f in found],
        "must-pass cases failed": [", ".join(f.must_pass_failed) or "none" for f in found],
    }
    columns = make_columns(texts, words=["must-pass cases failed"])
    return Table("Edge cases passed", "variant", [HeaderCell(s.name, s) for s in variants], columns)


def _make_category_table(found: Sequence[EdgeCases], variants: Sequence[ReportEntry]) -> Table:
    names = list(dict.fromkeys(name for f in found for name in f.by_category))
    columns = [
        Column(HeaderCell(variant.name, variant), [_show_category(f, name) for name in names])
        for variant, f in zip(variants, found, strict=True)
    ]
    return Table(
        "Passed by category",
        "category",
        [HeaderCell(name or "no category") for name in names],
        columns,
    )


def _show_category(found: EdgeCases, name: str) -> Cell:
    counts = found.by_category.get(name)
    if counts is None:
        return Cell("")
    return Cell(_count(counts), note=format_percent_interval(counts.interval))


def _make_failed_table(found: Sequence[EdgeCases], variants: Sequence[ReportEntry]) -> Table:
    """Return a row per case that some variant failed, must-pass cases first, with the failures."""
    failed = {case.id: case for f in found for case in f.cases if not case.passed}
    cases = sorted(failed.values(), key=lambda case: not case.must_pass)
    heads = [
        HeaderCell(case.id, note=case.category, tags=("must pass",) if case.must_pass else ())
        for case in cases
    ]  # fmt: skip
    columns = []
    for variant, f in zip(variants, found, strict=True):
        own = {case.id: case.failures for case in f.cases if not case.passed}
        cells = [Cell("; ".join(own.get(case.id, ["passed"]))) for case in cases]
        columns.append(Column(HeaderCell(variant.name, variant), cells, is_number=False))
    return Table("Cases that failed", "case", heads, columns)


def _count(found: EdgeCases | PassCount) -> str:
    return f"{found.num_passed} of {found.num_cases}"


class ReportContext(NamedTuple):
    """The results of a report, and how variants and baselines are displayed in it."""

    result: EvaluationBase
    variants: Mapping[str, VariantResult]
    shown: list[ReportEntry]
    baselines: list[ReportEntry]
    metric: str
    """The metric per dimension, class or label."""

    @property
    def entries(self) -> list[ReportEntry]:
        """The variants, then the baselines."""
        return [*self.shown, *self.baselines]

    @property
    def kind(self) -> str:
        """`dimension`, `class` or `label`."""
        return _KINDS[self.result.label_type]

    def collect(self, read: Callable[[VariantResult], Found | None]) -> dict[str, Found]:
        """Return a result of every variant that has it."""
        found = {variant.name: read(self.variants[variant.name]) for variant in self.shown}
        return {name: value for name, value in found.items() if value}

    def pick(self, found: Mapping[str, Any]) -> list[ReportEntry]:
        """Return the variants with a result."""
        return [variant for variant in self.shown if variant.name in found]


def describe_probe(result: EvaluationBase, variants: Mapping[str, VariantResult]) -> list[str]:
    """Return a sentence for each variant on whether fine-tuning pays, and one on the probe."""
    probe, lines = result.probe, []
    if probe is None:
        return []
    for name, variant in variants.items():
        found = variant.gains.get("probe")
        if found is None:
            continue
        record, seeds = variant.record, " (one seed)" if len(variant.runs) == 1 else ""
        answer, compared = {
            "better": ("Fine-tuning pays", f"{name}{seeds} is better than the probe"),
            "worse": ("Fine-tuning does not pay", f"{name}{seeds} is worse than the probe"),
            "not told apart": (
                "Whether fine-tuning pays is not known",
                f"{name}{seeds} and the probe are not told apart",
            ),
        }[found.finding]
        alike = (record.recipe.base.model, record.prompt_sha256, record.recipe.tokens)
        if alike == (probe.base, probe.prompt_sha256, probe.tokens):
            compared = f"{answer}: {compared}"
        else:
            compared += ", whose base, prompt or token limits are others"
        lines.append(
            f"{compared} (gain {format_metric(found.gain)} {result.metric}, 95 % interval "
            f"{format_interval(found.interval)}; better or worse than 0, not than a margin); its "
            f"training took {format_seconds(variant.train_seconds)}."
        )
    fit = probe.head_fit
    kept = fit.num_rows - fit.num_computed
    from_before = f", with the states of {kept} rows kept from before" if kept else ""
    at_edge = " Its penalty is at the edge of what was tried, so a better probe may exist."
    lines.append(
        f"The probe, a linear head on the frozen {probe.base}, took "
        f"{format_seconds(fit.seconds)}{from_before}.{at_edge * fit.is_at_edge}"
    )
    return lines


def make_context(result: EvaluationBase, variants: Mapping[str, VariantResult]) -> ReportContext:
    """Return the context of a report, with colours and markers of variants and baselines."""
    metric = choose_part_metric(
        result.metric, parts=[v.parts for v in variants.values()], label_type=result.label_type
    )
    shown = [
        style_variant(i, name=name, found=found, metric=metric)
        for i, (name, found) in enumerate(variants.items())
    ]
    return ReportContext(result, variants, shown, list_baselines(result.baselines), metric)


def make_sections(context: ReportContext, plots: dict[str, list[SavedPlot]]) -> dict[str, Any]:
    """Return the content that both reports have.

    Args:
        context: The context of the report.
        plots: The saved plots of `draw_sections`.
    """
    entries, kind = context.entries, context.kind
    return {
        "audit": group_findings(context.result.audit),
        "variants": context.shown,
        "entries": entries,
        "kind": kind,
        "explained": explain_metrics(list_metric_names(entries)),
        "shared": {
            "fits": make_fits(context.variants, context.shown),
            "parts": _make_parts(context, plots["parts"]),
            "predicted": _make_predicted(context, plots),
            "calibration": _make_calibration(context, plots["calibration"]),
            "curves": Section(
                "Learning curves",
                "One line per run. Losses of variants with different heads or label scales are not "
                "comparable; the validation metric is.",
                [Block(plots=plots["curves"], legend=context.shown)],
            ),
        },
        "worst_rows": list_worst_rows(context.result, context.shown),
    }


def _make_parts(context: ReportContext, plots: list[SavedPlot]) -> Section:
    kind, entries = context.kind, context.entries
    table = make_parts_table(entries, metric=context.metric, kind=kind)
    intro = f"{table.caption}; the best value of a row is marked, which is no test."
    if GAP in [head.name for head in table.heads]:
        intro += (
            " Only the worst and the best are in this table, the worst first; the results file has "
            "all."
        )
    all_parts = make_all_parts_table(entries, kind=kind)
    blocks = [
        Block(table, plots=plots, legend=[s for s in entries if s.parts]),
        Block(all_parts, summary=all_parts.caption),
    ]
    return Section(f"By {kind}", intro, blocks if table.heads else [])


def _make_predicted(context: ReportContext, plots: dict[str, list[SavedPlot]]) -> Section:
    groups = [plots["predicted"], plots["residuals"], plots["tiers"]]
    if len(context.shown) == 1:
        groups = [[plot for found in groups for plot in found]]
    blocks = [Block(plots=found, titled=True) for found in groups if found]
    confused = _tabulate_confused(context, is_drawn=bool(blocks))
    if confused and confused.heads:
        blocks.append(Block(confused))
    return Section("Predicted against true", _PREDICTED[context.result.label_type], blocks)


def _make_calibration(context: ReportContext, plots: list[SavedPlot]) -> Section:
    scores = context.collect(lambda v: v.calibration)
    probabilities = context.collect(lambda v: v.reliability)
    if scores:
        names = context.result.label_names
        table = make_calibration_table(scores, context.pick(scores), names=names)
        blocks = [Block(table, plots=plots, legend=context.shown)]
    else:
        table = make_reliability_table(probabilities, context.pick(probabilities))
        blocks = [Block(table), Block(plots=plots, legend=context.shown, titled=True)]
    found = scores or probabilities
    return Section("Calibration", _CALIBRATED[context.result.label_type], blocks if found else [])


def draw_sections(context: ReportContext) -> "dict[str, list[Plot]]":
    """Return the plots of the shared sections; needs matplotlib."""
    from llmft.reports.plots import draw_curves, draw_parts

    drawn: dict[str, list[Plot]] = {"parts": [], "residuals": [], "tiers": []}
    if any(s.parts for s in context.entries):
        drawn["parts"] = [draw_parts(context.entries, metric=context.metric, kind=context.kind)]
    drawn |= (
        _draw_scores(context) if context.result.label_type == "scores" else _draw_classes(context)
    )
    curves = [
        (variant, [run.curve for run in context.variants[variant.name].runs])
        for variant in context.shown
    ]
    return {**drawn, "curves": draw_curves(curves)}


def _draw_scores(context: ReportContext) -> "dict[str, list[Plot]]":
    from llmft.reports.plots import (
        draw_predicted,
        draw_residuals,
        draw_strata,
        draw_tiers,
    )

    names, rows = context.result.label_names, context.result.rows
    rows = rows[:: -(-len(rows) // MAX_POINTS) or 1]
    seen = {
        variant.name: [row for row in rows if variant.name in row.outputs]
        for variant in context.shown
    }
    seen = {name: found for name, found in seen.items() if found}
    calibrations = context.collect(lambda v: v.calibration)
    return {
        "predicted": _draw_each(
            context, "predicted", seen, partial(draw_predicted, label_names=names)
        ),
        "residuals": _draw_each(
            context, "residuals", seen, partial(draw_residuals, label_names=names)
        ),
        "tiers": _draw_each(context, "tiers", context.collect(lambda v: v.tiers), draw_tiers),
        "calibration": [draw_strata(calibrations, context.pick(calibrations), names=names)]
        if calibrations
        else [],
    }


def _draw_classes(context: ReportContext) -> "dict[str, list[Plot]]":
    from llmft.reports.plots import (
        draw_confusion,
        draw_label_confusions,
        draw_reliability,
    )

    matrices = context.collect(lambda v: v.confusion_matrix)
    confusions = context.collect(lambda v: v.label_confusions)
    draw = partial(draw_confusion, label_names=context.result.label_names)
    return {
        "predicted": _draw_each(context, "predicted", matrices, draw)
        + _draw_each(context, "predicted", confusions, draw_label_confusions),
        "calibration": _draw_each(
            context, "calibration", context.collect(lambda v: v.reliability), draw_reliability
        ),
    }


def _draw_each(
    context: ReportContext, section: str, found: Mapping[str, Any], draw: "Callable[..., Plot]"
) -> "list[Plot]":
    """Draw a plot for each variant with a result."""
    return [
        draw(found[variant.name], variant, name=f"{section}-{i}-{name_file(variant.name)}")
        for i, variant in enumerate(context.shown, start=1)
        if variant.name in found
    ]


def _tabulate_confused(context: ReportContext, *, is_drawn: bool) -> Table | None:
    """Return the most confused classes; None if the plotted confusion matrix has the counts."""
    found, names = context.collect(lambda v: v.confusion_matrix), context.result.label_names
    if not found or (is_drawn and len(names) <= MAX_COUNTED_CLASSES):
        return None
    return make_confused_table(found, context.pick(found), names=names)
