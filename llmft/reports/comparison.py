"""The report of `llmft compare`: one page on which arm to deploy, and how far to trust that."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmft.reports import formatting as f
from llmft.reports.arm_tables import (
    describe_data,
    describe_ensembles,
    describe_versions,
    make_costs_table,
    make_head,
    make_latency_table,
    make_making_table,
)
from llmft.reports.differences import make_differences
from llmft.reports.edge_cases import make_edge_cases
from llmft.reports.fits import make_fits
from llmft.reports.measures import make_gates, make_noise, make_rare_events, make_slices
from llmft.reports.metric_tables import make_metric_table
from llmft.reports.outline import Block, Section
from llmft.reports.rendering import SavedPlot, has_package, write_report
from llmft.reports.rows import make_row_table
from llmft.reports.sections import (
    Scene,
    draw_sections,
    make_sections,
    save_plots,
    set_scene,
)
from llmft.reports.series import Series, is_higher_better, style_ensemble
from llmft.results.comparison import ComparisonResult

if TYPE_CHECKING:
    from llmft.reports.plots.figures import Plot

_HEADLINES = {
    "WINNER": ("good", "{winner} wins"),
    "REFERENCE_HOLDS": ("calm", "Keep {reference}"),
    "UNRESOLVED": ("open", "Nobody can tell yet"),
    "CONFOUNDED": ("doubt", "This is no fair comparison"),
    "INVALID": ("bad", "This comparison does not count"),
}
_LEADS = {"REVIEW": "Why REVIEW and not DEPLOY:", "FAIL": "Why FAIL:"}
_SIDE_INTRO = (
    "Means over the runs of an arm; ↑ higher is better, ↓ lower is better, the best value of a row "
    "is marked. The interval with a value is 95 %."
)
_ENSEMBLE_INTRO = (
    " Mixed columns combine arms, by routes that validation chose; one is recommended only if it "
    "beats the best single arm on test by the rule of the verdict."
)


def write_comparison_report(result: ComparisonResult, *, folder: Path) -> Path:
    """Write `report.html`, `.md` and `.docx`, and `plots/*.png`, for a comparison.

    Without matplotlib there are no plots, without python-docx no `.docx`.

    Args:
        result: Shown as it is, nothing is added to it (D10).
        folder: Where to write.

    Returns:
        Path of `report.html`.
    """
    scene = set_scene(result, result.variants)
    ensembles = [
        style_ensemble(len(scene.arms) + i, name=name, found=found)
        for i, (name, found) in enumerate(result.ensembles.items())
    ]
    plots: dict[str, list[SavedPlot]] = defaultdict(list)
    is_drawn = has_package("matplotlib", needed_for="plots")
    if is_drawn:
        from llmft.reports.plots.figures import use_style

        with use_style():
            drawn = draw_sections(scene) | _draw_decision(result, scene.arms, ensembles)
            plots |= save_plots(drawn, folder=folder)
    content = {"is_drawn": is_drawn, **_make_content(result, scene, ensembles, plots)}
    document = folder / "report.docx"
    if has_package("python-docx", needed_for=document.name):
        from llmft.reports.word import write_document

        write_document(document, result=result, content=content, folder=folder)
    else:
        document.unlink(missing_ok=True)  # one of earlier results
    return write_report("comparison", folder=folder, result=result, content=content)


def _draw_decision(
    result: ComparisonResult, arms: Sequence[Series], ensembles: Sequence[Series]
) -> "dict[str, list[Plot]]":
    """Draw the gains, and the metric against latency."""
    from llmft.reports.plots.decision import draw_gains
    from llmft.reports.plots.latency import draw_latency

    metric = result.metric
    drawn: dict[str, list[Plot]] = {"gains": [], "latency": []}
    if result.pairs:
        drawn["gains"] = [draw_gains(result.pairs, arms, metric=metric, margin=result.margin)]
    times = {name: v.latency.single_p50_ms for name, v in result.variants.items() if v.latency}
    for name, found in result.ensembles.items():
        if found.cost.single_p50_ms is not None:
            times[name] = found.cost.single_p50_ms
    shown = [
        s for s in (*arms, *ensembles) if s.name in times and s.metrics.get(metric) is not None
    ]
    if shown:
        drawn["latency"] = [draw_latency(shown, times, metric=metric)]
    return drawn


def _make_content(
    result: ComparisonResult,
    scene: Scene,
    ensembles: list[Series],
    plots: dict[str, list[SavedPlot]],
) -> dict[str, Any]:
    """Return what all three formats are filled in with."""
    tone, headline = _HEADLINES[result.verdict]
    made = make_sections(scene, plots)
    series = [*scene.arms, *ensembles, *scene.baselines]
    heads = [make_head(s, result)._replace(note="") for s in series]
    return {
        **made,
        "tone": tone,
        "headline": headline.format(winner=result.winner, reference=result.reference),
        "reasons_lead": _LEADS.get(result.decision, ""),
        "facts": _list_facts(result),
        "plots": plots,
        "side_intro": _SIDE_INTRO + (_ENSEMBLE_INTRO if ensembles else ""),
        "main_table": make_metric_table(
            heads, series, caption="The arms and the baselines on the same test rows"
        ),
        "explained": [*describe_ensembles(result.ensembles), *made["explained"]],
        "costs_table": make_costs_table(result, [*scene.arms, *ensembles]),
        "sections": _list_sections(result, scene, ensembles, made["shared"], plots),
        "row_table": make_row_table(result, scene.arms),
        "making": describe_data(result.data),
        "versions": describe_versions(result.variants, scene.arms),
        "making_table": make_making_table(result.variants, scene.arms),
    }


def _list_sections(
    result: ComparisonResult,
    scene: Scene,
    ensembles: list[Series],
    shared: dict[str, Section],
    plots: dict[str, list[SavedPlot]],
) -> list[Section]:
    """Return the sections between the table of the arms and that of the rows, in their order."""
    arms, variants, both = scene.arms, result.variants, [*scene.arms, *ensembles]
    latency = Section(
        "Latency",
        f"{result.metric} against the time of one article. The dashed line joins the filled "
        "markers, which no other beats in both. p50 and p95: half, and 95 %, of the times are "
        "below; prompt not kept: what it takes where the prompt has to be read again.",
        [
            Block(
                make_latency_table(variants, arms),
                plots=plots["latency"],
                legend=both if plots["latency"] else [],
            )
        ],
    )
    found = [
        make_differences(result, both, kind=scene.kind),
        shared["parts"],
        shared["curves"],
        latency,
        make_gates(variants, arms),
        make_slices(result, arms),
        make_rare_events(result.rare, arms),
        make_noise(result.noise, arms),
        make_edge_cases(variants, arms),
        make_fits(variants, arms),
        shared["predicted"],
        shared["calibration"],
    ]
    return [section for section in found if not section.is_empty]


class _Fact(NamedTuple):
    """What has to be known to read a verdict."""

    term: str
    value: str
    note: str


def _list_facts(result: ComparisonResult) -> list[_Fact]:
    direction = "higher" if is_higher_better(result.metric) else "lower"
    scored = "the same for all arms"
    if result.num_dropped:
        scored += f"; {result.num_dropped} dropped, too like rows of training"
    if result.num_groups is not None:
        scored += f"; in {result.num_groups} groups"
    facts = [
        _Fact("metric", result.metric, f"{direction} is better"),
        _Fact("margin", f.format_threshold(result.margin), "a switch has to gain more"),
        _Fact("test rows", str(result.num_rows), scored),
        _Fact("reference", result.reference, "the arm to beat"),
    ]
    if result.recommended is not None:
        facts.append(_Fact("recommended", result.recommended, "the arm or mix to use"))
    return facts
