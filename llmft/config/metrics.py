"""The metrics that can choose a checkpoint, be a gate or decide a comparison."""

import math
import sys
from typing import Annotated, Literal, NamedTuple

from pydantic import WithJsonSchema

from llmft.config.loading import one_of
from llmft.config.task import ClassConfig, LabelsConfig, ScoresConfig


class Metric(NamedTuple):
    """What is known of a metric before it is computed."""

    labels: tuple[str, ...]
    """Types of labels that it is defined for."""
    higher_is_better: bool
    flawless: float | None
    """Its value without any error; None in the units of the labels, where no interval is exact."""
    meaning: str
    """One line for people who read a report."""
    is_row_fraction: bool = False
    """Whether it is the fraction of rows that are right."""
    is_mean: bool = False
    """Whether it is the mean of a value of each row."""
    lowest: float = 0.0
    """Its lowest possible value."""
    weighs: Literal["rows", "classes", "positives", "order"] = "rows"
    """What counts the same: each row; each class or label, whose rows share its weight; each label
    that a row has; or each squared distance of a class from the mean."""
    is_area: bool = False
    """Whether it is the area under a curve over all thresholds."""

    @property
    def highest(self) -> float:
        """Its highest possible value."""
        return math.inf if self.flawless is None else 1.0


METRICS = {
    "mae": Metric(
        ("scores",),
        False,
        None,
        is_mean=True,
        meaning="mean absolute error: the mean distance of a score from its label",
    ),
    "rmse": Metric(
        ("scores",),
        False,
        None,
        meaning="root mean squared error: as mae, but large errors weigh more",
    ),
    "r2": Metric(
        ("scores",),
        True,
        1.0,
        lowest=-math.inf,
        meaning="fraction of the labels' variance that is explained",
    ),
    "spearman": Metric(
        ("scores",),
        True,
        1.0,
        lowest=-1.0,
        meaning="rank correlation, 1 at best",
    ),
    "skill": Metric(
        ("scores",),
        True,
        1.0,
        lowest=-math.inf,
        meaning="1 is perfect, 0 is as good as the best constant, negative is worse",
    ),
    "overall_mae": Metric(
        ("scores",),
        False,
        None,
        is_mean=True,
        meaning="mae of the weighted mean of the dimensions",
    ),
    "tier_accuracy": Metric(
        ("scores",),
        True,
        1.0,
        is_row_fraction=True,
        is_mean=True,
        meaning="fraction of rows in the right tier",
    ),
    "accuracy": Metric(
        ("class", "multilabel"),
        True,
        1.0,
        is_row_fraction=True,
        is_mean=True,
        meaning="fraction of rows predicted correctly; with several labels, all of them",
    ),
    "balanced_accuracy": Metric(
        ("class",),
        True,
        1.0,
        meaning="mean recall over the classes",
        weighs="classes",
    ),
    "f1_macro": Metric(
        ("class", "multilabel"),
        True,
        1.0,
        meaning="mean over the classes or labels of F1, the harmonic mean of precision and recall",
        weighs="classes",
    ),
    "f1_micro": Metric(
        ("multilabel",),
        True,
        1.0,
        meaning="F1 of all decisions, one per label and row, together",
        weighs="positives",
    ),
    "hamming_loss": Metric(
        ("multilabel",),
        False,
        0.0,
        is_mean=True,
        meaning="fraction of the decisions, one per label and row, that are wrong",
    ),
    "roc_auc": Metric(
        ("class", "multilabel"),
        True,
        1.0,
        meaning="probability that a row of a class gets a higher probability than another row; "
        "0.5 by chance",
        weighs="classes",
        is_area=True,
    ),
    "average_precision": Metric(
        ("class", "multilabel"),
        True,
        1.0,
        meaning="area under the precision-recall curve; by chance the fraction of rows "
        "of the class",
        weighs="classes",
        is_area=True,
    ),
    "top_3_accuracy": Metric(
        ("class",),
        True,
        1.0,
        is_row_fraction=True,
        is_mean=True,
        meaning="fraction of rows whose class is among the three most probable ones",
    ),
    "quadratic_kappa": Metric(
        ("class",),
        True,
        1.0,
        lowest=-1.0,
        meaning="agreement beyond chance; confusions of distant classes weigh more",
        weighs="order",
    ),
}
"""Name, as in scikit-learn where it has the metric -> what it is.

`skill` is `d2_absolute_error_score`, `quadratic_kappa` is `cohen_kappa_score` with quadratic
weights.
"""


MetricName = Annotated[
    str,
    one_of(METRICS),
    WithJsonSchema({"type": "string", "enum": list(METRICS)}),
]
"""One of the names in `METRICS`."""
CheckpointMetric = Annotated[
    str,
    one_of([*METRICS, "loss"]),
    WithJsonSchema({"type": "string", "enum": [*METRICS, "loss"]}),
]
"""One of the names in `METRICS`, or the loss."""


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
