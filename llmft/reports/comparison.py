"""The report of `llmft compare`: one page on which arm to deploy, and how far to trust that."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmft.reports import formatting as f
from llmft.reports.plots import draw_gains, use_style
from llmft.reports.rendering import write_report
from llmft.reports.sections import draw_sections, make_sections, save_plots
from llmft.reports.series import (
    Series,
    choose_part_metric,
    find_parts_key,
    list_baselines,
    style_arm,
)
from llmft.reports.tables import (
    Column,
    Head,
    Table,
    is_higher_better,
    make_cells,
    make_columns,
    make_edge_case_table,
    make_metric_columns,
)

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
    parts_key = find_parts_key(results)
    metric = choose_part_metric(results["metric"], parts_key=parts_key)
    arms = _list_arms(results, results.get(parts_key) or {})
    baselines = list_baselines(results, parts_key=parts_key)
    with use_style():
        drawn = draw_sections(
            results,
            arms,
            baselines,
            parts_key=parts_key,
            metric=metric,
            variants=results["variants"],
        )
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
        **make_sections(results, arms, baselines, parts_key=parts_key, metric=metric),
        "tone": tone,
        "headline": headline.format(winner=results["winner"], reference=results["reference"]),
        "higher_is_better": is_higher_better(results["metric"]),
        "plots": plots,
        "main_table": _make_main_table(results, [*arms, *baselines]),
        "gains_table": _make_gains_table(results["pairs"], arms),
        "edge_table": make_edge_case_table(results["edge_cases"], arms),
        "failed_cases": _list_failed_cases(results["edge_cases"], arms),
        "making": _describe_data(results["data"]),
        "making_table": _make_making_table(results["variants"], arms),
    }
    return write_report("comparison", folder=folder, results=results, content=content)


def _list_arms(results: dict[str, Any], parts: dict[str, Any]) -> list[Series]:
    return [
        style_arm(
            i,
            name=name,
            metrics=variant.get("metrics", {}),
            parts={part: found[name] for part, found in parts.items() if name in found},
        )
        for i, (name, variant) in enumerate(results["variants"].items())
    ]


def _make_main_table(results: dict[str, Any], series: Sequence[Series]) -> Table:
    """Return quality, cost and input of every arm, and the quality of the baselines."""
    found = [{} if s.is_baseline else results["variants"][s.name] for s in series]
    latency = [{} if s.is_baseline else results["latency"].get(s.name, {}) for s in series]
    budgets = [variant.get("token_budget", {}) for variant in found]
    struck = [not variant.get("valid", True) for variant in found]
    said = {"include": "yes", "exclude": "no", "": ""}
    prompts = [variant.get("prompt_mode", "") for variant in found]
    intervals = {results["metric"]: [variant.get("interval") for variant in found]}

    def list_costs(
        name: str, holders: list[Any], key: str, show: Any, higher: bool | None = None
    ) -> Column:
        values = [holder.get(key) for holder in holders]
        cells = make_cells(values, show=show, higher_is_better=higher, excluded=struck)
        return Column(name, cells, "Cost")

    columns = [
        *make_metric_columns(series, intervals=intervals),
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
    heads = [_make_head(s, results) for s in series]
    return Table("The arms and the baselines on the same test rows", "arm", heads, columns)


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


class _FailedCase(NamedTuple):
    """An edge case that some arm failed."""

    id: str
    category: str
    must_pass: bool
    failures: list[tuple[Series, list[str]]]


def _list_failed_cases(edge_cases: dict[str, Any], arms: Sequence[Series]) -> list[_FailedCase]:
    """Return the cases that some arm failed, those that must pass first."""
    failed: dict[str, _FailedCase] = {}
    for arm in arms:
        for case in edge_cases.get(arm.name, {}).get("cases", []):
            if not case["passed"]:
                entry = _FailedCase(case["id"], case["category"], case["must_pass"], [])
                failed.setdefault(case["id"], entry).failures.append((arm, case["failures"]))
    return sorted(failed.values(), key=lambda case: not case.must_pass)


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
