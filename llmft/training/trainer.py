"""Fit a model with `transformers.Trainer`: schedule, clipping, checkpoints, early stopping."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import EvalPrediction

from llmft.config.recipe import TrainConfig
from llmft.data.batches import Collator, Examples
from llmft.data.files import explain_disk
from llmft.errors import UserError
from llmft.models.device import Precision
from llmft.training.history import summarise_history
from llmft.training.inputs import count_steps
from llmft.training.losses import GuardedLoss, Loss
from llmft.training.progress import ProgressReporter

Measure = Callable[[NDArray[np.float32]], dict[str, float]]
"""From the outputs [N, C] for the validation rows, in their order, to metrics by name."""


class FitResult(NamedTuple):
    """How a fit went. The model that was passed in holds the weights of the best checkpoint."""

    history: list[dict[str, float]]
    """One entry per validation."""
    best: dict[str, float]
    """The entry that was chosen."""
    best_metric: float
    num_steps: int
    num_train_tokens: int
    """Tokens that went through the model in training, padding not counted."""
    train_seconds: float
    """Wall time of training, validation included, over all attempts."""
    resumed_from_step: int
    world_size: int
    distributed_type: str


class Fit(NamedTuple):
    """What is fitted, and where its state goes."""

    model: nn.Module
    train: Examples
    val: Examples
    collator: Collator
    loss: Loss
    measure: Measure
    metric: str
    """Name of the validation metric that chooses the checkpoint."""
    greater_is_better: bool
    run_dir: Path


def fit_model(fit: Fit, *, config: TrainConfig, precision: Precision) -> FitResult:
    """Train to the end or until validation no longer improves; keep the best checkpoint.

    Picks up from the last checkpoint in `run_dir/checkpoints`, if there is one.

    Raises:
        UserError: If the loss is not finite, or the disk is full.
    """
    checkpoints = fit.run_dir / "checkpoints"
    last = _find_last_checkpoint(checkpoints)
    arguments = _make_arguments(fit, config, precision)
    if last is not None and _has_stopped_early(last, config):
        arguments.max_steps = _read_step(last)
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs take a launcher, not DataParallel
    loss = GuardedLoss(fit.loss, fit.model, examples=[fit.train, fit.val])
    trainer = Trainer(
        model=fit.model,
        args=arguments,
        train_dataset=fit.train,
        eval_dataset=fit.val,
        data_collator=fit.collator,
        compute_loss_func=loss,
        compute_metrics=_adapt(fit.measure),
        callbacks=_make_callbacks(fit, config),
    )
    trainer.remove_callback(PrinterCallback)
    loss.get_step = lambda: int(trainer.state.global_step)
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except (OSError, RuntimeError, SafetensorError) as error:
        disk = explain_disk(error)
        if disk is None:
            raise
        raise UserError(
            f"{checkpoints}: cannot be written: {disk}; free some space and run the same command "
            "again, it goes on from the last checkpoint"
        ) from error
    finally:
        loss.detach()
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    state = trainer.state
    history = summarise_history(state.log_history)
    best = (max if fit.greater_is_better else min)(history, key=lambda e: e[f"val_{fit.metric}"])
    return FitResult(
        history=history,
        best=best,
        best_metric=best[f"val_{fit.metric}"],
        num_steps=state.global_step,
        num_train_tokens=round(fit.train.num_tokens * float(state.epoch or 0)),
        train_seconds=state.log_history[-1]["seconds"],
        resumed_from_step=_read_step(last) if last else 0,
        world_size=trainer.args.world_size,
        distributed_type=trainer.accelerator.distributed_type.value,
    )


def _find_last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, and remove half-written ones."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        # The trainer writes the state last, so a checkpoint with a readable one is whole.
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            complete.append(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    return max(complete, key=_read_step, default=None)


def _has_stopped_early(checkpoint: Path, config: TrainConfig) -> bool:
    """Return whether training ended at a checkpoint since validation no longer improved."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    found = state["stateful_callbacks"].get("EarlyStoppingCallback", {"attributes": {}})
    counter = found["attributes"].get("early_stopping_patience_counter", 0)
    return bool(counter >= (config.early_stopping_patience or math.inf))


def _read_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _make_arguments(fit: Fit, config: TrainConfig, precision: Precision) -> TrainingArguments:
    warmup = config.warmup_ratio if config.warmup_steps is None else config.warmup_steps
    steps = count_steps(config, num_rows=len(fit.train))
    steps_per_epoch = steps / config.epochs if config.steps is None else steps
    eval_strategy = "epoch" if config.eval_steps is None else "steps"
    return TrainingArguments(
        output_dir=str(fit.run_dir / "checkpoints"),
        num_train_epochs=config.epochs,
        max_steps=config.steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        lr_scheduler_kwargs={"lr_end": 0.0} if config.lr_scheduler == "polynomial" else {},
        warmup_steps=warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        data_seed=config.seed,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy=eval_strategy,
        eval_steps=config.eval_steps,
        save_strategy=eval_strategy,
        save_steps=config.eval_steps or 500,
        save_total_limit=config.save_total_limit,
        restore_callback_states_from_checkpoint=True,  # early stopping goes on counting
        load_best_model_at_end=True,
        metric_for_best_model=fit.metric,
        greater_is_better=fit.greater_is_better,
        logging_steps=max(1, min(steps // 200, int(steps_per_epoch), config.eval_steps or steps)),
        logging_nan_inf_filter=False,  # GuardedLoss stops instead of averaging it away
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        run_name=fit.run_dir.name,
        report_to=config.report_to,
    )


def _make_callbacks(fit: Fit, config: TrainConfig) -> list[Any]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(fit.run_dir / "logs" / "tensorboard"))
    callbacks: list[Any] = [TensorBoardCallback(writer), ProgressReporter(metric=fit.metric)]
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    return callbacks


def _adapt(measure: Measure) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return measure(np.asarray(prediction.predictions, dtype=np.float32))

    return compute_metrics
