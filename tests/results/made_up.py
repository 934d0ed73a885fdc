"""Records, curves and manifests made up by hand, from the models that the code writes and reads."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llmft.config.recipe import Recipe
from llmft.config.task import Task
from llmft.models.saved import ModelSpec
from llmft.results.evaluation import LabelType
from llmft.results.files import Result
from llmft.results.manifest import Manifest, NearDuplicates, ScoreStats, SplitSummary
from llmft.results.run import (
    Calibrator,
    CurvePoint,
    LearningCurve,
    PostHocFit,
    RunIdentity,
    RunRecord,
    TokenBudget,
    UnfinishedRun,
)

ResultT = TypeVar("ResultT", bound=Result)
RECIPE = {
    "name": "variant",
    "task": "task.yaml",
    "base": {"model": "base"},
    "head": {"type": "regression"},
    "output_dir": "runs/variant",
}


def edit(result: ResultT, change: Callable[[dict[str, Any]], Any]) -> ResultT:
    """Return a result whose JSON was changed by hand, checked as when it is read."""
    data = result.model_dump(mode="json", by_alias=True)
    change(data)
    return type(result).model_validate(data)


def make_task(*, names: Sequence[str] = ("risk", "calm"), label_type: LabelType = "scores") -> Task:
    labels = {
        "scores": {"from": "scores", "dimensions": list(names)},
        "class": {"from": "mood", "order": list(names)},
        "multilabel": {"from": list(names)},
    }
    return Task.model_validate(
        {
            "name": "risk",
            "sources": [{"path": "rows.jsonl"}],
            "labels": {"type": label_type, **labels[label_type]},
            "output": "prepared",
        }
    )


def make_recipe(**changes: Any) -> Recipe:
    """Return a recipe; a section among the changes is laid over that of the plain one."""
    return Recipe.model_validate({**RECIPE, **changes})


def make_identity(**changes: Any) -> RunIdentity:
    made: dict[str, Any] = {
        "recipe": make_recipe(),
        "task": make_task(),
        "data_fingerprint": "0123abcd",
        "prompt_sha256": None,
        "init_hash": None,
    }
    return RunIdentity(**{**made, **changes})


def make_budget(**changes: Any) -> TokenBudget:
    made: dict[str, Any] = {
        "num_rows": 6, "prompt_tokens": 0, "article_tokens_median": 84.0,
        "article_tokens_p95": 98.0, "article_tokens_max": 113, "num_cut": 1,
        "fraction_kept": 0.9143, "fraction_kept_median": 1.0, "num_identical": 0,
    }  # fmt: skip
    return TokenBudget(**{**made, **changes})


def make_record(identity: RunIdentity | None = None, **changes: Any) -> RunRecord:
    made: dict[str, Any] = {
        "name": "variant",
        "started": "2026-01-02T03:04:05Z",
        "training_mode": "fine_tuning",
        "world_size": 2,
        "parallelism": "zero",
        "distributed_type": "DEEPSPEED",
        "deepspeed": None,
        "per_device_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "global_batch_size": 16,
        "train_seconds": 26.62,
        "num_train_tokens": 11_087,
        "tokens_per_second": 416.5,
        "peak_memory_gib": 0.567,
        "prompt_shared": False,
        "resolved": None,
        "num_steps": 300,
        "resumed_from_step": 0,
        "num_rows": {"train": 41, "val": 6, "test": 6},
        "token_budget": {name: make_budget() for name in ("train", "val", "test")},
        "budget_warnings": [],
        "best_metric_name": "val_mae",
        "best_metric": 0.45,
        "best_epoch": 2.0,
        "best_step": 300,
        "precision": "bfloat16",
        "num_parameters": 149_605_632,
        "num_trainable": 149_605_632,
        "base_pretrained": True,
        "model_hash": "4567ef",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
        "platform": "Linux",
        "device": "NVIDIA H100",
        "num_threads": 8,
        "git_revision": None,
    }
    return RunRecord(**dict(identity or make_identity()), **{**made, **changes})


def make_unfinished(identity: RunIdentity | None = None, **changes: Any) -> UnfinishedRun:
    made: dict[str, Any] = {"world_size": 1, "parallelism": "none", "precision": "float32"}
    return UnfinishedRun(**dict(identity or make_identity()), **{**made, **changes})


def make_spec(**changes: Any) -> ModelSpec:
    task, recipe = make_task(), make_recipe()
    made: dict[str, Any] = {
        "name": "variant",
        "task": task.name,
        "base": recipe.base,
        "base_hash": None,
        "base_pretrained": True,
        "head": "regression",
        "label_names": ["risk", "calm"],
        "labels": task.labels,
        "prompt": None,
        "fields": task.fields,
        "tokens": recipe.tokens,
        "precision": "bfloat16",
        "data_fingerprint": "0123abcd",
        "num_parameters": 149_605_632,
        "num_trainable": 149_605_632,
    }
    return ModelSpec(**{**made, **changes})


def make_fit(**changes: Any) -> PostHocFit:
    curve = Calibrator(x=[0.0, 10.0], y=[0.5, 9.0])
    made: dict[str, Any] = {
        "method": "isotonic",
        "head": "regression",
        "num_rows": 6,
        "model_hash": "4567ef",
        "data_fingerprint": "0123abcd",
        "curves": {"risk": curve, "calm": curve},
    }
    return PostHocFit(**{**made, **changes})


def make_curve(*values: float, metric: str = "mae", step: float = 1.0) -> LearningCurve:
    """Return a learning curve with these values of the validation metric."""
    return LearningCurve(
        metric=metric,
        epochs=[
            CurvePoint(
                epoch=step * i,
                step=150 * i,
                train_loss=1 / i,
                learning_rate=1e-4,
                seconds=10.0 * i,
                val={"loss": 1.2 / i, metric: value},
            )
            for i, value in enumerate(values, start=1)
        ],
    )


def make_manifest(
    *,
    names: Sequence[str] = ("risk", "calm"),
    label_type: LabelType = "scores",
    **changes: Any,
) -> Manifest:
    scores = ScoreStats(mean=5.0, sd=2.0, median=5.0, min=0.0, max=10.0)
    made: dict[str, Any] = {
        "fingerprint": "0123abcd",
        "files": {"train": "a", "val": "b", "test": "c"},
        "task": make_task(names=names, label_type=label_type),
        "sources": {"rows.jsonl": "d"},
        "counts": {"input": 63, "repeated": 0, "train": 41, "val": 6, "test": 6, "rejected": 10},
        "rejected": {"label missing": 10},
        "label_names": list(names),
        "label_stats": {
            split: dict.fromkeys(names, scores if label_type == "scores" else 3)
            for split in ("train", "val", "test")
        },
        "split": SplitSummary(
            group=None, strata="quantile", ranges={"train": None, "val": None, "test": None}
        ),
        "near_duplicates": NearDuplicates(
            threshold=0.9, num_clusters=3, num_rows=7, num_dropped=4, num_leaks=0
        ),
        "warnings": [],
    }
    return Manifest(**{**made, **changes})
