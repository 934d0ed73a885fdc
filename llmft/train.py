"""`llmft train RECIPE`: train the variant that a recipe describes.

`accelerate launch -m llmft.train RECIPE` does the same under a launcher.
"""

import argparse
import gc
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmft.config.loading import Overrides, dump_yaml, parse_overrides
from llmft.config.recipe import Recipe, ResolvedRecipe, load_recipe
from llmft.config.task import ScoresConfig
from llmft.console import run_verb, shown_from
from llmft.errors import UserError
from llmft.files import StrPath, write_text
from llmft.processes import ask_main, get_world_size, is_main, main_first
from llmft.results.run import Run, describe_budgets
from llmft.wording import count

if TYPE_CHECKING:
    from llmft.data.batches import BatchPlan, BatchShape
    from llmft.results.run import RunIdentity, UnfinishedRun
    from llmft.training.inputs import Inputs
    from llmft.training.launch import Launch
    from llmft.training.train_model import TrainedModel

logger = logging.getLogger("llmft.train")  # also when run as `-m llmft.train`


def main(arguments: list[str]) -> int:
    """Train the recipe with its `--set` overrides; return exit status 0 (errors are raised)."""
    parser = argparse.ArgumentParser(prog="llmft train", description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a value")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|CHECKPOINT",
        help="resume from the last checkpoint (auto), start from scratch (never), or resume from "
        "this folder",
    )
    args = parser.parse_args(arguments)
    train(args.recipe, overrides=parse_overrides(args.set), resume=args.resume)
    return 0


def train(
    recipe: StrPath | Recipe,
    *,
    overrides: Overrides | None = None,
    resume: StrPath = "auto",
) -> Run:
    """Train the variant of a recipe, unless its folder contains the same run, finished already.

    Args:
        recipe: Recipe file, or a recipe made in Python.
        overrides: Dotted key, such as `train.epochs` -> value that replaces that of the recipe.
        resume: `auto`: resume from the last checkpoint; `never`: start from scratch; or the
            checkpoint to resume from.

    Returns:
        The finished run; `llmft.load` takes it.

    Raises:
        UserError: If anything is wrong that the user can fix.
        StoppedError: On SIGTERM, with everything saved.
        KeyboardInterrupt: On Ctrl-C; the same call resumes from the last checkpoint, or of a frozen
            base with the states that were computed.
    """
    resolved, resume = load_recipe(recipe, overrides=overrides), os.fspath(resume)
    if resume not in ("auto", "never") and not Path(resume).is_dir():
        raise UserError(f"resume: found {resume!r}; write auto, never, or a checkpoint folder")
    # Imported late, since torch and transformers take seconds: errors in the recipe are reported
    # before that.
    from llmft.isolation import isolated

    with isolated():
        from llmft.training.run_folder import open_run

        folder = _train(resolved, resume=resume)
        return ask_main(lambda: open_run(folder))


def train_baseline(run: Path, *, wanted: bool | Literal["auto"], folder: Path) -> Path | None:
    """Fit the baseline `probe` of a finished run, unless that is done; return its folder.

    Args:
        run: Folder of the run that it is compared with; one with a frozen base is its own probe.
        wanted: Whether to fit it; auto: where it is cheap and the base is there.
        folder: Where its run is to be.

    Returns:
        None if it is left out.

    Raises:
        UserError: If it is wanted and cannot be fitted.
    """
    import torch

    from llmft.evaluation.probe_baseline import prepare_probe
    from llmft.models.saved import read_spec
    from llmft.training.run_folder import open_run

    with main_first():
        found = open_run(run)
        if found.record.is_frozen:
            return None if wanted is False else run
        recipe = prepare_probe(found, read_spec(run / "model"), wanted=wanted, folder=folder)
    if recipe is None:
        return None
    logger.info("baseline probe: %s, frozen; its log is in %s", recipe.base.model, folder / "logs")
    try:
        with shown_from(logging.WARNING):
            _train(load_recipe(recipe), resume="auto")
    except (UserError, torch.OutOfMemoryError) as error:
        if wanted is True or get_world_size() > 1:  # other processes wait for this one
            raise
        logger.warning("the baseline probe is left out: %s", error)
        return None
    return folder


