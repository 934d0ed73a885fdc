"""Inputs of a training: encoded rows of every split, batches, and the token budget."""

import logging
import math
from pathlib import Path
from typing import NamedTuple

from llmft.config.recipe import ResolvedRecipe, TrainConfig
from llmft.config.task import SPLITS, name_task
from llmft.data.batches import BatchPlan, Examples, make_targets
from llmft.data.encoding import BudgetFindings, Encoder, check_budget
from llmft.data.fields import Row, RowFaultError
from llmft.data.prepared import PreparedData, open_prepared
from llmft.data.token_cache import TOKENS_FOLDER, open_tokens
from llmft.errors import UserError
from llmft.files import hash_text
from llmft.models.acceleration.shared_prompt import explain_unshared
from llmft.models.bases import open_encoder, read_config
from llmft.results.run import TokenBudget
from llmft.training.losses import read_row_weights
from llmft.wording import count

logger = logging.getLogger("llmft.train")
_SAME_LABELS = "all of its {} rows have the same labels, so no checkpoint can be chosen on them"


class Inputs(NamedTuple):
    """Prepared rows of every split, train and val encoded, with encoder and token budgets."""

    data: PreparedData
    encoder: Encoder
    rows: dict[str, list[Row]]
    """Split -> prepared rows."""
    train: Examples
    """The rows of train, encoded, with their labels and row weights."""
    val: Examples
    budgets: dict[str, TokenBudget]
    budget_findings: BudgetFindings
    unshared_reason: str | None
    """Why the prompt is not computed once for all rows of a batch; None if it is."""

    def describe_sharing(self, num_rows: int = 16) -> str:
        """Return one line on how the prompt is computed in batches of so many rows.

        If more of it could be computed once with the article last, the line says what that saves.
        """
        if self.unshared_reason is not None:
            return f"the prompt is computed in every row: {self.unshared_reason}"
        encoder, last = self.encoder, self.encoder.with_article_last()
        num_shared, num_prompt = len(encoder.shared_ids), encoder.num_prompt_tokens
        line = f"{num_shared:,} of its {num_prompt:,} tokens are computed once a batch"
        if num_shared + 1 < num_prompt:
            line += f", the other {num_prompt - num_shared:,} in every row"
        if len(last.shared_ids) > num_shared:
            num_article = float(self.train.lengths.mean()) - num_prompt
            in_place, if_last = (
                len(e.shared_ids) + num_rows * (num_prompt - len(e.shared_ids) + num_article)
                for e in (encoder, last)
            )
            line += (
                f"; with prompt.article: last {len(last.shared_ids):,} would be, and a batch of "
                f"{count(num_rows, 'row')} would have {in_place / if_last:.1f} times fewer tokens"
            )
        return line


