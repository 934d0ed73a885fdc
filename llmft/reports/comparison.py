"""The report of `llmft compare`: which variant to deploy, and how certain that is."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmft.reports import formatting as f
from llmft.reports.entries import ReportEntry, is_higher_better, style_ensemble
from llmft.reports.gates import make_gates
from llmft.reports.layout import Block, Section
from llmft.reports.pairs import make_differences
from llmft.reports.rendering import SavedPlot, has_package, write_report
from llmft.reports.rows import make_row_table
from llmft.reports.sections import (
    ReportContext,
    draw_sections,
    make_context,
    make_edge_cases,
    make_fits,
    make_sections,
    save_plots,
)
from llmft.reports.slices_and_noise import make_noise, make_rare_events, make_slices
from llmft.reports.variant_tables import (
    describe_data,
    describe_ensembles,
    describe_versions,
    make_costs_table,
    make_head,
    make_latency_table,
    make_making_table,
    make_metric_table,
)
from llmft.results.comparison import ComparisonResult

if TYPE_CHECKING:
    from llmft.reports.plots.figures import Plot

_HEADLINES = {
    "WINNER": ("good", "{winner} wins"),
    "REFERENCE_HOLDS": ("calm", "Keep {reference}"),
    "UNRESOLVED": ("open", "Not resolved yet"),
    "CONFOUNDED": ("doubt", "This comparison is not fair"),
    "INVALID": ("bad", "This comparison is not valid"),
}
_LEADS = {"REVIEW": "Why REVIEW and not DEPLOY:", "FAIL": "Why FAIL:"}
_SIDE_INTRO = (
    "Means over the runs of a variant; ↑ higher is better, ↓ lower is better, the best value of a "
    "row is marked. Intervals are 95 %."
)
_ENSEMBLE_INTRO = (
    " Ensembles combine variants; the routes of a routed ensemble are chosen on validation. One is "
    "recommended only if it beats the best single variant on test by the rule of the verdict."
)


def write_comparison_report(result: ComparisonResult, *, folder: Path) -> Path:
    """Write `report.html`, `.md` and `.docx`, and `plots/*.png`, for a comparison.

    Without matplotlib there are no plots, without python-docx no `.docx`.

    Args:
        result: The results, rendered without further computation (D10).
        folder: Where to write.

    Returns:
        Path of `report.html`.
    """
    context = make_context(result, result.variants)
    ensembles = [
        style_ensemble(len(context.shown) + i, name=name, found=found)
        for i, (name, found) in enumerate(result.ensembles.items())
    ]
    plots: dict[str, list[SavedPlot]] = defaultdict(list)
    is_drawn = has_package("matplotlib", needed_for="plots")
    if is_drawn:
        from llmft.reports.plots.figures import use_style

        with use_style():
            drawn = draw_sections(context) | _draw_decision(result, context.shown, ensembles)
            plots |= save_plots(drawn, folder=folder)
    content = {"is_drawn": is_drawn, **_make_content(result, context, ensembles, plots)}
    document = folder / "report.docx"
    if has_package("python-docx", needed_for=document.name):
        from llmft.reports.word import write_document

        write_document(document, result=result, content=content, folder=folder)
    else:
        document.unlink(missing_ok=True)  # of earlier results
    return write_report("comparison", folder=folder, result=result, content=content)


def _draw_decision(
    result: ComparisonResult, variants: Sequence[ReportEntry], ensembles: Sequence[ReportEntry]
) -> "dict[str, list[Plot]]":
    """Draw the gains, and the metric against latency."""
    from llmft.reports.plots.decision import draw_gains
    from llmft.reports.plots.runs import draw_latency

    metric = result.metric
    drawn: dict[str, list[Plot]] = {"gains": [], "latency": []}
    if result.pairs:
        drawn["gains"] = [draw_gains(result.pairs, variants, metric=metric, margin=result.margin)]
    times = {name: v.latency.single_p50_ms for name, v in result.variants.items() if v.latency}
    for name, found in result.ensembles.items():
        if found.cost.single_p50_ms is not None:
            times[name] = found.cost.single_p50_ms
    shown = [
        s for s in (*variants, *ensembles) if s.name in times and s.metrics.get(metric) is not None
    ]
    if shown:
        drawn["latency"] = [draw_latency(shown, times, metric=metric)]
    return drawn


def _make_content(
    result: ComparisonResult,
    context: ReportContext,
    ensembles: list[ReportEntry],
    plots: dict[str, list[SavedPlot]],
) -> dict[str, Any]:
    """Return the content of all three formats."""
    tone, headline = _HEADLINES[result.verdict]
    made = make_sections(context, plots)
    entries = [*context.shown, *ensembles, *context.baselines]
    heads = [make_head(s, result)._replace(note="") for s in entries]
    return {
        **made,
        "tone": tone,
        "headline": headline.format(winner=result.winner, reference=result.reference),
        "reasons_lead": _LEADS.get(result.decision, ""),
        "facts": _list_facts(result),
        "plots": plots,
        "side_intro": _SIDE_INTRO + (_ENSEMBLE_INTRO if ensembles else ""),
        "main_table": make_metric_table(
            heads, entries, caption="The variants and the baselines on the same test rows"
        ),
        "explained": [*describe_ensembles(result.ensembles), *made["explained"]],
        "costs_table": make_costs_table(result, [*context.shown, *ensembles]),
        "sections": _list_sections(result, context, ensembles, made["shared"], plots),
        "row_table": make_row_table(result, context.shown),
        "making": describe_data(result.data),
        "versions": describe_versions(result.variants, context.shown),
        "making_table": make_making_table(result.variants, context.shown),
    }


def _list_sections(
    result: ComparisonResult,
    context: ReportContext,
    ensembles: list[ReportEntry],
    shared: dict[str, Section],
    plots: dict[str, list[SavedPlot]],
) -> list[Section]:
    """Return the sections between the tables of the variants and of the rows."""
    shown, variants, both = context.shown, result.variants, [*context.shown, *ensembles]
    latency = Section(
        "Latency",
        f"{result.metric} against the latency of a single article. The dashed line is the Pareto "
        "front: no other marker is better in both. p50 and p95: 50th and 95th percentile; prompt "
        "not cached: with the prompt computed again.",
        [
            Block(
                make_latency_table(variants, shown),
                plots=plots["latency"],
                legend=both if plots["latency"] else [],
            )
        ],
    )
    found = [
        make_differences(result, both, kind=context.kind),
        shared["parts"],
        shared["curves"],
        latency,
        make_gates(variants, shown),
        make_slices(result, shown),
        make_rare_events(result.rare, shown),
        make_noise(result.noise, shown),
        make_edge_cases(variants, shown),
        make_fits(variants, shown),
        shared["predicted"],
        shared["calibration"],
    ]
    return [section for section in found if not section.is_empty]


class _Fact(NamedTuple):
    """A setting of the comparison: term, value and note."""

    term: str
    value: str
    note: str


def _list_facts(result: ComparisonResult) -> list[_Fact]:
    direction = "higher" if is_higher_better(result.metric) else "lower"
    rows = "the same for all variants"
    if result.num_dropped:
        rows += f"; {result.num_dropped} excluded as near-duplicates of training rows"
    if result.num_groups is not None:
        rows += f"; in {result.num_groups} clusters"
    facts = [
        _Fact("metric", result.metric, f"{direction} is better"),
        _Fact("margin", f.format_threshold(result.margin), "gain that a challenger has to exceed"),
        _Fact("test rows", str(result.num_rows), rows),
        _Fact("reference", result.reference, "the variant to beat"),
    ]
    if result.recommended is not None:
        facts.append(_Fact("recommended", result.recommended, "the variant or ensemble to use"))
    return facts
