"""The schema of a suite: variants, gates, waivers of audit checks, and what else is measured."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from llmft.config.loading import (
    TAKES_PATHS,
    ConfigFile,
    ConfigSection,
    FaultList,
    KeyPath,
    LocatedValues,
    find_named_file,
    list_dotted_keys,
    load_values,
    one_of,
    refuse_values,
    suggest,
    takes_file_or,
    validate,
)
from llmft.config.metrics import METRICS, MetricName, list_metrics
from llmft.config.recipe import Recipe, Seed
from llmft.config.task import (
    ClassConfig,
    LabelsConfig,
    ScoresConfig,
    Task,
    check_name,
    find_task,
    name_task,
)
from llmft.files import StrPath

WaivableCheck = Literal[
    "same_data",
    "comparability",
    "seed_replicates",
    "contamination",
    "group_contamination",
    "few_shot_contamination",
    "initial_weights",
    "truncation",
    "identical_inputs",
    "collapsed_predictions",
    "checkpoint_selection",
]
_RequiredCheck = Literal["same_rows", "changed_model"]  # without these nothing can be measured
_WarningCheck = Literal[
    "num_seeds",
    "oracle_view",
    "token_budget",
    "baselines",
    "rare_classes",
    "test_reads",
    "trial_run",
    "pretrained_base",
    "unknown_classes",
    "post_hoc_fit",
    "waivers",
]
Check = Literal[WaivableCheck, _RequiredCheck, _WarningCheck]
WARNING_CHECKS: tuple[str, ...] = get_args(_WarningCheck)
"""Checks that never exclude a variant or confound a comparison, so there is nothing to waive."""
HIGHER_IS_BETTER = {
    "dimensions": False,
    "class_f1": True,
    "class_recall": True,
    "val_test_gap": False,
    "train_val_gap": False,
    "convergence": False,
    "p95_ms": False,
    "edge_cases": True,
    "beats_constant": True,
    "beats_tfidf": True,
    "beats_probe": True,
    **{name: metric.higher_is_better for name, metric in METRICS.items()},
}
"""Gate -> its direction: those named here, and one for each metric.

`dimensions` is the mae of each dimension; `class_f1` and `class_recall` are of the worst class
or label. The gaps are how much worse the leading metric is on test than on validation, and on
validation than on train. `convergence` is the fraction by which the last epoch still improved the
validation metric. `p95_ms` is the 95th percentile of the latency of single articles, in
milliseconds. `edge_cases` is the fraction of edge cases passed; one that must pass and does not
fails the gate by itself. `beats_constant`, `beats_tfidf` and `beats_probe` are the gains in the
leading metric over the baselines.
"""
_LABEL_TYPES = {
    "dimensions": ("scores",),
    "class_f1": ("class", "multilabel"),
    "class_recall": ("class", "multilabel"),
}
IDENTITY_KEYS = ("name", "task", "output_dir", "train.seed")
"""Keys of a recipe that differ between runs of any comparison."""
FEWEST_SEEDS = 3
"""With fewer seeds of a variant a comparison is about trained models, not recipes (D16)."""
FIXED_KEYS = ("train.metric", "tokens.article", "train.max_tokens_per_batch")
"""Keys that no treatment may name: checkpoint selection, truncation and batch size."""
_NO_TREATMENT = (
    *IDENTITY_KEYS, *FIXED_KEYS, "train.batch_size", "train.gradient_accumulation_steps",
)  # fmt: skip
NoiseKind = Literal["repeated", "second_oracle"]
NOISE_KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)
"""Origin of second labels: the same oracle asked again, or another oracle."""


class WaiverConfig(ConfigSection):
    """A finding of the audit that a person decides to accept; every report repeats it."""

    check: WaivableCheck
    """Name of the check, as the audit prints it."""
    variants: list[str] = Field(default=[])
    """Variants that it is waived for; empty: all."""
    reason: str = Field(min_length=1)
    """Why it does not matter here."""

    @field_validator("check", mode="before")
    @classmethod
    def _refuse_unwaivable(cls, check: Any) -> Any:
        if check in get_args(_RequiredCheck):
            raise ValueError(f"{check!r} cannot be waived: without it nothing can be measured")
        if check in WARNING_CHECKS:
            raise ValueError(
                f"{check!r} cannot be waived: it only warns and changes no verdict; remove it"
            )
        return check

    @field_validator("reason", mode="before")
    @classmethod
    def _refuse_silence(cls, reason: Any) -> Any:
        if isinstance(reason, str) and not reason.strip():
            raise ValueError("empty; explain why it does not matter here")
        return reason


GateName = Annotated[
    str,
    one_of(HIGHER_IS_BETTER),
    WithJsonSchema({"type": "string", "enum": list(HIGHER_IS_BETTER)}),
]
"""One of the names in `HIGHER_IS_BETTER`."""


class GateConfig(ConfigSection):
    """Thresholds of one gate."""

    deploy: float
    """To deploy, the worse end of the 95 % interval has to reach this; of convergence, the
    value."""
    review: float | None = None
    """A run whose value is worse than this fails; without it the gate never fails a run. A gap
    fails only if its interval is above 0."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Of the gate `dimensions`: the fraction of them that has to reach `deploy` (by default all);
    no dimension may be worse than `review`."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_numbers(cls, value: Any) -> Any:
        if type(value) in (int, float):
            raise ValueError(
                f"found {value}, but a gate has keys; write {{deploy: {value}, review: ...}}"
            )
        return value


