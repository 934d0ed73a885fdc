"""Predictions as columns: `prediction`, then `score_<dimension>` or `prob_<class>`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.models.saved import ModelCard


def name_columns(card: ModelCard) -> list[str]:
    """Return the names of the output columns, in order."""
    prefix = "score" if card.head == "regression" else "prob"
    return [f"{prefix}_{name}" for name in card.label_names]


def make_columns(outputs_NC: NDArray[np.float32], card: ModelCard) -> list[dict[str, Any]]:
    """Return for each row its prediction columns.

    `prediction` is the mean score over the dimensions, or the most probable class.
    """
    names = name_columns(card)
    rows = []
    for outputs in outputs_NC:
        if card.head == "regression":
            prediction: float | str = round(float(outputs.mean()), 4)
        else:
            prediction = card.label_names[int(outputs.argmax())]
        values = [round(float(value), 6) for value in outputs]
        rows.append({"prediction": prediction, **dict(zip(names, values, strict=True))})
    return rows