def _train(recipe: ResolvedRecipe, *, resume: str) -> Path:
    """Train a recipe, unless that is done; return the folder of the run."""
    from llmft.data.encoding import refuse_budget
    from llmft.training.inputs import check_warmup, open_inputs, plan_batches
    from llmft.training.launch import read_launch, require_packages
    from llmft.training.run_folder import (
        check_init_from,
        identify_run,
        lock_run,
        log_to_file,
        update_run,
    )
    from llmft.training.train_model import resolve_defaults

    config, folder = recipe.config, Path(recipe.config.output_dir)
    launch = read_launch(config)
    require_packages(config)
    with main_first():
        inputs = open_inputs(recipe)
    for line in describe_budgets(inputs.budgets):
        logger.info("%s", line)
    refuse_budget(inputs.budget_findings.refusals, waive=config.tokens.waive)
    if config.base.tuning != "frozen":
        check_warmup(config.train, plan_batches(recipe, inputs, world_size=launch.world_size))
    check_init_from(config, label_names=inputs.data.label_names)

    identity = identify_run(recipe, inputs.data, inputs.encoder.prompt)
    with lock_run(folder):
        run = ask_main(lambda: _claim(folder, identity, launch, resume=resume))
        if run is None:
            logger.info("%s: already trained, nothing to do", folder)
            return folder
        with log_to_file(folder / "logs" / "training.log"):
            if run.resolved is None:
                unresolved = run
                run = ask_main(
                    lambda: update_run(
                        folder, unresolved, resolved=resolve_defaults(recipe, launch)
                    )
                )
            _train_run(recipe, inputs, run, launch)
    return folder


def _train_run(
    recipe: ResolvedRecipe, inputs: "Inputs", run: "UnfinishedRun", launch: "Launch"
) -> None:
    """Train the model of a run, and save it with its record."""
    from llmft.models.memory.peak import measure_peak_memory, reset_peak_memory
    from llmft.training.inputs import choose_by_loss
    from llmft.training.probe import train_probe
    from llmft.training.run_folder import make_record, write_run

    if run.resolved is not None:
        logger.info("%s", run.resolved.describe())
        recipe = recipe._replace(config=run.resolved.apply(recipe.config))
    recipe = choose_by_loss(recipe, inputs)
    config, folder = recipe.config, Path(recipe.config.output_dir)
    if is_main():
        write_text(folder / "recipe.resolved.yaml", dump_yaml(config))
    started = time.time()
    reset_peak_memory()
    if config.base.tuning == "frozen":
        trained, head_fit = train_probe(recipe, inputs)
        run, plan = run.replace(head_fit=head_fit), None
    else:
        run, trained, plan = _train_in_batches(recipe, inputs, run, launch)
    peak_memory_gib = measure_peak_memory()
    if not is_main():
        return
    model_hash = _save_model(trained, inputs, config)
    record = make_record(
        run, inputs, trained, plan=plan, launch=launch, started=started,
        peak_memory_gib=peak_memory_gib, model_hash=model_hash,
    )  # fmt: skip
    write_run(folder, record, trained.result.history, metric=recipe.metric)
    logger.info("%s; wrote %s", record.describe(), folder / "model")


def _claim(
    folder: Path, identity: "RunIdentity", launch: "Launch", *, resume: str
) -> "UnfinishedRun | None":
    """Claim the folder of a run; None if it is finished.

    If the last start was probably killed for its memory, micro-batches are halved.
    """
    from llmft.training.run_folder import claim_run_folder, find_silent_end, update_run

    silent = find_silent_end(folder)
    run = claim_run_folder(folder, identity, launch=launch, resume=resume)
    if run is None or silent is None:
        return run
    is_halved = silent.by_memory and run.recipe.train.auto_batch_size
    remedy = "; continuing with half of each micro-batch and twice the accumulation"
    logger.warning("%s: %s%s", folder, silent.words, remedy if is_halved else "")
    if is_halved:
        run = update_run(folder, run, micro_batch_divisor=2 * run.micro_batch_divisor)
    return run


