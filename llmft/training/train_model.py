"""From a recipe to a trained model: loading, target scale, loss, training, full weights."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from llmft.config.recipe import BaseConfig, ResolvedRecipe
from llmft.data.batches import BatchPlan, Collator
from llmft.errors import UserError
from llmft.metrics.definitions import measure
from llmft.models.acceleration.precision import cast_frozen_weights
from llmft.models.acceleration.shared_prompt import SharedPrompt
from llmft.models.bases import pin_base, read_config
from llmft.models.device import choose_precision
from llmft.models.heads import (
    LabelSpace,
    TargetScale,
    find_output_layer,
    fit_target_scale,
    fold_scale,
    is_far_from_zero,
    set_output_layer,
    to_outputs,
    unfold_scale,
)
from llmft.models.loading import load_model
from llmft.models.pooling import choose_pooling
from llmft.models.saved import ModelSpec, load_weights, make_spec
from llmft.processes import is_main
from llmft.results.run import Pooling, ResolvedDefaults
from llmft.training.inputs import Inputs
from llmft.training.launch import ONE_PROCESS, Launch
from llmft.training.losses import make_loss
from llmft.training.sharing_check import SharingCheck, choose_rows
from llmft.training.trainer import TrainingResult, make_arguments, run_trainer

logger = logging.getLogger("llmft.train")


_RATES = {"full": 2e-4, "lora": 1e-3, "qlora": 1e-3}
_RATES_WIDTH = 384
"""Default learning rates of a base of this width: measured on a MiniLM (docs/results.md). They
shrink in proportion to the width, as those of hidden layers under Adam (Yang et al. 2022,
arXiv:2203.03466)."""


def resolve_defaults(recipe: ResolvedRecipe, launch: Launch) -> ResolvedDefaults | None:
    """Return what defaults of a recipe stand for on its base; None for a frozen base.

    With sharded weights they are what such a training can do: the base's class in transformers,
    from a random head.

    Raises:
        UserError: If the base is not there, or its pooling reads a token that sees only itself.
    """
    config = recipe.config
    base, init, rate = config.base, config.head.init, config.train.learning_rate
    if base.tuning == "frozen":
        return None
    model_config = read_config(base)
    pooling = choose_pooling(base, model_config) if launch.has_replicated_weights else None
    if init == "auto":
        init = "random" if pooling is None else "probe"
    if rate is None:
        width = model_config.get_text_config().hidden_size
        rate = float(f"{_RATES[base.tuning] * min(1, _RATES_WIDTH / width):.2g}")
    return ResolvedDefaults(
        pooling=pooling, head_init=None if config.init_from else init, learning_rate=rate
    )


class TrainedModel(NamedTuple):
    """A trained model, with outputs in the labels' units.

    If parameters are sharded, only the main process has the full weights.
    """

    model: nn.Module
    spec: ModelSpec
    result: TrainingResult


def train_model(
    recipe: ResolvedRecipe,
    inputs: Inputs,
    *,
    pooling: Pooling | None,
    plan: BatchPlan,
    launch: Launch,
    initial_head: tuple[Tensor, Tensor] | None = None,
    resume_from: Path | None = None,
) -> TrainedModel:
    """Load the model of a recipe and train it.

    Args:
        recipe: The recipe, with what its defaults stand for.
        inputs: The encoded rows of its task.
        pooling: Of the model; None: as the base's class in transformers does.
        plan: The batches.
        launch: How the processes share the work.
        initial_head: Initial weight [C, E] and bias [C] of the output layer, in the labels' units.
        resume_from: The checkpoint to resume from.

    Raises:
        UserError: If the base cannot be loaded, the loss is not finite, or the disk is full.
        StoppedError: On SIGTERM.
        torch.OutOfMemoryError: If a GPU's memory does not suffice.
    """
    config, head, folder = recipe.config.train, recipe.config.head, Path(recipe.config.output_dir)
    arguments = make_arguments(
        config, plan=plan, metric=recipe.metric, run_dir=folder, launch=launch
    )
    base = pin_base(recipe.config.base)
    load = partial(load_recipe_model, recipe, base, inputs, pooling=pooling, launch=launch)
    transformers.set_seed(config.seed)
    model = load()
    spec = make_spec(model, base, recipe, inputs.data, inputs.encoder.prompt)
    _log_model(spec, inputs, launch, num_rows=plan.largest.num_rows)
    if recipe.config.init_from is not None and resume_from is None:
        load_weights(model, Path(recipe.config.init_from) / "model")
        logger.info("initial weights: those of %s", recipe.config.init_from)
    if initial_head is not None and resume_from is None:
        set_output_layer(model, *initial_head)
    if spec.precision == "bfloat16" and launch.has_replicated_weights:
        cast_frozen_weights(model)

    train, val, scale = inputs.train, inputs.val, None
    if spec.head == "regression":
        scale = _fit_scale(model, train.targets, base)
        train = train.with_targets(scale.to_targets(train.targets))
        val = val.with_targets(scale.to_targets(val.targets))
        if recipe.config.init_from is not None or initial_head is not None:
            unfold_scale(model, scale)
    collator = Collator(pad_token_id=inputs.encoder.tokenizer.pad_token_id, targets=train.targets)
    loss = make_loss(head, targets=inputs.train.targets, label_names=spec.label_names)
    sharing, checks = None, []
    if inputs.unshared_reason is None:
        sharing = SharedPrompt(model, inputs.encoder.shared_ids)
        checks = [
            SharingCheck(
                sharing, choose_rows(train), collator=collator, loss=loss,
                precision=spec.precision, has_replicated_weights=launch.has_replicated_weights,
            )
        ]  # fmt: skip
        train, val = train.without_shared(), val.without_shared()
    measure_val = partial(
        measure_logits,
        labels=inputs.val.targets.numpy(),
        spec=spec,
        scale=scale,
        needed=recipe.metric,
    )
    try:
        result = run_trainer(
            model, train, val,
            collator=collator, loss=loss, measure=measure_val, config=config, plan=plan,
            arguments=arguments, launch=launch, callbacks=checks, resume_from=resume_from,
            tokens_per_step=float(inputs.train.lengths.sum()) / len(plan),
        )  # fmt: skip
    finally:
        if sharing is not None:
            sharing.detach()
    if not launch.has_replicated_weights and is_main():
        model = _reload_whole(load, result.best_checkpoint)
    if scale is not None and is_main():
        fold_scale(model, scale)
    return TrainedModel(model, spec, result)


def load_recipe_model(
    recipe: ResolvedRecipe, base: BaseConfig, inputs: Inputs, *, pooling: Pooling | None,
    launch: Launch = ONE_PROCESS, adapters: bool = True,
) -> nn.Module:  # fmt: skip
    """Load the model of a recipe before its training, with or without its adapters."""
    precision = choose_precision(recipe.config.train.precision)
    return load_model(
        base,
        labels=LabelSpace(recipe.config.head.type, inputs.data.label_names),
        pad_token_id=inputs.encoder.tokenizer.pad_token_id,
        seed=recipe.config.train.seed,
        pooling=pooling,
        # Weights that are sharded have one dtype.
        precision=precision if launch.has_replicated_weights else "float32",
        num_prompt=len(inputs.encoder.shared_ids),
        adapters=adapters,
    ).model


def _log_model(spec: ModelSpec, inputs: Inputs, launch: Launch, *, num_rows: int) -> None:
    logger.info(
        "%s: %s with %s tuning, %s of %s parameters trained, %s, %d %s",
        spec.name, spec.base.model, spec.base.tuning, f"{spec.num_trainable:,}",
        f"{spec.num_parameters:,}", spec.precision, launch.world_size,
        "process" if launch.world_size == 1 else "processes",
    )  # fmt: skip
    if spec.prompt is not None:
        logger.info("prompt: %s", inputs.describe_sharing(num_rows))


def _reload_whole(load: Callable[[], nn.Module], checkpoint: Path) -> nn.Module:
    """Return an unsharded model with the weights of the best checkpoint (R1)."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    model = load()
    load_weights(model, checkpoint)
    return model


