"""The record of a run: all that it depended on, and what it took."""

import platform
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from llmft.config.recipe import Recipe, TrainConfig
from llmft.data.batches import BatchPlan
from llmft.models.device import name_device
from llmft.models.saved import ModelCard
from llmft.training.inputs import Inputs
from llmft.training.launch import Launch
from llmft.training.trainer import FitResult

_PACKAGES = ("llmft", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy",
             "bitsandbytes", "deepspeed")  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Return package versions, device and git revision of the working folder."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES if find_spec(name)},
        "platform": platform.platform(terse=True),
        "device": name_device(),
        "num_threads": torch.get_num_threads(),
        "git_revision": _read_git_revision(),
    }


def describe_model(card: ModelCard) -> dict[str, Any]:
    """Return what a model is, for the record of its training."""
    return {
        "precision": card.precision,
        "num_parameters": card.num_parameters,
        "num_trainable": card.num_trainable,
        "base_pretrained": card.base_pretrained,
    }


def describe_launch(launch: Launch, plan: BatchPlan, config: TrainConfig) -> dict[str, Any]:
    """Return how the processes shared a training, for its record."""
    global_batch_size = round(sum(plan.global_sizes) / len(plan), 1)
    if config.batch_size is not None and config.max_tokens_per_batch is None:
        global_batch_size = (
            config.batch_size * config.gradient_accumulation_steps * launch.world_size
        )
    return {
        "world_size": launch.world_size,
        "sharing": launch.sharing,
        "deepspeed": launch.deepspeed,
        "per_device_batch_size": plan.largest.num_rows,
        "gradient_accumulation_steps": plan.num_accumulated,
        "global_batch_size": global_batch_size,
    }


def describe_result(result: FitResult, recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """Return what came of a training, for its record."""
    included = recipe.config.prompt.mode == "include"
    findings = inputs.findings
    # A shared prompt counts in every row that saw it, as padding never does.
    num_train_tokens = round(int(inputs.encoded["train"].lengths.sum()) * result.num_epochs)
    return {
        "training_mode": "instruction_tuning" if included else "knowledge_distillation",
        "train_seconds": round(result.train_seconds, 2),
        "num_train_tokens": num_train_tokens,
        "tokens_per_second": round(num_train_tokens / result.train_seconds, 1),
        "prompt_shared": included and inputs.obstacle is None,
        "num_steps": result.num_steps,
        "resumed_from_step": result.resumed_from_step,
        "best_metric": result.best_metric,
        "best_epoch": result.best["epoch"],
        "best_step": result.best["step"],
        "distributed_type": result.distributed_type,
        "num_rows": {name: len(rows) for name, rows in inputs.rows.items()},
        "token_budget": {name: b._asdict() for name, b in inputs.budgets.items()},
        "budget_warnings": findings.warnings + findings.refusals,
    }


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
