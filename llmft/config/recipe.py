"""The schema of a recipe: how one variant learns a task."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from llmft.config.loading import Section, find_beside, load_values, validate
from llmft.config.task import ClassConfig, TaskConfig, check_name, load_task
from llmft.errors import UserError

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every random generator takes."""
BUILTIN_BASES = ("builtin:minilm", "builtin:tiny-qwen2")
SELECTION_METRIC = {"regression": "mae", "multiclass": "f1_macro"}
"""Head -> validation metric that chooses the epoch."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update matrices."""
    alpha: float = Field(default=32, gt=0)
    """Scale; the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout before the update matrices."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Layers to adapt; the head is trained in full and is never among them."""


class BaseConfig(Section):
    """The pretrained model and how much of it is trained."""

    model: str = Field(min_length=1)
    """Name on the Hugging Face Hub, a folder, or `builtin:minilm` or `builtin:tiny-qwen2`."""
    revision: str = "main"
    """Branch, tag or commit on the Hub."""
    tuning: Literal["full", "lora"] = "full"
    """Train every weight, or low-rank adapters and the head."""
    lora: LoraConfig | None = None
    """Adapter settings, for `tuning: lora`."""

    @field_validator("model")
    @classmethod
    def _check_builtin(cls, model: str) -> str:
        if model.startswith("builtin:") and model not in BUILTIN_BASES:
            raise ValueError(f"found {model!r}, allowed: {', '.join(BUILTIN_BASES)}")
        return model

    @model_validator(mode="after")
    def _check_lora(self) -> Self:
        if self.tuning != "lora" and self.lora is not None:
            raise ValueError(f"lora settings have no effect with tuning: {self.tuning}")
        return self


class HeadConfig(Section):
    """What the model puts out."""

    type: Literal["regression", "multiclass"]
    """One number per dimension, or one class."""


class PromptConfig(Section):
    """Whether the oracle's prompt stands before each article."""

    mode: Literal["include", "exclude"] = "exclude"
    """include = instruction tuning; exclude = distillation."""
    file: str | None = None
    """Prompt file; `{field}` marks where fields of the row go."""

    @model_validator(mode="after")
    def _check_file(self) -> Self:
        if self.mode == "include" and self.file is None:
            raise ValueError("mode: include needs a file")
        return self


class TokensConfig(Section):
    """The token budget; only the article is ever cut."""

    max_length: int = Field(default=512, ge=8)
    """Longest input in tokens, with prompt, article, tail and special tokens."""
    min_article: int = Field(default=128, ge=1)
    """Refuse the recipe if the prompt leaves fewer tokens than this for the article."""
    waive: str | None = Field(default=None, min_length=1)
    """Reason to train although the budget is refused; every report repeats it."""


class TrainConfig(Section):
    """How the weights are fitted."""

    epochs: float = Field(default=3, gt=0)
    """Passes over the training rows."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per device and step."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Steps whose gradients are added up before the weights change."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the learning rate goes on after the warm-up."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training in which the learning rate rises."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """The same in steps; takes the place of the ratio."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after this many epochs without a better validation metric."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto = bfloat16 where the hardware computes in it; head and loss stay in float32."""
    seed: Seed = 42
    """Seed of initial weights, shuffling and dropout."""


class RecipeConfig(Section):
    """How one variant learns a task."""

    name: str
    """Name of the variant."""
    task: str
    """Task file, looked up beside the recipe first."""
    base: BaseConfig
    """The pretrained model."""
    head: HeadConfig
    """What the model puts out."""
    prompt: PromptConfig = PromptConfig()
    """Whether the oracle's prompt stands before each article."""
    tokens: TokensConfig = TokensConfig()
    """The token budget."""
    train: TrainConfig = TrainConfig()
    """How the weights are fitted."""
    output_dir: str
    """Folder of the run."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_name(name)


class Recipe(NamedTuple):
    """A recipe with the files that it names."""

    config: RecipeConfig
    task: TaskConfig
    prompt_path: Path | None
    """None if the prompt is excluded."""


def load_recipe(path: Path, *, overrides: list[str] | None = None) -> Recipe:
    """Load a recipe, its task and its prompt's path.

    Raises:
        UserError: Naming every fault of the files.
    """
    values = load_values(path, overrides=overrides)
    config = validate(values, schema=RecipeConfig)
    task_path = find_beside(config.task, key=("task",), values=values)
    task = load_task(task_path)
    wanted = "multiclass" if isinstance(task.labels, ClassConfig) else "regression"
    if config.head.type != wanted:
        raise UserError(
            f"{values.find_origin(('head', 'type'))}: head.type: found {config.head.type}, but the "
            f"labels of {task_path} are of type {task.labels.type}, which take head type {wanted}"
        )
    prompt_path = None
    if config.prompt.mode == "include" and config.prompt.file is not None:
        prompt_path = find_beside(config.prompt.file, key=("prompt", "file"), values=values)
    found = {
        "task": str(task_path),
        "prompt": config.prompt.model_copy(
            update={"file": str(prompt_path) if prompt_path else None}
        ),
    }
    return Recipe(config.model_copy(update=found), task, prompt_path)
