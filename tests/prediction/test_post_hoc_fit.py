"""A fit changes decisions as it says, leaves probabilities alone, and belongs to one model (D7)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmft.config.recipe import BaseConfig
from llmft.errors import UserError
from llmft.models.heads import LabelSpace
from llmft.prediction.post_hoc_fit import apply_fit, read_fit
from llmft.prediction.tables import make_columns
from llmft.results.files import write_result
from llmft.results.run import PostHocFit
from tests.conftest import make_spec

ISOTONIC = {"method": "isotonic", "head": "regression"}


def make_fit(**changes: Any) -> PostHocFit:
    made = {
        "llmft_version": "0",
        "method": "f1",
        "head": "multilabel",
        "num_rows": 9,
        "model_hash": "m",
        "data_fingerprint": "f",
    }
    return PostHocFit.model_validate({**made, **changes})


def make_probs(num_rows: int, num_classes: int) -> np.ndarray:
    generator = np.random.default_rng(3)
    return generator.dirichlet(np.ones(num_classes), size=num_rows).astype(np.float32)


def test_without_a_fit_nothing_changes() -> None:
    outputs = make_probs(4, 3)
    found = apply_fit(outputs, None)
    assert found.probabilities_NC is outputs
    assert found.decision_scores_NC is outputs


def test_a_curve_is_a_line_between_its_knots_and_level_outside() -> None:
    curves = {"risk": {"x": [1, 3, 4], "y": [0, 2, 8]}, "calm": {"x": [5], "y": [7]}}
    found = apply_fit(
        np.array([[0, 1], [2, 5], [3.5, 9], [9, 9]], dtype=np.float32),
        make_fit(**ISOTONIC, curves=curves),
    )
    assert found.probabilities_NC.tolist() == [[0, 7], [1, 7], [5, 7], [8, 7]]
    assert found.decision_scores_NC is found.probabilities_NC


@pytest.mark.parametrize("threshold", [1e-6, 0.1, 0.3, 0.5, 0.9, 1 - 1e-6])
def test_a_label_applies_from_its_threshold_on(threshold: float) -> None:
    """Exactly: no number is near enough for rounding to turn the decision round."""
    near = [threshold, np.nextafter(threshold, 0), np.nextafter(threshold, 1)]
    probs = np.array([*near, *np.linspace(0, 1, 101)])[:, None]
    found = apply_fit(probs, make_fit(thresholds={"law": threshold}))
    assert ((found.decision_scores_NC >= 0.5) == (probs >= threshold)).all()
    assert found.decision_scores_NC.min() == 0 and found.decision_scores_NC.max() == 1
    assert (np.diff(found.decision_scores_NC[3:, 0]) > 0).all()
    assert found.probabilities_NC is probs


@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.5, 0.8])
def test_of_two_classes_the_last_one_is_chosen_above_its_threshold(threshold: float) -> None:
    probs = make_probs(2_000, 2)
    fit = make_fit(head="binary", thresholds={"no": 0.5, "yes": threshold})
    chosen = apply_fit(probs, fit).decision_scores_NC.argmax(axis=1)
    assert (chosen == (probs[:, 1] > threshold)).all()


def test_of_many_classes_a_threshold_is_a_share_against_the_strongest_rival() -> None:
    probs = make_probs(2_000, 4)
    thresholds = {"a": 0.5, "b": 0.2, "c": 0.5, "d": 0.5}
    found = apply_fit(probs, make_fit(head="multiclass", thresholds=thresholds))
    rivals = probs[:, [0, 2, 3]].max(axis=1)
    wanted = np.where(
        probs[:, 1] > 0.2 * (probs[:, 1] + rivals), 1, np.array([0, 2, 3])[
            probs[:, [0, 2, 3]].argmax(axis=1)
        ]
    )  # fmt: skip
    chosen = found.decision_scores_NC.argmax(axis=1)
    assert (chosen == wanted).all()
    assert (chosen != probs.argmax(axis=1)).sum() > 100
    order = np.argsort(probs, axis=0, kind="stable")
    assert (np.argsort(found.decision_scores_NC, axis=0, kind="stable") == order).all()


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_equal_thresholds_leave_many_classes_as_they_are(threshold: float) -> None:
    probs = make_probs(50, 3)
    fit = make_fit(head="multiclass", thresholds=dict.fromkeys("abc", threshold))
    assert apply_fit(probs, fit).decision_scores_NC == pytest.approx(probs)


def test_thresholds_change_the_prediction_and_no_probability() -> None:
    spec = make_spec(BaseConfig(model="builtin:tiny-qwen2"), LabelSpace("multilabel", ["a", "b"]))
    fit = make_fit(thresholds={"a": 0.7, "b": 0.2})
    outputs = np.array([[0.625, 0.25]], dtype=np.float32)
    (row,) = make_columns(apply_fit(outputs, fit), spec)
    assert row == {"prediction": ["b"], "prob_a": 0.625, "prob_b": 0.25}
    (row,) = make_columns(apply_fit(outputs, None), spec)
    assert row["prediction"] == ["a"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the card of a model and a fit of it."""
    spec = make_spec(BaseConfig(model="builtin:tiny-qwen2"), LabelSpace("multilabel", ["a", "b"]))
    write_result(tmp_path / "model/llmft.json", spec)
    write_fit(tmp_path)
    return tmp_path


def write_fit(run: Path, **changes: Any) -> None:
    fit = make_fit(thresholds={"a": 0.7, "b": 0.2}).model_dump(mode="json")
    (run / "fit.json").write_text(json.dumps({**fit, **changes}))


def test_a_fit_is_read_as_it_was_written(run: Path) -> None:
    fit = read_fit(run, model_hash="m")
    assert fit == make_fit(thresholds={"a": 0.7, "b": 0.2})
    assert fit.identity != make_fit(thresholds={"a": 0.7, "b": 0.3}).identity
    (run / "fit.json").unlink()
    assert read_fit(run, model_hash="m") is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_hash": "other"}, "fitted to another model"),
        ({"data_fingerprint": "other"}, "data_fingerprint: differs from that of"),
        (
            {"thresholds": {"b": 0.2, "a": 0.7}},
            "is for a .* head with .* has multilabel with a, b",
        ),
        ({"head": "multiclass"}, "is for a .* head with .* has multilabel with a, b"),
        ({"split": "test"}, "split: found 'test', allowed: val"),
        (
            {"thresholds": {"a": 0.7, "b": 0.0}},
            "thresholds.b: found 0.0, but expected greater than 0",
        ),
        ({"method": "isotonic"}, "isotonic is not for a multilabel head"),
        ({"curves": {}}, "curves: required for isotonic, and not allowed for other methods"),
        (
            {**ISOTONIC, "curves": {"a": {"x": [1.0, 1.0], "y": [1.0, 2.0]}}},
            "curves.a: .*x must be strictly increasing",
        ),
        ({**ISOTONIC, "curves": {"a": {"x": [1], "y": [1, 2]}}}, "x and y differ in length"),
        ({"schema_version": 2}, "schema_version: found 2, written by llmft"),
    ],
)
def test_d7_a_fit_that_is_not_this_models_is_refused(
    run: Path, changes: dict[str, Any], complaint: str
) -> None:
    write_fit(run, **changes)
    with pytest.raises(UserError, match=rf"fit\.json: .*{complaint}.*--fit none` removes it"):
        read_fit(run, model_hash="m")