def _train_in_batches(
    recipe: ResolvedRecipe, inputs: "Inputs", run: "UnfinishedRun", launch: "Launch"
) -> "tuple[UnfinishedRun, TrainedModel, BatchPlan]":
    """Train a model, in smaller micro-batches if a GPU's memory does not suffice.

    Returns:
        The run as it is then recorded, the model, and the batches.
    """
    import torch

    from llmft.models.memory.peak import limit_fragmentation, reset_peak_memory
    from llmft.training.checkpoints import find_last_checkpoint
    from llmft.training.inputs import plan_batches
    from llmft.training.memory import leaves_room
    from llmft.training.probe import fit_initial_head
    from llmft.training.run_folder import update_run
    from llmft.training.train_model import train_model

    folder, initial_head = Path(recipe.config.output_dir), None
    run = ask_main(lambda: _fit_into_memory(recipe, inputs, run, launch))
    if not torch.cuda.is_available() and not leaves_room(run.memory_gib or 0, run.free_gib or 0):
        limit_fragmentation()
    if run.gradient_checkpointing:
        train = recipe.config.train.model_copy(update={"gradient_checkpointing": True})
        recipe = recipe._replace(config=recipe.config.model_copy(update={"train": train}))
    checkpoint = ask_main(lambda: find_last_checkpoint(folder / "checkpoints"))
    assert run.resolved is not None
    pooling = run.resolved.pooling
    if run.resolved.head_init == "probe" and checkpoint is None:
        fitted = fit_initial_head(recipe, inputs, pooling=pooling)
        run = ask_main(lambda: update_run(folder, run, head_fit=fitted.fit))
        initial_head = fitted.weights
    while True:
        plan = plan_batches(
            recipe, inputs,
            world_size=launch.world_size, micro_batch_divisor=run.micro_batch_divisor,
        )  # fmt: skip
        checkpoint = ask_main(lambda: find_last_checkpoint(folder / "checkpoints"))
        if checkpoint is not None:
            logger.info("%s: resuming from %s", folder, checkpoint.name)
        with suppress(torch.OutOfMemoryError):  # the exception would keep tensors alive
            trained = train_model(
                recipe, inputs, pooling=pooling,
                plan=plan, launch=launch, initial_head=initial_head, resume_from=checkpoint,
            )  # fmt: skip
            return run, trained, plan
        run = _halve_micro_batches(run, plan.largest, launch)
        reset_peak_memory()


def _fit_into_memory(
    recipe: ResolvedRecipe, inputs: "Inputs", run: "UnfinishedRun", launch: "Launch"
) -> "UnfinishedRun":
    """Record the run with micro-batches that fit into the free memory, and return it.

    Raises:
        UserError: If there are none, with what would fit.
    """
    from llmft.training.inputs import plan_batches
    from llmft.training.memory import choose_micro_batches, refuse_checkpointing, surely_fits
    from llmft.training.run_folder import update_run

    refuse_checkpointing(recipe)
    divisor, is_on = run.micro_batch_divisor, run.gradient_checkpointing
    plan = plan_batches(recipe, inputs, world_size=launch.world_size, micro_batch_divisor=divisor)
    folder = Path(recipe.config.output_dir)
    if surely_fits(recipe, inputs, plan):
        if run.memory_gib is None:
            return run
        return update_run(folder, run, memory_gib=None, free_gib=None)
    found = choose_micro_batches(
        recipe, inputs, launch, divisor=divisor, gradient_checkpointing=is_on
    )
    if found is None:
        return run
    is_smaller = (found.divisor, found.gradient_checkpointing) != (
        divisor, is_on or recipe.config.train.gradient_checkpointing
    )  # fmt: skip
    logger.log(
        logging.WARNING if is_smaller else logging.INFO,
        "memory: about %.1f GiB of %.1f GiB that are free, for %s%s",
        found.estimate.peak_gib, found.free_gib, found.describe(),
        ", since the recipe's leave too little memory free; its optimizer steps stay the same"
        if is_smaller else "",
    )  # fmt: skip
    return update_run(
        folder, run,
        micro_batch_divisor=found.divisor,
        gradient_checkpointing=found.gradient_checkpointing,
        memory_gib=round(found.estimate.peak_gib, 2), free_gib=round(found.free_gib, 2),
    )  # fmt: skip


