"""The report of `llmft evaluate`: one page on whether a run may be deployed."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft.config.gates import HIGHER_IS_BETTER
from llmft.reports import formatting as f
from llmft.reports.edge_cases import make_edge_cases
from llmft.reports.metric_tables import make_metric_table
from llmft.reports.rendering import SavedPlot, has_package, name_file, write_report
from llmft.reports.sections import (
    Scene,
    draw_sections,
    find_parts_key,
    make_sections,
    save_plots,
    set_scene,
)
from llmft.reports.series import Series
from llmft.reports.tables import Head, Table, make_columns

_HEADLINES = {
    "DEPLOY": ("good", "{name} may be deployed"),
    "REVIEW": ("open", "{name} needs a second look"),
    "FAIL": ("bad", "Do not deploy {name}"),
}


def write_evaluation_report(results: dict[str, Any], *, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `plots/*.png` for the results of an evaluation.

    Without matplotlib there are no plots.

    Args:
        results: What `evaluation/SPLIT.json` holds; shown as it is, nothing is added to it (D10).
        folder: Where to write. Results of another split in it lose their report, not their plots.

    Returns:
        Path of `report.html`.
    """
    name, gates, scene = results["name"], results["gates"], _set_scene(results)
    plots: dict[str, list[SavedPlot]] = defaultdict(list)
    is_drawn = has_package("matplotlib", needed_for="plots")
    if is_drawn:
        from llmft.reports.plots.decision import draw_gates
        from llmft.reports.plots.figures import use_style

        with use_style():
            drawn = draw_sections(scene)
            if gates:
                drawn["gates"] = [draw_gates(gates, series=scene.series)]
            plots |= save_plots(drawn, folder=folder, prefix=f"{name_file(results['data'])}-")
    tone, headline = _HEADLINES[results["decision"]]
    content = {
        **make_sections(scene, plots),
        "tone": tone,
        "headline": headline.format(name=name),
        "is_drawn": is_drawn,
        "plots": plots,
        "gates_table": _make_gates_table(gates, scene.baselines),
        "main_table": make_metric_table(
            [Head(s.name, s) for s in scene.series],
            scene.series,
            caption="The run and the baselines on the same rows",
        ),
        "edge_cases": make_edge_cases(results["edge_cases"], scene.arms),
        "making": _describe_training(results["training"]),
    }
    return write_report("evaluation", folder=folder, results=results, content=content)


def _set_scene(results: dict[str, Any]) -> Scene:
    name = results["name"]
    variants = {name: {**results, "histories": [results["history"]]}}
    by_part = results.get("part_intervals")
    leading = by_part["metric"] if by_part else _find_leading_metric(results)
    parts = {name: results.get(find_parts_key(results)) or {}}
    return set_scene(results, variants, parts=parts, leading=leading)


def _find_leading_metric(results: dict[str, Any]) -> str:
    return str(results.get("metric") or next(iter(results["metrics"])))


def _make_gates_table(gates: Sequence[dict[str, Any]], baselines: Sequence[Series]) -> Table:
    texts = {
        "value": [f.format_metric(gate["value"]) for gate in gates],
        "95 % interval": [f.format_interval(gate["interval"]) for gate in gates],
        "bound": [f.format_metric(gate["bound"]) for gate in gates],
        "deploy": [_show_threshold(gate["deploy"]) for gate in gates],
        "review": [_show_threshold(gate["review"]) for gate in gates],
    }
    for s in baselines:
        texts[s.name] = [f.format_metric(s.metrics.get(gate["name"])) for gate in gates]
    texts["result"] = [gate["result"] for gate in gates]
    arrows = {True: "↑", False: "↓"}
    heads = [
        Head(f"{gate['name']} {arrows[HIGHER_IS_BETTER.get(gate['name'], True)]}") for gate in gates
    ]
    return Table("Gates", "gate", heads, make_columns(texts, words=["result"]))


def _show_threshold(value: float | None) -> str:
    """Write it as a person did; one that was widened to standard errors has three decimals."""
    return min(f.format_threshold(value), f.format_metric(value), key=len)


def _describe_training(training: dict[str, Any]) -> list[tuple[str, str]]:
    """Return terms and descriptions of how the run was trained."""
    recipe = training["recipe"]
    base = recipe["base"]["model"]
    budget = training["token_budget"]["train"]
    return [
        ("base", base if training["base_pretrained"] else f"{base} (never pretrained)"),
        ("tuning", f"{recipe['base']['tuning']}, prompt {recipe['prompt']['mode']}d"),
        ("training mode", training["training_mode"].replace("_", " ")),
        ("parameters", f"{f.format_size(training['num_parameters'])}, of which trainable "
                       f"{f.format_size(training['num_trainable'])}"),
        ("training text kept", f"{f.format_share(budget['share_kept'])} at max_length "
                               f"{recipe['tokens']['max_length']}"),
        ("learning rate", f.format_threshold(recipe["train"]["learning_rate"])),
        ("batch size", f"{training['global_batch_size']} over all processes"),
        ("seed", str(recipe["train"]["seed"])),
        ("steps", f"{training['num_steps']}, best epoch "
                  f"{f.format_threshold(training['best_epoch'])}"),
        ("training time", f"{f.format_seconds(training['train_seconds'])}, "
                          f"{f.format_quantity(training['tokens_per_second'])} tokens / s"),
        ("peak memory", f"{f.format_quantity(training['peak_memory_gib'])} GiB"),
        ("device", f"{training['device']}, {training['precision']}, world size "
                   f"{training['world_size']}, distributed {training['distributed_type']}"),
        ("data fingerprint", training["data_fingerprint"]),
        ("model hash", training["model_hash"]),
        ("prompt hash", training["prompt_sha256"] or "no prompt"),
        ("git revision", training["git_revision"] or "not in a repository"),
        ("versions", f.join_values(training["packages"])),
    ]  # fmt: skip
