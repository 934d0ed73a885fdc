"""The schema of a recipe: how one variant learns a task."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llmft.config.head import SELECTION_METRIC, HeadConfig, list_heads
from llmft.config.loading import (
    READING_RESULT,
    TAKES_PATHS,
    ConfigFile,
    ConfigSection,
    FaultList,
    Overrides,
    find_named_file,
    load_values,
    refuse_values,
    takes_file_or,
    validate,
)
from llmft.config.metrics import CheckpointMetric, list_metrics
from llmft.config.task import ClassConfig, ScoresConfig, Task, check_name, find_task
from llmft.files import StrPath

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that Python, NumPy and PyTorch accept."""
Precision = Literal["float32", "bfloat16"]
"""Dtype of the matrix products; head and loss stay in float32."""
BUILTIN_BASES = ("builtin:minilm", "builtin:tiny-qwen2")


class LoraConfig(ConfigSection):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update matrices."""
    alpha: float = Field(default=32, gt=0)
    """Scale; the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout before the update matrices."""
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    """Layers to adapt; the head is trained in full and is never among them."""


class BaseConfig(ConfigSection):
    """The pretrained model and how much of it is trained."""

    model: Annotated[str, TAKES_PATHS] = Field(min_length=1)
    """Name on the Hugging Face Hub, a folder, `builtin:minilm`
    (sentence-transformers/all-MiniLM-L6-v2) or `builtin:tiny-qwen2`."""
    revision: str = "main"
    """Branch, tag or commit on the Hub."""
    tuning: Literal["frozen", "full", "lora", "qlora"] = "full"
    """frozen: train no weights of the base, and fit a linear head to its states; full: train all
    weights; lora: low-rank adapters and the head; qlora: the same on a base in 4 bit."""
    lora: LoraConfig | None = None
    """Adapter settings, for `tuning: lora` and `qlora`."""
    pooling: Literal["auto", "transformers", "cls", "mean", "last"] = "auto"
    """How the states of the tokens become the vector that the head reads: that of the first token,
    of the last, or the mean over all tokens after the shared prompt; transformers: whatever its
    sequence classification class does. auto: what a sentence-transformers folder declares. Where
    none does, decoders that are trained take the mean and encoders `transformers`; a frozen base
    takes the mean or the first token (decoders the last), whichever is better on validation. With
    sharded weights it is `transformers`. The last layer's vector is scaled to length 1 if such a
    folder declares this pooling with it."""
    layer: Literal["auto", "last"] = "auto"
    """Layer whose states the head reads, for `tuning: frozen`. auto: the last, or the one at three
    quarters or half of the depth, whichever is best on validation; layers above it are not
    computed afterwards."""

    @field_validator("model")
    @classmethod
    def _check_builtin(cls, model: str) -> str:
        if model.startswith("builtin:") and model not in BUILTIN_BASES:
            raise ValueError(f"found {model!r}, allowed: {', '.join(BUILTIN_BASES)}")
        return model

    @model_validator(mode="after")
    def _check_lora(self) -> Self:
        if self.tuning in ("frozen", "full") and self.lora is not None:
            raise ValueError(f"lora settings have no effect with tuning: {self.tuning}")
        if self.tuning != "frozen" and self.layer != "auto":
            refuse_values([(("layer",), f"has no effect with tuning: {self.tuning}")])
        if self.tuning == "frozen" and self.pooling == "transformers":
            found = "found transformers, but a frozen base takes auto, cls, mean, last"
            refuse_values([(("pooling",), found)])
        return self


class PromptConfig(ConfigSection):
    """Whether the oracle's prompt is prepended to each article."""

    mode: Literal["include", "exclude"] = "exclude"
    """include = instruction tuning; exclude = distillation."""
    file: Annotated[str | None, TAKES_PATHS] = None
    """Prompt file; `{field}` marks where fields of the row go."""
    article: Literal["in_place", "last"] = "last"
    """last = the lines with fields of the row go to the end, so that all before them can be
    computed once; in_place = as in the file."""
    share: bool = True
    """Compute the prompt once for all rows of a batch, if the base supports it; loss and gradients
    are those of the unshared forward. Without a prompt, such bases compute a batch without
    padding."""

    @model_validator(mode="after")
    def _check_file(self) -> Self:
        if self.mode == "include" and self.file is None:
            raise ValueError("mode: include needs a file")
        return self


class TokensConfig(ConfigSection):
    """The token budget; only the article is ever cut."""

    max_length: int = Field(default=512, ge=8)
    """Longest input in tokens, with prompt, article, tail and special tokens."""
    min_article: int = Field(default=128, ge=1)
    """Refuse the recipe if the prompt leaves fewer tokens than this for the article."""
    article: Literal["head", "head_tail"] = "head"
    """What is kept of an article that is too long: its head, or 70 % head and 30 % tail."""
    waive: str | None = Field(default=None, min_length=1)
    """Reason to train although the budget is refused; every report repeats it."""


