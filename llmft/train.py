"""`llmft train RECIPE`: train the variant that a recipe describes.

`accelerate launch -m llmft.train RECIPE` does the same under a launcher.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from llmft.config.loading import dump_yaml
from llmft.config.metrics import METRICS
from llmft.config.recipe import Recipe, TrainConfig, load_recipe
from llmft.console import run_verb
from llmft.data.batches import Collator, make_targets, pad_inputs
from llmft.data.budget import refuse_budget
from llmft.data.files import write_json, write_text
from llmft.data.prepared import PreparedData, open_prepared
from llmft.errors import UserError
from llmft.evaluation.metrics import measure
from llmft.models.bases import pin_base
from llmft.models.heads import (
    LabelSpace,
    TargetScale,
    find_output_layer,
    fit_target_scale,
    fold_scale,
    is_far_from_zero,
    to_outputs,
)
from llmft.models.loading import load_model
from llmft.models.precision import cast_frozen_weights
from llmft.models.saved import ModelCard, hash_model, make_card, refuse_changed_outputs, save_model
from llmft.models.shared_prompt import SharedPrompt
from llmft.prediction.inference import Predictor
from llmft.prediction.stored import StoredPredictions, predict_and_store
from llmft.training.inputs import (
    Inputs,
    make_examples,
    open_inputs,
    plan_batches,
    refuse_absent_trackers,
    refuse_schedule,
)
from llmft.training.losses import make_loss
from llmft.training.record import (
    describe_environment,
    describe_model,
    describe_result,
    measure_peak_memory,
    reset_peak_memory,
)
from llmft.training.run_folder import (
    HISTORY_NAME,
    METADATA_NAME,
    RunIdentity,
    claim_run_folder,
    log_to_file,
)
from llmft.training.trainer import Fit, FitResult, Measure, fit_model

logger = logging.getLogger("llmft.train")  # also when run as `-m llmft.train`


def main(arguments: list[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="llmft train", description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a value")
    args = parser.parse_args(arguments)
    train(load_recipe(args.recipe, overrides=args.set))
    return 0


def train(recipe: Recipe) -> Path:
    """Train what a recipe describes, unless its folder already holds that run finished.

    Returns:
        The folder of the run.

    Raises:
        UserError: If anything is wrong that the user can mend.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes > 1:
        raise UserError(
            f"{num_processes} processes were launched, but this release trains on one; start one"
        )
    if recipe.config.base.tuning == "qlora":
        raise UserError(
            "base.tuning: this release does not train qlora yet; take lora, whose base needs about "
            "eight times the memory"
        )
    refuse_absent_trackers(recipe.config.train.report_to)
    data = open_prepared(recipe.task, task_file=recipe.config.task)
    inputs = open_inputs(recipe, data)
    for split, budget in inputs.budgets.items():
        logger.info("%s: %s", split, budget.describe())
    refuse_budget(inputs.findings.refusals, waive=recipe.config.tokens.waive)
    refuse_schedule(recipe.config.train, plan_batches(recipe, inputs))

    run_dir = Path(recipe.config.output_dir)
    identity = RunIdentity.of(recipe, data, inputs.prompt)
    state = claim_run_folder(run_dir, identity)
    if state == "finished":
        logger.info("%s: already trained, nothing to do", run_dir)
        return run_dir
    with log_to_file(run_dir / "logs" / "training.log"):
        if state == "unfinished":
            logger.info("%s: going on where the last attempt ended", run_dir)
        _train(recipe, data, inputs, identity, run_dir)
    return run_dir


def _train(
    recipe: Recipe, data: PreparedData, inputs: Inputs, identity: RunIdentity, run_dir: Path
) -> None:
    config = recipe.config
    started = time.time()
    reset_peak_memory()
    write_text(run_dir / "recipe.resolved.yaml", dump_yaml(config))

    model, card = _open_model(recipe, data, inputs)
    result = _fit(model, card, inputs, recipe, run_dir)
    peak_memory_gib = measure_peak_memory()

    save_model(model, tokenizer=inputs.tokenizer, card=card, folder=run_dir / "model")
    few = pad_inputs(inputs.encoded["val"][:4], pad_token_id=inputs.tokenizer.pad_token_id)
    refuse_changed_outputs(model, run_dir / "model", batch=few, precision=card.precision)
    model_hash = hash_model(run_dir / "model")
    stored = predict_and_store(
        Predictor.open(run_dir),
        inputs.rows["val"],
        path=run_dir / "predictions" / "val.parquet",
        source={"model": model_hash, "data": data.fingerprint, **_describe_limit(config.train)},
    )
    if card.head == "regression":
        _refuse_other_epoch(stored, result, inputs, card)
    write_json(run_dir / HISTORY_NAME, {"metric": recipe.metric, "epochs": result.history})
    write_json(
        run_dir / METADATA_NAME,
        {
            "status": "finished",
            **identity._asdict(),
            "name": config.name,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            **describe_result(result, recipe, inputs),
            "best_metric_name": f"val_{recipe.metric}",
            "peak_memory_gib": round(peak_memory_gib, 3),
            **describe_model(card),
            "model_hash": model_hash,
            **describe_environment(),
        },
    )
    logger.info(
        "%s: best val %s %.4f at epoch %.2f, trained in %.0f s; wrote %s",
        config.name, recipe.metric, result.best_metric, result.best["epoch"], result.train_seconds,
        run_dir / "model",
    )  # fmt: skip


