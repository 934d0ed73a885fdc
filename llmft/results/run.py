"""What a training leaves beside its model: record, learning curve, and who read its test rows."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llmft.config.loading import MISSING, refuse_values
from llmft.config.recipe import Precision, RecipeConfig
from llmft.config.task import TaskConfig
from llmft.results.files import Result, ResultFile, hold_all

Sharing = Literal["none", "ddp", "zero", "zero3", "fsdp"]
"""How processes share a training: one alone; each with all weights (ddp, and zero for DeepSpeed's
stages 0 to 2); each with a part of them (zero3, fsdp)."""


class TokenBudget(Result):
    """The token budget of one split: what the model sees of the articles."""

    num_rows: int
    prompt_tokens: int
    """Prompt and tail, without special tokens."""
    article_tokens_median: float
    article_tokens_p95: float
    article_tokens_max: int
    num_cut: int
    """Rows whose article lost tokens."""
    share_kept: float
    """Part of all article tokens that the model sees, in [0, 1]."""
    share_kept_median: float
    """The same for the median row."""
    num_identical: int
    """Rows whose input equals that of a row with a different text."""

    def describe(self) -> str:
        """Return one line for a terminal."""
        return (
            f"prompt {self.prompt_tokens}, article median {self.article_tokens_median:.0f} "
            f"p95 {self.article_tokens_p95:.0f} max {self.article_tokens_max}, "
            f"cut {self.num_cut} of {self.num_rows} rows, kept {self.share_kept:.1%}, "
            f"identical inputs {self.num_identical}"
        )


class RunIdentity(Result):
    """What a run was asked to learn: recipe, task, rows and prompt."""

    recipe: RecipeConfig
    """As resolved, every default spelled out."""
    task: TaskConfig
    """The task of that time."""
    data_fingerprint: str
    """Of the prepared data."""
    prompt_sha256: str | None
    """Of the text of the prompt; null without one."""
    init_hash: str | None
    """Of the run that the initial weights come from; null where the base gave them."""


class UnfinishedRun(ResultFile, RunIdentity):
    """`training_metadata.json` of a run that is still learning, or was stopped."""

    schema_version: Literal[1] = 1
    status: Literal["unfinished"] = "unfinished"
    world_size: int
    """Number of processes."""
    sharing: Sharing
    """How they share the training."""
    precision: Precision
    """Of matrix products."""
    num_splits: int = 1
    """Into how many parts micro-batches are split, since memory ran out before."""


class RunRecord(ResultFile, RunIdentity):
    """`training_metadata.json` of a finished run: all that it depended on, and what it took."""

    schema_version: Literal[1] = 1
    status: Literal["finished"] = "finished"
    name: str
    """Of the recipe."""
    started: str
    """When the last attempt did, in UTC."""
    training_mode: Literal["instruction_tuning", "knowledge_distillation"]
    """Whether the prompt was included."""

    world_size: int
    """Number of processes."""
    sharing: Sharing
    """How they shared the training."""
    distributed_type: str
    """As accelerate names it."""
    deepspeed: dict[str, Any] | None
    """DeepSpeed's own configuration, as it was given to it."""
    per_device_batch_size: int
    """Rows of the largest micro-batch."""
    gradient_accumulation_steps: int
    global_batch_size: float
    """Rows of an optimizer step, over all processes; their mean where they vary."""

    train_seconds: float
    """Wall time of training, validation included, over all attempts."""
    num_train_tokens: int
    """A shared prompt counts in every row that saw it, padding never does."""
    tokens_per_second: float
    peak_memory_gib: float
    """On the main process's device."""
    prompt_shared: bool
    """Whether the prompt was computed once for all rows of a batch."""
    num_steps: int
    """Optimizer steps."""
    resumed_from_step: int
    """0 if it was not resumed."""
    num_rows: Annotated[dict[str, int], hold_all("train", "val", "test")]
    """Split -> rows that the run was given."""
    token_budget: Annotated[dict[str, TokenBudget], hold_all("train", "val", "test")]
    """Split -> what the model saw of its articles."""
    budget_warnings: list[str]
    """What was wrong with the budget, waived refusals included; every report repeats it."""

    best_metric_name: str
    """What chose the checkpoint."""
    best_metric: float
    """Its value there."""
    best_epoch: float
    best_step: int

    precision: Precision
    """Of matrix products."""
    num_parameters: int
    num_trainable: int
    base_pretrained: bool
    """Whether the base's weights were ever pretrained."""
    model_hash: str
    """Of the files in `model/`."""
    python: str
    packages: dict[str, str]
    """Package -> its version."""
    platform: str
    device: str
    num_threads: int
    git_revision: str | None
    """Of the working folder; null outside a repository."""


RunFile = Annotated[RunRecord | UnfinishedRun, Field(discriminator="status")]
"""What `training_metadata.json` may hold."""


class CurvePoint(Result):
    """One validation during a training."""

    epoch: float
    step: int
    """Optimizer steps so far."""
    train_loss: float
    """Mean over the steps since the validation before."""
    learning_rate: float
    seconds: float
    """Of training so far."""
    val: Annotated[dict[str, float], hold_all("loss")]
    """`loss` and the metrics on the validation rows."""


class LearningCurve(ResultFile):
    """`training_history.json`: losses and validation metrics as a training went on."""

    schema_version: Literal[1] = 1
    metric: str
    """What chose the checkpoint: a key of `val`."""
    epochs: list[CurvePoint] = Field(min_length=1)
    """One entry for each validation."""

    @model_validator(mode="after")
    def _refuse_without_metric(self) -> Self:
        refuse_values(
            (("epochs", i, "val", self.metric), MISSING)
            for i, point in enumerate(self.epochs)
            if self.metric not in point.val
        )
        return self


class Read(Result):
    """A report that read the test predictions of a run."""

    when: str
    """In UTC."""
    by: Literal["evaluate", "compare"]
    report: str
    """What it wrote its results to."""


class ReadLog(ResultFile):
    """`evaluation/test_reads.json`: who read the test predictions of a run (D8)."""

    schema_version: Literal[1] = 1
    reads: list[Read] = Field(default=[])