def _halve_micro_batches(
    run: "UnfinishedRun", shape: "BatchShape", launch: "Launch"
) -> "UnfinishedRun":
    """Record the run with micro-batches half as large, if its recipe allows it, and return it.

    Args:
        run: The run that ran out of memory.
        shape: The largest micro-batch, which did not fit into the memory of a GPU.
        launch: How the processes share the work.

    Raises:
        UserError: If micro-batches cannot be halved now, with what to change.
    """
    import torch

    from llmft.training.run_folder import update_run

    config, folder = run.recipe, Path(run.recipe.output_dir)
    rows = count(shape.num_rows, "row")
    found = f"out of GPU memory for a micro-batch of {rows} of up to {shape.longest} tokens"
    smaller = "set train.gradient_checkpointing: true, or lower tokens.max_length"
    if shape.num_rows == 1:
        raise UserError(f"{found}; {smaller}")
    if not config.train.auto_batch_size or not launch.has_replicated_weights:
        raise UserError(
            f"train.batch_size: {found}; lower it and raise train.gradient_accumulation_steps by "
            f"the same factor, or set train.auto_batch_size: true, which does so; or {smaller}"
        )
    changed = update_run(folder, run, micro_batch_divisor=2 * run.micro_batch_divisor)
    if launch.world_size > 1:  # the other processes wait for this one's part of the step
        raise UserError(
            f"train.auto_batch_size: {found}; run it again; it continues with half of "
            "the rows and twice the accumulation (`torchrun --max-restarts 3` does so by itself)"
        )
    logger.warning("%s; continuing with half of them and twice the accumulation", found)
    gc.collect()
    torch.cuda.empty_cache()
    return changed


def _save_model(trained: "TrainedModel", inputs: "Inputs", config: Recipe) -> str:
    """Save the model, its predictions for validation, and default thresholds; return its hash.

    The saved model is loaded again and its outputs are compared with those of the trained one. With
    sharded weights the trained one itself came from the best checkpoint, so for scores the
    validation error is compared too.

    Raises:
        UserError: If the disk is full.
        RuntimeError: If the saved model predicts something else than the trained one.
    """
    from llmft.data.batches import pad_inputs
    from llmft.evaluation.post_hoc_fitting import choose_default_fit, write_fit
    from llmft.models.saved import check_saved_outputs, hash_model, save_model
    from llmft.prediction.inference import Predictor
    from llmft.prediction.stored import name_source, predict_and_store
    from llmft.training.train_model import measure_logits

    model, spec, result = trained
    folder, tokenizer = Path(config.output_dir), inputs.encoder.tokenizer
    save_model(model, tokenizer=tokenizer, spec=spec, folder=folder / "model")
    few = [inputs.val[i].encoded for i in range(min(4, len(inputs.val)))]
    batch = pad_inputs(few, pad_token_id=tokenizer.pad_token_id)
    saved = check_saved_outputs(model, folder / "model", batch=batch, precision=spec.precision)
    model_hash = hash_model(folder / "model")
    stored = predict_and_store(
        Predictor(saved),
        inputs.rows["val"],
        path=folder / "predictions" / "val.parquet",
        source=name_source(model_hash, inputs.data.fingerprint, limit_rows=config.train.limit_rows),
    )
    if spec.head == "regression":  # a class at the edge may flip by rounding
        labels = inputs.val.targets.numpy()
        metrics = measure_logits(stored.outputs, labels=labels, spec=spec, scale=None, needed="mae")
        found, expected = metrics["mae"], result.best.val["mae"]
        assert isinstance(spec.labels, ScoresConfig)
        low, high = spec.labels.range
        if abs(found - expected) > 0.05 * max(0.1 * (high - low), expected):
            raise RuntimeError(
                f"the saved model has val mae {found:.4f}, but {expected:.4f} was measured in "
                "training, so it is not the chosen checkpoint"
            )
    fit, rows = choose_default_fit(config), inputs.rows["val"]
    targets = inputs.val.targets
    if fit is not None and not (targets == targets[0]).all():
        write_fit(folder, fit, rows, stored.outputs, spec=spec, model_hash=model_hash)
    return model_hash


if __name__ == "__main__":
    sys.exit(run_verb(main, sys.argv[1:]))