DEFAULT_GATES: dict[str, GateConfig] = {
    "beats_constant": GateConfig(deploy=0.0, review=0.0),
    "beats_tfidf": GateConfig(deploy=0.0),
    "edge_cases": GateConfig(deploy=0.0),
}
"""Gates of every evaluation, unless a suite overrides them: surely better than what costs nothing,
and no edge case that must pass is missed. What a metric has to reach, only its use can tell."""


def check_gate_thresholds(gates: dict[str, GateConfig | None]) -> None:
    """Refuse gates whose deploy threshold is looser than their review threshold.

    Raises:
        ValidationError: With every such gate.
    """
    faults: list[tuple[KeyPath, str]] = []
    for name, gate in gates.items():
        if gate is None:
            continue
        sign = 1 if HIGHER_IS_BETTER[name] else -1
        if gate.review is not None and sign * gate.deploy < sign * gate.review:
            message = (
                f"deploy {gate.deploy:g} must be as strict as review {gate.review:g}, or stricter"
            )
            faults.append(((name, "deploy"), message))
        if gate.fraction is not None and name != "dimensions":
            faults.append(((name, "fraction"), "is for the gate dimensions only"))
    refuse_values(faults)


def list_gates(labels: LabelsConfig) -> list[str]:
    """Return the gates that are defined for a type of labels."""
    metrics = list_metrics(labels.type, labels)
    own = [name for name in HIGHER_IS_BETTER if name not in METRICS]
    return [n for n in own if labels.type in _LABEL_TYPES.get(n, [labels.type])] + metrics


def merge_with_defaults(gates: Mapping[str, GateConfig | None]) -> dict[str, GateConfig]:
    """Return the default gates, overridden by the suite's; those set to null are left out."""
    merged = {**DEFAULT_GATES, **gates}
    return {name: gate for name, gate in merged.items() if gate is not None}


def describe_gates(gates: Mapping[str, GateConfig | None], *, has_cases: bool) -> str:
    """Return the gates that apply with their thresholds, in one line.

    Args:
        gates: Those of a suite; empty without one.
        has_cases: Whether there are edge cases.
    """
    named = []
    for name, gate in merge_with_defaults(gates).items():
        if name == "edge_cases" and not has_cases:
            continue
        if name == "edge_cases" and gate == DEFAULT_GATES[name]:
            named.append("no edge case failed that must pass")
            continue
        sign = ">=" if HIGHER_IS_BETTER[name] else "<="
        review = "" if gate.review is None else f" (a value worse than {gate.review:g} fails)"
        fraction = "" if gate.fraction is None else f" in {gate.fraction:g} of them"
        named.append(f"{name} {sign} {gate.deploy:g}{fraction}{review}")
    return ", ".join(named) or "none"


class NoiseConfig(ConfigSection):
    """Files with second labels for test rows, in the format of the task's sources."""

    repeated: Annotated[str | None, TAKES_PATHS] = None
    """Labels that the same oracle gave when asked again."""
    second_oracle: Annotated[str | None, TAKES_PATHS] = None
    """Labels of another oracle."""


