"""`fit.json`: what was fitted to a model's outputs, beside the model."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmft.config.fits import FITS, FitMethod
from llmft.config.head import Head
from llmft.files import hash_text
from llmft.results.files import Result, ResultFile


class Curve(Result):
    """A rising line through knots, level beyond the first and the last."""

    x: list[float] = Field(min_length=1)
    """What the model puts out, rising."""
    y: list[float]
    """What is made of it, never falling."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError("x and y differ in length")
        if any(b <= a for a, b in pairwise(self.x)) or any(b < a for a, b in pairwise(self.y)):
            raise ValueError("x must rise, and y must not fall")
        return self


class Fit(ResultFile):
    """What was fitted to a model's outputs, and on which rows; `fit.json` beside the model."""

    schema_version: Literal[1] = 1
    method: FitMethod
    head: Head
    """Of the model; it says what the thresholds mean."""
    split: Literal["val"] = "val"
    """The rows that it was fitted on, and must not be judged on (D7)."""
    num_rows: int
    model_hash: str
    """Of the model whose outputs they were."""
    data_fingerprint: str
    """Of the prepared data that the rows are from."""
    curves: dict[str, Curve] | None = None
    """Dimension -> its calibration curve, for `isotonic`."""
    thresholds: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None = None
    """Class or label -> its threshold, for `f1` and `precision`; 0.5 changes nothing."""
    min_recall: float | None = None
    """Recall that `precision` was to keep."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.head not in FITS[self.method]:
            raise ValueError(f"{self.method} is not for a {self.head} head")
        if (self.curves is None) == (self.method == "isotonic"):
            raise ValueError("curves: of isotonic, and of nothing else")
        if (self.thresholds is None) == (self.method != "isotonic"):
            raise ValueError("thresholds: of all methods but isotonic")
        return self

    @property
    def names(self) -> list[str]:
        """Dimensions, classes or labels, in the order of the outputs."""
        return list(self.curves or self.thresholds or {})

    @property
    def identity(self) -> str:
        """Hash of all that it says."""
        return hash_text(self.model_dump_json())
