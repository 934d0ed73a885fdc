"""The report of `llmft compare`: one page on which arm to deploy, and how far to trust that."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmft.reports import formatting as f
from llmft.reports.arm_tables import (
    describe_data,
    describe_mixed,
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
    find_parts_key,
    make_sections,
    save_plots,
    set_scene,
)
from llmft.reports.series import Series, is_higher_better, style_arm

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
_MIXED_INTRO = (
    " Mixed columns combine arms, by routes that validation chose; one is recommended only if it "
    "beats the best single arm on test by the rule of the verdict."
)


def write_comparison_report(results: dict[str, Any], *, folder: Path) -> Path:
    """Write `report.html`, `.md` and `.docx`, and `plots/*.png`, for the results of a comparison.

    Without matplotlib there are no plots, without python-docx no `.docx`.

    Args:
        results: What `comparison.json` holds; shown as it is, nothing is added to it (D10).
        folder: Where to write.

    Returns:
        Path of `report.html`.
    """
    scene = _set_scene(results)
    mixed = _style_mixed(results, num_arms=len(scene.arms))
    plots: dict[str, list[SavedPlot]] = defaultdict(list)
    is_drawn = has_package("matplotlib", needed_for="plots")
    if is_drawn:
        from llmft.reports.plots.figures import use_style

        with use_style():
            drawn = draw_sections(scene) | _draw_decision(results, scene.arms, mixed)
            plots |= save_plots(drawn, folder=folder)
    content = {"is_drawn": is_drawn, **_make_content(results, scene, mixed, plots)}
    document = folder / "report.docx"
    if has_package("python-docx", needed_for=document.name):
        from llmft.reports.word import write_document

        write_document(document, results=results, content=content, folder=folder)
    else:
        document.unlink(missing_ok=True)  # one of earlier results
    return write_report("comparison", folder=folder, results=results, content=content)


def _set_scene(results: dict[str, Any]) -> Scene:
    metric, by_part = results["metric"], results.get(find_parts_key(results)) or {}
    variants = {
        name: {
            **variant,
            "intervals": {metric: variant.get("interval"), **(variant.get("intervals") or {})},
        }
        for name, variant in results["variants"].items()
    }
    parts = {
        name: {part: found[name] for part, found in by_part.items() if name in found}
        for name in variants
    }
    return set_scene(results, variants, parts=parts, leading=metric)


def _style_mixed(results: dict[str, Any], *, num_arms: int) -> list[Series]:
    """Return the mixed rows, with looks that the arms do not have."""
    mixed = results.get("mixed") or {}
    return [
        style_arm(num_arms + i, name=name, found=found, parts={}, metric=results["metric"])
        for i, (name, found) in enumerate(mixed.items())
    ]


def _draw_decision(
    results: dict[str, Any], arms: Sequence[Series], mixed: Sequence[Series]
) -> "dict[str, list[Plot]]":
    """Draw the gains, and the metric against latency."""
    from llmft.reports.plots.decision import draw_gains
    from llmft.reports.plots.latency import draw_latency

    metric, pairs = results["metric"], results["pairs"]
    drawn: dict[str, list[Plot]] = {"gains": [], "latency": []}
    if pairs:
        drawn["gains"] = [draw_gains(pairs, arms, metric=metric, margin=results["margin"])]
    timed = {**(results.get("latency") or {}), **(results.get("mixed") or {})}
    times = {name: found["single_p50_ms"] for name, found in timed.items()
             if found.get("single_p50_ms")}  # fmt: skip
    shown = [s for s in (*arms, *mixed) if s.name in times and s.metrics.get(metric) is not None]
    if shown:
        drawn["latency"] = [draw_latency(shown, times, metric=metric)]
    return drawn


def _make_content(
    results: dict[str, Any], scene: Scene, mixed: list[Series], plots: dict[str, list[SavedPlot]]
) -> dict[str, Any]:
    """Return what all three formats are filled in with."""
    tone, headline = _HEADLINES[results["verdict"]]
    made = make_sections(scene, plots)
    series = [*scene.arms, *mixed, *scene.baselines]
    heads = [make_head(s, results)._replace(note="") for s in series]
    return {
        **made,
        "tone": tone,
        "headline": headline.format(winner=results["winner"], reference=results["reference"]),
        "decision": results.get("decision"),
        "provisional": results.get("provisional"),
        "reasons": results.get("reasons") or [],
        "reasons_lead": _LEADS.get(results.get("decision") or "", ""),
        "facts": _list_facts(results),
        "plots": plots,
        "side_intro": _SIDE_INTRO + (_MIXED_INTRO if mixed else ""),
        "main_table": make_metric_table(
            heads, series, caption="The arms and the baselines on the same test rows"
        ),
        "explained": [*describe_mixed(results), *made["explained"]],
        "costs_table": make_costs_table(results, [*scene.arms, *mixed]),
        "sections": _list_sections(results, scene, mixed, made["shared"], plots),
        "row_table": make_row_table(results, scene.arms),
        "making": describe_data(results["data"]),
        "versions": describe_versions(results["variants"], scene.arms),
        "making_table": make_making_table(results["variants"], scene.arms),
    }


def _list_sections(
    results: dict[str, Any],
    scene: Scene,
    mixed: list[Series],
    shared: dict[str, Section],
    plots: dict[str, list[SavedPlot]],
) -> list[Section]:
    """Return the sections between the table of the arms and that of the rows, in their order."""
    arms, variants, both = scene.arms, results["variants"], [*scene.arms, *mixed]
    latency = Section(
        "Latency",
        f"{results['metric']} against the time of one article. The dashed line joins the filled "
        "markers, which no other beats in both. p50 and p95: half, and 95 %, of the times are "
        "below; prompt not kept: what it takes where the prompt has to be read again.",
        [
            Block(
                make_latency_table(results, arms),
                plots=plots["latency"],
                legend=both if plots["latency"] else [],
            )
        ],
    )
    found = [
        make_differences(results, both, kind=scene.kind),
        shared["parts"],
        shared["curves"],
        latency,
        make_gates(variants, arms),
        make_slices(results, both),
        make_rare_events(results, both),
        make_noise(results, both),
        make_edge_cases(results.get("edge_cases") or {}, arms),
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


def _list_facts(results: dict[str, Any]) -> list[_Fact]:
    metric = results["metric"]
    direction = "higher" if is_higher_better(metric) else "lower"
    scored = "the same for all arms"
    if results.get("num_dropped"):
        scored += f"; {results['num_dropped']} dropped, too like rows of training"
    if results.get("num_groups"):
        scored += f"; in {results['num_groups']} groups"
    facts = [
        _Fact("metric", metric, f"{direction} is better"),
        _Fact("margin", f.format_threshold(results["margin"]), "a switch has to gain more"),
        _Fact("test rows", str(results["num_rows"]), scored),
        _Fact("reference", results["reference"], "the arm to beat"),
    ]
    if results.get("recommended"):
        facts.append(_Fact("recommended", results["recommended"], "the arm or mix to use"))
    return facts
