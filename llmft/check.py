"""`llmft check RECIPE`: report errors in recipe, data and token budget; writes nothing."""

import argparse
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmft.config.loading import Overrides, parse_overrides
from llmft.config.recipe import Recipe, ResolvedRecipe, load_recipe
from llmft.config.suite import describe_gates
from llmft.config.task import ClassConfig
from llmft.data.fields import Row
from llmft.data.prompts import read_prompt, read_recipe_prompt
from llmft.errors import UserError
from llmft.files import StrPath
from llmft.results.files import HasTable, Result
from llmft.results.run import TokenBudget
from llmft.wording import count, shorten_list

if TYPE_CHECKING:
    import pandas as pd

    from llmft.data.batches import BatchPlan
    from llmft.models.memory.estimates import Footprint
    from llmft.training.inputs import Inputs
    from llmft.training.launch import Launch

logger = logging.getLogger(__name__)

_NUM_GPUS = 8
"""GPUs of a machine, for layouts that need several."""


def main(arguments: list[str]) -> int:
    """Check the recipe and log what a training would do; return 0 (errors are raised)."""
    parser = argparse.ArgumentParser(prog="llmft check", description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a value")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--no-data", action="store_true", help="do not read the prepared data")
    data.add_argument(
        "--show",
        metavar="ROW",
        help="show the tokens of a row, given by its id or its position in train",
    )
    parser.add_argument(
        "--gpu-memory", type=_read_memory, metavar="SIZE",
        help="report which of ddp, zero2, zero3 and so on fit into the memory of a GPU, such as "
        "24GiB, instead of what is free on this machine",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    check(
        args.recipe, overrides=parse_overrides(args.set), read_data=not args.no_data,
        show=args.show, gpu_memory_gib=args.gpu_memory,
    )  # fmt: skip
    return 0


class CheckResult(Result, HasTable):
    """What a training of a recipe would do; what else was found is in the log."""

    name: str
    """Of the recipe."""
    num_steps: int | None
    """Optimizer steps; null unless the data was read."""
    memory_gib: float | None
    """Estimated peak on a device, without that of libraries and rows; null if it is unknown."""
    budgets: dict[str, TokenBudget]
    """Split -> truncation of its articles; empty unless the data was read."""

    def describe(self) -> str:
        """Return one line with steps and memory."""
        steps = "" if self.num_steps is None else f", {count(self.num_steps, 'step')}"
        memory = "" if self.memory_gib is None else f", about {self.memory_gib:.2f} GiB"
        return f"{self.name}: ok{steps}{memory}"

    def to_frame(self) -> "pd.DataFrame":
        """Return the token budgets: one row per split."""
        import pandas as pd

        found = {split: budget.model_dump() for split, budget in self.budgets.items()}
        return pd.DataFrame.from_dict(found, orient="index")


def check(
    recipe: StrPath | Recipe,
    *,
    overrides: Overrides | None = None,
    read_data: bool = True,
    show: str | int | None = None,
    gpu_memory_gib: float | None = None,
) -> CheckResult:
    """Check a recipe, its data and its token budget, and log what a training would do.

    Args:
        recipe: Recipe file, or a recipe made in Python.
        overrides: Dotted key, such as `train.epochs` -> value that replaces that of the recipe.
        read_data: Whether to read the prepared data.
        show: Id of a row, or its position in train, whose tokens to log.
        gpu_memory_gib: Memory of a GPU in GiB, to log which layouts fit into it.

    Raises:
        UserError: If anything would stop the training.
    """
    if not read_data and (gpu_memory_gib is not None or show is not None):
        option = "GPU memory" if show is None else "show"
        raise UserError(f"{option}: needs the prepared data; leave out --no-data (read_data)")
    resolved = load_recipe(recipe, overrides=overrides)
    # Imported where needed, here and below: most imports take seconds, and without the data few
    # are needed.
    from llmft.training.launch import plan_launch, require_packages

    config = resolved.config
    require_packages(config)
    launch = plan_launch(config)
    has_base = _report_recipe(resolved)
    prompt = read_recipe_prompt(resolved)
    if prompt != read_prompt(resolved.prompt_path, fields=resolved.task.fields):
        logger.info(
            "prompt: the lines with fields are moved to the end; --show 0 shows the result, and "
            "prompt.article: in_place leaves them where they are"
        )
    if read_data:
        from llmft.isolation import isolated

        with isolated():
            row = None if show is None else str(show)
            result = _check_inputs(resolved, launch, show=row, gpu_gib=gpu_memory_gib)
    else:
        _check_token_budget(resolved, has_base=has_base)
        result = CheckResult(name=config.name, num_steps=None, memory_gib=None, budgets={})
    logger.info(
        "gates of `llmft evaluate`, next to those of a suite, for the 95 %% bound of the gain in "
        "%s: %s", config.leading_metric, describe_gates({}, has_cases=False),
    )  # fmt: skip
    logger.info("ok")
    return result


def _report_recipe(recipe: ResolvedRecipe) -> bool:
    """Log the recipe and where its base is; return whether the base is on this machine."""
    from llmft.models.bases import find_base

    config = recipe.config
    logger.info(
        "recipe %s: %s, %s tuning, %s head, loss %s, prompt %sd, checkpoint by %s",
        config.name, config.base.model, config.base.tuning, config.head.type,
        config.head.loss_name, config.prompt.mode, recipe.metric,
    )  # fmt: skip
    found = find_base(config.base)
    if found is not None:
        logger.info("base: %s", found)
    else:
        logger.info(
            "base: %s is not on this machine; training downloads it, or fetch it now with "
            "`hf download %s --revision %s`",
            config.base.model, config.base.model, config.base.revision,
        )  # fmt: skip
    return found is not None


def _check_token_budget(recipe: ResolvedRecipe, *, has_base: bool) -> None:
    """Check the part of the token budget that needs the tokenizer but no rows."""
    if not has_base:
        logger.warning("without the base, token budget and memory are unknown")
        return
    from llmft.data.encoding import list_prompt_refusals, refuse_budget
    from llmft.models.bases import open_encoder

    encoder = open_encoder(recipe)
    logger.info(
        "tokens: prompt and tail take %d of %d, %d remain for the article",
        encoder.num_prompt_tokens, encoder.max_length, encoder.room,
    )  # fmt: skip
    refuse_budget(
        list_prompt_refusals(encoder, recipe.config.tokens), waive=recipe.config.tokens.waive
    )


def _check_inputs(
    recipe: ResolvedRecipe, launch: "Launch", *, show: str | None, gpu_gib: float | None
) -> CheckResult:
    from llmft.data.encoding import refuse_budget
    from llmft.reports.terminal import show_row
    from llmft.training.inputs import check_warmup, count_steps, open_inputs, plan_batches
    from llmft.training.losses import make_loss
    from llmft.training.train_model import resolve_defaults

    inputs = open_inputs(recipe, keep_tokens=False)
    resolved, config = resolve_defaults(recipe, launch), recipe.config
    if show is not None:
        split, row = _find_row(inputs, show)
        for line in show_row(row, split=split, encoder=inputs.encoder):
            logger.info("%s", line, extra={"has_colours": True})
    _report_data(inputs)
    refuse_budget(inputs.budget_findings.refusals, waive=config.tokens.waive)
    if inputs.budget_findings.refusals:
        logger.warning("the token budget is waived: %s", config.tokens.waive)
        for refusal in inputs.budget_findings.refusals:
            logger.warning("%s", refusal)
    label_names = inputs.data.label_names
    if config.init_from is not None:
        from llmft.training.run_folder import check_init_from

        check_init_from(config, label_names=label_names)
    if config.base.tuning == "frozen":
        make_loss(config.head, targets=inputs.train.targets, label_names=label_names)
        return CheckResult(
            name=config.name, num_steps=0, memory_gib=_report_frozen(recipe, inputs, gpu_gib),
            budgets=inputs.budgets,
        )  # fmt: skip
    num_devices = launch.world_size
    plan = plan_batches(recipe, inputs, world_size=num_devices)
    check_warmup(config.train, plan)
    make_loss(config.head, targets=inputs.train.targets, label_names=label_names)
    num_steps = count_steps(config.train, plan)
    logger.info(
        "training: %s on %s (%s in %s of up to %d, %s)",
        count(num_steps, "step"), count(num_devices, "device"), count(len(inputs.train), "row"),
        count(len(plan), "batch"), max(plan.global_sizes),
        "train.steps" if config.train.steps else count(config.train.epochs, "epoch"),
    )  # fmt: skip
    if resolved is not None:
        logger.info("%s", resolved.describe())
    if config.prompt.mode == "include":
        logger.info("prompt: %s", inputs.describe_sharing(plan.largest.num_rows))
    _report_probe(recipe, inputs, epochs=num_steps / len(plan))
    memory_gib = _report_memory(recipe, inputs, plan, gpu_gib=gpu_gib)
    return CheckResult(
        name=config.name, num_steps=num_steps, memory_gib=memory_gib, budgets=inputs.budgets
    )


def _report_probe(recipe: ResolvedRecipe, inputs: "Inputs", *, epochs: float) -> None:
    """Log whether `evaluate` and `compare` fit the baseline `probe`, and what it costs."""
    from llmft.evaluation.probe_baseline import HOW_TO_ASK, explain_no_probe

    num_rows = {split: len(rows) for split, rows in inputs.rows.items()}
    reason = explain_no_probe(recipe.config, num_rows=num_rows, epochs=epochs)
    if reason is None:
        logger.info(
            "baseline probe: one pass of the frozen base over %s, at most a fifth of the "
            "training's computation", count(sum(num_rows.values()), "row"),
        )  # fmt: skip
    else:
        logger.info("no baseline probe: %s; %s", reason, HOW_TO_ASK)


def _report_frozen(recipe: ResolvedRecipe, inputs: "Inputs", gpu_gib: float | None) -> float:
    """Log what a frozen base computes, and return its memory in GiB."""
    from llmft.models.bases import read_config
    from llmft.models.pooling import list_poolings
    from llmft.training.memory import measure_frozen

    base, model_config = recipe.config.base, read_config(recipe.config.base)
    poolings = list_poolings(base, model_config)
    num_rows = len(inputs.train) + len(inputs.val)
    num_tokens = int(inputs.train.lengths.sum() + inputs.val.lengths.sum())
    logger.info(
        "frozen base: one pass over %s, %s; all other keys of train than metric, limit_rows and "
        "precision have no effect", count(num_rows, "row"), count(num_tokens, "token"),
    )  # fmt: skip
    if len(poolings) > 1:
        logger.info(
            "the best on validation of: %s", "; ".join(p.describe() for p in poolings)
        )  # fmt: skip
    if recipe.config.prompt.mode == "include":
        logger.info("prompt: %s", inputs.describe_sharing())
    is_elsewhere = _runs_elsewhere(recipe.config, gpu_gib)
    found = measure_frozen(recipe, inputs, is_elsewhere=is_elsewhere)
    logger.info(
        "memory: about %.2f GiB%s: weights %.2f, vectors %.2f, fitting %.2f, rows %.2f; on disk "
        "%.2f GiB of states",
        found.peak_gib, _describe_used(), *found,
    )  # fmt: skip
    return found.peak_gib


def _report_data(inputs: "Inputs") -> None:
    from llmft.reports.terminal import describe_labels
    from llmft.results.run import describe_budgets

    data = inputs.data
    counts = data.manifest.counts
    logger.info(
        "data %s: %s of %s used, fingerprint %s",
        data.task.output, counts["input"] - counts["rejected"], count(counts["input"], "row"),
        data.fingerprint[:12],
    )  # fmt: skip
    for source in data.find_changed_sources():
        logger.warning("%s changed since it was prepared", source)
    if isinstance(data.task.labels, ClassConfig):
        logger.info(
            "classes: %s%s",
            shorten_list(data.label_names),
            "; the positive class is the last one" if len(data.label_names) == 2 else "",
        )
    for line in describe_labels(data.manifest):
        logger.info("labels %s", line)
    for line in describe_budgets(inputs.budgets):
        logger.info("%s", line)
    for warning in (*data.manifest.warnings, *inputs.budget_findings.warnings):
        logger.warning("%s", warning)


def _report_memory(
    recipe: ResolvedRecipe,
    inputs: "Inputs",
    plan: "BatchPlan",
    *,
    gpu_gib: float | None,
) -> float | None:
    """Log the memory of a training, and return it in GiB; None if it is unknown.

    Raises:
        UserError: If it does not fit into the memory that is free.
    """
    from llmft.training.launch import ONE_PROCESS
    from llmft.training.memory import (
        choose_micro_batches,
        make_step,
        refuse_checkpointing,
        trace,
    )

    refuse_checkpointing(recipe)
    config = recipe.config
    if gpu_gib is not None:
        wanted = config.train.precision
        step = make_step(
            recipe, inputs, plan.largest,
            gradient_checkpointing=config.train.gradient_checkpointing,
            accumulates=plan.num_accumulated > 1,
        )  # fmt: skip
        on_gpu = step._replace(on_gpu=True, precision="bfloat16" if wanted == "auto" else wanted)
        footprint = trace(recipe, inputs, on_gpu)
        if footprint is not None:
            _report_layouts(recipe, footprint, gpu_gib=gpu_gib)
    found = choose_micro_batches(
        recipe, inputs, ONE_PROCESS, is_elsewhere=_runs_elsewhere(config, gpu_gib)
    )
    if found is None:
        logger.warning("the memory that %s needs is unknown", config.base.model)
        return None
    need, footprint = found.estimate, found.footprint
    logger.info(
        "memory: about %.2f GiB%s, for %s: %s; %s of %s parameters are trained",
        need.peak_gib, _describe_used(), found.describe(), need.describe(),
        f"{footprint.trainable:,}", f"{footprint.total:,}",
    )  # fmt: skip
    return need.peak_gib


def _describe_used() -> str:
    from llmft.models.memory.peak import measure_used_memory

    with suppress(OSError):
        return f", next to {measure_used_memory():.1f} GiB that are in use already"
    return ""


def _runs_elsewhere(config: Recipe, gpu_gib: float | None) -> bool:
    """Return whether a training is to run on other devices than that of this process."""
    is_shared = config.launch.deepspeed is not None or (config.train.world_size or 1) > 1
    return gpu_gib is not None or is_shared


def _report_layouts(recipe: ResolvedRecipe, footprint: "Footprint", *, gpu_gib: float) -> None:
    """Report the memory per GPU with replicated and with sharded parameters."""
    from llmft.models.memory.estimates import (
        ESTIMATE_ERROR,
        GPU_LIBRARIES_GIB,
        estimate_memory,
        list_layouts,
    )

    logger.info(
        "memory per GPU, of %.1f GiB, with %.0f GiB for the libraries (estimates: within %.0f%% of "
        "measured peaks of small models on a CPU, never compared on a GPU):",
        gpu_gib, GPU_LIBRARIES_GIB, 100 * ESTIMATE_ERROR,
    )  # fmt: skip
    for layout in list_layouts(recipe.config.base):
        num_gpus = 1 if layout == "one device" else _NUM_GPUS
        name = "one GPU" if layout == "one device" else f"{layout}, {num_gpus} GPUs"
        found = estimate_memory(footprint, layout=layout, num_devices=num_gpus)
        total_gib = found.peak_gib + GPU_LIBRARIES_GIB
        least, most = total_gib * (1 - ESTIMATE_ERROR), total_gib * (1 + ESTIMATE_ERROR)
        verdict = "fits" if most <= gpu_gib else "may fit" if least <= gpu_gib else "does not fit"
        logger.info("  %-27s %7.1f GiB  %s", name, total_gib, verdict)


def _read_memory(text: str) -> float:
    """Return a size in GiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT])(i?)B", text.strip())
    size = 0.0
    if found:
        number, prefix, binary = found.groups()
        size = float(number) * (1024 if binary else 1000) ** (1 + "KMGT".index(prefix)) / 2**30
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size above 0, such as 24GiB or 80GB")
    return size


def _find_row(inputs: "Inputs", name: str) -> tuple[str, Row]:
    """Return the split and the row with an id, or at a position in train.

    Raises:
        UserError: If there is none.
    """
    for split, rows in inputs.rows.items():
        for row in rows:
            if row["id"] == name:
                return split, row
    if name.isdecimal() and int(name) < len(inputs.rows["train"]):
        return "train", inputs.rows["train"][int(name)]
    raise UserError(
        f"show: no row has the id {name!r}; name an id, or a position below "
        f"{len(inputs.rows['train'])} in train"
    )
