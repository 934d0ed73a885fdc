"""The report of `llmft evaluate`: one page on whether a run may be deployed."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from llmft.config.gates import HIGHER_IS_BETTER
from llmft.reports import formatting as f
from llmft.reports.arm_tables import make_latency_table
from llmft.reports.edge_cases import make_edge_cases
from llmft.reports.metric_tables import make_metric_table
from llmft.reports.outline import Block, Section
from llmft.reports.rendering import SavedPlot, has_package, name_file, write_report
from llmft.reports.sections import (
    draw_sections,
    make_sections,
    save_plots,
    set_scene,
)
from llmft.reports.series import Series
from llmft.reports.tables import Head, Table, make_columns
from llmft.results.evaluation import EvaluationResult
from llmft.results.run import RunRecord
from llmft.results.variant import GateResult

_HEADLINES = {
    "DEPLOY": ("good", "{name} may be deployed"),
    "REVIEW": ("open", "{name} needs a second look"),
    "FAIL": ("bad", "Do not deploy {name}"),
}


def write_evaluation_report(result: EvaluationResult, *, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `plots/*.png` for an evaluation.

    Without matplotlib there are no plots.

    Args:
        result: Shown as it is, nothing is added to it (D10).
        folder: Where to write. Results of another split in it lose their report, not their plots.

    Returns:
        Path of `report.html`.
    """
    name, gates = result.name, result.gates
    scene = set_scene(result, {name: result})
    plots: dict[str, list[SavedPlot]] = defaultdict(list)
    is_drawn = has_package("matplotlib", needed_for="plots")
    if is_drawn:
        from llmft.reports.plots.decision import draw_gates
        from llmft.reports.plots.figures import use_style

        with use_style():
            drawn = draw_sections(scene)
            drawn["gates"] = [draw_gates(gates, series=scene.series)] if gates else []
            plots |= save_plots(drawn, folder=folder, prefix=f"{name_file(result.data)}-")
    tone, headline = _HEADLINES[result.decision]
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
        "edge_cases": make_edge_cases(scene.variants, scene.arms),
        "latency": Section(
            "Latency",
            "p50 and p95: half, and 95 %, of the times are below.",
            [Block(make_latency_table(scene.variants, scene.arms))],
        ),
        "making": _describe_training(result.record),
    }
    return write_report("evaluation", folder=folder, result=result, content=content)


def _make_gates_table(gates: Sequence[GateResult], baselines: Sequence[Series]) -> Table:
    texts = {
        "value": [f.format_metric(gate.value) for gate in gates],
        "95 % interval": [f.format_interval(gate.interval) for gate in gates],
        "bound": [f.format_metric(gate.bound) for gate in gates],
        "deploy": [_show_threshold(gate.deploy) for gate in gates],
        "review": [_show_threshold(gate.review) for gate in gates],
    }
    for s in baselines:
        texts[s.name] = [f.format_metric(s.metrics.get(gate.name)) for gate in gates]
    texts["result"] = [gate.result for gate in gates]
    arrows = {True: "↑", False: "↓"}
    heads = [Head(f"{gate.name} {arrows[HIGHER_IS_BETTER[gate.name]]}") for gate in gates]
    return Table("Gates", "gate", heads, make_columns(texts, words=["result"]))


def _show_threshold(value: float | None) -> str:
    """Write it as a person did; one that was widened to standard errors has three decimals."""
    return min(f.format_threshold(value), f.format_metric(value), key=len)


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
        ("training text kept", f"{f.format_share(record.token_budget['train'].share_kept)} at "
                               f"max_length {recipe.tokens.max_length}"),
        ("learning rate", f.format_threshold(recipe.train.learning_rate)),
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