def _open_model(recipe: Recipe, data: PreparedData, inputs: Inputs) -> tuple[nn.Module, ModelCard]:
    config = recipe.config
    transformers.set_seed(config.train.seed)
    base = pin_base(config.base)
    model = load_model(
        base,
        labels=LabelSpace(config.head.type, data.label_names),
        pad_token_id=inputs.tokenizer.pad_token_id,
        seed=config.train.seed,
    ).model
    card = make_card(model, base, recipe, data, inputs.prompt)
    logger.info(
        "%s: %s with %s tuning, %s of %s parameters trained, %s",
        config.name, config.base.model, config.base.tuning, f"{card.num_trainable:,}",
        f"{card.num_parameters:,}", card.precision,
    )  # fmt: skip
    if card.prompt is not None:
        logger.info("%s", inputs.describe_sharing())
    if card.precision == "bfloat16":
        cast_frozen_weights(model)
    return model, card


def _fit(
    model: nn.Module, card: ModelCard, inputs: Inputs, recipe: Recipe, run_dir: Path
) -> FitResult:
    """Fit the model in place; it ends in the labels' units."""
    train, val = (
        make_targets(inputs.rows[name], label_names=card.label_names) for name in ("train", "val")
    )
    head, scale, scaled = recipe.config.head, None, {"train": train, "val": val}
    if card.head == "regression":
        has_bias = find_output_layer(model).bias is not None
        scale = fit_target_scale(train, has_bias=has_bias)
        scaled = {split: scale.to_targets(targets) for split, targets in scaled.items()}
        if not has_bias and is_far_from_zero(train):
            logger.info(
                "warning: the scores lie far from 0 for how little they vary, and the head of %s "
                "has no bias to start from there; shift them towards 0, or take a BERT-family base",
                card.base.model,
            )
    examples = {
        split: make_examples(inputs, targets, split=split, loss=head.loss)
        for split, targets in scaled.items()
    }
    sharing = None
    if inputs.obstacle is None:
        sharing = SharedPrompt(model, inputs.encoder.shared_ids)
        examples = {split: found.without_shared() for split, found in examples.items()}
    fit = Fit(
        model=model,
        train=examples["train"],
        val=examples["val"],
        collator=Collator(pad_token_id=inputs.tokenizer.pad_token_id),
        loss=make_loss(head, targets=train, label_names=card.label_names),
        measure=_make_measure(val.numpy(), scale, card, metric=recipe.metric),
        metric=recipe.metric,
        greater_is_better=recipe.metric != "loss" and METRICS[recipe.metric].higher_is_better,
        run_dir=run_dir,
        sharing=sharing,
    )
    try:
        result = fit_model(fit, config=recipe.config.train, precision=card.precision)
    finally:
        if sharing is not None:
            sharing.detach()
    if scale is not None:
        fold_scale(model, scale)
    return result


def _make_measure(
    labels: NDArray[Any], scale: TargetScale | None, card: ModelCard, *, metric: str
) -> Measure:
    def measure_logits(logits_NC: NDArray[np.float32]) -> dict[str, float]:
        outputs_NC = to_outputs(torch.from_numpy(logits_NC), card.head)
        if scale is not None:
            outputs_NC = scale.to_labels(outputs_NC)
        names = card.label_names
        overall = measure(labels, outputs_NC.numpy(), names=names, config=card.labels).overall
        if metric != "loss" and overall.get(metric) is None:
            raise UserError(
                f"train.metric: {metric} is not defined on the {len(labels)} validation rows, so "
                "it cannot choose a checkpoint; take another metric or more validation rows"
            )
        return {name: value for name, value in overall.items() if value is not None}

    return measure_logits


def _describe_limit(config: TrainConfig) -> dict[str, str]:
    """Return what tells predictions for a part of the rows from those for all."""
    return {} if config.limit_rows is None else {"limit_rows": str(config.limit_rows)}


def _refuse_other_epoch(
    stored: StoredPredictions, result: FitResult, inputs: Inputs, card: ModelCard
) -> None:
    """Make sure that the saved model is the chosen checkpoint, in the labels' units.

    For scores only: a class at the edge may flip by rounding, and on few rows that moves F1 far.

    Raises:
        UserError: If its validation error is not the one that was measured in training.
    """
    labels = make_targets(inputs.rows["val"], label_names=card.label_names).numpy()
    found = _make_measure(labels, None, card, metric="mae")(stored.outputs)["mae"]
    expected = result.best["val_mae"]
    if abs(found - expected) > 0.05 * max(1.0, expected):
        raise UserError(
            f"the saved model has val mae {found:.4f}, but {expected:.4f} was measured in "
            "training, so it is not the chosen checkpoint; please report it"
        )


if __name__ == "__main__":
    sys.exit(run_verb(main, sys.argv[1:]))