def open_inputs(recipe: ResolvedRecipe, *, keep_tokens: bool = True) -> Inputs:
    """Encode every split and check the token budget (D1); the caller acts on the findings.

    Args:
        recipe: The recipe.
        keep_tokens: Whether to keep the tokens next to the data, for the next run.

    Raises:
        UserError: If the task is not prepared; as `open_encoder`; if there is no room for an
            article at all, if head or metric do not fit the labels, if those of val are all the
            same, or if the weight of a row is not a number of at least 0.
    """
    data = open_prepared(recipe.task, named=recipe.config.task)
    if recipe.config.head.type == "binary" and len(data.label_names) != 2:
        raise UserError(
            f"head.type: binary, but the prepared data has {len(data.label_names)} classes: "
            f"{', '.join(data.label_names)}; use multiclass, or merge classes in labels.map"
        )
    encoder = open_encoder(recipe)
    if recipe.metric != "loss":
        data.refuse_metric(recipe.metric, key="train.metric")
    rows: dict[str, list[Row]] = {name: data.read_split(name) for name in SPLITS}
    limit = recipe.config.train.limit_rows
    for name in ("train", "val"):
        rows[name] = limit_rows(rows[name], limit)
    names = [data.fingerprint, str(limit), encoder.compute_fingerprint()]
    folder = Path(data.task.output) / TOKENS_FOLDER / hash_text(" ".join(names))[:16]
    try:
        encoded, budgets = open_tokens(rows, encoder=encoder, folder=folder, keep=keep_tokens)
    except RowFaultError as error:
        raise UserError(
            f"{recipe.prompt_path}: {error}; name it in fields.keep of "
            f"{name_task(recipe.config.task)} and prepare again"
        ) from error
    loss, examples = recipe.config.head.loss, {}
    for name in ("train", "val"):
        weights = None
        if loss.row_weights is not None:
            weights = read_row_weights(rows[name], field=loss.row_weights, train_rows=rows["train"])
        labels = make_targets(rows[name], label_names=data.label_names)
        ids = [row["id"] for row in rows[name]]
        examples[name] = Examples(encoded[name], labels, ids=ids, weights=weights)
    targets = examples["val"].targets
    if limit is None and recipe.metric != "loss" and (targets == targets[0]).all():
        raise UserError(
            f"val: {_SAME_LABELS.format(len(rows['val']))}; prepare "
            f"{name_task(recipe.config.task)} again with a larger split.val, or another split.seed"
        )
    findings = check_budget(budgets, encoder=encoder, config=recipe.config.tokens)
    unshared_reason = explain_unshared(read_config(recipe.config.base))
    if not recipe.config.prompt.share:
        unshared_reason = "prompt.share is false"
    return Inputs(
        data=data, encoder=encoder, rows=rows, train=examples["train"], val=examples["val"],
        budgets=budgets, budget_findings=findings, unshared_reason=unshared_reason,
    )  # fmt: skip


def choose_by_loss(recipe: ResolvedRecipe, inputs: Inputs) -> ResolvedRecipe:
    """Return the recipe of a trial run, whose few validation rows may all have the same labels.

    Then it chooses by the loss: a metric would call a model perfect that knows nothing else.
    """
    targets, metric = inputs.val.targets, recipe.metric
    if metric == "loss" or not (targets == targets[0]).all():
        return recipe
    logger.warning(
        "val: %s by %s: by the loss instead; raise train.limit_rows",
        _SAME_LABELS.format(len(targets)), metric,
    )  # fmt: skip
    train = recipe.config.train.model_copy(update={"metric": "loss"})
    return recipe._replace(config=recipe.config.model_copy(update={"train": train}))


def limit_rows(rows: list[Row], limit: int | None) -> list[Row]:
    """Return at most `limit` rows, chosen by the hash of their ids: the same in every variant."""
    if limit is None or len(rows) <= limit:
        return rows
    chosen = {row["id"] for row in sorted(rows, key=lambda row: hash_text(row["id"]))[:limit]}
    return [row for row in rows if row["id"] in chosen]


def plan_batches(
    recipe: ResolvedRecipe, inputs: Inputs, *, world_size: int = 1, micro_batch_divisor: int = 1
) -> BatchPlan:
    """Plan the batches of a recipe's training, as `BatchPlan` does.

    Raises:
        UserError: If a row is longer than a batch may be.
    """
    rows = inputs.train.without_shared() if inputs.unshared_reason is None else inputs.train
    return BatchPlan(
        rows.lengths,
        recipe.config.train,
        num_shared=rows.num_shared,
        world_size=world_size,
        micro_batch_divisor=micro_batch_divisor,
    )


def count_steps(config: TrainConfig, plan: BatchPlan) -> int:
    """Return the optimizer steps of a training."""
    return config.steps or math.ceil(len(plan) * config.epochs)


def check_warmup(config: TrainConfig, plan: BatchPlan) -> None:
    """Check that the warm-up ends before the training does.

    Raises:
        UserError: With both numbers.
    """
    steps = count_steps(config, plan)
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(steps * config.warmup_ratio)
    if warmup >= steps and config.lr_scheduler != "constant":
        length = count(config.epochs, "epoch") if config.steps is None else "train.steps"
        raise UserError(
            f"train.warmup: {count(warmup, 'warm-up step')}, but the training has {steps} "
            f"({count(len(plan), 'batch')} an epoch, {length}); lower "
            "train.warmup_steps or train.warmup_ratio, or train longer"
        )
