"""Post-hoc fits: calibration curves and thresholds beside a model, and how they are applied."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.errors import UserError
from llmft.models.saved import CARD_NAME, read_card
from llmft.results.files import read_result
from llmft.results.fit import Fit

FIT_NAME = "fit.json"
Floats = NDArray[np.floating[Any]]


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
