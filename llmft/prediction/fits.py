"""Post-hoc fits: calibration curves and thresholds beside a model, and how they are applied."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from llmft.config.fits import FITS, FitMethod
from llmft.config.head import Head
from llmft.errors import UserError
from llmft.files import hash_text
from llmft.models.saved import CARD_NAME, read_card
from llmft.results.files import Result, ResultFile, read_result

FIT_NAME = "fit.json"
Floats = NDArray[np.floating[Any]]


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
        if np.any(np.diff(self.x) <= 0) or np.any(np.diff(self.y) < 0):
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


class FittedOutputs(NamedTuple):
    """A model's outputs with its fit applied; without a fit both are what the model says."""

    shown_NC: Floats
    """Calibrated scores, or the model's own probabilities, which thresholds leave alone: what is
    shown and what calibration is judged by, [N, C]."""
    deciding_NC: Floats
    """Calibrated scores, or the probabilities moved so that the usual rule (the largest class, or
    all labels from 0.5 on) decides by the thresholds; each class's order of the rows is kept. What
    metrics and decisions are made from, no probabilities, [N, C]."""


def read_fit(run: Path, *, model_hash: str) -> Fit | None:
    """Read the fit of a run; None if it has none.

    Args:
        run: Run folder.
        model_hash: Hash of its model.

    Raises:
        UserError: If the fit is broken, or was made for another model or on other data.
    """
    path = run / FIT_NAME
    if not path.is_file():
        return None
    mend = (
        f"`llmft evaluate {run} --fit METHOD` makes a new one, `llmft evaluate {run} --fit none` "
        "removes it"
    )
    fit = read_result(path, Fit, mend=mend)
    card = read_card(run / "model")
    if fit.model_hash != model_hash:
        raise UserError(
            f"{path}: was fitted to another model than the one in {run / 'model'}, or a file of "
            f"that was changed; restore it, or {mend}"
        )
    if fit.data_fingerprint != card.data_fingerprint:
        raise UserError(
            f"{path}: data_fingerprint: differs from that of {run / 'model' / CARD_NAME}; restore "
            f"the file that was changed, or {mend}"
        )
    if card.head != fit.head or fit.names != card.label_names:
        raise UserError(
            f"{path}: is for a {fit.head} head with {', '.join(fit.names)}, but "
            f"{run / 'model' / CARD_NAME} says {card.head} with {', '.join(card.label_names)}; "
            f"restore the file that was changed, or {mend}"
        )
    return fit


def apply_fit(outputs_NC: Floats, fit: Fit | None) -> FittedOutputs:
    """Return a model's outputs with its fit applied.

    A label applies from its threshold t on. Of classes the one with the largest p (1 - t) / t is
    chosen, p being its probability: of two the last one above its t; of more a class whose t alone
    is not 0.5 where its share p / (p + q) is above t, q being its strongest rival's probability.

    Args:
        outputs_NC: What the model says: scores, or probabilities of classes or labels.
        fit: The fit of the model, if it has one.
    """
    if fit is None:
        return FittedOutputs(outputs_NC, outputs_NC)
    if fit.curves is not None:
        columns = [
            np.interp(outputs_NC[:, i], curve.x, curve.y)
            for i, curve in enumerate(fit.curves.values())
        ]
        calibrated_NC = np.stack(columns, axis=1)
        return FittedOutputs(calibrated_NC, calibrated_NC)
    assert fit.thresholds is not None
    thresholds_C = np.array(list(fit.thresholds.values()))
    probs_NC = outputs_NC.astype(np.float64)
    move = _move_to_half if fit.head == "multilabel" else weigh_classes
    return FittedOutputs(outputs_NC, move(probs_NC, thresholds_C))


def weigh_classes(probs_NC: Floats, thresholds_C: Floats) -> Floats:
    """Return each class's probability times its odds against its threshold, [N, C].

    The largest one is chosen. The weights have a geometric mean of 1, so that no model outweighs
    another one when their outputs are averaged.
    """
    log_odds_C = np.log1p(-thresholds_C) - np.log(thresholds_C)
    return np.asarray(probs_NC * np.exp(log_odds_C - log_odds_C.mean()))


def _move_to_half(probs_NL: Floats, thresholds_L: Floats) -> Floats:
    """Return probabilities stretched on both sides of each threshold, which comes to 0.5."""
    below_NL = 0.5 * (probs_NL / thresholds_L)
    above_NL = 0.5 + 0.5 * (probs_NL - thresholds_L) / (1 - thresholds_L)
    return np.asarray(np.where(probs_NL < thresholds_L, below_NL, above_NL))
