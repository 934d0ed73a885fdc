"""The schema of a suite: how variants of one task are judged."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import ConfigDict, Field, model_validator

from llmft.config.labels import ClassConfig, LabelsConfig, MultilabelConfig, ScoresConfig
from llmft.config.loading import FaultList, Section, find_beside, load_values, validate
from llmft.config.metrics import METRICS, MetricName, list_metrics
from llmft.config.recipe import Seed
from llmft.config.task import TaskConfig, check_name, load_task


class GateConfig(Section):
    """Thresholds of one metric."""

    deploy: float
    """To deploy, the worse end of the metric's 95 % interval has to pass this."""
    review: float
    """A run whose value is worse than this fails."""


class VariantConfig(Section):
    """One arm of a comparison: finished runs, or a recipe to be trained once per seed."""

    model_config = ConfigDict(
        json_schema_extra={  # a file may also write a run folder, or a list of them
            "type": ["object", "array", "string"],
            "items": {"type": "string"},
            "minItems": 1,
        }
    )

    runs: list[str] | None = Field(default=None, min_length=1)
    """Run folders, one per seed."""
    recipe: str | None = None
    """Recipe file; its runs lie in OUTPUT_DIR/seed-N."""
    seeds: list[Seed] | None = Field(default=None, min_length=1)
    """Training seeds for the recipe."""

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        match value:
            case str():
                return {"runs": [value]}
            case list():
                return {"runs": value}
            case _:
                return value

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


class SuiteConfig(Section):
    """How variants of one task are judged on the same rows."""

    task: str
    """Task file."""
    variants: dict[str, VariantConfig] = Field(min_length=2)
    """Name -> run folder, list of run folders (one a seed), or {recipe, seeds}."""
    reference: str
    """The variant that the others have to beat."""
    metric: MetricName
    """Metric that decides."""
    margin: float = Field(ge=0)
    """A challenger must beat the reference by more than this."""
    edge_cases: str | None = None
    """JSONL file of cases with expected ranges or labels."""
    gates: dict[MetricName, GateConfig] = Field(default={})
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
        for metric, gate in self.gates.items():
            sign = 1 if METRICS[metric].higher_is_better else -1
            if sign * gate.deploy < sign * gate.review:
                raise ValueError(
                    f"gates: {metric}: deploy {gate.deploy:g} must be as strict as review "
                    f"{gate.review:g}, or stricter"
                )
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
    faults = FaultList()
    config = validate(values, schema=SuiteConfig)
    task_path = faults.catch(lambda: find_beside(config.task, key=("task",), values=values))
    task = faults.catch(lambda: load_task(task_path)) if task_path else None
    for key in [("metric",), *(("gates", name) for name in config.gates)]:
        metric = config.metric if key == ("metric",) else key[1]
        if task is not None and metric not in list_metrics(task.labels.type, task.labels):
            faults.add(
                f"{values.find_origin(key)}: {'.'.join(key)}: found {metric}, but the labels of "
                f"{task_path}, of type {task.labels.type}, have "
                f"{', '.join(list_metrics(task.labels.type, task.labels))}"
            )
    recipes = {}
    for name, variant in config.variants.items():
        if variant.recipe is not None:
            find = partial(
                find_beside, variant.recipe, key=("variants", name, "recipe"), values=values
            )
            recipes[name] = faults.catch(find)
    edge_cases = None
    if config.edge_cases is not None:
        find = partial(find_beside, config.edge_cases, key=("edge_cases",), values=values)
        edge_cases = faults.catch(find)
    faults.raise_all()
    assert task is not None
    config = config.model_copy(update={"task": str(task_path)})
    return Suite(config, task, {n: p for n, p in recipes.items() if p is not None}, edge_cases)


def get_default_gates(labels: LabelsConfig) -> dict[str, GateConfig]:
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
        case MultilabelConfig():
            return {
                "f1_micro": GateConfig(deploy=0.70, review=0.60),
                "f1_macro": GateConfig(deploy=0.60, review=0.50),
            }
    raise AssertionError(labels)
