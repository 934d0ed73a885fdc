"""What a recipe feeds its model: encoded rows of every split, and whether the budget holds."""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from llmft.config.recipe import Recipe, TrainConfig
from llmft.data.budget import BudgetFindings, TokenBudget, judge_budget, measure_budget
from llmft.data.encoding import EncodedRow, Encoder
from llmft.data.fields import RowFaultError
from llmft.data.files import hash_text
from llmft.data.prepared import PreparedData, Row
from llmft.data.prompts import Prompt, read_prompt
from llmft.data.splitting import SPLITS
from llmft.errors import UserError
from llmft.models.bases import load_tokenizer, read_limits


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
    positions, has_segments = read_limits(config.base)
    if positions is not None and config.tokens.max_length > positions:
        raise UserError(
            f"tokens.max_length: found {config.tokens.max_length}, but {config.base.model} takes "
            f"at most {positions} tokens; lower it or choose a base for longer inputs"
        )
    tokenizer = load_tokenizer(config.base)
    if has_segments and recipe.task.fields.text_pair is not None:
        # So that other tools that open the saved tokenizer give the segments to the model too (H5).
        names = list(dict.fromkeys([*tokenizer.model_input_names, "token_type_ids"]))
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    encoder = Encoder(
        tokenizer,
        prompt=prompt,
        fields=recipe.task.fields,
        tokens=config.tokens,
        has_segments=has_segments,
    )
    return OpenedEncoder(tokenizer, prompt, encoder)


def open_inputs(recipe: Recipe, data: PreparedData) -> Inputs:
    """Encode every split and judge the token budget (D1); refusing is up to the caller.

    Raises:
        UserError: As `open_encoder`, if there is no room for an article at all, or if the head
            does not fit the classes.
    """
    if recipe.config.head.type == "binary" and len(data.label_names) != 2:
        raise UserError(
            f"head.type: binary, but the prepared data has {len(data.label_names)} classes: "
            f"{', '.join(data.label_names)}; take multiclass, or join classes in labels.map"
        )
    tokenizer, prompt, encoder = open_encoder(recipe)
    if recipe.metric != "loss":
        data.refuse_metric(recipe.metric, key="train.metric")
    rows: dict[str, list[Row]] = {name: data.read_split(name) for name in SPLITS}
    for name in ("train", "val"):
        rows[name] = limit_rows(rows[name], recipe.config.train.limit_rows)
    try:
        encoded: dict[str, list[EncodedRow]] = {name: encoder.encode(rows[name]) for name in SPLITS}
    except RowFaultError as error:
        raise UserError(
            f"{recipe.prompt_path}: {error}; name it in fields.keep of {recipe.config.task} and "
            "prepare again"
        ) from error
    budgets: dict[str, TokenBudget] = {
        name: measure_budget(rows[name], encoded[name], encoder=encoder) for name in SPLITS
    }
    findings = judge_budget(budgets, encoder=encoder, config=recipe.config.tokens)
    return Inputs(tokenizer, prompt, encoder, rows, encoded, budgets, findings)


def limit_rows(rows: list[Row], limit: int | None) -> list[Row]:
    """Return so many rows, chosen by the hash of their ids: the same ones in every arm."""
    if limit is None or len(rows) <= limit:
        return rows
    chosen = {row["id"] for row in sorted(rows, key=lambda row: hash_text(row["id"]))[:limit]}
    return [row for row in rows if row["id"] in chosen]


def count_steps(config: TrainConfig, *, num_rows: int) -> int:
    """Return the number of weight updates of a whole training on one device."""
    if config.steps is not None:
        return config.steps
    batches = math.ceil(num_rows / config.batch_size)
    return math.ceil(math.ceil(batches / config.gradient_accumulation_steps) * config.epochs)


def refuse_schedule(config: TrainConfig, *, num_rows: int) -> None:
    """Stop if the learning rate would still be rising at the end.

    Raises:
        UserError: With both numbers.
    """
    steps = count_steps(config, num_rows=num_rows)
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(steps * config.warmup_ratio)
    if warmup >= steps and config.lr_scheduler != "constant":
        length = f"{config.epochs:g} epochs" if config.steps is None else "train.steps"
        raise UserError(
            f"train.warmup: {warmup} warm-up steps, but the whole training has {steps} "
            f"({num_rows} rows, batch {config.batch_size}, {length}); lower "
            "train.warmup_steps or train.warmup_ratio, or train longer"
        )


def refuse_absent_trackers(names: Sequence[str]) -> None:
    """Stop if a tracker of `train.report_to` is not installed.

    Raises:
        UserError: Naming the first one.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.report_to: {name} is not installed; `pip install 'llmft[{name}]'`, or "
                "leave it out, since TensorBoard files are always written"
            )
