"""Gates pass by their bound, not by their value (D14)."""

import numpy as np
import pytest

from llmft.config.labels import ScoresConfig
from llmft.config.metrics import METRICS
from llmft.config.suite import GateConfig, get_default_gates
from llmft.evaluation.audit import Finding
from llmft.evaluation.gates import GateResult, apply_gates, decide
from llmft.evaluation.metrics import compute_metric
from llmft.evaluation.statistics import Interval, estimate_interval

MAE = GateConfig(deploy=1.0, review=1.2)


def apply_gate(
    metric: str, gate: GateConfig, labels: np.ndarray, outputs: np.ndarray
) -> GateResult:
    (result,) = apply_gates(
        {metric: gate},
        metrics={metric: compute_metric(metric, labels, outputs)},
        intervals={metric: estimate_interval(metric, labels, [outputs])},
        num_rows=len(labels),
    )
    return result


def apply_mae(errors: np.ndarray) -> GateResult:
    return apply_gate("mae", MAE, np.zeros((len(errors), 1)), errors[:, None])


@pytest.mark.parametrize(
    ("num_rows", "spread", "offset", "expected"),
    [
        (400, 0.2, 0.8, "DEPLOY"),
        (24, 0.9, 0.9, "REVIEW"),  # the value passes, its bound does not
        (19, 0.1, 0.5, "REVIEW"),  # all passes, but fewer than 20 rows prove nothing
        (400, 0.2, 1.1, "REVIEW"),
        (400, 0.2, 1.5, "FAIL"),
    ],
)
def test_d14_a_gate_passes_by_its_bound(num_rows, spread, offset, expected: str) -> None:
    errors = offset + spread * np.linspace(-1, 1, num_rows)
    result = apply_mae(errors)
    assert result.result == expected
    assert result.value == pytest.approx(offset)
    assert result.bound > result.value


def test_the_worst_gate_decides_and_an_invalid_audit_never_deploys() -> None:
    good, bad = apply_mae(np.full(50, 0.5)), apply_mae(np.full(50, 2.0))
    invalid = [Finding("x", "invalid", [], "seen in training")]
    assert decide([good], findings=[], beats_constant=True) == "DEPLOY"
    assert decide([good], findings=[], beats_constant=False) == "REVIEW"  # D9
    assert decide([good, bad], findings=[], beats_constant=True) == "FAIL"
    assert decide([good], findings=invalid, beats_constant=True) == "FAIL"
    assert decide([], findings=[], beats_constant=True) == "REVIEW"


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_d14_no_error_in_25_rows_is_no_proof_of_99_percent(metric: str) -> None:
    labels = np.arange(25) % 2
    result = apply_gate(metric, GateConfig(deploy=0.99, review=0.9), labels, np.eye(2)[labels])
    assert (result.value, result.result) == (1.0, "REVIEW")
    assert result.bound == pytest.approx(0.025 ** (1 / 25))  # Clopper and Pearson


def test_default_gates_scale_with_the_range_of_the_scores() -> None:
    labels = ScoresConfig.model_validate(
        {"type": "scores", "from": "x", "dimensions": ["a"], "range": [0, 100]}
    )
    assert get_default_gates(labels)["mae"].deploy == pytest.approx(10.0)
    assert get_default_gates(labels)["skill"].deploy == pytest.approx(0.3)


def apply_made_up(metric: str, value: float | None, interval: Interval | None) -> str:
    gate = GateConfig(deploy=0.6, review=0.6)
    (result,) = apply_gates(
        {metric: gate}, metrics={metric: value}, intervals={metric: interval}, num_rows=100
    )
    return result.result


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_a_gate(metric: str) -> None:
    small = apply_made_up(metric, 0.4, Interval(0.3, 0.5))
    large = apply_made_up(metric, 0.8, Interval(0.7, 0.9))
    expected = ("FAIL", "DEPLOY") if METRICS[metric].higher_is_better else ("DEPLOY", "FAIL")
    assert (small, large) == expected
    assert apply_made_up(metric, 0.6, Interval(0.5, 0.7)) == "REVIEW"


def test_an_undefined_metric_is_for_review_at_best() -> None:
    assert apply_made_up("roc_auc", None, None) == "REVIEW"
    assert apply_made_up("roc_auc", 0.9, None) == "REVIEW"  # most draws have no value
    assert apply_made_up("roc_auc", 0.1, None) == "FAIL"
    gate = {"tier_accuracy": GateConfig(deploy=0.6, review=0.5)}
    (absent,) = apply_gates(gate, metrics={}, intervals={}, num_rows=100)
    assert (absent.value, absent.bound, absent.result) == (None, None, "REVIEW")
