"""The report of `llmft evaluate`: one page on whether a run may be deployed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft.reports import formatting as f
from llmft.reports.plots import draw_gates, use_style
from llmft.reports.rendering import name_file, write_report
from llmft.reports.sections import draw_sections, make_sections, save_plots
from llmft.reports.series import (
    Series,
    choose_part_metric,
    find_parts_key,
    list_baselines,
    style_arm,
)
from llmft.reports.tables import Head, Table, make_columns, make_metric_columns

_HEADLINES = {
    "DEPLOY": ("good", "{name} may be deployed"),
    "REVIEW": ("open", "{name} needs a second look"),
    "FAIL": ("bad", "Do not deploy {name}"),
}
_REASONS = {
    "DEPLOY": "{metric}: even the worse end of the 95 % interval, {bound}, passes {deploy}",
    "REVIEW": "{metric}: {value} is within {review}, but the worse end of the 95 % interval, "
    "{bound}, does not pass {deploy}",
    "FAIL": "{metric}: {value} is beyond {review}, from where on a run fails",
}


def write_evaluation_report(results: dict[str, Any], *, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `plots/*.png` for the results of an evaluation.

    Args:
        results: What `evaluation/SPLIT.json` holds; shown as it is, nothing is added to it (D10).
        folder: Where to write. Results of another split in it lose their report, not their plots.

    Returns:
        Path of `report.html`.
    """
    parts_key = find_parts_key(results)
    name, gates, metrics = results["name"], results["gates"], results["metrics"]
    # Without gates nothing says which metric matters; the first of the file leads.
    leading = gates[0]["metric"] if gates else next(iter(metrics))
    metric = choose_part_metric(leading, parts_key=parts_key)
    arm = style_arm(0, name=name, metrics=metrics, parts=results.get(parts_key) or {})
    baselines = list_baselines(results, parts_key=parts_key)
    series = [arm, *baselines]
    matrix = results["confusion_matrix"]
    variants = {name: {"histories": [results["history"]], "confusion_matrix": matrix}}
    with use_style():
        drawn = draw_sections(
            results, [arm], baselines, parts_key=parts_key, metric=metric, variants=variants
        )
        drawn["gates"] = [draw_gates(gates, results["intervals"], series=series)] if gates else []
        plots = save_plots(drawn, folder=folder, prefix=f"{name_file(results['data'])}-")
    tone, headline = _HEADLINES[results["decision"]]
    content = {
        **make_sections(results, [arm], baselines, parts_key=parts_key, metric=metric),
        "tone": tone,
        "headline": headline.format(name=name),
        "reasons": [_explain_gate(gate) for gate in gates],
        "plots": plots,
        "gates_table": _make_gates_table(gates, baselines),
        "main_table": _make_main_table(results, series),
        "making": _describe_training(results["training"]),
    }
    return write_report("evaluation", folder=folder, results=results, content=content)


def _explain_gate(gate: dict[str, Any]) -> str:
    return _REASONS[gate["result"]].format(
        metric=gate["metric"],
        value=f.format_metric(gate["value"]),
        bound=f.format_metric(gate["bound"]),
        deploy=f.format_threshold(gate["deploy"]),
        review=f.format_threshold(gate["review"]),
    )


def _make_gates_table(gates: Sequence[dict[str, Any]], baselines: Sequence[Series]) -> Table:
    texts = {
        "value": [f.format_metric(gate["value"]) for gate in gates],
        "bound": [f.format_metric(gate["bound"]) for gate in gates],
        "deploy": [f.format_threshold(gate["deploy"]) for gate in gates],
        "review": [f.format_threshold(gate["review"]) for gate in gates],
    }
    for s in baselines:
        texts[s.name] = [f.format_metric(s.metrics.get(gate["metric"])) for gate in gates]
    texts["result"] = [gate["result"] for gate in gates]
    heads = [Head(gate["metric"]) for gate in gates]
    return Table("Gates", "metric", heads, make_columns(texts, words=["result"]))


def _make_main_table(results: dict[str, Any], series: Sequence[Series]) -> Table:
    intervals = {
        metric: [None if s.is_baseline else interval for s in series]
        for metric, interval in results["intervals"].items()
    }
    heads = [Head(s.name, s) for s in series]
    columns = make_metric_columns(series, intervals=intervals)
    return Table("The run and the baselines on the same rows", "model", heads, columns)


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
