"""The report of `llmft evaluate`: whether a run may be deployed."""

from collections import defaultdict
from pathlib import Path

from llmft.reports import formatting as f
from llmft.reports.gates import make_gates_table
from llmft.reports.layout import (
    Block,
    HeaderCell,
    SavedPlot,
    Section,
    has_package,
    name_file,
    write_report,
)
from llmft.reports.sections import (
    describe_probe,
    draw_sections,
    make_context,
    make_edge_cases,
    make_sections,
)
from llmft.reports.variant_tables import make_latency_table, make_metric_table
from llmft.results.evaluation import EvaluationResult
from llmft.results.run import RunRecord

_HEADLINES = {
    "DEPLOY": ("good", "{name} may be deployed"),
    "REVIEW": ("open", "{name} needs a review"),
    "FAIL": ("bad", "Do not deploy {name}"),
}


def write_evaluation_report(result: EvaluationResult, *, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `plots/*.png` for an evaluation.

    On other rows than the test split they are named after these, as `report-val.html`. Without
    matplotlib there are no plots.

    Args:
        result: The results, rendered without further computation (D10).
        folder: Where to write.

    Returns:
        Path of the page.
    """
    name, gates = result.name, result.gates
    context = make_context(result, {name: result})
    plots: dict[str, list[SavedPlot]] = defaultdict(list)
    is_drawn = has_package("matplotlib", needed_for="plots")
    if is_drawn:
        from llmft.reports.plots import draw_gates, save_plots, use_style

        with use_style():
            drawn = draw_sections(context)
            drawn["gates"] = [draw_gates(gates, entries=context.entries)] if gates else []
            plots |= save_plots(drawn, folder=folder, prefix=f"{name_file(result.data)}-")
    tone, headline = _HEADLINES[result.decision]
    content = {
        **make_sections(context, plots),
        "tone": tone,
        "headline": headline.format(name=name),
        "is_drawn": is_drawn,
        "plots": plots,
        "gates_table": make_gates_table(gates, context.baselines),
        "main_table": make_metric_table(
            [HeaderCell(s.name, s) for s in context.entries],
            context.entries,
            caption="The run and the baselines on the same rows",
        ),
        "probe_lines": describe_probe(result, context.variants),
        "edge_cases": make_edge_cases(context.variants, context.shown),
        "latency": Section(
            "Latency",
            "p50 and p95: 50th and 95th percentile of the times.",
            [Block(make_latency_table(context.variants, context.shown))],
        ),
        "making": _describe_training(result.record),
    }
    stem = "report" if result.data == "test" else f"report-{result.data}"
    return write_report("evaluation", folder=folder, result=result, content=content, stem=stem)


def _describe_training(record: RunRecord) -> list[tuple[str, str]]:
    """Return terms and descriptions of how the run was trained."""
    recipe = record.recipe
    base = recipe.base.model
    return [
        ("base", base if record.base_pretrained else f"{base} (never pretrained)"),
        ("tuning", f"{recipe.base.tuning}, prompt {recipe.prompt.mode}d"),
        ("training mode", record.training_mode.replace("_", " ")),
        ("parameters", f"{f.format_size(record.num_parameters)}, of which trainable "
                       f"{f.format_size(record.num_trainable)}"),
        ("article tokens kept",
         f"{f.format_percent(record.token_budget['train'].fraction_kept)} of train at "
                               f"max_length {recipe.tokens.max_length}"),
        ("learning rate", f.format_threshold(
            None if record.resolved is None else record.resolved.learning_rate)),
        ("batch size", f"{f.format_threshold(record.global_batch_size)} over all processes"),
        ("seed", str(recipe.train.seed)),
        ("steps", f"{record.num_steps}, best epoch {f.format_threshold(record.best_epoch)}"),
        ("training time", f"{f.format_seconds(record.train_seconds)}, "
                          f"{f.format_quantity(record.tokens_per_second)} tokens / s"),
        ("peak memory", f"{f.format_quantity(record.peak_memory_gib)} GiB"),
        ("device", f"{record.device}, {record.precision}, world size {record.world_size}, "
                   f"distributed {record.distributed_type}"),
        ("data fingerprint", record.data_fingerprint),
        ("model hash", record.model_hash),
        ("prompt hash", record.prompt_sha256 or "no prompt"),
        ("git revision", record.git_revision or "not in a repository"),
        ("versions", f.join_values(record.packages)),
    ]  # fmt: skip
