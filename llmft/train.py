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

from llmft import __version__
from llmft.config.loading import dump_yaml
from llmft.config.recipe import SELECTION_METRIC, BaseConfig, Recipe, TrainConfig, load_recipe
from llmft.config.task import ScoresConfig
from llmft.console import run_verb
from llmft.data.batches import Collator, Examples, make_targets, pad_inputs
from llmft.data.budget import refuse_budget
from llmft.data.files import write_json, write_text
from llmft.data.prepared import PreparedData, open_prepared
from llmft.errors import UserError
from llmft.evaluation.metrics import HIGHER_IS_BETTER, measure
from llmft.models.bases import LabelSpace, hash_base, load_model, pin_base, was_pretrained
from llmft.models.device import choose_precision
from llmft.models.heads import TargetScale, find_output_layer, fit_target_scale, fold_scale
from llmft.models.saved import ModelCard, hash_model, load_saved, save_model
from llmft.prediction.inference import Predictor
from llmft.prediction.stored import StoredPredictions, predict_and_store
from llmft.training.inputs import Inputs, open_inputs, refuse_warmup
from llmft.training.record import describe_environment, measure_peak_memory, reset_peak_memory
from llmft.training.run_folder import HISTORY_NAME, METADATA_NAME, RunIdentity, claim_run_folder
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
    data = open_prepared(recipe.task, task_file=recipe.config.task)
    inputs = open_inputs(recipe, data)
    for split, budget in inputs.budgets.items():
        logger.info("%s: %s", split, budget.describe())
    refuse_budget(inputs.findings.refusals, waive=recipe.config.tokens.waive)
    refuse_warmup(recipe.config.train, num_rows=len(inputs.rows["train"]))

    run_dir = Path(recipe.config.output_dir)
    identity = RunIdentity.of(recipe, data, inputs.prompt)
    state = claim_run_folder(run_dir, identity)
    if state == "finished":
        logger.info("%s: already trained, nothing to do", run_dir)
        return run_dir
    log_file = _open_log(run_dir / "logs" / "training.log")
    try:
        if state == "unfinished":
            logger.info("%s: going on where the last attempt ended", run_dir)
        _train(recipe, data, inputs, identity, run_dir)
    finally:
        logging.getLogger("llmft").removeHandler(log_file)
        log_file.close()
    return run_dir


def _train(
    recipe: Recipe, data: PreparedData, inputs: Inputs, identity: RunIdentity, run_dir: Path
) -> None:
    config = recipe.config
    started = time.time()
    reset_peak_memory()
    write_text(run_dir / "recipe.resolved.yaml", dump_yaml(config))

    transformers.set_seed(config.train.seed)
    base = pin_base(config.base)
    model = load_model(
        base,
        labels=LabelSpace(config.head.type, data.label_names),
        pad_token_id=inputs.tokenizer.pad_token_id,
        seed=config.train.seed,
    ).model
    card = _make_card(model, base, recipe, data, inputs)
    logger.info(
        "%s: %s with %s tuning, %s of %s parameters trained, %s",
        config.name, config.base.model, config.base.tuning, f"{card.num_trainable:,}",
        f"{card.num_parameters:,}", card.precision,
    )  # fmt: skip
    result = _fit(model, card, inputs, config.train, run_dir)
    peak_memory_gib = measure_peak_memory()

    save_model(model, tokenizer=inputs.tokenizer, card=card, folder=run_dir / "model")
    _refuse_changed_outputs(model, inputs, run_dir / "model")
    model_hash = hash_model(run_dir / "model")
    stored = predict_and_store(
        Predictor.open(run_dir),
        inputs.rows["val"],
        path=run_dir / "predictions" / "val.parquet",
        source={"model": model_hash, "data": data.fingerprint},
    )
    metric = SELECTION_METRIC[card.head]
    if card.head == "regression":
        _refuse_other_epoch(stored, result, inputs, label_names=card.label_names)
    write_json(run_dir / HISTORY_NAME, {"metric": metric, "epochs": result.history})
    write_json(
        run_dir / METADATA_NAME,
        {
            "status": "finished",
            **identity._asdict(),
            "name": config.name,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            **_describe_result(result, recipe, inputs),
            "best_metric_name": f"val_{metric}",
            "peak_memory_gib": round(peak_memory_gib, 3),
            "precision": card.precision,
            "num_parameters": card.num_parameters,
            "num_trainable": card.num_trainable,
            "base_pretrained": card.base_pretrained,
            "model_hash": model_hash,
            **describe_environment(),
        },
    )
    logger.info(
        "%s: best val %s %.4f at epoch %.2f, trained in %.0f s; wrote %s",
        config.name, metric, result.best_metric, result.best_epoch, result.train_seconds,
        run_dir / "model",
    )  # fmt: skip


