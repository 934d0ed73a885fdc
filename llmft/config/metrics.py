"""The metrics that can choose a checkpoint, be a gate or decide a comparison."""

import sys
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, WithJsonSchema

from llmft.config.loading import suggest
from llmft.config.task import ClassConfig, LabelsConfig, ScoresConfig


class Metric(NamedTuple):
    """The labels that a metric is defined for, and its direction."""

    labels: tuple[str, ...]
    """Types of labels that it is defined for."""
    higher_is_better: bool


METRICS = {
    "mae": Metric(("scores",), False),
    "rmse": Metric(("scores",), False),
    "r2": Metric(("scores",), True),
    "spearman": Metric(("scores",), True),
    "skill": Metric(("scores",), True),
    "overall_mae": Metric(("scores",), False),
    "tier_accuracy": Metric(("scores",), True),
    "accuracy": Metric(("class", "multilabel"), True),
    "balanced_accuracy": Metric(("class",), True),
    "f1_macro": Metric(("class", "multilabel"), True),
    "f1_micro": Metric(("multilabel",), True),
    "hamming_loss": Metric(("multilabel",), False),
    "roc_auc": Metric(("class", "multilabel"), True),
    "average_precision": Metric(("class", "multilabel"), True),
    "top_3_accuracy": Metric(("class",), True),
    "quadratic_kappa": Metric(("class",), True),
}
"""Name, as in scikit-learn where it has the metric -> what it is.

`skill` is `d2_absolute_error_score`, `overall_mae` the error of the weighted overall score,
`tier_accuracy` the fraction of rows in the right tier, `average_precision` the area under the
precision-recall curve, `quadratic_kappa` `cohen_kappa_score` with quadratic weights.
"""


def _check_metric(name: str) -> str:
    if name not in METRICS:
        hint = suggest(name, allowed=list(METRICS))
        raise ValueError(f"found {name!r}, allowed: {', '.join(METRICS)}.{hint}")
    return name


MetricName = Annotated[
    str,
    AfterValidator(_check_metric),
    WithJsonSchema({"type": "string", "enum": list(METRICS)}),
]
"""One of the names in `METRICS`."""


def list_metrics(
    label_type: str, config: LabelsConfig | None, *, num_outputs: int | None = None
) -> list[str]:
    """Return the metrics that are defined for labels of a type.

    Args:
        label_type: Type of the labels.
        config: The task's labels; tiers, weights and an order have metrics of their own.
        num_outputs: Number of classes, if it is known already.
    """
    scores = config if isinstance(config, ScoresConfig) else None
    order = config.order if isinstance(config, ClassConfig) else None
    if num_outputs is None:
        num_outputs = len(order) if order is not None else sys.maxsize
    has_tiers = scores is not None and scores.tiers is not None
    has_overall = has_tiers or (scores is not None and scores.weights is not None)
    is_defined = {
        "overall_mae": has_overall,
        "tier_accuracy": has_tiers,
        "quadratic_kappa": order is not None,
        "top_3_accuracy": num_outputs > 3,
    }
    return [n for n, m in METRICS.items() if label_type in m.labels and is_defined.get(n, True)]
