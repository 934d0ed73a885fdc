"""`llmft check RECIPE`: look for mistakes before anything runs. Changes nothing."""

import argparse
import logging
from pathlib import Path

from llmft.config.loading import suggest
from llmft.config.recipe import Recipe, load_recipe
from llmft.data.budget import judge_room, refuse_budget
from llmft.data.prepared import open_prepared
from llmft.data.prompts import find_strange_placeholders, list_placeholders, read_prompt
from llmft.errors import UserError
from llmft.training.inputs import count_steps, open_encoder, open_inputs, refuse_warmup

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="llmft check", description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a value")
    parser.add_argument("--no-data", action="store_true", help="leave the prepared data alone")
    args = parser.parse_args(arguments)

    recipe = load_recipe(args.recipe, overrides=args.set)
    config = recipe.config
    logger.info(
        "recipe %s: %s, %s tuning, %s head, prompt %sd",
        config.name, config.base.model, config.base.tuning, config.head.type, config.prompt.mode,
    )  # fmt: skip
    _report_placeholders(recipe)
    if args.no_data:
        _check_room(recipe)
    else:
        _check_inputs(recipe)
    logger.info("ok")
    return 0


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


def _check_room(recipe: Recipe) -> None:
    """Check what can be told without rows, if the tokenizer is at hand."""
    try:
        encoder = open_encoder(recipe).encoder
    except UserError as error:
        if "cannot be loaded" not in str(error):
            raise
        logger.info("warning: the token budget is unknown: %s", error)
        return
    logger.info(
        "tokens: prompt and tail take %d of %d, %d are left for the article",
        encoder.num_prompt_tokens, encoder.max_length, encoder.room,
    )  # fmt: skip
    refuse_budget(judge_room(encoder, recipe.config.tokens), waive=recipe.config.tokens.waive)


def _check_inputs(recipe: Recipe) -> None:
    config = recipe.config
    data = open_prepared(recipe.task, task_file=config.task)
    inputs = open_inputs(recipe, data)
    counts = data.manifest["counts"]
    logger.info(
        "data %s: %s of %s rows used, fingerprint %s",
        recipe.task.output, sum(len(rows) for rows in inputs.rows.values()), counts["input"],
        data.fingerprint[:12],
    )  # fmt: skip
    for source in data.find_changed_sources():
        logger.info("warning: %s changed since it was prepared", source)
    for split, budget in inputs.budgets.items():
        logger.info("tokens %5s: %s", split, budget.describe())
    for warning in inputs.findings.warnings:
        logger.info("warning: %s", warning)
    refuse_budget(inputs.findings.refusals, waive=config.tokens.waive)
    if inputs.findings.refusals:
        logger.info("warning: the token budget is waived: %s", config.tokens.waive)
        for refusal in inputs.findings.refusals:
            logger.info("warning: %s", refusal)
    num_rows = len(inputs.rows["train"])
    refuse_warmup(config.train, num_rows=num_rows)
    logger.info(
        "training: %d steps on one device (%d rows, batch %d, %g epochs)",
        count_steps(config.train, num_rows=num_rows), num_rows, config.train.batch_size,
        config.train.epochs,
    )  # fmt: skip
