"""Gates pass by their bound, not by their value (D14); edge cases and baselines."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmft.config.suite import GateConfig, get_default_gates
from llmft.config.task import ScoresConfig
from llmft.errors import UserError
from llmft.evaluation.audit import Finding
from llmft.evaluation.baselines import predict_constant, predict_tfidf
from llmft.evaluation.edge_cases import check_cases, read_edge_cases, summarise_cases
from llmft.evaluation.gates import apply_gates, decide

MAE = {"mae": GateConfig(deploy=1.0, review=1.2)}


def score_with_errors(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((len(errors), 1)), errors[:, None]


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
    (result,) = apply_gates(MAE, *score_with_errors(errors))
    assert result.result == expected
    assert result.value == pytest.approx(offset)
    assert result.bound > result.value


def test_the_worst_gate_decides_and_an_invalid_audit_never_deploys() -> None:
    (good,) = apply_gates(MAE, *score_with_errors(np.full(50, 0.5)))
    (bad,) = apply_gates(MAE, *score_with_errors(np.full(50, 2.0)))
    invalid = [Finding("x", "invalid", [], "seen in training")]
    assert decide([good], findings=[], beats_constant=True) == "DEPLOY"
    assert decide([good], findings=[], beats_constant=False) == "REVIEW"  # D9
    assert decide([good, bad], findings=[], beats_constant=True) == "FAIL"
    assert decide([good], findings=invalid, beats_constant=True) == "FAIL"
    assert decide([], findings=[], beats_constant=True) == "REVIEW"


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_d14_no_error_in_25_rows_is_no_proof_of_99_percent(metric: str) -> None:
    labels = np.arange(25) % 2
    (result,) = apply_gates(
        {metric: GateConfig(deploy=0.99, review=0.9)}, labels, np.eye(2)[labels]
    )
    assert (result.value, result.result) == (1.0, "REVIEW")
    assert result.bound == pytest.approx(0.025 ** (1 / 25))  # Clopper and Pearson


def test_default_gates_scale_with_the_range_of_the_scores() -> None:
    labels = ScoresConfig.model_validate(
        {"type": "scores", "from": "x", "dimensions": ["a"], "range": [0, 100]}
    )
    assert get_default_gates(labels)["mae"].deploy == pytest.approx(10.0)
    assert get_default_gates(labels)["skill"].deploy == pytest.approx(0.3)


def test_d9_baselines_are_fitted_on_train_only() -> None:
    train = np.array([[1.0, 9.0], [2.0, 9.0], [9.0, 9.0]])
    assert predict_constant(train, num_rows=2, num_outputs=2).tolist() == [[2, 9], [2, 9]]
    classes = np.array([0, 2, 2, 2])
    assert predict_constant(classes, num_rows=1, num_outputs=3).tolist() == [[0.25, 0, 0.75]]


def test_d9_tfidf_learns_words() -> None:
    texts = ["bad crisis loss", "calm profit growth"] * 10
    scores = np.array([[9.0], [1.0]] * 10)
    found = predict_tfidf(texts, scores, texts=["crisis and loss", "growth"], num_outputs=1)
    assert found[0, 0] > 6 > 4 > found[1, 0]
    classes = np.array([2, 0] * 10)
    probs = predict_tfidf(texts, classes, texts=["crisis and loss"], num_outputs=3)
    assert probs.argmax() == 2
    assert probs[0, 1] == 0.0  # a class that train never shows


def test_tfidf_copes_with_texts_that_share_no_word() -> None:
    found = predict_tfidf(["a", "b"], np.array([0, 0]), texts=["c"], num_outputs=2)
    assert found.tolist() == [[1.0, 0.0]]


CASES = [
    {"id": "loud", "text": "x", "expect": {"risk": {"max": 3}}, "must_pass": True},
    {"id": "grave", "text": "y", "expect": {"risk": {"min": 6}, "proof": {"min": 2, "max": 5}}},
]


def write_cases(path: Path, cases: list[dict]) -> Path:
    path.write_text("".join(json.dumps(c) + "\n" for c in cases))
    return path


def test_edge_cases_say_what_was_expected_and_found(tmp_path: Path) -> None:
    names = ["risk", "proof"]
    cases = read_edge_cases(
        write_cases(tmp_path / "c.jsonl", CASES), label_names=names, head="regression"
    )
    found = check_cases(cases, [[4.5, 0.0], [7.0, 3.0]], label_names=names)
    assert [r.passed for r in found] == [False, True]
    assert found[0].failures == ["risk: expected at most 3, found 4.50"]
    summary = summarise_cases(found)
    assert summary["num_passed"] == 1
    assert summary["must_pass_failed"] == ["loud"]


def test_d14_27_of_27_does_not_prove_3_percent() -> None:
    case = {"id": "c", "text": "x", "expect": {"label": "yes"}}
    results = check_cases(
        [type("Case", (), {"row": case, "expect": case["expect"], "must_pass": False,
                           "category": ""})()] * 27,
        [[0.9, 0.1]] * 27,
        label_names=["yes", "no"],
    )  # fmt: skip
    low, high = summarise_cases(results)["pass_rate_interval"]
    assert high == 1.0
    assert 1 - low == pytest.approx(0.128, abs=0.001)  # two-sided; one-sided it is 10.5 %


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"id": "a", "text": "x", "expect": {"rsik": {"min": 1}}}, "unknown dimension 'rsik'"),
        ({"id": "a", "text": "x", "expect": {"risk": {"mim": 1}}}, r"expect\.risk\.mim"),
        ({"id": "a", "text": "x", "expect": {"risk": 5}}, r"expect\.risk"),
        ({"id": "a", "text": "x", "expect": {"risk": {}}}, "needs min or max"),
        ("hello", "expected a JSON object"),
        ({"text": "x", "expect": {"risk": {"min": 1}}}, "a case needs `id`"),
        ({"id": "a", "text": "x"}, "expect"),
    ],
)
def test_a_bad_edge_case_is_named_with_its_line(tmp_path: Path, case, message: str) -> None:
    path = write_cases(tmp_path / "c.jsonl", [CASES[0], case])
    with pytest.raises(UserError, match=message) as caught:
        read_edge_cases(path, label_names=["risk", "proof"], head="regression")
    assert "c.jsonl:2:" in str(caught.value)
