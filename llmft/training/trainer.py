"""The steps of a training, by `transformers.Trainer`: batches, schedule, checkpoints, progress."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import EvalPrediction

from llmft.config.recipe import Precision, TrainConfig
from llmft.console import Progress
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
from llmft.models.acceleration.dropout import fast_dropout
from llmft.models.acceleration.private_apis import use_one_gpu
from llmft.models.device import autocast, choose_max_tokens, choose_precision
from llmft.models.memory.peak import return_freed_memory
from llmft.models.saved import load_weights
from llmft.processes import get_rank, get_world_size, is_main, on_sigterm
from llmft.results.run import CurvePoint
from llmft.training.checkpoints import Checkpointing, keep_best_by, read_step
from llmft.training.inputs import count_steps
from llmft.training.launch import ONE_PROCESS, Launch
from llmft.training.losses import FiniteLoss, Loss

logger = logging.getLogger("llmft.training")
_TIMING = ("runtime", "samples_per_second", "steps_per_second")
Measure = Callable[[NDArray[np.float32]], dict[str, float]]
"""Logits [N, C] of the validation rows, in their order -> metrics by name."""


def summarise_history(log: list[dict[str, Any]]) -> list[CurvePoint]:
    """Return one point per evaluation."""
    points: list[CurvePoint] = []
    losses: list[float] = []
    steps: list[int] = []
    rate, last_step = 0.0, 0
    for record in log:
        if "loss" in record:
            losses.append(record["loss"])
            steps.append(record["step"] - last_step)
            rate, last_step = record["learning_rate"], record["step"]
        elif "eval_loss" in record:
            measured = {
                key.removeprefix("eval_"): value
                for key, value in record.items()
                if key.startswith("eval_")
            }
            points.append(
                CurvePoint(
                    epoch=record["epoch"],
                    step=record["step"],
                    train_loss=float(np.average(losses, weights=steps)),
                    learning_rate=rate,
                    seconds=record["seconds"],
                    val={key: value for key, value in measured.items() if key not in _TIMING},
                )
            )
            losses, steps = [], []
    return points


class ProgressReporter(TrainerCallback):  # type: ignore[misc]
    """Shows loss and validation metric in a progress bar, and logs one line per evaluation."""

    def __init__(self, *, metric: str, tokens_per_step: float) -> None:
        self._metric = metric
        self._tokens_per_step = tokens_per_step
        self._started = 0.0
        self._progress: Progress | None = None
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar, and continue the seconds of earlier attempts."""
        earlier = max((record.get("seconds", 0.0) for record in state.log_history), default=0.0)
        self._started = time.perf_counter() - earlier
        self._progress = Progress(
            "training", state.max_steps, unit="step", initial=state.global_step,
            tokens_per_unit=self._tokens_per_step,
        )  # fmt: skip

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count the step, and log the loss before every validation."""
        control.should_log |= control.should_evaluate
        if self._progress is not None:
            self._progress.update()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log the loss before every validation."""
        control.should_log |= control.should_evaluate

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Note the time, and show the last loss and the last validation metric."""
        state.log_history[-1]["seconds"] = round(time.perf_counter() - self._started, 2)
        for key, label in (("loss", "loss"), (f"eval_{self._metric}", f"val {self._metric}")):
            if logs and key in logs:
                self._shown[label] = f"{logs[key]:.4f}"
        if self._progress is not None:
            self._progress.show(**self._shown)
        if logs and f"eval_{self._metric}" in logs and state.is_world_process_zero:
            if self._progress is not None:
                self._progress.note()
            shown = ", ".join(f"{label} {value}" for label, value in self._shown.items())
            logger.info(
                "epoch %.2f, step %d of %d: %s",
                state.epoch,
                state.global_step,
                state.max_steps,
                shown,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the bar."""
        if self._progress is not None:
            self._progress.close()


class MemoryKeeper(TrainerCallback):  # type: ignore[misc]
    """Returns freed memory to the machine where little of it is left."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Return it after an optimizer step."""
        return_freed_memory()


