import pytest

from llmft.config.metrics import METRICS
from llmft.config.suite import (
    DEFAULT_GATES,
    HIGHER_IS_BETTER,
    GateConfig,
    describe_gates,
    list_gates,
    merge_with_defaults,
)
from llmft.config.task import ClassConfig, LabelsConfig, MultilabelConfig, ScoresConfig

SCORES = ScoresConfig.model_validate({"type": "scores", "from": "x", "dimensions": ["a"]})
CLASSES = ClassConfig.model_validate({"type": "class", "from": "x"})
SEVERAL = MultilabelConfig.model_validate({"type": "multilabel", "from": ["x", "y"]})


@pytest.mark.parametrize("labels", [SCORES, CLASSES, SEVERAL])
def test_d24_default_gates_are_about_baselines_and_cases_never_absolute(
    labels: LabelsConfig,
) -> None:
    assert set(DEFAULT_GATES) == {"beats_constant", "beats_tfidf", "edge_cases"}
    assert set(DEFAULT_GATES) <= set(list_gates(labels))
    assert {gate.deploy for gate in DEFAULT_GATES.values()} == {0.0}


def test_gates_that_apply_are_described() -> None:
    assert describe_gates({}, has_cases=False) == (
        "beats_constant >= 0 (a value worse than 0 fails), beats_tfidf >= 0"
    )
    gates = {
        "beats_constant": None,
        "mae": GateConfig(deploy=1.0, review=1.2),
        "dimensions": GateConfig(deploy=1.5, fraction=0.5),
    }
    assert describe_gates(gates, has_cases=True) == (
        "beats_tfidf >= 0, no edge case failed that must pass, "
        "mae <= 1 (a value worse than 1.2 fails), dimensions <= 1.5 in 0.5 of them"
    )
    assert describe_gates(dict.fromkeys(DEFAULT_GATES), has_cases=True) == "none"


def test_gates_of_scores_and_of_classes_differ() -> None:
    assert {"mae", "dimensions", "p95_ms"} <= set(list_gates(SCORES))
    assert "class_f1" not in list_gates(SCORES)
    assert {"accuracy", "class_recall", "convergence"} <= set(list_gates(CLASSES))
    assert "dimensions" not in list_gates(CLASSES)
    assert "quadratic_kappa" not in list_gates(CLASSES)  # its classes have no order
    assert set(METRICS) <= set(HIGHER_IS_BETTER)


def test_a_suite_changes_single_gates_and_switches_some_off() -> None:
    strict = GateConfig(deploy=0.5, review=0.7)
    found = merge_with_defaults({"mae": strict, "beats_constant": None})
    assert found["mae"] == strict
    assert "beats_constant" not in found
    assert found["beats_tfidf"] == DEFAULT_GATES["beats_tfidf"]
