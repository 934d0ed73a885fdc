"""Outputs become columns under the names of the labels."""

import numpy as np
import pyarrow as pa
import pytest

from llmft.config.recipe import BaseConfig
from llmft.config.task import ScoresConfig
from llmft.models.heads import LabelSpace
from llmft.prediction.post_hoc_fit import FinalOutputs
from llmft.prediction.tables import make_columns, make_schema
from tests.conftest import make_spec

BASE = BaseConfig(model="builtin:tiny-qwen2")


def columns_of(head: str, names: list[str], outputs: list[float], **changes: object) -> dict:
    spec = make_spec(BASE, LabelSpace(head, names), **changes)
    found = np.array([outputs], dtype=np.float32)
    (row,) = make_columns(FinalOutputs(found, found), spec)
    assert list(row) == make_schema(spec).names
    assert pa.Table.from_pylist([row], schema=make_schema(spec)).to_pylist() == [row]
    return row


def test_scores_give_their_weighted_mean_and_its_tier() -> None:
    labels = ScoresConfig.model_validate(
        {
            "type": "scores",
            "from": "scores",
            "dimensions": ["risk", "calm"],
            "weights": {"risk": 3.0, "calm": 1.0},
            "tiers": {"low": 0.0, "high": 7.0},
        }
    )
    found = columns_of("regression", ["risk", "calm"], [8.0, 4.0], labels=labels)
    assert found == {"prediction": 7.0, "tier": "high", "score_risk": 8.0, "score_calm": 4.0}
    plain = columns_of("regression", ["risk", "calm"], [8.0, 4.0])
    assert plain == {"prediction": 6.0, "score_risk": 8.0, "score_calm": 4.0}


@pytest.mark.parametrize("head", ["binary", "multiclass"])
def test_classes_give_the_most_probable_one(head: str) -> None:
    found = columns_of(head, ["no", "yes"], [0.25, 0.75])
    assert found == {"prediction": "yes", "prob_no": 0.25, "prob_yes": 0.75}


@pytest.mark.parametrize(
    ("outputs", "names"),
    [([0.5, 0.9], ["health", "law"]), ([0.49, 0.5], ["law"]), ([0.1, 0.2], [])],
)
def test_labels_give_all_that_are_at_least_as_likely_as_not(
    outputs: list[float], names: list[str]
) -> None:
    found = columns_of("multilabel", ["health", "law"], outputs)
    assert found["prediction"] == names
