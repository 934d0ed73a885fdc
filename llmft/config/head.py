"""Heads: what a model predicts, and the calibrators and thresholds fitted to it afterwards."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmft.config.loading import ConfigSection, refuse_values
from llmft.config.task import ClassConfig, LabelsConfig, MultilabelConfig, ScoresConfig

Head = Literal["regression", "binary", "multiclass", "multilabel"]
SELECTION_METRIC: dict[Head, str] = {
    "regression": "mae",
    "binary": "f1_macro",
    "multiclass": "f1_macro",
    "multilabel": "f1_micro",
}
"""Head -> validation metric that chooses the checkpoint, unless the recipe names one."""
LOSSES: dict[Head, tuple[str, ...]] = {
    "regression": ("mse", "mae", "huber"),
    "binary": ("bce",),
    "multiclass": ("cross_entropy", "focal"),
    "multilabel": ("bce",),
}
"""Head -> losses that it takes, the default first."""
_LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    "dimension_weights": ("mse", "mae", "huber"),
    "class_weights": ("cross_entropy", "focal"),
    "positive_weights": ("bce",),
    "label_smoothing": ("cross_entropy",),
    "gamma": ("focal",),
}
"""Option -> losses that take it."""
FitMethod = Literal["isotonic", "f1", "precision"]
FITS: dict[FitMethod, tuple[Head, ...]] = {
    "isotonic": ("regression",),
    "f1": ("binary", "multiclass", "multilabel"),
    "precision": ("binary", "multiclass", "multilabel"),
}
"""Method -> heads that it is for.

`isotonic` fits a calibrator to each dimension's scores: an isotonic regression, after which they
are right on average (Zadrozny and Elkan 2002). `f1` and `precision` choose one threshold per class
or label: the one with the highest F1, or with the highest precision among those with a minimum
recall.
"""


class LossConfig(ConfigSection):
    """The loss function and its weights."""

    name: Literal["mse", "mae", "huber", "cross_entropy", "focal", "bce"] | None = None
    """regression: mse, mae, huber (in standard deviations of each dimension, quadratic below 1);
    multiclass: cross_entropy, focal; binary and multilabel: bce. By default the head's first."""
    dimension_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Dimension -> weight in the loss, for regression; 1 for dimensions that are not named."""
    class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None = None
    """Weight of each class in the loss, in the order of the classes, for multiclass, scaled to a
    mean of 1 over the rows; balanced = in inverse proportion to its rows."""
    positive_weights: Literal["balanced"] | list[Annotated[float, Field(gt=0)]] | None = None
    """`pos_weight` of each label, for bce; balanced = number of negative rows divided by that of
    positive rows."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fraction of the target that is spread over all classes, for cross_entropy."""
    gamma: float = Field(default=2.0, ge=0)
    """Focusing parameter of focal: how much less well-classified rows weigh (Lin et al. 2017)."""
    row_weights: str | None = None
    """Field with a weight per row, to be named in `fields.keep` of the task; scaled to a mean of 1
    over train."""

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        for key in ("class_weights", "dimension_weights"):
            found = getattr(self, key)
            numbers = list(found.values()) if isinstance(found, dict) else found
            if isinstance(numbers, list) and not any(numbers):
                raise ValueError(f"{key}: at least one must be above 0")
        return self


class HeadConfig(ConfigSection):
    """What the model predicts, and its loss."""

    type: Head
    """One number per dimension, one of two classes, one class, or any number of labels."""
    init: Literal["auto", "random", "probe"] = "auto"
    """Initial weights of the output layer. probe: those of a linear head that is first fitted to
    what the layer reads, with the base as pretrained (Kumar et al. 2022, arXiv:2202.10054); random:
    small random numbers; auto: probe, unless base.pooling is transformers or stands for it."""
    loss: LossConfig = LossConfig()
    """The loss function and its weights."""

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        allowed, found = LOSSES[self.type], self.loss.name
        if found is not None and found not in allowed:
            raise ValueError(
                f"loss.name: found {found}, but a {self.type} head takes {', '.join(allowed)}"
            )
        default = LossConfig()  # a resolved recipe spells out defaults, which nobody asked for
        for option, losses in _LOSS_OPTIONS.items():
            is_set = getattr(self.loss, option) != getattr(default, option)
            if is_set and self.loss_name not in losses:
                raise ValueError(f"loss.{option}: has no effect with the loss {self.loss_name}")
        return self

    @property
    def loss_name(self) -> str:
        """The loss of the recipe, or the default of the head."""
        return self.loss.name or LOSSES[self.type][0]

    @property
    def convex(self) -> "HeadConfig":
        """The same head with the loss of ridge or logistic regression, and the recipe's weights."""
        names = ("class_weights", "positive_weights", "row_weights")
        kept = {name: getattr(self.loss, name) for name in names}
        return HeadConfig(type=self.type, loss=LossConfig(**kept))


def list_heads(labels: LabelsConfig) -> list[Head]:
    """Return the heads that can learn a type of labels."""
    match labels:
        case ScoresConfig():
            return ["regression"]
        case ClassConfig():
            return ["binary", "multiclass"]
        case MultilabelConfig():
            return ["multilabel"]


class FitConfig(ConfigSection):
    """How a calibrator or thresholds are fitted to a model's outputs on validation."""

    method: FitMethod
    """One of the methods in `FITS`."""
    min_recall: float | None = Field(default=None, gt=0, le=1)
    """Recall that `precision` has to keep for each class or label (0.90)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_recall(cls, values: dict[str, object]) -> dict[str, object]:
        if values.get("method") == "precision" and values.get("min_recall") is None:
            return {**values, "min_recall": 0.90}
        return values

    @model_validator(mode="after")
    def _check_recall(self) -> Self:
        if self.method != "precision" and self.min_recall is not None:
            refuse_values([(("min_recall",), f"is for precision only, not for {self.method}")])
        return self
