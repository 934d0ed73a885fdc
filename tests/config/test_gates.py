import pytest

from llmft.config.metrics import METRICS
from llmft.config.suite import (
    HIGHER_IS_BETTER,
    GateConfig,
    get_default_gates,
    list_gates,
    merge_with_defaults,
)
from llmft.config.task import ClassConfig, LabelsConfig, MultilabelConfig, ScoresConfig

SCORES = ScoresConfig.model_validate({"type": "scores", "from": "x", "dimensions": ["a"]})
CLASSES = ClassConfig.model_validate({"type": "class", "from": "x"})
SEVERAL = MultilabelConfig.model_validate({"type": "multilabel", "from": ["x", "y"]})


def test_default_gates_on_errors_grow_with_the_range() -> None:
    small = get_default_gates(SCORES.model_copy(update={"range": [0.0, 1.0]}))
    large = get_default_gates(SCORES.model_copy(update={"range": [0.0, 100.0]}))
    for name in ("mae", "dimensions", "val_test_gap", "train_val_gap"):
        assert large[name].deploy == pytest.approx(100 * small[name].deploy)
    for name in ("skill", "convergence", "edge_cases"):
        assert small[name] == large[name]


@pytest.mark.parametrize("labels", [SCORES, CLASSES, SEVERAL])
def test_defaults_are_gates_of_their_labels_and_as_strict_as_any(labels: LabelsConfig) -> None:
    defaults = get_default_gates(labels)
    assert set(defaults) <= set(list_gates(labels))
    for name, gate in defaults.items():
        sign = 1 if HIGHER_IS_BETTER[name] else -1
        assert gate.review is None or sign * gate.deploy >= sign * gate.review


def test_gates_of_scores_and_of_classes_differ() -> None:
    assert {"mae", "dimensions", "p95_ms"} <= set(list_gates(SCORES))
    assert "class_f1" not in list_gates(SCORES)
    assert {"accuracy", "class_recall", "convergence"} <= set(list_gates(CLASSES))
    assert "dimensions" not in list_gates(CLASSES)
    assert "quadratic_kappa" not in list_gates(CLASSES)  # its classes have no order
    assert set(METRICS) <= set(HIGHER_IS_BETTER)


def test_a_suite_changes_single_gates_and_switches_some_off() -> None:
    strict = GateConfig(deploy=0.5, review=0.7)
    found = merge_with_defaults({"mae": strict, "dimensions": None}, labels=SCORES)
    assert found["mae"] == strict
    assert "dimensions" not in found
    assert found["skill"] == get_default_gates(SCORES)["skill"]
