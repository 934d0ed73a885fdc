"""What a recipe feeds its model: encoded rows of every split, and whether the budget holds."""

import math
from typing import Any, NamedTuple

from llmft.config.recipe import Recipe, TrainConfig
from llmft.data.budget import BudgetFindings, TokenBudget, judge_budget, measure_budget
from llmft.data.encoding import EncodedRow, Encoder
from llmft.data.prepared import PreparedData, Row
from llmft.data.prompts import Prompt, read_prompt
from llmft.data.sources import RowFaultError
from llmft.data.splitting import SPLITS
from llmft.errors import UserError
from llmft.models.bases import load_tokenizer, read_max_positions


class Inputs(NamedTuple):
    """Everything that goes into a training, tokenised."""

    tokenizer: Any
    prompt: Prompt
    encoder: Encoder
    rows: dict[str, list[Row]]
    """Split -> prepared rows."""
    encoded: dict[str, list[EncodedRow]]
    """Split -> the same rows, encoded."""
    budgets: dict[str, TokenBudget]
    findings: BudgetFindings


class OpenedEncoder(NamedTuple):
    """How a recipe encodes its rows."""

    tokenizer: Any
    prompt: Prompt
    encoder: Encoder


def open_encoder(recipe: Recipe) -> OpenedEncoder:
    """Return tokenizer, prompt and encoder of a recipe.

    Raises:
        UserError: If prompt or base cannot be read, or the base takes shorter inputs only.
    """
    config = recipe.config
    prompt = read_prompt(recipe.prompt_path, fields=recipe.task.fields)
    positions = read_max_positions(config.base)
    if positions is not None and config.tokens.max_length > positions:
        raise UserError(
            f"tokens.max_length: found {config.tokens.max_length}, but {config.base.model} takes "
            f"at most {positions} tokens; lower it or choose a base for longer inputs"
        )
    tokenizer = load_tokenizer(config.base)
    encoder = Encoder(
        tokenizer,
        prompt=prompt,
        fields=recipe.task.fields,
        max_length=config.tokens.max_length,
    )
    return OpenedEncoder(tokenizer, prompt, encoder)


def open_inputs(recipe: Recipe, data: PreparedData) -> Inputs:
    """Encode every split and judge the token budget (D1); refusing is up to the caller.

    Raises:
        UserError: As `open_encoder`, and if there is no room for an article at all.
    """
    tokenizer, prompt, encoder = open_encoder(recipe)
    rows = {name: data.read_split(name) for name in SPLITS}
    try:
        encoded = {name: encoder.encode(rows[name]) for name in SPLITS}
    except RowFaultError as error:
        raise UserError(
            f"{recipe.prompt_path}: {error}; name it in fields.keep of {recipe.config.task} and "
            "prepare again"
        ) from error
    budgets = {name: measure_budget(rows[name], encoded[name], encoder=encoder) for name in SPLITS}
    findings = judge_budget(budgets, encoder=encoder, config=recipe.config.tokens)
    return Inputs(tokenizer, prompt, encoder, rows, encoded, budgets, findings)


def count_steps(config: TrainConfig, *, num_rows: int) -> int:
    """Return the number of weight updates of a whole training on one device."""
    batches = math.ceil(num_rows / config.batch_size)
    return math.ceil(math.ceil(batches / config.gradient_accumulation_steps) * config.epochs)


def refuse_warmup(config: TrainConfig, *, num_rows: int) -> None:
    """Stop if the learning rate would still be rising at the end.

    Raises:
        UserError: With both numbers.
    """
    steps = count_steps(config, num_rows=num_rows)
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(steps * config.warmup_ratio)
    if warmup >= steps:
        raise UserError(
            f"train.warmup: {warmup} warm-up steps, but the whole training has {steps} "
            f"({num_rows} rows, batch {config.batch_size}, {config.epochs:g} epochs); lower "
            "train.warmup_steps or train.warmup_ratio, or train longer"
        )
