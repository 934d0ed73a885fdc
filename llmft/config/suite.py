"""The schema of a suite: how variants of one task are judged."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from llmft.config.loading import Section, find_beside, load_values, validate
from llmft.config.recipe import Seed
from llmft.config.task import ClassConfig, ScoresConfig, TaskConfig, check_name, load_task
from llmft.errors import UserError

METRICS = {"scores": ("mae", "rmse", "skill"), "class": ("accuracy", "f1_macro")}
"""Type of the labels -> metrics that can decide or be a gate."""


class GateConfig(Section):
    """Thresholds of one metric."""

    deploy: float
    """To deploy, the worse end of the metric's 95 % interval has to pass this."""
    review: float
    """A run whose value is worse than this fails."""


class VariantConfig(Section):
    """One arm of a comparison: finished runs, or a recipe to be trained once per seed."""

    runs: list[str] | None = Field(default=None, min_length=1)
    """Run folders, one per seed."""
    recipe: str | None = None
    """Recipe file; its runs lie in OUTPUT_DIR/seed-N."""
    seeds: list[Seed] | None = Field(default=None, min_length=1)
    """Training seeds for the recipe."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.runs is None) == (self.recipe is None):
            raise ValueError("expected either a run folder, a list of them, or a recipe with seeds")
        if self.recipe is not None and self.seeds is None:
            raise ValueError("a recipe needs seeds, for example seeds: [1, 2, 3]")
        for key, values in (("runs", self.runs or []), ("seeds", self.seeds or [])):
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: one stands twice, which would count it as two results")
        return self


def _read_variant(value: Any) -> Any:
    match value:
        case str():
            return {"runs": [value]}
        case list():
            return {"runs": value}
        case _:
            return value


class SuiteConfig(Section):
    """How variants of one task are judged on the same rows."""

    task: str
    """Task file."""
    variants: dict[str, Annotated[VariantConfig, BeforeValidator(_read_variant)]] = Field(
        min_length=2
    )
    """Name -> run folder, list of run folders (one a seed), or {recipe, seeds}."""
    reference: str
    """The variant that the others have to beat."""
    metric: Literal["mae", "rmse", "skill", "accuracy", "f1_macro"]
    """Metric that decides."""
    margin: float = Field(ge=0)
    """A challenger must beat the reference by more than this."""
    edge_cases: str | None = None
    """JSONL file of cases with expected ranges or labels."""
    gates: dict[Literal["mae", "rmse", "skill", "accuracy", "f1_macro"], GateConfig] = Field(
        default={}
    )
    """Metric -> thresholds; without them the defaults of the head."""
    output_dir: str
    """Folder for comparison.json and the reports."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.variants:
            if check_name(name) in ("constant", "tfidf"):
                raise ValueError(f"variants: {name!r} is the name of a baseline; choose another")
        if self.reference not in self.variants:
            known = ", ".join(self.variants)
            raise ValueError(f"reference: found {self.reference!r}, allowed: {known}")
        return self


class Suite(NamedTuple):
    """A suite with the files that it names."""

    config: SuiteConfig
    task: TaskConfig
    recipe_paths: dict[str, Path]
    """Variant -> recipe file, for variants that are given by a recipe."""
    edge_cases_path: Path | None


def load_suite(path: Path) -> Suite:
    """Load a suite and its task.

    Raises:
        UserError: Naming every fault of the files.
    """
    values = load_values(path)
    config = validate(values, schema=SuiteConfig)
    task_path = find_beside(config.task, key=("task",), values=values)
    task = load_task(task_path)
    allowed = METRICS[task.labels.type]
    for key in [("metric",), *(("gates", name) for name in config.gates)]:
        metric = config.metric if key == ("metric",) else key[1]
        if metric not in allowed:
            raise UserError(
                f"{values.find_origin(key)}: {'.'.join(key)}: found {metric}, but the labels of "
                f"{task_path} are of type {task.labels.type}; allowed: {', '.join(allowed)}"
            )
    recipes = {
        name: find_beside(variant.recipe, key=("variants", name, "recipe"), values=values)
        for name, variant in config.variants.items()
        if variant.recipe is not None
    }
    edge_cases = config.edge_cases and find_beside(
        config.edge_cases, key=("edge_cases",), values=values
    )
    config = config.model_copy(update={"task": str(task_path)})
    return Suite(config, task, recipes, Path(edge_cases) if edge_cases else None)


def get_default_gates(labels: ScoresConfig | ClassConfig) -> dict[str, GateConfig]:
    """Return the gates that are used where a suite names none; errors scale with the range."""
    match labels:
        case ScoresConfig(range=[low, high]):
            unit = (high - low) / 10
            return {
                "mae": GateConfig(deploy=1.0 * unit, review=1.2 * unit),
                "skill": GateConfig(deploy=0.30, review=0.15),
            }
        case ClassConfig():
            return {
                "accuracy": GateConfig(deploy=0.80, review=0.70),
                "f1_macro": GateConfig(deploy=0.70, review=0.60),
            }
    raise AssertionError(labels)
