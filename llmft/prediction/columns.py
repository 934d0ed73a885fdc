"""Predictions as columns: `prediction`, perhaps `tier`, then one per dimension, class or label."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmft.config.labels import ScoresConfig
from llmft.data.fields import Row
from llmft.data.labels import LABEL_THRESHOLD, assign_tiers, compute_overall
from llmft.models.saved import ModelCard
from llmft.prediction.fits import FittedOutputs

Floats = NDArray[np.floating[Any]]


def name_columns(card: ModelCard) -> list[str]:
    """Return the names of the output columns, `score_*` or `prob_*`, in order."""
    prefix = "score" if card.head == "regression" else "prob"
    return [f"{prefix}_{name}" for name in card.label_names]


def make_schema(card: ModelCard) -> pa.Schema:
    """Return names and types of all prediction columns, in order."""
    is_scores = isinstance(card.labels, ScoresConfig)
    has_tiers = isinstance(card.labels, ScoresConfig) and card.labels.tiers is not None
    kind = pa.list_(pa.string()) if card.head == "multilabel" else pa.string()
    fields = [("prediction", pa.float64() if is_scores else kind)]
    fields += [("tier", pa.string())] if has_tiers else []
    return pa.schema(fields + [(name, pa.float64()) for name in name_columns(card)])


def make_columns(outputs: FittedOutputs, card: ModelCard) -> list[Row]:
    """Return for each row its prediction columns.

    `prediction` is the overall score, the most probable class, or the list of labels that are
    more probable than not; `tier` is the tier of the overall score. With a post-hoc fit the scores
    are calibrated, and classes and labels are chosen by their thresholds, with the probabilities as
    the model has them.
    """
    names = name_columns(card)
    rows = []
    decisions = _decide(outputs.deciding_NC, card)
    for shown, decided in zip(outputs.shown_NC, decisions, strict=True):
        values = [round(float(value), 6) for value in shown]
        rows.append({**decided, **dict(zip(names, values, strict=True))})
    return rows


def _decide(outputs_NC: Floats, card: ModelCard) -> list[Row]:
    if isinstance(card.labels, ScoresConfig):
        overall_N = compute_overall(outputs_NC, card.labels)
        decided: list[Row] = [{"prediction": round(float(v), 4)} for v in overall_N]
        if card.labels.tiers is not None:
            tiers = list(card.labels.tiers)
            for row, tier in zip(decided, assign_tiers(overall_N, card.labels), strict=True):
                row["tier"] = tiers[tier]
        return decided
    if card.head == "multilabel":
        named = [
            [n for n, p in zip(card.label_names, outputs, strict=True) if p >= LABEL_THRESHOLD]
            for outputs in outputs_NC
        ]
        return [{"prediction": names} for names in named]
    return [{"prediction": card.label_names[best]} for best in outputs_NC.argmax(axis=1)]
