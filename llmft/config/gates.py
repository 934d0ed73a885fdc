"""The schema of gates: thresholds that decide whether a run may be deployed."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from llmft.config.labels import ClassConfig, LabelsConfig, MultilabelConfig, ScoresConfig
from llmft.config.loading import ConfigSection, refuse_values, suggest
from llmft.config.metrics import METRICS, list_metrics
from llmft.config.yaml_source import KeyPath

HIGHER_IS_BETTER = {
    "dimensions": False,
    "class_f1": True,
    "class_recall": True,
    "val_test_gap": False,
    "train_val_gap": False,
    "convergence": False,
    "p95_ms": False,
    "edge_cases": True,
    **{name: metric.higher_is_better for name, metric in METRICS.items()},
}
"""Gate -> its direction: those named here, and one for each metric.

`dimensions` is the mae of each dimension; `class_f1` and `class_recall` are of the worst class
or label. The gaps are by how much the leading metric is worse on test than on validation, and on
validation than on train. `convergence` is the fraction by which the last epoch still improved the
validation metric. `p95_ms` is the 95th percentile of the latency of single articles, in
milliseconds. `edge_cases` is the fraction of edge cases passed; one that must pass and does not
fails the gate by itself.
"""

_LABEL_TYPES = {
    "dimensions": ("scores",),
    "class_f1": ("class", "multilabel"),
    "class_recall": ("class", "multilabel"),
}


def _check_gate(name: str) -> str:
    if name not in HIGHER_IS_BETTER:
        hint = suggest(name, allowed=list(HIGHER_IS_BETTER))
        raise ValueError(f"found {name!r}, allowed: {', '.join(HIGHER_IS_BETTER)}.{hint}")
    return name


GateName = Annotated[
    str,
    AfterValidator(_check_gate),
    WithJsonSchema({"type": "string", "enum": list(HIGHER_IS_BETTER)}),
]
"""One of the names in `HIGHER_IS_BETTER`."""


class GateConfig(ConfigSection):
    """Thresholds of one gate."""

    deploy: float
    """To deploy, the worse end of the 95 % interval has to reach this."""
    review: float | None = None
    """A run whose value is worse than this fails; without it the gate never fails a run."""
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


def refuse_loose_gates(gates: dict[str, GateConfig | None]) -> None:
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
    """Return the gates that have a meaning for labels."""
    metrics = list_metrics(labels.type, labels)
    own = [name for name in HIGHER_IS_BETTER if name not in METRICS]
    return [n for n in own if labels.type in _LABEL_TYPES.get(n, [labels.type])] + metrics


def merge_with_defaults(
    gates: dict[str, GateConfig | None], *, labels: LabelsConfig
) -> dict[str, GateConfig]:
    """Return the default gates, overridden by the suite's; those set to null are left out."""
    merged = {**get_default_gates(labels), **gates}
    return {name: gate for name, gate in merged.items() if gate is not None}


def get_default_gates(labels: LabelsConfig) -> dict[str, GateConfig]:
    """Return the gates that are used where a suite names none; errors scale with the range."""
    match labels:
        case ScoresConfig(range=[low, high]):
            unit = (high - low) / 10
            return {
                "mae": GateConfig(deploy=1.0 * unit, review=1.2 * unit),
                "skill": GateConfig(deploy=0.30, review=0.15),
                "dimensions": GateConfig(deploy=1.1 * unit, review=2.0 * unit, fraction=0.625),
                **_get_common_gates(0.05 * unit),
            }
        case ClassConfig():
            return {
                "accuracy": GateConfig(deploy=0.80, review=0.70),
                "f1_macro": GateConfig(deploy=0.70, review=0.60),
                "balanced_accuracy": GateConfig(deploy=0.70, review=0.60),
                "class_f1": GateConfig(deploy=0.50, review=0.30),
                "class_recall": GateConfig(deploy=0.50, review=0.30),
                **_get_common_gates(0.05),
            }
        case MultilabelConfig():
            return {
                "f1_micro": GateConfig(deploy=0.70, review=0.60),
                "f1_macro": GateConfig(deploy=0.60, review=0.50),
                "class_f1": GateConfig(deploy=0.40, review=0.20),
                "class_recall": GateConfig(deploy=0.40, review=0.20),
                **_get_common_gates(0.05),
            }
    raise AssertionError(labels)


def _get_common_gates(gap: float) -> dict[str, GateConfig]:
    return {
        "val_test_gap": GateConfig(deploy=gap, review=4 * gap),
        "train_val_gap": GateConfig(deploy=10 * gap),
        "convergence": GateConfig(deploy=0.02),
        "edge_cases": GateConfig(deploy=0.60, review=0.60),
    }
