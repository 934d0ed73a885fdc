"""Fit what a recipe describes: load the model, fit it, and bring its weights home."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from llmft.config.recipe import BaseConfig, Recipe
from llmft.data.batches import BatchPlan, Collator, make_targets
from llmft.data.prepared import PreparedData
from llmft.models.bases import pin_base
from llmft.models.device import choose_precision
from llmft.models.heads import (
    LabelSpace,
    TargetScale,
    find_output_layer,
    fit_target_scale,
    fold_scale,
    is_far_from_zero,
    unfold_scale,
)
from llmft.models.initial import load_weights
from llmft.models.loading import load_model
from llmft.models.precision import cast_frozen_weights
from llmft.models.saved import ModelCard, make_card
from llmft.models.shared_prompt import SharedPrompt
from llmft.processes import is_main
from llmft.results.run import RunIdentity
from llmft.training.inputs import Inputs, make_examples
from llmft.training.launch import Launch
from llmft.training.losses import make_loss
from llmft.training.run_folder import Start
from llmft.training.schedule import make_schedule
from llmft.training.sharing import choose_rows
from llmft.training.trainer import Fit, FitResult, Measure, fit_model

logger = logging.getLogger("llmft.train")

MakeMeasure = Callable[[NDArray[Any], TargetScale | None, ModelCard, str], Measure]
"""From labels [N, ...], the scale of what is learned, the card and the metric that has to be
there, to the measure of outputs."""


class Run(NamedTuple):
    """What is trained, on what, and where it goes."""

    recipe: Recipe
    data: PreparedData
    inputs: Inputs
    launch: Launch
    identity: RunIdentity
    folder: Path


class Fitted(NamedTuple):
    """What a fit leaves. Where processes divide the weights, only the main one gets the model."""

    model: nn.Module
    card: ModelCard
    result: FitResult
    plan: BatchPlan


def fit_run(run: Run, plan: BatchPlan, start: Start, *, make_measure: MakeMeasure) -> Fitted:
    """Load a model and fit it; it ends in the labels' units.

    Args:
        run: What is trained.
        plan: The batches.
        start: Where the training begins.
        make_measure: Makes the measure of validation outputs.

    Raises:
        UserError: If the base cannot be loaded, the loss is not finite, or the disk is full.
        StoppedError: If told to stop.
        torch.OutOfMemoryError: If a GPU's memory does not suffice.
    """
    recipe, inputs, launch = run.recipe, run.inputs, run.launch
    schedule = make_schedule(
        recipe.config.train,
        plan=plan,
        metric=recipe.metric,
        run_dir=run.folder,
        launch=launch,
    )
    model, card = _open_model(run, begins=start.resume_from is None)
    train, val = (
        make_targets(inputs.rows[name], label_names=card.label_names) for name in ("train", "val")
    )
    head, scale, scaled = recipe.config.head, None, {"train": train, "val": val}
    if card.head == "regression":
        scale = _fit_scale(model, train, card)
        scaled = {split: scale.to_targets(targets) for split, targets in scaled.items()}
        if recipe.config.init_from is not None:
            unfold_scale(model, scale)
    examples = {
        split: make_examples(inputs, targets, split=split, loss=head.loss)
        for split, targets in scaled.items()
    }
    sharing, checked = None, choose_rows(examples["train"])
    if inputs.obstacle is None:
        sharing = SharedPrompt(model, inputs.encoder.shared_ids)
        examples = {split: found.without_shared() for split, found in examples.items()}
    fit = Fit(
        model=model,
        train=examples["train"],
        val=examples["val"],
        collator=Collator(pad_token_id=inputs.tokenizer.pad_token_id, targets=scaled["train"]),
        loss=make_loss(head, targets=train, label_names=card.label_names),
        measure=make_measure(val.numpy(), scale, card, recipe.metric),
        sharing=sharing,
        checked=checked,
    )
    try:
        result = fit_model(fit, schedule, resume_from=start.resume_from)
    finally:
        if sharing is not None:
            sharing.detach()
    if not launch.has_whole_weights and is_main():
        model = _reload_whole(card.base, run, result)
    if scale is not None and is_main():
        fold_scale(model, scale)
    return Fitted(model, card, result, plan)


def _open_model(run: Run, *, begins: bool) -> tuple[nn.Module, ModelCard]:
    config, inputs = run.recipe.config, run.inputs
    transformers.set_seed(config.train.seed)
    base = pin_base(config.base)
    model = _load(base, run)
    card = make_card(model, base, run.recipe, run.data, inputs.prompt)
    logger.info(
        "%s: %s with %s tuning, %s of %s parameters trained, %s, %d %s",
        config.name, config.base.model, config.base.tuning, f"{card.num_trainable:,}",
        f"{card.num_parameters:,}", card.precision, run.launch.world_size,
        "process" if run.launch.world_size == 1 else "processes",
    )  # fmt: skip
    if config.init_from is not None and begins:
        load_weights(model, Path(config.init_from) / "model")
        logger.info("the weights are those of %s to begin with", config.init_from)
    if card.prompt is not None:
        logger.info("%s", inputs.describe_sharing())
    if card.precision == "bfloat16" and run.launch.has_whole_weights:
        cast_frozen_weights(model)
    return model, card


def _load(base: BaseConfig, run: Run) -> nn.Module:
    return load_model(
        base,
        labels=LabelSpace(run.recipe.config.head.type, run.data.label_names),
        pad_token_id=run.inputs.tokenizer.pad_token_id,
        seed=run.recipe.config.train.seed,
        precision=choose_precision(run.recipe.config.train.precision),
    ).model


def _reload_whole(base: BaseConfig, run: Run, result: FitResult) -> nn.Module:
    """Return the chosen weights in one piece, from the checkpoint that the processes wrote (R1)."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    model = _load(base, run)
    load_weights(model, result.best_checkpoint)
    return model


def _fit_scale(model: nn.Module, train_ND: Tensor, card: ModelCard) -> TargetScale:
    has_bias = find_output_layer(model).bias is not None
    if not has_bias and is_far_from_zero(train_ND):
        logger.info(
            "warning: the scores lie far from 0 for how little they vary, and the head of %s "
            "has no bias to start from there; shift them towards 0, or take a BERT-family base",
            card.base.model,
        )
    return fit_target_scale(train_ND, has_bias=has_bias)
