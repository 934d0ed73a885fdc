"""`llmft train RECIPE`: train the variant that a recipe describes.

`accelerate launch -m llmft.train RECIPE` does the same under a launcher.
"""

import argparse
import gc
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.config.loading import dump_yaml
from llmft.config.recipe import Recipe, load_recipe
from llmft.console import run_verb
from llmft.errors import UserError
from llmft.files import write_text
from llmft.processes import ask_main, is_main, main_first

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmft.models.heads import TargetScale
    from llmft.models.saved import ModelCard
    from llmft.prediction.stored import StoredPredictions
    from llmft.training.fitting import Fitted, Run
    from llmft.training.inputs import Inputs
    from llmft.training.run_folder import Start
    from llmft.training.trainer import FitResult, Measure

logger = logging.getLogger("llmft.train")  # also when run as `-m llmft.train`


def main(arguments: list[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="llmft train", description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a value")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|CHECKPOINT",
        help="go on from the last checkpoint (auto), begin anew, or go on from a checkpoint folder",
    )
    args = parser.parse_args(arguments)
    train(load_recipe(args.recipe, overrides=args.set), resume=args.resume)
    return 0


def train(recipe: Recipe, *, resume: str = "auto") -> Path:
    """Train what a recipe describes, unless its folder already holds that run finished.

    Args:
        recipe: The recipe.
        resume: `auto`, `never`, or the checkpoint to go on from.

    Returns:
        The folder of the run.

    Raises:
        UserError: If anything is wrong that the user can mend.
        StoppedError: If told to stop, with all saved.
    """
    config = recipe.config
    if resume not in ("auto", "never") and not Path(resume).is_dir():
        raise UserError(f"--resume: {resume!r} is not auto, not never, and no checkpoint's folder")
    # Only here and below, since torch and transformers take seconds: what is wrong with a recipe
    # is said before.
    from llmft.data.budget import refuse_budget
    from llmft.data.prepared import open_prepared
    from llmft.training.fitting import Run
    from llmft.training.inputs import (
        open_inputs,
        plan_batches,
        refuse_schedule,
    )
    from llmft.training.launch import read_launch, refuse_absent_trackers
    from llmft.training.run_folder import (
        claim_run_folder,
        identify_run,
        log_to_file,
        refuse_unfit_init,
    )

    launch = read_launch(config)
    if config.base.tuning == "qlora":
        from llmft.models.quantised import refuse_absent_quantiser

        refuse_absent_quantiser()
    refuse_absent_trackers(config.train.report_to)
    with main_first():
        data = open_prepared(recipe.task, task_file=config.task)
        inputs = open_inputs(recipe, data)
    for split, budget in inputs.budgets.items():
        logger.info("%s: %s", split, budget.describe())
    refuse_budget(inputs.findings.refusals, waive=config.tokens.waive)
    refuse_schedule(config.train, plan_batches(recipe, inputs, world_size=launch.world_size))
    refuse_unfit_init(config, label_names=data.label_names)

    folder = Path(config.output_dir)
    identity = identify_run(recipe, data, inputs.prompt)
    start = ask_main(lambda: claim_run_folder(folder, identity, launch=launch, resume=resume))
    if start.is_finished:
        logger.info("%s: already trained, nothing to do", folder)
        return folder
    with log_to_file(folder / "logs" / "training.log"):
        if start.resume_from is not None:
            logger.info("%s: going on from %s", folder, start.resume_from.name)
        _train(Run(recipe, data, inputs, launch, identity, folder), start)
    return folder


def _train(run: "Run", start: "Start") -> None:
    from llmft.models.peak_memory import measure_peak_memory, reset_peak_memory
    from llmft.results.files import write_result
    from llmft.results.run import LearningCurve
    from llmft.training.record import make_record
    from llmft.training.run_folder import HISTORY_NAME, METADATA_NAME

    config = run.recipe.config
    started = time.time()
    reset_peak_memory()
    if is_main():
        write_text(run.folder / "recipe.resolved.yaml", dump_yaml(config))
    fitted = _fit_in_memory(run, start)
    peak_memory_gib = measure_peak_memory()
    if not is_main():
        return
    result, model_hash = fitted.result, _save(fitted, run)
    curve = LearningCurve(metric=run.recipe.metric, epochs=result.history)
    write_result(run.folder / HISTORY_NAME, curve)
    record = make_record(
        run, fitted, started=started, peak_memory_gib=peak_memory_gib, model_hash=model_hash
    )
    write_result(run.folder / METADATA_NAME, record)
    logger.info(
        "%s: best val %s %.4f at epoch %.2f, trained in %.0f s; wrote %s",
        config.name, run.recipe.metric, result.best_metric, result.best.epoch,
        result.train_seconds, run.folder / "model",
    )  # fmt: skip


def _save(fitted: "Fitted", run: "Run") -> str:
    """Save the model, make sure that it is what was trained, and return its hash.

    Where processes divided the weights, the model came from the chosen checkpoint, and only the
    validation error tells that this holds what was trained.
    """
    from llmft.data.batches import pad_inputs
    from llmft.models.saved import hash_model, refuse_changed_outputs, save_model
    from llmft.prediction.inference import Predictor
    from llmft.prediction.stored import predict_and_store
    from llmft.training.inputs import describe_limit

    model, card, result, _ = fitted
    inputs, folder = run.inputs, run.folder
    save_model(model, tokenizer=inputs.tokenizer, card=card, folder=folder / "model")
    few = pad_inputs(inputs.encoded["val"][:4], pad_token_id=inputs.tokenizer.pad_token_id)
    refuse_changed_outputs(model, folder / "model", batch=few, precision=card.precision)
    model_hash = hash_model(folder / "model")
    limit = describe_limit(run.recipe.config.train.limit_rows)
    stored = predict_and_store(
        Predictor.open(folder),
        inputs.rows["val"],
        path=folder / "predictions" / "val.parquet",
        source={"model": model_hash, "data": run.data.fingerprint, **limit},
    )
    if card.head == "regression":
        _refuse_other_epoch(stored, result, inputs, card)
    return model_hash


def _fit_in_memory(run: "Run", start: "Start") -> "Fitted":
    """Fit, with ever smaller micro-batches where memory does not suffice and the recipe allows it.

    Raises:
        UserError: If it does not suffice: with what to change.
    """
    import torch

    from llmft.training.checkpoints import find_last_checkpoint
    from llmft.training.fitting import fit_run
    from llmft.training.inputs import plan_batches
    from llmft.training.run_folder import Start, split_batches

    config, launch = run.recipe.config.train, run.launch
    while True:
        plan = plan_batches(
            run.recipe, run.inputs, world_size=launch.world_size, num_splits=start.num_splits
        )
        with suppress(torch.OutOfMemoryError):
            return fit_run(run, plan, start, make_measure=_make_measure)
        shape = plan.largest
        rows = "1 row" if shape.num_rows == 1 else f"{shape.num_rows} rows"
        found = (
            f"a GPU's memory does not suffice for {rows} of up to {shape.longest} tokens at once"
        )
        if not config.auto_batch_size or shape.num_rows == 1:
            raise UserError(
                f"train.batch_size: {found}; lower it and raise train.gradient_accumulation_steps "
                "by as much, or let train.auto_batch_size: true do so; or say "
                "train.gradient_checkpointing: true, or lower tokens.max_length"
            )
        split_batches(run.folder, 2 * start.num_splits)
        if launch.world_size > 1:  # the other processes wait for this one's part of the step
            raise UserError(
                f"train.auto_batch_size: {found}; run the same command again, it goes on with half "
                "of them and twice the accumulation (`torchrun --max-restarts 3` does so by itself)"
            )
        logger.info("warning: %s; going on with half of them and twice the accumulation", found)
        gc.collect()
        torch.cuda.empty_cache()
        last = find_last_checkpoint(run.folder / "checkpoints")
        start = Start(False, resume_from=last, num_splits=2 * start.num_splits)


def _make_measure(
    labels: "NDArray[Any]", scale: "TargetScale | None", card: "ModelCard", metric: str
) -> "Measure":
    import torch

    from llmft.evaluation.metrics import measure
    from llmft.models.heads import to_outputs

    def measure_logits(logits_NC: "NDArray[Any]") -> dict[str, float]:
        outputs_NC = to_outputs(torch.from_numpy(logits_NC), card.head)
        if scale is not None:
            outputs_NC = scale.to_labels(outputs_NC)
        names = card.label_names
        overall = measure(labels, outputs_NC.numpy(), names=names, config=card.labels).metrics
        if metric != "loss" and overall.get(metric) is None:
            raise UserError(
                f"train.metric: {metric} is not defined on the {len(labels)} validation rows, so "
                "it cannot choose a checkpoint; take another metric or more validation rows"
            )
        return {name: value for name, value in overall.items() if value is not None}

    return measure_logits


def _refuse_other_epoch(
    stored: "StoredPredictions", result: "FitResult", inputs: "Inputs", card: "ModelCard"
) -> None:
    """Make sure that the saved model is the chosen checkpoint, in the labels' units.

    For scores only: a class at the edge may flip by rounding, and on few rows that moves F1 far.

    Raises:
        UserError: If its validation error is not the one that was measured in training.
    """
    from llmft.data.batches import make_targets

    labels = make_targets(inputs.rows["val"], label_names=card.label_names).numpy()
    found = _make_measure(labels, None, card, "mae")(stored.outputs)["mae"]
    expected = result.best.val["mae"]
    if abs(found - expected) > 0.05 * max(1.0, expected):
        raise UserError(
            f"the saved model has val mae {found:.4f}, but {expected:.4f} was measured in "
            "training, so it is not the chosen checkpoint; please report it"
        )


if __name__ == "__main__":
    sys.exit(run_verb(main, sys.argv[1:]))
