"""Fit a model with `transformers.Trainer`: schedule, clipping, checkpoints, early stopping."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Sampler, Subset
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import EvalPrediction

from llmft.config.recipe import TrainConfig
from llmft.data.batches import BatchPlan, Collator, Example, Examples
from llmft.data.files import explain_disk
from llmft.errors import UserError
from llmft.models.device import Precision
from llmft.models.dropout import fast_dropout
from llmft.models.shared_prompt import SharedPrompt
from llmft.training.history import summarise_history
from llmft.training.inputs import count_steps, count_steps_per_epoch
from llmft.training.losses import GuardedLoss, Loss
from llmft.training.progress import ProgressReporter
from llmft.training.sharing import SharingCheck

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
    rows_per_step: float
    """Rows for which the weights change once: the recipe's number, or the mean if tokens count."""
    num_epochs: float
    """Times that the rows went through the model in training."""
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
    sharing: SharedPrompt | None = None
    """The shared prompt, attached to the model; then the rows come without their shared tokens."""


def fit_model(fit: Fit, *, config: TrainConfig, precision: Precision) -> FitResult:
    """Train to the end or until validation no longer improves; keep the best checkpoint.

    Picks up from the last checkpoint in `run_dir/checkpoints`, if there is one.

    Raises:
        UserError: If the loss is not finite, a row exceeds the batches' tokens, or the disk is
            full.
    """
    plan = BatchPlan(fit.train.lengths, config, num_shared=fit.train.num_shared)
    checkpoints = fit.run_dir / "checkpoints"
    last = _find_last_checkpoint(checkpoints)
    arguments = _make_arguments(fit, plan, config, precision)
    if last is not None and _has_stopped_early(last, config):
        arguments.max_steps = _read_step(last)
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs take a launcher, not DataParallel
    loss = GuardedLoss(fit.loss, fit.model, examples=[fit.train, fit.val])
    order_N = np.argsort(-fit.val.lengths, kind="stable")  # rows of similar length pad little
    trainer = _PlannedTrainer(
        model=fit.model,
        args=arguments,
        train_dataset=fit.train,
        eval_dataset=Subset(fit.val, order_N.tolist()),
        data_collator=fit.collator,
        compute_loss_func=loss,
        compute_metrics=_adapt(fit, order_N),
        callbacks=_make_callbacks(fit, config, precision),
    )
    trainer.plan = plan
    trainer.remove_callback(PrinterCallback)
    loss.get_step = lambda: int(trainer.state.global_step)
    try:
        with fast_dropout(fit.model):
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
        rows_per_step=_count_rows_per_step(len(fit.train), plan, config) * trainer.args.world_size,
        num_epochs=float(state.epoch or 0),
        train_seconds=state.log_history[-1]["seconds"],
        resumed_from_step=_read_step(last) if last else 0,
        world_size=trainer.args.world_size,
        distributed_type=trainer.accelerator.distributed_type.value,
    )


class _PlannedTrainer(Trainer):  # type: ignore[misc]
    """A trainer that takes the batches of a plan."""

    plan: BatchPlan

    def get_train_dataloader(self) -> DataLoader[Example]:
        """Return the planned batches."""
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=_PlanSampler(self),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Example] = self.accelerator.prepare(loader)
        return prepared


class _PlanSampler(Sampler[list[int]]):
    """The batches of the epoch in which the trainer is.

    The trainer's `set_epoch` does not reach a sampler in every version, nor through the wrapper
    that skips batches after a resume; its state always tells the epoch (R5).
    """

    def __init__(self, trainer: _PlannedTrainer) -> None:
        self._trainer = trainer

    def __len__(self) -> int:
        return len(self._trainer.plan)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = int(self._trainer.state.epoch or 0)
        return iter(self._trainer.plan.arrange(epoch))


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


def _count_rows_per_step(num_rows: int, plan: BatchPlan, config: TrainConfig) -> float:
    """Return how many rows of one device make a change of the weights."""
    if config.batch_size is not None and config.max_tokens_per_batch is None:
        return config.batch_size * config.gradient_accumulation_steps
    return round(num_rows / count_steps_per_epoch(config, plan), 1)


def _make_arguments(
    fit: Fit, plan: BatchPlan, config: TrainConfig, precision: Precision
) -> TrainingArguments:
    warmup = config.warmup_ratio if config.warmup_steps is None else config.warmup_steps
    steps = count_steps(config, plan)
    steps_per_epoch = count_steps_per_epoch(config, plan)
    eval_strategy = "epoch" if config.eval_steps is None else "steps"
    return TrainingArguments(
        output_dir=str(fit.run_dir / "checkpoints"),
        num_train_epochs=config.epochs,
        max_steps=config.steps or -1,
        per_device_train_batch_size=plan.largest.num_rows,
        per_device_eval_batch_size=_choose_eval_rows(fit.val, plan),
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
        logging_steps=max(1, min(steps // 200, steps_per_epoch, config.eval_steps or steps)),
        logging_nan_inf_filter=False,  # GuardedLoss stops instead of averaging it away
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        run_name=fit.run_dir.name,
        report_to=config.report_to,
    )


def _choose_eval_rows(val: Examples, plan: BatchPlan) -> int:
    """Return how many rows to validate at once: twice the tokens fit in without gradients."""
    return max(1, 2 * plan.largest.num_tokens // int(val.lengths.max()))


def _make_callbacks(fit: Fit, config: TrainConfig, precision: Precision) -> list[Any]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(fit.run_dir / "logs" / "tensorboard"))
    callbacks: list[Any] = [TensorBoardCallback(writer), ProgressReporter(metric=fit.metric)]
    if fit.sharing is not None:
        rows = [fit.train[i] for i in range(min(2, len(fit.train)))]
        callbacks.append(
            SharingCheck(
                fit.sharing, rows, collator=fit.collator, loss=fit.loss, precision=precision
            )
        )
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    return callbacks


def _adapt(fit: Fit, order_N: NDArray[np.int64]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the measure of outputs that come in another order than the rows."""
    targets = fit.val.targets.numpy()

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        assert np.array_equal(prediction.label_ids, targets[order_N]), "rows out of order (D11)"
        outputs_NC = np.asarray(prediction.predictions, dtype=np.float32)
        return fit.measure(outputs_NC[np.argsort(order_N)])

    return compute_metrics