def _fit_scale(model: nn.Module, train_ND: Tensor, base: BaseConfig) -> TargetScale:
    has_bias = find_output_layer(model).bias is not None
    if not has_bias and is_far_from_zero(train_ND):
        logger.warning(
            "the mean of the scores is far from 0 relative to their SD, and the head of "
            "%s has no bias; shift the scores towards 0, or use a BERT-family base",
            base.model,
        )
    return fit_target_scale(train_ND, has_bias=has_bias)


def measure_logits(
    logits_NC: NDArray[Any],
    *,
    labels: NDArray[Any],
    spec: ModelSpec,
    scale: TargetScale | None,
    needed: str,
) -> dict[str, float]:
    """Return the metrics of a model's logits on the validation rows.

    Args:
        logits_NC: Logits of the model, [N, C].
        labels: Scores [N, D], classes [N], or labels [N, L] of the same rows.
        spec: Of the model.
        scale: Scale of the targets; None if the targets are the labels themselves.
        needed: The metric that chooses the checkpoint.

    Raises:
        UserError: If `needed` is not defined on these rows.
    """
    outputs_NC = to_outputs(torch.from_numpy(logits_NC), spec.head)
    if scale is not None:
        outputs_NC = scale.to_labels(outputs_NC)
    names = spec.label_names
    overall = measure(labels, outputs_NC.numpy(), names=names, config=spec.labels).metrics
    if needed != "loss" and overall.get(needed) is None:
        raise UserError(
            f"train.metric: {needed} is not defined on the {len(labels)} validation rows, so it "
            "cannot choose a checkpoint; use another metric or more validation rows"
        )
    return {name: value for name, value in overall.items() if value is not None}
