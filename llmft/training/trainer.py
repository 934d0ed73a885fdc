"""Fit a model with `transformers.Trainer`: schedule, clipping, checkpoints, early stopping."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerState
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import EvalPrediction

from llmft.data.batches import (
    BatchLimits,
    BatchPlan,
    Collator,
    Example,
    Examples,
    sort_into_batches,
)
from llmft.errors import UserError
from llmft.files import explain_disk
from llmft.models.device import autocast, choose_max_tokens, choose_precision
from llmft.models.dropout import fast_dropout
from llmft.models.initial import load_weights
from llmft.models.shared_prompt import SharedPrompt
from llmft.processes import get_rank, get_world_size, is_main
from llmft.results.run import CurvePoint
from llmft.training.checkpoints import Checkpointing, read_step
from llmft.training.history import summarise_history
from llmft.training.inputs import count_steps
from llmft.training.losses import GuardedLoss, Loss
from llmft.training.progress import ProgressReporter
from llmft.training.schedule import Schedule
from llmft.training.sharing import SharingCheck

Measure = Callable[[NDArray[np.float32]], dict[str, float]]
"""From the outputs [N, C] for the validation rows, in their order, to metrics by name."""


class FitResult(NamedTuple):
    """How a fit went. The model that was passed in holds the weights of the best checkpoint."""

    history: list[CurvePoint]
    """One point per validation."""
    best: CurvePoint
    """The one that was chosen."""
    best_metric: float
    best_checkpoint: Path
    num_steps: int
    num_epochs: float
    """Times that the rows went through the model in training."""
    train_seconds: float
    """Wall time of training, validation included, over all attempts."""
    resumed_from_step: int
    distributed_type: str
    """As accelerate names it."""


class Fit(NamedTuple):
    """What is fitted."""

    model: nn.Module
    train: Examples
    val: Examples
    collator: Collator
    loss: Loss
    measure: Measure
    sharing: SharedPrompt | None = None
    """The shared prompt, attached to the model; then the rows come without their shared tokens."""
    checked: Sequence[Example] = ()
    """Rows of train with their shared tokens, on which the shared prompt is checked."""


def fit_model(fit: Fit, schedule: Schedule, *, resume_from: Path | None = None) -> FitResult:
    """Train to the end or until validation no longer improves; keep the best checkpoint.

    Args:
        fit: What is fitted, in place; under ZeRO-3 and FSDP the model is of no use afterwards.
        schedule: How.
        resume_from: A checkpoint to go on from.

    Raises:
        UserError: If the loss is not finite, or the disk is full.
        StoppedError: If told to stop.
        torch.OutOfMemoryError: If a GPU's memory does not suffice.
    """
    config, plan, arguments = schedule.config, schedule.plan, schedule.arguments
    if resume_from is not None and _has_ended(resume_from, schedule):
        return _take_ended(fit, schedule, resume_from)
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs take a launcher, not DataParallel
    checkpointing = Checkpointing(config, steps_per_epoch=len(plan))
    loss = GuardedLoss(fit.loss, fit.model, train=fit.train, val=fit.val)
    trainer = _PlannedTrainer(
        model=fit.model,
        args=arguments,
        train_dataset=fit.train,
        eval_dataset=fit.val,
        data_collator=fit.collator,
        compute_loss_func=loss,
        compute_metrics=_make_metrics(fit),
        callbacks=[*_make_callbacks(fit, schedule), checkpointing],
    )
    trainer.plan = plan
    trainer.remove_callback(PrinterCallback)
    loss.get_step = lambda: int(trainer.state.global_step)
    transformers.set_seed(config.seed + get_rank())  # other dropout masks on each device
    try:
        with (
            fast_dropout(fit.model),
            _autocast_under_deepspeed(fit.model, schedule),
            checkpointing.listening(),
        ):
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except (OSError, RuntimeError, SafetensorError) as error:
        disk = explain_disk(error)
        if disk is None:
            raise
        raise UserError(
            f"{arguments.output_dir}: cannot be written: {disk}; free some space and run the same "
            "command again, it goes on from the last checkpoint"
        ) from error
    finally:
        loss.detach()
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    return _describe(trainer.state, schedule, resume_from)


def _has_ended(checkpoint: Path, schedule: Schedule) -> bool:
    """Return whether a checkpoint is the last one, and only what comes after it is missing.

    The trainer would take one step more from there if that is not the end of an epoch.
    """
    config = schedule.config
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    found = state.stateful_callbacks.get("EarlyStoppingCallback", {"attributes": {}})
    num_worse = found["attributes"].get("early_stopping_patience_counter", 0)
    has_stopped = num_worse >= (config.early_stopping_patience or math.inf)
    return bool(has_stopped or state.global_step >= count_steps(config, schedule.plan))


def _take_ended(fit: Fit, schedule: Schedule, checkpoint: Path) -> FitResult:
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    result = _describe(state, schedule, checkpoint)
    if schedule.launch.has_whole_weights:
        load_weights(fit.model, result.best_checkpoint)
    return result


def _describe(state: TrainerState, schedule: Schedule, resume_from: Path | None) -> FitResult:
    arguments = schedule.arguments
    history = summarise_history(state.log_history)
    key = str(arguments.metric_for_best_model)
    best = (max if arguments.greater_is_better else min)(history, key=lambda point: point.val[key])
    return FitResult(
        history=history,
        best=best,
        best_metric=best.val[key],
        best_checkpoint=Path(arguments.output_dir, Path(state.best_model_checkpoint).name),
        num_steps=state.global_step,
        num_epochs=float(state.epoch or 0),
        train_seconds=state.log_history[-1]["seconds"],
        resumed_from_step=read_step(resume_from) if resume_from else 0,
        distributed_type=arguments.distributed_state.distributed_type.value,
    )


class _PlannedTrainer(Trainer):  # type: ignore[misc]
    """A trainer that takes the batches of a plan."""

    plan: BatchPlan

    def get_train_dataloader(self) -> DataLoader[Example]:
        """Return the planned batches of this process."""
        return self._load(self.train_dataset, _PlanSampler(self))

    def get_eval_dataloader(self, eval_dataset: object = None) -> DataLoader[Example]:
        """Return the validation rows of this process; without gradients twice the tokens fit in."""
        fastest = choose_max_tokens(self.model.config, self.args.device)
        batches = sort_into_batches(
            self.eval_dataset.lengths,
            BatchLimits(num_tokens=min(fastest, 2 * self.plan.largest.num_tokens)),
            world_size=get_world_size(),
            rank=get_rank(),
        )
        return self._load(self.eval_dataset, batches)

    def _load(self, rows: Examples, batches: Iterable[list[int]]) -> DataLoader[Example]:
        loader = DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # As if there were one process: the rows have been dealt out already (R8).
        prepared: DataLoader[Example] = prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared


class _PlanSampler(Sampler[list[int]]):
    """The batches of the epoch in which the trainer is.

    The trainer's `set_epoch` does not reach a sampler in every version, nor through the wrapper
    that skips batches after a resume; its state always tells the epoch (R5).
    """

    def __init__(self, trainer: _PlannedTrainer) -> None:
        self._trainer = trainer

    def __len__(self) -> int:
        plan = self._trainer.plan
        return len(plan) * plan.num_accumulated

    def __iter__(self) -> Iterator[list[int]]:
        epoch = int(self._trainer.state.epoch or 0)
        return iter(self._trainer.plan.arrange(epoch, rank=get_rank()))


@contextmanager
def _autocast_under_deepspeed(model: nn.Module, schedule: Schedule) -> Iterator[None]:
    """Compute in the recipe's precision, as accelerate sees to it without DeepSpeed."""
    if schedule.launch.deepspeed is None:
        yield
        return
    forward, device = model.forward, schedule.arguments.device
    precision = choose_precision(schedule.config.precision)

    def compute(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with autocast(device, precision):
            return forward(*args, **kwargs)

    model.forward = MethodType(compute, model)
    try:
        yield
    finally:
        model.forward = forward


def _make_callbacks(fit: Fit, schedule: Schedule) -> list[Any]:
    config, launch = schedule.config, schedule.launch
    callbacks: list[Any] = [ProgressReporter(metric=str(schedule.arguments.metric_for_best_model))]
    if is_main():
        from torch.utils.tensorboard import SummaryWriter

        logs = Path(schedule.arguments.output_dir).with_name("logs")
        callbacks.append(TensorBoardCallback(SummaryWriter(log_dir=str(logs / "tensorboard"))))
    if fit.sharing is not None:
        callbacks.append(
            SharingCheck(
                fit.sharing,
                fit.checked,
                collator=fit.collator,
                loss=fit.loss,
                precision=choose_precision(config.precision),
                has_whole_weights=launch.has_whole_weights,
            )
        )
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    return callbacks


def _make_metrics(fit: Fit) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the measure of validation outputs as the trainer gathers them.

    They come in the order of the batches, some of them twice (`sort_into_batches`), and are joined
    by row (D11, R3). It gives the loss too, since the trainer's own counts those rows twice.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        _, index_M = prediction.label_ids
        index_N, first_N = np.unique(index_M, return_index=True)
        assert np.array_equal(index_N, np.arange(len(fit.val))), "other rows than asked for (R3)"
        logits_NC = np.asarray(prediction.predictions, dtype=np.float32)[first_N]
        logits, targets = torch.from_numpy(logits_NC), fit.val.targets
        loss = fit.loss(logits, targets, row_weights_B=fit.val.weights)
        return {"loss": loss.item(), **fit.measure(logits_NC)}

    return compute_metrics