def _fit(
    model: nn.Module, card: ModelCard, inputs: Inputs, config: TrainConfig, run_dir: Path
) -> FitResult:
    """Fit the model in place; it ends in the labels' units."""
    train, val = (
        make_targets(inputs.rows[name], label_names=card.label_names) for name in ("train", "val")
    )
    scale = None
    if card.head == "regression":
        has_bias = find_output_layer(model).bias is not None
        scale = fit_target_scale(train, has_bias=has_bias)
    metric = SELECTION_METRIC[card.head]
    fit = Fit(
        model=model,
        train=_make_examples(inputs, train, scale, split="train"),
        val=_make_examples(inputs, val, scale, split="val"),
        collator=Collator(pad_token_id=inputs.tokenizer.pad_token_id),
        measure=_make_measure(val.numpy(), scale, card.label_names),
        metric=metric,
        greater_is_better=HIGHER_IS_BETTER[metric],
        run_dir=run_dir,
    )
    result = fit_model(fit, config=config, precision=card.precision)
    if scale is not None:
        fold_scale(model, scale)
    return result


def _make_examples(
    inputs: Inputs, targets: torch.Tensor, scale: TargetScale | None, *, split: str
) -> Examples:
    scaled = targets if scale is None else scale.to_targets(targets)
    return Examples(inputs.encoded[split], scaled, ids=[row["id"] for row in inputs.rows[split]])


def _make_measure(labels: NDArray[Any], scale: TargetScale | None, names: list[str]) -> Measure:
    def measure_outputs(outputs_NC: NDArray[np.float32]) -> dict[str, float]:
        if scale is not None:
            outputs_NC = scale.to_labels(torch.from_numpy(outputs_NC)).numpy()
        overall = measure(labels, outputs_NC, names=names).overall
        return {name: value for name, value in overall.items() if value is not None}

    return measure_outputs


def _make_card(
    model: nn.Module, base: BaseConfig, recipe: Recipe, data: PreparedData, inputs: Inputs
) -> ModelCard:
    config, labels = recipe.config, recipe.task.labels
    return ModelCard(
        llmft_version=__version__,
        name=config.name,
        task=recipe.task.name,
        base=base,
        base_hash=hash_base(base),
        base_pretrained=was_pretrained(base),
        head=config.head.type,
        label_names=data.label_names,
        label_range=labels.range if isinstance(labels, ScoresConfig) else None,
        prompt=inputs.prompt._asdict() if recipe.prompt_path else None,
        fields=recipe.task.fields,
        tokens=config.tokens,
        precision=choose_precision(config.train.precision),
        data_fingerprint=data.fingerprint,
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _describe_result(result: FitResult, recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    train = recipe.config.train
    included = recipe.config.prompt.mode == "include"
    findings = inputs.findings
    return {
        "training_mode": "instruction_tuning" if included else "knowledge_distillation",
        "train_seconds": round(result.train_seconds, 2),
        "num_train_tokens": result.num_train_tokens,
        "tokens_per_second": round(result.num_train_tokens / result.train_seconds, 1),
        "num_steps": result.num_steps,
        "resumed_from_step": result.resumed_from_step,
        "best_metric": result.best_metric,
        "best_epoch": result.best_epoch,
        "world_size": result.world_size,
        "distributed_type": result.distributed_type,
        "global_batch_size": train.batch_size
        * train.gradient_accumulation_steps
        * result.world_size,
        "token_budget": {name: b._asdict() for name, b in inputs.budgets.items()},
        "budget_warnings": findings.warnings + findings.refusals,
    }


@torch.inference_mode()
def _refuse_changed_outputs(model: nn.Module, inputs: Inputs, folder: Path) -> None:
    """Open what was saved, and make sure that it says what the trained model says (H1).

    Raises:
        UserError: If it does not; the folder is kept for a look.
    """
    few = [e.input_ids for e in inputs.encoded["val"][:4]]
    batch = pad_inputs(few, pad_token_id=inputs.tokenizer.pad_token_id)
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    expected = model.eval()(**batch).logits.float()
    found = load_saved(folder).model.to(device)(**batch).logits.float()
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        worst = (found - expected).abs().max().item()
        raise UserError(
            f"{folder}: the saved model's outputs differ by up to {worst:.3g} from those of the "
            "trained one, so it must not be used; please report the base and the package versions"
        )


def _refuse_other_epoch(
    stored: StoredPredictions, result: FitResult, inputs: Inputs, *, label_names: list[str]
) -> None:
    """Make sure that the saved model is the chosen epoch's, in the labels' units.

    For scores only: a class at the edge may flip by rounding, and on few rows that moves F1 far.

    Raises:
        UserError: If its validation metric is not the one that was measured in training.
    """
    labels = make_targets(inputs.rows["val"], label_names=label_names).numpy()
    found = _make_measure(labels, None, label_names)(stored.outputs)["mae"]
    if abs(found - result.best_metric) > 0.05 * max(1.0, result.best_metric):
        raise UserError(
            f"the saved model has val mae {found:.4f}, but {result.best_metric:.4f} was measured "
            "in training, so it is not the chosen epoch's; please report it"
        )


def _open_log(path: Path) -> logging.FileHandler:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger("llmft").addHandler(handler)
    return handler


if __name__ == "__main__":
    sys.exit(run_verb(main, sys.argv[1:]))
