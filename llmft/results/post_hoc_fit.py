"""`fit.json`: the calibrator or thresholds fitted to a model's outputs, next to the model."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmft.config.head import FITS, FitMethod, Head
from llmft.files import hash_text
from llmft.results.files import Result, ResultFile


class Calibrator(Result):
    """Isotonic regression of one dimension: linear between knots, constant beyond them."""

    x: list[float] = Field(min_length=1)
    """The model's scores at the knots, strictly increasing."""
    y: list[float]
    """The calibrated scores there, non-decreasing."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError("x and y differ in length")
        if any(b <= a for a, b in pairwise(self.x)) or any(b < a for a, b in pairwise(self.y)):
            raise ValueError("x must be strictly increasing, and y non-decreasing")
        return self


class PostHocFit(ResultFile):
    """Calibrators or thresholds of a model, and the rows that they were fitted on."""

    schema_version: Literal[1] = 1
    method: FitMethod
    head: Head
    """Of the model; thresholds of multilabel heads differ from those of classes."""
    split: Literal["val"] = "val"
    """The split that it was fitted on, and must not be evaluated on (D7)."""
    num_rows: int
    """Number of rows that it was fitted on."""
    model_hash: str
    """Of the model that it was fitted to."""
    data_fingerprint: str
    """Of the prepared data that the rows are from."""
    curves: dict[str, Calibrator] | None = None
    """Dimension -> its calibrator, for `isotonic`."""
    thresholds: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None = None
    """Class or label -> its threshold, for `f1` and `precision`; 0.5 changes nothing."""
    min_recall: float | None = None
    """Lowest recall that `precision` allows."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.head not in FITS[self.method]:
            raise ValueError(f"{self.method} is not for a {self.head} head")
        if (self.curves is None) == (self.method == "isotonic"):
            raise ValueError("curves: required for isotonic, and not allowed for other methods")
        if (self.thresholds is None) == (self.method != "isotonic"):
            raise ValueError("thresholds: required for f1 and precision, not allowed for isotonic")
        return self

    @property
    def names(self) -> list[str]:
        """Dimensions, classes or labels, in the order of the outputs."""
        return list(self.curves or self.thresholds or {})

    @property
    def identity(self) -> str:
        """Hash of its contents."""
        return hash_text(self.model_dump_json())