class BaselinesConfig(ConfigSection):
    """Baselines next to the best constant and TF-IDF, which are always there."""

    probe: bool | Literal["auto"] = "auto"
    """A linear head on the frozen base of the run, or of the reference. auto: where one pass over
    the rows costs less than a fifth of the training, or a gate needs it."""


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

    runs: list[Annotated[str, TAKES_PATHS]] | None = Field(default=None, min_length=1)
    """Run folders, one per seed."""
    recipe: Annotated[str | Recipe | None, takes_file_or(Recipe)] = None
    """Recipe file, or the keys of a recipe; its runs are in OUTPUT_DIR/seed-N."""
    seeds: list[Seed] | None = Field(default=None, min_length=1)
    """Training seeds for the recipe."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _refuse_number(cls, seeds: Any) -> Any:
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            example = list(range(1, min(max(seeds, 1), 5) + 1))
            raise ValueError(f"found {seeds}, but expected the seeds themselves; write {example}")
        return seeds

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        match value:
            case str() | os.PathLike():
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
    if check_name(name) in ("constant", "tfidf", "probe"):
        raise ValueError(f"{name!r} is the name of a baseline; choose another")
    return name


class Suite(ConfigFile):
    """How variants of one task are compared on the same rows."""

    __init__ = ConfigFile.__init__  # so that type checkers allow sections that are dicts

    task: Annotated[str | Task, takes_file_or(Task)]
    """Task file, or the keys of a task."""
    variants: dict[Annotated[str, AfterValidator(_check_variant)], VariantConfig] = Field(
        min_length=2
    )
    """Name -> run folder, list of run folders (one per seed), or {recipe, seeds}."""
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
    baselines: BaselinesConfig = BaselinesConfig()
    """Baselines next to the best constant and TF-IDF, which are always there."""
    edge_cases: Annotated[str | None, TAKES_PATHS] = None
    """JSONL file of cases with expected ranges or labels."""
    latency: LatencyConfig = LatencyConfig()
    """How predictions are timed, and what they cost."""
    gates: dict[GateName, GateConfig | None] = Field(default={})
    """Metric or one of the special gates -> thresholds, next to or in place of the defaults;
    null switches a gate off."""
    output_dir: Annotated[str, TAKES_PATHS]
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
        check_gate_thresholds(gates)
        return gates

    @field_validator("treatment")
    @classmethod
    def _check_treatment(cls, treatment: list[str] | None) -> list[str] | None:
        allowed = [
            key
            for key in [*list_dotted_keys(Recipe), "fit"]
            if key not in _NO_TREATMENT and not key.startswith("task.")
        ]
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

    @model_validator(mode="after")
    def _check_probe(self) -> Self:
        if self.gates.get("beats_probe") is not None and self.baselines.probe is False:
            refuse_values(
                [(("gates", "beats_probe"), "needs the baseline: baselines.probe is false")]
            )
        return self

    @property
    def wants_probe(self) -> bool | Literal["auto"]:
        """Whether the baseline `probe` is wanted, by itself or for a gate."""
        return self.gates.get("beats_probe") is not None or self.baselines.probe


class ResolvedSuite(NamedTuple):
    """A suite with the files that it names."""

    config: Suite
    task: Task
    file: str
    """Its file, or `suite` if it was made in Python."""
    recipes: dict[str, Path | Recipe]
    """Variant -> recipe file, or its contents, for variants with a recipe."""
    edge_cases_path: Path | None
    noise_paths: dict[NoiseKind, Path]
    """Origin of second labels -> their file, for those that the suite names."""


def load_suite(suite: StrPath | Suite) -> ResolvedSuite:
    """Load a suite and its task.

    Args:
        suite: Suite file, or a suite made in Python.

    Raises:
        UserError: Naming every fault of the files.
    """
    values = load_values(suite, schema=Suite)
    faults = FaultList()
    config = validate(values, schema=Suite)
    find = partial(find_named_file, values=values)
    task_key, task = find_task(config.task, values=values, faults=faults)
    if task is not None:
        for fault in _list_unfit_keys(config, task, values):
            faults.add(fault)
    recipes: dict[str, Path | Recipe | None] = {}
    for name, variant in config.variants.items():
        match variant.recipe:
            case str() as path:
                key = ("variants", name, "recipe")
                recipes[name] = faults.catch(partial(find, path, key=key))
            case Recipe() as recipe:
                recipes[name] = recipe
    edge_cases = None
    if config.edge_cases is not None:
        edge_cases = faults.catch(partial(find, config.edge_cases, key=("edge_cases",)))
    noise = {
        kind: faults.catch(partial(find, name, key=("noise", kind)))
        for kind in NOISE_KINDS
        if (name := getattr(config.noise, kind)) is not None
    }
    faults.raise_all()
    assert task is not None
    config = config.model_copy(update={"task": task_key})
    found = {name: recipe for name, recipe in recipes.items() if recipe is not None}
    noise_paths = {kind: path for kind, path in noise.items() if path is not None}
    return ResolvedSuite(config, task, values.origins[()].file, found, edge_cases, noise_paths)


def _list_unfit_keys(config: Suite, task: Task, values: LocatedValues) -> list[str]:
    """Return faults: keys of the suite that do not fit the labels or rows of the task."""
    metrics, gates = list_metrics(task.labels.type, task.labels), list_gates(task.labels)
    named: list[tuple[KeyPath, str, list[str]]] = [(("metric",), config.metric, metrics)]
    named += [(("gates", name), name, gates) for name in config.gates]
    faults = [
        f"{values.find_origin(key)}: {'.'.join(map(str, key))}: found {name}, but the labels of "
        f"{name_task(config.task)}, of type {task.labels.type}, have {', '.join(allowed)}"
        for key, name, allowed in named
        if name not in allowed
    ]
    for i, field in enumerate(config.slices):
        if field not in task.fields.keep:
            kept = ", ".join(task.fields.keep) or "nothing"
            what = (
                "is always among the slices; remove it"
                if field in _list_slices(task.labels)
                else f"is not kept by {name_task(config.task)}, whose fields.keep names {kept}."
                + suggest(field, allowed=task.fields.keep)
            )
            faults.append(f"{values.find_origin(('slices', i))}: slices: {field!r} {what}")
    scores = task.labels if isinstance(task.labels, ScoresConfig) else None
    if scores is None and config.high is not None:
        where = values.find_origin(("high",))
        what = f"is for scores, but {name_task(config.task)} has {task.labels.type}"
        faults.append(f"{where}: high: {what}")
    return faults


def _list_slices(labels: LabelsConfig) -> list[str]:
    """Return likely names of the slices that every comparison has."""
    match labels:
        case ScoresConfig(tiers=dict()):
            return ["length", "tier", "true tier"]
        case ClassConfig():
            return ["length", "class", "true class"]
    return ["length"]