class TrainConfig(ConfigSection):
    """Optimisation: batches, optimizer, learning rate, checkpoints."""

    epochs: float = Field(default=3, gt=0)
    """Passes over the training rows."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; replaces the epochs."""
    batch_size: int | None = Field(default=None, ge=1)
    """Most rows in a micro-batch of a device; by default 16, or no limit with
    max_tokens_per_batch."""
    max_tokens_per_batch: int | None = Field(default=None, ge=1)
    """Most tokens in a micro-batch of a device, padding counted: many short rows, or few long ones.
    The tokens of a shared prompt do not count."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches whose gradients are accumulated before an optimizer step."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of AdamW; by default 2e-4 in full and 1e-3 with adapters for a base of 384
    hidden units, as MiniLM, and less in proportion for wider ones."""
    lr_scheduler: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "inverse_sqrt",
        "constant_with_warmup",
        "constant",
    ] = "linear"
    """Learning rate schedule after the warm-up; constant has no warm-up."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the training in which the learning rate rises."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """The same in optimizer steps; replaces the ratio."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Validate and save after every so many steps; by default after every epoch."""
    metric: CheckpointMetric | None = None
    """Validation metric that chooses the checkpoint; by default mae for scores, f1_macro for
    classes, f1_micro for several labels."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after this many validations without a better metric."""
    save_total_limit: int = Field(default=1, ge=1)
    """Checkpoints that are kept, in addition to the best one."""
    save_steps: int | None = Field(default=None, ge=1)
    """Also save every so many steps, for long epochs on machines that may be preempted."""
    auto_batch_size: bool = True
    """Split micro-batches that do not fit into the free memory, with more accumulation, so that
    each optimizer step has the same rows as before; turn gradient checkpointing on if a single row
    does not fit, or if that is faster."""
    world_size: int | None = Field(default=None, ge=1)
    """Number of processes; a training with any other number is refused."""
    limit_rows: int | None = Field(default=None, ge=2)
    """Use only so many rows of train and of val, for a quick trial; every report says so."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto = bfloat16 where the hardware computes in it; head and loss stay in float32."""
    report_to: list[Literal["wandb", "mlflow"]] = Field(default=[])
    """Trackers to report to, in addition to TensorBoard."""
    seed: Seed = 42
    """Seed of initial weights, shuffling and dropout."""

    @model_validator(mode="after")
    def _bound_batches(self, info: ValidationInfo) -> Self:
        if info.context is not READING_RESULT and self.max_tokens_per_batch is None:
            # Not as a value that was given: an override of the other bound takes its place.
            self.__dict__["batch_size"] = self.batch_size or 16
        return self


class LaunchConfig(ConfigSection):
    """How a training is distributed over processes."""

    deepspeed: Annotated[str | None, TAKES_PATHS] = None
    """DeepSpeed configuration (JSON), such as `ds_configs/zero2.json`; `auto` in it is replaced by
    the recipe's value."""


class Recipe(ConfigFile):
    """How one variant learns a task."""

    __init__ = ConfigFile.__init__  # so that type checkers allow sections that are dicts

    name: str
    """Name of the variant."""
    task: Annotated[str | Task, takes_file_or(Task)]
    """Task file, looked up in the folder of the recipe first; or the keys of a task."""
    base: BaseConfig
    """The pretrained model."""
    head: HeadConfig
    """What the model predicts, and its loss."""
    prompt: PromptConfig = PromptConfig()
    """Whether the oracle's prompt is prepended to each article."""
    tokens: TokensConfig = TokensConfig()
    """The token budget."""
    train: TrainConfig = TrainConfig()
    """Optimisation: batches, optimizer, learning rate, checkpoints."""
    launch: LaunchConfig = LaunchConfig()
    """How a training is distributed over processes."""
    init_from: Annotated[str | None, TAKES_PATHS] = None
    """Folder of a finished run whose weights are the initial weights, instead of the base's: a new
    training on the same base, with the same head."""
    output_dir: Annotated[str, TAKES_PATHS]
    """Folder of the run."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_name(name)

    @model_validator(mode="after")
    def _check_frozen(self) -> Self:
        if self.base.tuning != "frozen":
            return self
        given: dict[tuple[str, ...], object] = {
            ("head", "init"): self.head.init != "auto",
            ("head", "loss", "name"): self.head.loss_name != self.head.convex.loss_name,
            ("head", "loss", "label_smoothing"): self.head.loss.label_smoothing,
            ("head", "loss", "dimension_weights"): self.head.loss.dimension_weights is not None,
            ("init_from",): self.init_from is not None,
            ("launch", "deepspeed"): self.launch.deepspeed is not None,
        }
        why: dict[tuple[str, ...], str] = {
            ("head", "loss", "name"): f"found {self.head.loss_name}, but the head of a frozen base "
            f"is fitted with {self.head.convex.loss_name}",
            ("head", "loss", "dimension_weights"): "has no effect with tuning: frozen, since each "
            "dimension has a head of its own",
        }
        refuse_values(
            (key, why.get(key, "has no effect with tuning: frozen"))
            for key, is_given in given.items()
            if is_given
        )
        return self

    @property
    def leading_metric(self) -> str:
        """The metric that judges its runs: the one that chooses the checkpoint, or the head's."""
        metric = self.train.metric
        return SELECTION_METRIC[self.head.type] if metric in (None, "loss") else metric

    @model_validator(mode="after")
    def _check_initial_head(self) -> Self:
        if self.init_from is not None and self.head.init != "auto":
            refuse_values([(("head", "init"), "has no effect with init_from, which has a head")])
        return self


