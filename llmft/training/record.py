"""The record of a run: all that it depended on, and what it took."""

import platform
import subprocess
import time
from importlib.metadata import version
from importlib.util import find_spec

import torch

from llmft.config.recipe import TrainConfig
from llmft.data.batches import BatchPlan
from llmft.models.device import name_device
from llmft.results.run import RunIdentity, RunRecord
from llmft.training.fitting import TrainedModel
from llmft.training.inputs import Inputs
from llmft.training.launch import Launch

_PACKAGES = ("llmft", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy",
             "bitsandbytes", "deepspeed")  # fmt: skip


def make_record(
    identity: RunIdentity, inputs: Inputs, trained: TrainedModel, *, plan: BatchPlan,
    launch: Launch, started: float, peak_memory_gib: float, model_hash: str,
) -> RunRecord:  # fmt: skip
    """Return the record of a finished run.

    Args:
        identity: What was to be learned.
        inputs: From which rows.
        trained: The trained model.
        plan: The batches.
        launch: How it was distributed.
        started: When its last attempt started, in seconds since the epoch.
        peak_memory_gib: What the device needed most.
        model_hash: Of the saved model.
    """
    config, card, result = identity.recipe, trained.card, trained.result
    included = config.prompt.mode == "include"
    # A shared prompt counts in every row that saw it, as padding never does.
    num_train_tokens = round(int(inputs.encoded["train"].lengths.sum()) * result.num_epochs)
    return RunRecord(
        **dict(identity),
        name=config.name,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        training_mode="instruction_tuning" if included else "knowledge_distillation",
        world_size=launch.world_size,
        parallelism=launch.parallelism,
        distributed_type=result.distributed_type,
        deepspeed=launch.deepspeed,
        per_device_batch_size=plan.largest.num_rows,
        gradient_accumulation_steps=plan.num_accumulated,
        global_batch_size=_find_global_batch_size(launch, plan, config.train),
        train_seconds=round(result.train_seconds, 2),
        num_train_tokens=num_train_tokens,
        tokens_per_second=round(num_train_tokens / result.train_seconds, 1),
        peak_memory_gib=round(peak_memory_gib, 3),
        prompt_shared=included and inputs.obstacle is None,
        num_steps=result.num_steps,
        resumed_from_step=result.resumed_from_step,
        num_rows={name: len(rows) for name, rows in inputs.rows.items()},
        token_budget=inputs.budgets,
        budget_warnings=inputs.findings.warnings + inputs.findings.refusals,
        best_metric_name=f"val_{result.best_metric_name}",
        best_metric=result.best_metric,
        best_epoch=result.best.epoch,
        best_step=result.best.step,
        precision=card.precision,
        num_parameters=card.num_parameters,
        num_trainable=card.num_trainable,
        base_pretrained=card.base_pretrained,
        model_hash=model_hash,
        python=platform.python_version(),
        packages={name: version(name) for name in _PACKAGES if find_spec(name)},
        platform=platform.platform(terse=True),
        device=name_device(),
        num_threads=torch.get_num_threads(),
        git_revision=_read_git_revision(),
    )


def _find_global_batch_size(launch: Launch, plan: BatchPlan, config: TrainConfig) -> float:
    """Return the rows of an optimizer step; of batches by tokens it is their mean."""
    if config.batch_size is not None and config.max_tokens_per_batch is None:
        return config.batch_size * config.gradient_accumulation_steps * launch.world_size
    return round(float(sum(plan.global_sizes)) / len(plan), 1)


def _read_git_revision() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
