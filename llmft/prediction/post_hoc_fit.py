"""Calibrators and thresholds of a model: reading `fit.json` and applying it to outputs."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.errors import UserError
from llmft.models.saved import SPEC_NAME, hash_model, read_spec
from llmft.results.files import read_result
from llmft.results.run import PostHocFit

FIT_NAME = "fit.json"
Floats = NDArray[np.floating[Any]]


class FinalOutputs(NamedTuple):
    """A model's outputs after its calibrators or thresholds; both are equal if it has none."""

    probabilities_NC: Floats
    """Calibrated scores of a regression head, else the model's probabilities, which thresholds do
    not change: for tables, reports and calibration, [N, C]."""
    decision_scores_NC: Floats
    """Calibrated scores, or probabilities rescaled so that the usual rule (the class with the
    largest one, or all labels from 0.5 on) decides by the thresholds; the ranking of the rows by
    each class is kept. For metrics and decisions; they are not probabilities, [N, C]."""


def read_fit(run: Path, *, model_hash: str | None = None) -> PostHocFit | None:
    """Read the calibrators or thresholds of a run; None if it has none.

    Args:
        run: Run folder.
        model_hash: Hash of its model; None to compute it.

    Raises:
        UserError: If the file is broken, or was fitted to another model or on other data.
    """
    path = run / FIT_NAME
    if not path.is_file():
        return None
    fix = (
        f"`llmft evaluate {run} --fit METHOD` fits again, `llmft evaluate {run} --fit none` "
        "removes it"
    )
    fit = read_result(path, PostHocFit, fix=fix)
    spec = read_spec(run / "model")
    if fit.model_hash != (model_hash or hash_model(run / "model")):
        raise UserError(
            f"{path}: was fitted to another model than the one in {run / 'model'}, or a file there "
            f"was changed; restore it, or {fix}"
        )
    if fit.data_fingerprint != spec.data_fingerprint:
        raise UserError(
            f"{path}: data_fingerprint: differs from that of {run / 'model' / SPEC_NAME}; restore "
            f"the file that was changed, or {fix}"
        )
    if spec.head != fit.head or fit.names != spec.label_names:
        raise UserError(
            f"{path}: is for a {fit.head} head with {', '.join(fit.names)}, but "
            f"{run / 'model' / SPEC_NAME} has {spec.head} with {', '.join(spec.label_names)}; "
            f"restore the file that was changed, or {fix}"
        )
    return fit


def apply_fit(outputs_NC: Floats, fit: PostHocFit | None) -> FinalOutputs:
    """Apply calibrators or thresholds to a model's outputs.

    A label applies from its threshold t on. Of classes, the one with the largest p (1 - t) / t is
    predicted, with p its probability. Of two classes that is the last one if its p is above its t;
    of more, if only one class has a t other than 0.5, it is that class if p / (p + q) is above t,
    with q the largest probability of the other classes.

    Args:
        outputs_NC: Outputs of the model: scores, or probabilities of classes or labels.
        fit: The calibrators or thresholds of the model; None if it has none.
    """
    if fit is None:
        return FinalOutputs(outputs_NC, outputs_NC)
    if fit.curves is not None:
        columns = [
            np.interp(outputs_NC[:, i], curve.x, curve.y)
            for i, curve in enumerate(fit.curves.values())
        ]
        calibrated_NC = np.stack(columns, axis=1)
        return FinalOutputs(calibrated_NC, calibrated_NC)
    assert fit.thresholds is not None
    thresholds_C = np.array(list(fit.thresholds.values()))
    probs_NC = outputs_NC.astype(np.float64)
    move = _move_to_half if fit.head == "multilabel" else weigh_classes
    return FinalOutputs(outputs_NC, move(probs_NC, thresholds_C))


def weigh_classes(probs_NC: Floats, thresholds_C: Floats) -> Floats:
    """Return each class's probability times the odds (1 - t) / t of its threshold t, [N, C].

    The class with the largest one is predicted. The weights have a geometric mean of 1, so that all
    members weigh the same in an ensemble.
    """
    log_odds_C = np.log1p(-thresholds_C) - np.log(thresholds_C)
    return np.asarray(probs_NC * np.exp(log_odds_C - log_odds_C.mean()))


def _move_to_half(probs_NL: Floats, thresholds_L: Floats) -> Floats:
    """Return probabilities rescaled linearly on both sides of each threshold, which maps to 0.5."""
    below_NL = 0.5 * (probs_NL / thresholds_L)
    above_NL = 0.5 + 0.5 * (probs_NL - thresholds_L) / (1 - thresholds_L)
    return np.asarray(np.where(probs_NL < thresholds_L, below_NL, above_NL))
