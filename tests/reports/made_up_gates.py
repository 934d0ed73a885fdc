"""Gates made up by hand: each kind, with and without interval, bound and review."""

from typing import Any

from llmft.results.evaluation import Decision, GateResult, Interval, LabelType


def make_gate(name: str, result: Decision, **found: Any) -> GateResult:
    """Return a gate; `found` takes the place of what it would hold."""
    gate: dict[str, Any] = {
        "name": name,
        "value": 0.6123,
        "interval": Interval(0.5513, 0.7321),
        "bound": 0.7321,
        "deploy": 0.7,
        "review": 1.2,
        "result": result,
    }
    gate |= found
    return GateResult(**{"reason": f"{name}: {gate['value']}; the bound {gate['bound']}", **gate})


def make_gates(metric: str, result: Decision, *, label_type: LabelType) -> list[GateResult]:
    """Return a gate of every kind that labels of a type have; the first has the given result."""
    if label_type == "scores":
        own = [
            make_gate("skill", "DEPLOY", value=0.4127, interval=Interval(0.3611, 0.4713),
                      bound=0.3611, deploy=0.3, review=0.15),
            make_gate("dimensions", "REVIEW", value=1.3177, interval=None, bound=1.1339,
                      deploy=1.1, review=2.0),
        ]  # fmt: skip
    else:
        own = [
            make_gate("class_f1", "FAIL", value=0.2213, interval=Interval(0.1113, 0.3517),
                      bound=0.1013, deploy=0.5, review=0.3),
            make_gate("class_recall", "REVIEW", value=0.7713, interval=Interval(0.4127, 0.8539),
                      bound=0.4127, deploy=0.5, review=0.3),
        ]  # fmt: skip
    return [
        make_gate(metric, result),
        *own,
        make_gate("val_test_gap", "DEPLOY", value=-0.0213, interval=Interval(-0.0813, 0.0391),
                  bound=-0.0213, deploy=0.0617, review=0.2),
        make_gate("train_val_gap", "REVIEW", value=0.6713, interval=Interval(0.5713, 0.7711),
                  bound=0.6713, deploy=0.5, review=None),
        make_gate("convergence", "REVIEW", value=None, interval=None, bound=None, deploy=0.02,
                  review=None),
        make_gate("p95_ms", "REVIEW", value=187.311, interval=None, bound=231.117, deploy=200.0,
                  review=500.0),
        make_gate("edge_cases", "DEPLOY", value=0.9113, interval=Interval(0.7719, 0.9613),
                  bound=0.7719, deploy=0.6, review=0.6),
    ]  # fmt: skip
