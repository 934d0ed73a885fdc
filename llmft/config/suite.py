"""The schema of a suite: how variants of one task are compared."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from llmft.config.audit import WaiverConfig
from llmft.config.gates import GateConfig, GateName, list_gates, refuse_loose_gates
from llmft.config.labels import ClassConfig, LabelsConfig, ScoresConfig
from llmft.config.loading import (
    ConfigSection,
    FaultList,
    find_named_file,
    list_dotted_keys,
    load_values,
    refuse_values,
    suggest,
    validate,
)
from llmft.config.metrics import MetricName, list_metrics
from llmft.config.recipe import RecipeConfig, Seed
from llmft.config.task import TaskConfig, check_name, load_task
from llmft.config.yaml_source import KeyPath, LocatedValues

_NO_TREATMENT = (
    "name", "task", "output_dir", "train.seed", "train.metric", "tokens.article",
    "train.batch_size", "train.gradient_accumulation_steps", "train.max_tokens_per_batch",
)  # fmt: skip


NoiseKind = Literal["repeated", "second_oracle"]
"""Origin of second labels: the same oracle asked again, or another oracle."""


class NoiseConfig(ConfigSection):
    """Files with second labels for test rows, in the format of the task's sources."""

    repeated: str | None = None
    """Labels that the same oracle gave when asked again."""
    second_oracle: str | None = None
    """Labels of another oracle."""


