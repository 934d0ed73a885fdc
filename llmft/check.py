"""`llmft check RECIPE`: look for mistakes before anything runs. Changes nothing."""

import argparse
import logging
from pathlib import Path

from llmft.config.labels import ClassConfig
from llmft.config.loading import suggest
from llmft.config.recipe import Recipe, load_recipe
from llmft.data.batches import BatchPlan, make_targets
from llmft.data.budget import judge_room, refuse_budget
from llmft.data.fields import shorten_list
from llmft.data.prepared import PreparedData, Row, open_prepared
from llmft.data.prompts import find_strange_placeholders, list_placeholders, read_prompt
from llmft.errors import UserError
from llmft.models.bases import find_base, read_config
from llmft.models.heads import LabelSpace
from llmft.models.memory import count_parameters, estimate_memory
from llmft.reports.terminal import describe_labels, show_row
from llmft.training.inputs import (
    Inputs,
    count_steps,
    open_encoder,
    open_inputs,
    plan_batches,
    refuse_absent_trackers,
    refuse_schedule,
)
from llmft.training.losses import make_loss, read_row_weights

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="llmft check", description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a value")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--no-data", action="store_true", help="leave the prepared data alone")
    data.add_argument(
        "--show",
        metavar="ROW",
        help="show what the tokenizer makes of a row, named by its id or its position in train",
    )
    args = parser.parse_args(arguments)

    recipe = load_recipe(args.recipe, overrides=args.set)
    refuse_absent_trackers(recipe.config.train.report_to)
    has_base = _report_recipe(recipe)
    _report_placeholders(recipe)
    if args.no_data:
        _check_room(recipe, has_base=has_base)
    else:
        _check_inputs(recipe, show=args.show)
    logger.info("ok")
    return 0


def _report_recipe(recipe: Recipe) -> bool:
    """Return whether the base is on this machine."""
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
    if config.base.tuning == "qlora":
        logger.info("warning: base.tuning: this release does not train qlora yet")
    return found is not None


def _report_placeholders(recipe: Recipe) -> None:
    if recipe.prompt_path is None:
        return
    fields = recipe.task.fields
    prompt = read_prompt(recipe.prompt_path, fields=fields)
    for name in find_strange_placeholders("".join(prompt), fields=fields):
        hint = suggest(name, allowed=list_placeholders(fields))
        logger.info(
            "warning: %s: {%s} names no field and stays as it is.%s",
            recipe.prompt_path, name, hint,
        )  # fmt: skip


def _check_room(recipe: Recipe, *, has_base: bool) -> None:
    """Check what can be told without rows, if the tokenizer is at hand."""
    if not has_base:
        logger.info("warning: without the base, token budget and memory are not known")
        return
    encoder = open_encoder(recipe).encoder
    logger.info(
        "tokens: prompt and tail take %d of %d, %d are left for the article",
        encoder.num_prompt_tokens, encoder.max_length, encoder.room,
    )  # fmt: skip
    refuse_budget(judge_room(encoder, recipe.config.tokens), waive=recipe.config.tokens.waive)


def _check_inputs(recipe: Recipe, *, show: str | None) -> None:
    config = recipe.config
    data = open_prepared(recipe.task, task_file=config.task)
    inputs = open_inputs(recipe, data, keep_tokens=False)
    if show is not None:
        split, row = _find_row(inputs, show)
        for line in show_row(row, split=split, encoder=inputs.encoder, tokenizer=inputs.tokenizer):
            logger.info("%s", line)
    _report_data(data, inputs)
    refuse_budget(inputs.findings.refusals, waive=config.tokens.waive)
    if inputs.findings.refusals:
        logger.info("warning: the token budget is waived: %s", config.tokens.waive)
        for refusal in inputs.findings.refusals:
            logger.info("warning: %s", refusal)
    train_rows = inputs.rows["train"]
    plan = plan_batches(recipe, inputs)
    refuse_schedule(config.train, plan)
    targets = make_targets(train_rows, label_names=data.label_names)
    make_loss(config.head, targets=targets, label_names=data.label_names)
    if config.head.loss.row_weights is not None:
        for rows in (train_rows, inputs.rows["val"]):
            read_row_weights(rows, field=config.head.loss.row_weights, train_rows=train_rows)
    logger.info(
        "training: %d steps on one device (%d rows in %d batches of up to %d, %s)",
        count_steps(config.train, plan), len(train_rows), len(plan),
        max(shape.num_rows for shape in plan.shapes),
        "train.steps" if config.train.steps else f"{config.train.epochs:g} epochs",
    )  # fmt: skip
    _report_memory(recipe, data, inputs, plan)


def _report_data(data: PreparedData, inputs: Inputs) -> None:
    counts = data.manifest["counts"]
    logger.info(
        "data %s: %s of %s rows used, fingerprint %s",
        data.task.output, counts["input"] - counts["rejected"], counts["input"],
        data.fingerprint[:12],
    )  # fmt: skip
    for source in data.find_changed_sources():
        logger.info("warning: %s changed since it was prepared", source)
    if isinstance(data.task.labels, ClassConfig):
        logger.info(
            "classes: %s; a binary head would learn the last one", shorten_list(data.label_names)
        )
    for line in describe_labels(data.manifest):
        logger.info("labels %s", line)
    for split, budget in inputs.budgets.items():
        logger.info("tokens %5s: %s", split, budget.describe())
    for warning in (*data.manifest["warnings"], *inputs.findings.warnings):
        logger.info("warning: %s", warning)


def _report_memory(recipe: Recipe, data: PreparedData, inputs: Inputs, plan: BatchPlan) -> None:
    config = recipe.config
    if config.prompt.mode == "include":
        logger.info("prompt: %s", inputs.describe_sharing())
    space = LabelSpace(config.head.type, data.label_names)
    parameters = count_parameters(config.base, labels=space)
    largest = plan.largest
    num_shared = len(inputs.encoder.shared_ids) if inputs.obstacle is None else None
    found = estimate_memory(
        parameters,
        read_config(config.base),
        config.train,
        batch=largest,
        num_shared=num_shared,
    )
    logger.info(
        "memory: about %.1f GiB, and half a GiB for the libraries, for a batch of %d x %d tokens"
        "%s: weights %.2f, gradients and optimiser %.2f, activations %.2f; "
        "%s of %s parameters are trained",
        found.total_gib, largest.num_rows, largest.longest,
        f" and {num_shared} shared" if num_shared else "", found.weights_gib,
        found.optimiser_gib, found.activations_gib, f"{parameters.trainable:,}",
        f"{parameters.total:,}",
    )  # fmt: skip


def _find_row(inputs: Inputs, name: str) -> tuple[str, Row]:
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
        f"--show: no row has the id {name!r}; name an id, or a position below "
        f"{len(inputs.rows['train'])} in train"
    )
