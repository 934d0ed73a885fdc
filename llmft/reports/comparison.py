"""The report of `llmft compare`: one page on which arm to deploy, and how far to trust that."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft.reports import formatting as f
from llmft.reports.edge_cases import list_failed_cases, make_edge_case_table
from llmft.reports.metric_tables import make_metric_table
from llmft.reports.plots.decision import draw_gains
from llmft.reports.plots.figures import use_style
from llmft.reports.rendering import write_report
from llmft.reports.sections import (
    Scene,
    draw_sections,
    find_parts_key,
    make_sections,
    save_plots,
    set_scene,
)
from llmft.reports.series import Series, is_higher_better
from llmft.reports.tables import Column, Head, Table, make_cells, make_columns

_HEADLINES = {
    "WINNER": ("good", "{winner} wins"),
    "REFERENCE_HOLDS": ("calm", "Keep {reference}"),
    "UNRESOLVED": ("open", "Nobody can tell yet"),
    "CONFOUNDED": ("doubt", "This is no fair comparison"),
    "INVALID": ("bad", "This comparison does not count"),
}


def write_comparison_report(results: dict[str, Any], *, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `plots/*.png` for the results of a comparison.

    Args:
        results: What `comparison.json` holds; shown as it is, nothing is added to it (D10).
        folder: Where to write.

    Returns:
        Path of `report.html`.
    """
    scene = _set_scene(results)
    arms = scene.arms
    with use_style():
        drawn = draw_sections(scene)
        drawn["gains"] = []
        if results["pairs"]:
            drawn["gains"].append(
                draw_gains(
                    results["pairs"], arms, metric=results["metric"], margin=results["margin"]
                )
            )
        plots = save_plots(drawn, folder=folder)
    tone, headline = _HEADLINES[results["verdict"]]
    content = {
        **make_sections(scene),
        "tone": tone,
        "headline": headline.format(winner=results["winner"], reference=results["reference"]),
        "higher_is_better": is_higher_better(results["metric"]),
        "plots": plots,
        "main_table": make_metric_table(
            [_make_head(s, results)._replace(note="") for s in scene.series],
            scene.series,
            caption="The arms and the baselines on the same test rows",
        ),
        "costs_table": _make_costs_table(results, arms),
        "gains_table": _make_gains_table(results["pairs"], arms),
        "edge_table": make_edge_case_table(results["edge_cases"], arms),
        "failed_cases": list_failed_cases(results["edge_cases"], arms),
        "making": _describe_data(results["data"]),
        "making_table": _make_making_table(results["variants"], arms),
    }
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


def _make_costs_table(results: dict[str, Any], arms: Sequence[Series]) -> Table:
    """Return what every arm costs, and what it was given."""
    found = [results["variants"][arm.name] for arm in arms]
    latency = [results["latency"].get(arm.name, {}) for arm in arms]
    budgets = [variant.get("token_budget") or {} for variant in found]
    struck = [not variant["valid"] for variant in found]
    said = {"include": "yes", "exclude": "no", "": ""}
    prompts = [variant.get("prompt_mode", "") for variant in found]

    def list_costs(
        name: str, holders: list[Any], key: str, show: Any, higher: bool | None = None
    ) -> Column:
        values = [holder.get(key) for holder in holders]
        cells = make_cells(values, show=show, higher_is_better=higher, excluded=struck)
        return Column(Head(name), cells, "Cost")

    columns = [
        list_costs("training", found, "train_seconds", f.format_seconds, False),
        list_costs("one article, ms", latency, "single_p50_ms", f.format_quantity, False),
        list_costs("articles / s", latency, "articles_per_second", f.format_quantity, True),
        list_costs("memory, GiB", found, "peak_memory_gib", f.format_quantity, False),
        list_costs("parameters", found, "num_parameters", f.format_size),
        list_costs("trainable", found, "num_trainable", f.format_size),
    ]
    inputs = {
        "prompt": [said.get(prompt, prompt) for prompt in prompts],
        "text kept": [f.format_share(budget.get("share_kept")) for budget in budgets],
    }
    columns += [column._replace(group="Input") for column in make_columns(inputs)]
    heads = [_make_head(arm, results) for arm in arms]
    return Table("What the arms cost, and what they were given", "arm", heads, columns)


def _make_head(series: Series, results: dict[str, Any]) -> Head:
    if series.is_baseline:
        return Head(series.name, series)
    variant = results["variants"][series.name]
    tags = {
        "winner": series.name == results["winner"] and results["verdict"] == "WINNER",
        "reference": series.name == results["reference"],
        "invalid": not variant["valid"],
        "never pretrained": not variant["base_pretrained"],
    }
    note = f"{variant['base']} ·\N{NO-BREAK SPACE}{variant['tuning']}"
    return Head(series.name, series, note, tuple(tag for tag, holds in tags.items() if holds))


def _make_gains_table(pairs: Sequence[dict[str, Any]], arms: Sequence[Series]) -> Table:
    by_name = {arm.name: arm for arm in arms}
    heads = [Head(pair["challenger"], by_name[pair["challenger"]]) for pair in pairs]
    texts = {
        "against": [pair["reference"] for pair in pairs],
        "gain": [f.format_metric(pair["gain"]) for pair in pairs],
        "95 % interval": [f.format_interval(pair["interval"]) for pair in pairs],
        "finding": [pair["finding"] for pair in pairs],
    }
    columns = make_columns(texts, words=["against", "finding"])
    return Table("Gains over the reference", "challenger", heads, columns)


def _describe_data(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return terms and descriptions of the prepared data."""
    near = {k.removeprefix("num_"): v for k, v in (data["near_duplicates"] or {}).items()}
    return [
        ("fingerprint", data["fingerprint"]),
        ("rows", f.join_values(data["counts"])),
        ("rejected", f.join_values(data["rejected"]) or "none"),
        ("near-duplicates", f.join_values(near) or "not looked for"),
        ("split", f.join_values({k: v for k, v in data["split"].items() if v is not None})),
    ]


def _make_making_table(variants: dict[str, Any], arms: Sequence[Series]) -> Table:
    keys = {
        "seeds": "seeds",
        "runs": "runs",
        "training mode": "training_mode",
        "max. tokens": "max_length",
        "device": "device",
        "precision": "precision",
        "versions": "packages",
    }
    texts = {
        title: [f.join_values(variants[arm.name].get(key)) for arm in arms]
        for title, key in keys.items()
    }
    known = {title: found for title, found in texts.items() if any(found)}
    columns = make_columns(known, words=[title for title in keys if title != "max. tokens"])
    heads = [Head(arm.name, arm) for arm in arms]
    return Table("How every arm was trained", "arm", heads, columns)