class LatencyConfig(ConfigSection):
    """How predictions are timed."""

    batch_size: int = Field(default=32, ge=1)
    """Articles per batch in production; single articles are timed as well."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """What the machine costs, in any currency, for the cost of a million articles."""


class VariantConfig(ConfigSection):
    """One variant of a comparison: finished runs, or a recipe to be trained once per seed."""

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
        if self.runs is not None and self.seeds is not None:
            raise ValueError(
                "seeds belong to a recipe, not to finished runs; remove seeds, or write recipe "
                "instead of runs"
            )
        if self.recipe is not None and self.seeds is None:
            raise ValueError("a recipe needs seeds, for example seeds: [1, 2, 3]")
        for key, values in (("runs", self.runs or []), ("seeds", self.seeds or [])):
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: one is repeated, which would count it as two results")
        return self


def _check_variant(name: str) -> str:
    if check_name(name) in ("constant", "tfidf"):
        raise ValueError(f"{name!r} is the name of a baseline; choose another")
    return name


class SuiteConfig(ConfigSection):
    """How variants of one task are compared on the same rows."""

    task: str
    """Task file."""
    variants: dict[Annotated[str, AfterValidator(_check_variant)], VariantConfig] = Field(
        min_length=2
    )
    """Name -> run folder, list of run folders (one a seed), or {recipe, seeds}."""
    reference: str
    """The variant that the challengers have to beat."""
    metric: MetricName
    """Metric of the comparison."""
    margin: float = Field(ge=0)
    """A challenger must beat the reference by more than this."""
    min_difference: float = Field(default=0.05, ge=0)
    """In a single dimension, class or label, smaller differences are ties."""
    treatment: list[str] | None = Field(default=None, min_length=1)
    """Keys of the recipe in which the variants may differ, such as [prompt, train.epochs].
    Without it: base, head, prompt and tokens.max_length, and learning rate, warm-up and epochs
    where the bases or their tuning differ."""
    waive: list[WaiverConfig] = Field(default=[])
    """Findings of the audit that do not count."""
    slices: list[str] = Field(default=[])
    """Kept fields whose values slice the test rows; length and tier or class always do."""
    high: float | None = None
    """Overall score from which on a row is a rare event; without it the bound of the last tier."""
    top_k: list[Annotated[int, Field(ge=1)]] = Field(default=[10, 50])
    """k of the precision and recall among the k rows with the highest predictions."""
    noise: NoiseConfig = NoiseConfig()
    """Second labels of test rows, for the error that no model can be expected to go below."""
    edge_cases: str | None = None
    """JSONL file of cases with expected ranges or labels."""
    latency: LatencyConfig = LatencyConfig()
    """How predictions are timed, and what they cost."""
    gates: dict[GateName, GateConfig | None] = Field(default={})
    """Metric or one of the special gates -> thresholds, which override the defaults of the labels;
    null switches a gate off."""
    output_dir: str
    """Folder for comparison.json and the reports."""

    @field_validator("variants", mode="before")
    @classmethod
    def _refuse_one_variant(cls, variants: Any) -> Any:
        if isinstance(variants, dict) and len(variants) < 2:
            raise ValueError(f"found {len(variants)}; a comparison needs two variants or more")
        return variants

    @field_validator("gates")
    @classmethod
    def _check_gates(cls, gates: dict[str, GateConfig | None]) -> dict[str, GateConfig | None]:
        refuse_loose_gates(gates)
        return gates

    @field_validator("treatment")
    @classmethod
    def _check_treatment(cls, treatment: list[str] | None) -> list[str] | None:
        allowed = [k for k in [*list_dotted_keys(RecipeConfig), "fit"] if k not in _NO_TREATMENT]
        refuse_values(
            (
                (i,),
                f"{key!r} is not a key of a recipe in which variants may differ."
                + suggest(key, allowed=allowed),
            )
            for i, key in enumerate(treatment or [])
            if key not in allowed
        )
        return treatment

    @model_validator(mode="after")
    def _check_variants(self) -> Self:
        variants = list(self.variants)
        named: list[tuple[KeyPath, str]] = [(("reference",), self.reference)]
        for i, waiver in enumerate(self.waive):
            named += [
                (("waive", i, "variants", j), variant) for j, variant in enumerate(waiver.variants)
            ]
        refuse_values(
            (
                key,
                f"found {variant!r}, allowed: {', '.join(variants)}."
                f"{suggest(variant, allowed=variants)}",
            )
            for key, variant in named
            if variant not in variants
        )
        return self


class Suite(NamedTuple):
    """A suite with the files that it names."""

    config: SuiteConfig
    task: TaskConfig
    recipe_paths: dict[str, Path]
    """Variant -> recipe file, for variants with a recipe."""
    edge_cases_path: Path | None
    noise_paths: dict[NoiseKind, Path]
    """Origin of second labels -> their file, for those that the suite names."""


def load_suite(path: Path) -> Suite:
    """Load a suite and its task.

    Raises:
        UserError: Naming every fault of the files.
    """
    values = load_values(path)
    faults = FaultList()
    config = validate(values, schema=SuiteConfig)
    task_path = faults.catch(lambda: find_named_file(config.task, key=("task",), values=values))
    task = faults.catch(lambda: load_task(task_path)) if task_path else None
    if task is not None:
        for fault in _list_unfit_keys(config, task, values):
            faults.add(fault)
    find = partial(find_named_file, values=values)
    recipes = {}
    for name, variant in config.variants.items():
        if variant.recipe is not None:
            key = ("variants", name, "recipe")
            recipes[name] = faults.catch(partial(find, variant.recipe, key=key))
    edge_cases = None
    if config.edge_cases is not None:
        edge_cases = faults.catch(partial(find, config.edge_cases, key=("edge_cases",)))
    named: dict[NoiseKind, str | None] = {
        "repeated": config.noise.repeated,
        "second_oracle": config.noise.second_oracle,
    }
    noise = {
        kind: faults.catch(partial(find, name, key=("noise", kind)))
        for kind, name in named.items()
        if name is not None
    }
    faults.raise_all()
    assert task is not None
    config = config.model_copy(update={"task": str(task_path)})
    found = {name: path for name, path in recipes.items() if path is not None}
    noise_paths = {kind: path for kind, path in noise.items() if path is not None}
    return Suite(config, task, found, edge_cases, noise_paths)


def _list_unfit_keys(config: SuiteConfig, task: TaskConfig, values: LocatedValues) -> list[str]:
    """Return faults: keys of the suite that do not fit the labels or rows of the task."""
    metrics, gates = list_metrics(task.labels.type, task.labels), list_gates(task.labels)
    named: list[tuple[KeyPath, str, list[str]]] = [(("metric",), config.metric, metrics)]
    named += [(("gates", name), name, gates) for name in config.gates]
    faults = [
        f"{values.find_origin(key)}: {'.'.join(map(str, key))}: found {name}, but the labels of "
        f"{config.task}, of type {task.labels.type}, have {', '.join(allowed)}"
        for key, name, allowed in named
        if name not in allowed
    ]
    for i, field in enumerate(config.slices):
        if field not in task.fields.keep:
            kept = ", ".join(task.fields.keep) or "nothing"
            what = (
                "is always among the slices; remove it"
                if field in _list_slices(task.labels)
                else f"is not kept by {config.task}, whose fields.keep names {kept}."
                + suggest(field, allowed=task.fields.keep)
            )
            faults.append(f"{values.find_origin(('slices', i))}: slices: {field!r} {what}")
    scores = task.labels if isinstance(task.labels, ScoresConfig) else None
    if scores is None and config.high is not None:
        where = values.find_origin(("high",))
        faults.append(f"{where}: high: is for scores, but {config.task} has {task.labels.type}")
    return faults


def _list_slices(labels: LabelsConfig) -> list[str]:
    """Return likely names of the slices that every comparison has."""
    match labels:
        case ScoresConfig(tiers=dict()):
            return ["length", "tier", "true tier"]
        case ClassConfig():
            return ["length", "class", "true class"]
    return ["length"]
