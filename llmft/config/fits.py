"""Post-hoc fits: what may be fitted to a trained model's outputs, and for which heads."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llmft.config.head import Head
from llmft.config.loading import Section

FitMethod = Literal["isotonic", "f1", "precision"]
FITS: dict[FitMethod, tuple[Head, ...]] = {
    "isotonic": ("regression",),
    "f1": ("binary", "multiclass", "multilabel"),
    "precision": ("binary", "multiclass", "multilabel"),
}
"""Method -> heads that it is for.

`isotonic` bends each dimension's scores so that they are right on average (Zadrozny and Elkan
2002). `f1` and `precision` choose one threshold per class or label: the one with the highest F1, or
with the highest precision among those that keep a recall.
"""


class FitConfig(Section):
    """What is fitted to a model's outputs on validation."""

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
            raise ValueError(f"a recall is kept by precision only, not by {self.method}")
        return self