def make_arguments(
    config: TrainConfig,
    *,
    plan: BatchPlan,
    metric: str,
    run_dir: Path,
    launch: Launch = ONE_PROCESS,
) -> TrainingArguments:
    """Return a recipe's settings as `TrainingArguments`.

    Make them before the model is loaded, since ZeRO-3 shards it while loading, and keep them until
    the training ends.

    Args:
        config: The recipe's settings.
        plan: The batches.
        metric: The validation metric that chooses the checkpoint.
        run_dir: Folder of the run.
        launch: How the processes share the work.
    """
    assert config.learning_rate is not None, "a default depends on the base"
    is_bfloat16 = choose_precision(config.precision) == "bfloat16"
    uses_autocast = is_bfloat16 and launch.deepspeed is None  # else `run_trainer` casts
    warmup = config.warmup_ratio if config.warmup_steps is None else config.warmup_steps
    steps = count_steps(config, plan)
    log_at_most = min(len(plan), config.eval_steps or steps, config.save_steps or steps)
    eval_strategy = "epoch" if config.eval_steps is None else "steps"
    arguments = TrainingArguments(
        output_dir=str(run_dir / "checkpoints"),
        num_train_epochs=config.epochs,
        max_steps=config.steps or -1,
        per_device_train_batch_size=plan.largest.num_rows,
        gradient_accumulation_steps=plan.num_accumulated,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        lr_scheduler_kwargs={"lr_end": 0.0} if config.lr_scheduler == "polynomial" else {},
        warmup_steps=warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=uses_autocast,
        deepspeed=launch.deepspeed,
        ddp_find_unused_parameters=False,  # every trainable parameter gets a gradient
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy=eval_strategy,
        eval_steps=config.eval_steps,
        save_strategy=eval_strategy,
        save_steps=config.eval_steps or 500,
        restore_callback_states_from_checkpoint=True,  # early stopping keeps its counter
        **keep_best_by(metric),
        logging_steps=max(1, min(steps // 200, log_at_most)),
        logging_nan_inf_filter=False,  # FiniteLoss stops instead of averaging it away
        label_names=["labels", "row_index"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        run_name=run_dir.name,
        report_to=config.report_to,
    )
    arguments.mixed_precision = "bf16" if uses_autocast else "no"  # not the launcher's
    return arguments


class TrainingResult(NamedTuple):
    """Result of a training, after which the model has the weights of the best checkpoint."""

    history: list[CurvePoint]
    """One point per validation."""
    best: CurvePoint
    """The validation that chose the checkpoint."""
    best_metric_name: str
    best_metric: float
    best_checkpoint: Path
    num_steps: int
    num_epochs: float
    """Epochs, possibly a fraction."""
    train_seconds: float
    """Wall time of training, validation included, over all attempts."""
    resumed_from_step: int
    distributed_type: str
    """As accelerate names it."""


def run_trainer(  # noqa: PLR0913 - as many as `Trainer` takes
    model: nn.Module,
    train: Examples,
    val: Examples,
    *,
    collator: Collator,
    loss: Loss,
    measure: Measure,
    config: TrainConfig,
    plan: BatchPlan,
    arguments: TrainingArguments,
    launch: Launch = ONE_PROCESS,
    callbacks: Sequence[TrainerCallback] = (),
    tokens_per_step: float = 0.0,
    resume_from: Path | None = None,
) -> TrainingResult:
    """Train to the end or until validation no longer improves; keep the best checkpoint.

    Args:
        model: The model, trained in place; under ZeRO-3 and FSDP it cannot be used afterwards.
        train: The training rows.
        val: The rows that choose the checkpoint.
        collator: Makes batches of rows.
        loss: The loss function.
        measure: Computes the validation metrics from logits.
        config: The recipe's settings.
        plan: The batches.
        arguments: As `make_arguments` returns them for the same config and plan.
        launch: How the processes share the work.
        callbacks: In addition to those for progress, checkpoints and early stopping.
        tokens_per_step: To tell the speed by; a shared prompt counts once per row.
        resume_from: A checkpoint to resume from.

    Raises:
        UserError: If the loss is not finite, or the disk is full.
        StoppedError: On SIGTERM.
        torch.OutOfMemoryError: If a GPU's memory does not suffice.
    """
    if resume_from is not None and _has_ended(resume_from, config, plan):
        return _restore_ended(model, arguments, launch, resume_from)
    use_one_gpu(arguments)
    checkpointing = Checkpointing(config, steps_per_epoch=len(plan))
    guarded = FiniteLoss(loss, model, train=train, val=val)
    trainer = _PlannedTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=val,
        data_collator=collator,
        compute_loss_func=guarded,
        compute_metrics=_make_metrics(val, loss, measure),
        callbacks=[
            *_make_callbacks(config, arguments, tokens_per_step),
            *([] if torch.cuda.is_available() else [MemoryKeeper()]),
            *callbacks,
            checkpointing,
        ],
    )
    trainer.plan = plan
    trainer.remove_callback(PrinterCallback)
    guarded.get_step = lambda: int(trainer.state.global_step)
    transformers.set_seed(config.seed + get_rank())  # different dropout masks on each device
    in_precision: AbstractContextManager[None] = nullcontext()  # accelerate applies autocast
    if launch.deepspeed is not None:
        in_precision = _autocast(model, arguments.device, choose_precision(config.precision))
    try:
        with fast_dropout(model), in_precision, on_sigterm(checkpointing.stop):
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except (OSError, RuntimeError, SafetensorError) as error:
        disk = explain_disk(error)
        if disk is None:
            raise
        raise UserError(
            f"{arguments.output_dir}: cannot be written: {disk}; free some space and run the same "
            "command again, it resumes from the last checkpoint"
        ) from error
    finally:
        guarded.detach()
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    return _summarise(trainer.state, arguments, resume_from)


def _has_ended(checkpoint: Path, config: TrainConfig, plan: BatchPlan) -> bool:
    """Return whether the training had ended at a checkpoint, so that no step is left to do.

    Resuming would take one more optimizer step unless it is at the end of an epoch.
    """
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    found = state.stateful_callbacks.get("EarlyStoppingCallback", {"attributes": {}})
    num_worse = found["attributes"].get("early_stopping_patience_counter", 0)
    has_stopped = num_worse >= (config.early_stopping_patience or math.inf)
    return bool(has_stopped or state.global_step >= count_steps(config, plan))


def _restore_ended(
    model: nn.Module, arguments: TrainingArguments, launch: Launch, checkpoint: Path
) -> TrainingResult:
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    result = _summarise(state, arguments, checkpoint)
    if launch.has_replicated_weights:
        load_weights(model, result.best_checkpoint)
    return result


def _summarise(
    state: TrainerState, arguments: TrainingArguments, resume_from: Path | None
) -> TrainingResult:
    history = summarise_history(state.log_history)
    key = str(arguments.metric_for_best_model)
    checkpoint = Path(arguments.output_dir, Path(state.best_model_checkpoint).name)
    best = next(point for point in history if point.step == read_step(checkpoint))
    return TrainingResult(
        history=history,
        best=best,
        best_metric_name=key,
        best_metric=best.val[key],
        best_checkpoint=checkpoint,
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
        """Return the validation batches of this process; without gradients they can be larger."""
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
        # As if there were one process: the rows are distributed already (R8).
        prepared: DataLoader[Example] = prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared


class _PlanSampler(Sampler[list[int]]):
    """Yields the planned batches of the trainer's current epoch.

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
def _autocast(model: nn.Module, device: torch.device, precision: Precision) -> Iterator[None]:
    """Run the forward under autocast, which accelerate does by itself only without DeepSpeed."""
    forward = model.forward

    def compute(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with autocast(device, precision):
            return forward(*args, **kwargs)

    model.forward = MethodType(compute, model)
    try:
        yield
    finally:
        model.forward = forward


def _make_callbacks(
    config: TrainConfig, arguments: TrainingArguments, tokens_per_step: float
) -> list[TrainerCallback]:
    metric = str(arguments.metric_for_best_model)
    callbacks = [ProgressReporter(metric=metric, tokens_per_step=tokens_per_step)]
    if is_main():
        from torch.utils.tensorboard import SummaryWriter

        logs = Path(arguments.output_dir).with_name("logs")
        callbacks.append(TensorBoardCallback(SummaryWriter(log_dir=str(logs / "tensorboard"))))
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    return callbacks


def _make_metrics(
    val: Examples, loss: Loss, measure: Measure
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the `compute_metrics` of the trainer.

    Outputs are gathered in the order of the batches, with some rows twice (`sort_into_batches`), so
    they are joined by row (D11, R3). The loss is computed here, since the trainer's counts those
    rows twice.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        _, index_M = prediction.label_ids
        index_N, first_N = np.unique(index_M, return_index=True)
        assert np.array_equal(index_N, np.arange(len(val))), "other rows than asked for (R3)"
        logits_NC = np.asarray(prediction.predictions, dtype=np.float32)[first_N]
        mean = loss(torch.from_numpy(logits_NC), val.targets, row_weights_B=val.weights)
        return {"loss": mean.item(), **measure(logits_NC)}

    return compute_metrics