class ResolvedRecipe(NamedTuple):
    """A recipe with the files that it names."""

    config: Recipe
    """Its files are relative to the working folder."""
    task: Task
    prompt_path: Path | None
    """None if the prompt is excluded."""

    @property
    def metric(self) -> str:
        """The validation metric that chooses the checkpoint."""
        return self.config.train.metric or SELECTION_METRIC[self.config.head.type]


def load_recipe(recipe: StrPath | Recipe, *, overrides: Overrides | None = None) -> ResolvedRecipe:
    """Load a recipe, its task and its prompt's path.

    Args:
        recipe: Recipe file, or a recipe made in Python.
        overrides: Dotted key -> value that replaces that of the recipe.

    Raises:
        UserError: Naming every fault of the files.
    """
    values = load_values(recipe, schema=Recipe, overrides=overrides)
    faults = FaultList()
    config = faults.catch(lambda: validate(values, schema=Recipe))
    named = config.task if config is not None else values.data.get("task")
    task_key, task = find_task(named, values=values, faults=faults)
    prompt_path = None
    if config is not None and config.prompt.mode == "include" and config.prompt.file is not None:
        prompt_name = config.prompt.file
        prompt_path = faults.catch(
            lambda: find_named_file(prompt_name, key=("prompt", "file"), values=values)
        )
    if config is not None and task is not None:
        for key, what in _list_mismatches(config, task).items():
            faults.add(f"{values.find_origin(key)}: {'.'.join(key)}: {what}")
    faults.raise_all()
    assert config is not None
    assert task is not None
    found = {
        "task": task_key,
        "prompt": config.prompt.model_copy(
            update={"file": str(prompt_path) if prompt_path else None}
        ),
    }
    return ResolvedRecipe(config.model_copy(update=found), task, prompt_path)


def _list_mismatches(config: Recipe, task: Task) -> dict[tuple[str, ...], str]:
    """Return key -> why its value does not fit the task."""
    labels, loss = task.labels, config.head.loss
    found: dict[tuple[str, ...], str] = {}
    heads, metrics = list_heads(labels), list_metrics(labels.type, labels)
    if config.head.type not in heads:
        found["head", "type"] = (
            f"found {config.head.type}, but labels of type {labels.type} take {' or '.join(heads)}"
        )
    elif config.head.type == "binary" and isinstance(labels, ClassConfig):
        num_classes = len(labels.known_names or [])
        if num_classes > 2:
            found["head", "type"] = (
                f"found binary, but the task has {num_classes} classes; use multiclass"
            )
    metric = config.train.metric
    if metric not in (None, "loss", *metrics):
        found["train", "metric"] = (
            f"found {metric}, but the labels of this task have {', '.join(metrics)}"
        )
    if isinstance(labels, ScoresConfig):
        unknown = [n for n in loss.dimension_weights or {} if n not in labels.dimensions]
        if unknown:
            found["head", "loss", "dimension_weights"] = (
                f"{unknown[0]!r} is not a dimension of the task"
            )
    if loss.row_weights is not None and loss.row_weights not in task.fields.carried:
        found["head", "loss", "row_weights"] = (
            f"{loss.row_weights!r} is not in the prepared rows; name it in fields.keep of the task"
        )
    if task.fields.text_pair is not None and config.prompt.mode == "include":
        found["prompt", "mode"] = (
            "the task has a text_pair, which follows the article as a second segment; with a "
            f"prompt, name {{{task.fields.text_pair}}} in it and remove text_pair"
        )
    return found
