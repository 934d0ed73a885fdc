"""How a model is fitted, in the words of `transformers.Trainer`."""

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import TrainingArguments

from llmft.config.metrics import METRICS
from llmft.config.recipe import TrainConfig
from llmft.data.batches import BatchPlan
from llmft.models.device import choose_precision
from llmft.training.inputs import count_steps
from llmft.training.launch import ONE_PROCESS, Launch


class Schedule(NamedTuple):
    """How a model is fitted, and where its state goes."""

    config: TrainConfig
    plan: BatchPlan
    launch: Launch
    arguments: TrainingArguments
    """With `output_dir` for the checkpoints, and the metric that chooses one."""


def make_schedule(
    config: TrainConfig,
    *,
    plan: BatchPlan,
    metric: str,
    run_dir: Path,
    launch: Launch = ONE_PROCESS,
) -> Schedule:
    """Return how a model is to be fitted.

    To be made before the model is loaded, which under ZeRO-3 is divided while it is read, and to
    be kept as long as it is trained.

    Args:
        config: The recipe's settings.
        plan: The batches.
        metric: The validation metric that chooses the checkpoint.
        run_dir: Folder of the run.
        launch: How the processes share the work.
    """
    is_bfloat16 = choose_precision(config.precision) == "bfloat16"
    uses_autocast = is_bfloat16 and launch.deepspeed is None  # else `fit_model` casts
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
        ddp_find_unused_parameters=False,  # all that is trained takes part, in every family
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy=eval_strategy,
        eval_steps=config.eval_steps,
        save_strategy=eval_strategy,
        save_steps=config.eval_steps or 500,
        restore_callback_states_from_checkpoint=True,  # early stopping goes on counting
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=metric != "loss" and METRICS[metric].higher_is_better,
        logging_steps=max(1, min(steps // 200, log_at_most)),
        logging_nan_inf_filter=False,  # GuardedLoss stops instead of averaging it away
        label_names=["labels", "row_index"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        run_name=run_dir.name,
        report_to=config.report_to,
    )
    arguments.mixed_precision = "bf16" if uses_autocast else "no"  # the recipe says, no launcher
    return Schedule(config, plan, launch, arguments)
