"""Gates pass by their bound, not by their value (D14)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llmft.config.metrics import METRICS
from llmft.config.suite import DEFAULT_GATES, HIGHER_IS_BETTER, GateConfig
from llmft.evaluation.edge_cases import summarise_cases
from llmft.evaluation.gates import GateFacts, Outcome, apply_gates, decide
from llmft.metrics.definitions import compute_metric
from llmft.results.evaluation import (
    BaselineGain,
    EdgeCaseResult,
    EdgeCases,
    Finding,
    GateResult,
    Interval,
    Latency,
    MetricValue,
)
from llmft.results.run import LearningCurve
from llmft.statistics.intervals import estimate_interval
from llmft.statistics.shortages import find_shortage
from tests.results.made_up import make_curve

MAE = GateConfig(deploy=1.0, review=1.2)
Z = 1.959964


def make_facts(**known: Any) -> GateFacts:
    empty: dict[str, Any] = {
        "metric": "mae", "metrics": {}, "intervals": {}, "parts": {},
        "splits": {}, "histories": [],
    }  # fmt: skip
    return GateFacts(**{**empty, **known})


def shorten_all(num_rows: int, num_clusters: int) -> dict[str, str | None]:
    found = find_shortage(num_rows, np.arange(num_rows) % num_clusters)
    return {"shortage": found and found.reason}


def shorten(num_rows: int, num_clusters: int) -> dict[str, dict[str, str | None]]:
    reason = shorten_all(num_rows, num_clusters)["shortage"]
    return {"shortages": dict.fromkeys(HIGHER_IS_BETTER, reason)}


def apply_one(name: str, gate: GateConfig, facts: GateFacts) -> GateResult:
    (result,) = apply_gates({name: gate}, facts)
    assert result.name == name
    assert result.reason.startswith(f"{name}: ")
    return result


def apply_gate(
    metric: str, gate: GateConfig, labels: np.ndarray, outputs: np.ndarray
) -> GateResult:
    facts = make_facts(
        **shorten(len(labels), len(labels)),
        metrics={metric: compute_metric(metric, labels, outputs)},
        intervals={metric: estimate_interval(metric, labels, [outputs])},
    )
    return apply_one(metric, gate, facts)


def apply_mae(errors: np.ndarray) -> GateResult:
    return apply_gate("mae", MAE, np.zeros((len(errors), 1)), errors[:, None])


@pytest.mark.parametrize(
    ("num_rows", "spread", "offset", "expected"),
    [
        (400, 0.2, 0.8, "DEPLOY"),
        (24, 0.9, 0.9, "REVIEW"),  # the value passes, its bound does not
        (19, 0.1, 0.5, "REVIEW"),  # all pass, but fewer than 20 rows are no evidence
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


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_d14_no_error_in_25_rows_is_no_proof_of_99_percent(metric: str) -> None:
    labels = np.arange(25) % 2
    result = apply_gate(metric, GateConfig(deploy=0.99, review=0.9), labels, np.eye(2)[labels])
    assert (result.value, result.result) == (1.0, "REVIEW")
    assert result.bound == pytest.approx(0.025 ** (1 / 25), abs=1e-3)  # Clopper and Pearson


def apply_made_up(
    metric: str, value: float | None, interval: Interval | None, *, review: float | None = 0.6
) -> GateResult:
    facts = make_facts(metrics={metric: value}, intervals={metric: interval})
    return apply_one(metric, GateConfig(deploy=0.6, review=review), facts)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_a_gate(metric: str) -> None:
    small = apply_made_up(metric, 0.4, Interval(0.3, 0.5)).result
    large = apply_made_up(metric, 0.8, Interval(0.7, 0.9)).result
    expected = ("FAIL", "DEPLOY") if METRICS[metric].higher_is_better else ("DEPLOY", "FAIL")
    assert (small, large) == expected
    assert apply_made_up(metric, 0.6, Interval(0.5, 0.7)).result == "REVIEW"
    assert apply_made_up(metric, 0.6, Interval(0.6, 0.6)).result == "DEPLOY"  # at the edge


def test_an_undefined_metric_is_for_review_at_best() -> None:
    found = apply_made_up("roc_auc", None, None)
    assert (found.value, found.bound, found.result) == (None, None, "REVIEW")
    assert "not defined on these rows" in found.reason
    assert apply_made_up("roc_auc", 0.9, None).result == "REVIEW"  # most draws have no value
    assert apply_made_up("roc_auc", 0.1, None).result == "FAIL"
    (absent,) = apply_gates({"tier_accuracy": GateConfig(deploy=0.6)}, make_facts())
    assert (absent.value, absent.bound, absent.result) == (None, None, "REVIEW")


def test_without_review_a_gate_fails_nobody_and_reasons_give_all_numbers() -> None:
    result = apply_made_up("mae", 9.0, Interval(8.0, 10.0), review=None)
    assert (result.result, result.review) == ("REVIEW", None)
    assert result.reason == "mae: 9.000; the bound 10.000 is not at most 0.6"
    good = apply_made_up("mae", 0.4, Interval(0.3, 0.5))
    assert good.reason == "mae: 0.400; the bound 0.500 is at most 0.6"
    bad = apply_made_up("mae", 0.7, Interval(0.65, 0.75))
    assert bad.reason == (
        "mae: 0.700; the bound 0.750 is not at most 0.6, and a value worse than 0.6 fails"
    )


def make_dimensions(*means: float, half_width: float = 0.1) -> dict[str, Any]:
    return {
        "mae": {
            f"d{i}": MetricValue(
                value=mean, interval=Interval(mean - half_width, mean + half_width)
            )
            for i, mean in enumerate(means)
        }
    }


@pytest.mark.parametrize(
    ("means", "fraction", "expected", "bound"),
    [
        ([0.5, 0.6, 0.7, 0.8, 1.0, 1.5, 1.6, 1.7], 0.625, "DEPLOY", 1.1),  # 5 of 8, at the edge
        ([0.5, 0.6, 0.7, 0.8, 1.05, 1.5, 1.6, 1.7], 0.625, "REVIEW", 1.15),  # value passes only
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 2.01], 0.625, "FAIL", 1.0),  # one is beyond review
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 2.0], 0.625, "DEPLOY", 1.0),
        ([0.5, 1.05], None, "REVIEW", 1.15),  # without fraction: all
        ([0.1] * 7 + [1.5] * 3, 0.7, "DEPLOY", 0.2),  # 0.7 * 10 is above 7 in floating point
    ],
)
def test_so_many_dimensions_have_to_pass(means, fraction, expected: str, bound: float) -> None:
    gate = GateConfig(deploy=1.1, review=2.0, fraction=fraction)
    result = apply_one("dimensions", gate, make_facts(parts=make_dimensions(*means)))
    assert result.result == expected
    assert (result.value, result.bound) == (pytest.approx(bound - 0.1), pytest.approx(bound))
    assert (f"d{len(means) - 1} has {max(means):.3f}, above 2" in result.reason) == (
        expected == "FAIL"
    )


def test_a_dimension_without_an_interval_does_not_pass() -> None:
    parts = {
        "mae": {
            "a": MetricValue(value=0.1, interval=None),
            "b": MetricValue(value=0.1, interval=Interval(0.0, 0.2)),
        }
    }
    gate = GateConfig(deploy=1.1, review=2.0)
    result = apply_one("dimensions", gate, make_facts(parts=parts))
    assert (result.bound, result.result) == (None, "REVIEW")
    some = gate.model_copy(update={"fraction": 0.5})
    assert apply_one("dimensions", some, make_facts(parts=parts)).result == "DEPLOY"
    few = make_facts(parts=make_dimensions(0.1), **shorten(19, 19))
    assert apply_one("dimensions", gate, few).result == "REVIEW"


@pytest.mark.parametrize("name", ["class_f1", "class_recall"])
def test_the_worst_class_decides(name: str) -> None:
    metric, gate = name.removeprefix("class_"), GateConfig(deploy=0.5, review=0.3)

    def apply(**classes: MetricValue) -> GateResult:
        return apply_one(name, gate, make_facts(parts={metric: classes}))

    good, wide = (
        MetricValue(value=0.9, interval=Interval(0.8, 1.0)),
        MetricValue(value=0.8, interval=Interval(0.45, 1.0)),
    )
    poor = MetricValue(value=0.29, interval=Interval(0.2, 0.4))
    assert apply(a=good, b=MetricValue(value=0.6, interval=Interval(0.5, 0.7))).result == "DEPLOY"
    found = apply(a=MetricValue(value=0.6, interval=Interval(0.55, 0.65)), b=wide)
    assert (found.result, found.value, found.bound) == ("REVIEW", 0.6, 0.45)  # b's bound
    assert apply(a=good, b=poor).result == "FAIL"
    assert "b is worst with 0.290" in apply(a=good, b=poor).reason
    absent = apply(a=good, rare=MetricValue(value=None, interval=None))
    assert (absent.result, absent.value) == ("REVIEW", 0.9)
    assert "no row of rare" in absent.reason
    assert apply(a=good, b=MetricValue(value=0.9, interval=None)).result == "REVIEW"
    assert apply(a=MetricValue(value=None, interval=None)).value is None


def apply_gap(
    before: MetricValue, after: MetricValue, *, metric: str = "mae", **gate
) -> GateResult:
    facts = make_facts(metric=metric, splits={"val": before, "test": after})
    return apply_one("val_test_gap", GateConfig(**{"deploy": 0.05, "review": 0.2, **gate}), facts)


def around(value: float, error: float) -> MetricValue:
    return MetricValue(value=value, interval=Interval(value - Z * error, value + Z * error))


@pytest.mark.parametrize(
    ("gap", "error", "expected"),
    [
        (0.049, 0.0, "DEPLOY"),
        (0.051, 0.0, "REVIEW"),
        (0.201, 0.0, "FAIL"),
        (0.0, 0.02, "DEPLOY"),
        (0.0, 0.03, "REVIEW"),  # so few rows cannot tell that it is below 0.05
        (0.3, 0.2, "REVIEW"),  # nor that there is one
        (0.3, 0.1, "FAIL"),
        (-3.0, 0.0, "DEPLOY"),  # better on test
        (-3.0, 9.0, "REVIEW"),
    ],
)
@pytest.mark.parametrize("metric", ["mae", "f1_macro"])
def test_d14_a_gap_passes_only_if_it_is_surely_small(
    metric: str, gap: float, error: float, expected: str
) -> None:
    sign = -1 if METRICS[metric].higher_is_better else 1
    # 3, 4, 5: the standard error of the difference is 0.1 where the two are 0.06 and 0.08.
    before, after = around(0.5, 0.6 * error), around(0.5 + sign * gap, 0.8 * error)
    result = apply_gap(before, after, metric=metric)
    assert result.result == expected
    assert result.value == pytest.approx(gap)
    assert result.bound == pytest.approx(gap + Z * error, abs=1e-6)
    assert result.interval == pytest.approx((gap - Z * error, gap + Z * error), abs=1e-6)


def test_a_gap_reaches_as_far_as_the_longer_sides_of_its_intervals() -> None:
    before = MetricValue(value=0.9, interval=Interval(0.8, 1.0))
    after = MetricValue(value=1.0, interval=Interval(0.8, 1.8))
    result = apply_gap(before, after, deploy=0.7, review=2.0)
    assert result.interval == pytest.approx((0.1 - np.hypot(0.2, 0.1), 0.1 + np.hypot(0.8, 0.1)))
    assert result.result == "REVIEW"


def test_a_gap_without_its_facts_is_left_out_or_for_review() -> None:
    gates = {name: GateConfig(deploy=0.05) for name in ("val_test_gap", "train_val_gap")}
    splits = {"train": around(0.4, 0.0), "val": around(0.5, 0.0)}
    (gap,) = apply_gates(gates, make_facts(splits=splits))
    assert (gap.name, gap.result, gap.review) == ("train_val_gap", "REVIEW", None)
    assert gap.value == pytest.approx(0.1)
    undefined = apply_gap(MetricValue(value=None, interval=None), around(0.5, 0.1))
    assert (undefined.value, undefined.result) == (None, "REVIEW")
    unknown = apply_gap(MetricValue(value=0.5, interval=None), around(0.5, 9.0))
    assert (unknown.interval, unknown.bound, unknown.result) == (None, None, "REVIEW")


@pytest.mark.parametrize(
    ("histories", "value", "expected"),
    [
        ([make_curve(1.0, 0.98)], 0.02, "DEPLOY"),
        ([make_curve(1.0, 0.97)], 0.03, "REVIEW"),
        ([make_curve(1.0, 0.5, 0.6)], 0.0, "DEPLOY"),  # the last epoch was not the best
        ([make_curve(0.5, 0.9, 0.4)], 0.2, "REVIEW"),  # against the best before it
        ([make_curve(0.5, 0.6, metric="f1_macro")], 0.2, "REVIEW"),
        ([make_curve(0.6, 0.5, metric="f1_macro")], 0.0, "DEPLOY"),
        ([make_curve(2.0, 1.0, metric="loss")], 0.5, "REVIEW"),
        ([make_curve(-0.5, 0.0, metric="skill")], 1.0, "REVIEW"),
        ([make_curve(0.0, 0.4, metric="f1_macro")], 1.0, "REVIEW"),  # from nothing at all
        ([make_curve(0.0, 0.0)], 0.0, "DEPLOY"),
        ([make_curve(1.0, 0.9, 0.9, 0.85, step=0.5)], 0.15 / 0.9 - 0.1 / 0.9, "REVIEW"),
        ([make_curve(1.0, 1.0), make_curve(1.0, 0.9)], 0.1, "REVIEW"),  # the worse run
        ([make_curve(1.0)], None, "REVIEW"),
        ([make_curve(1.0, 0.9), make_curve(1.0)], None, "REVIEW"),
        ([make_curve(1.0, 0.9, step=0.5)], None, "REVIEW"),  # one epoch, looked at twice
    ],
)
def test_a_run_that_still_learned_has_not_converged(
    histories: Sequence[LearningCurve], value: float | None, expected: str
) -> None:
    gate = GateConfig(deploy=0.0201)
    result = apply_one("convergence", gate, make_facts(histories=histories))
    assert result.result == expected
    assert result.value == (None if value is None else pytest.approx(value))
    assert ("not known from" in result.reason) == (value is None)


def make_latency(p95: float, bound: float | None) -> Latency:
    return Latency(
        single_p50_ms=1.0, single_p95_ms=p95, single_p95_bound_ms=bound, batch_p50_ms=1.0,
        batch_p95_ms=1.0, batch_size=32, articles_per_second=1.0, peak_memory_gib=1.0,
        num_singles=59, num_batches=10, device="CPU", uncached_p50_ms=None, uncached_p95_ms=None,
        cost_per_million=None, waited=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("p95", "bound", "expected"),
    [
        (90.0, 100.0, "DEPLOY"),
        (90.0, 101.0, "REVIEW"),
        (90.0, None, "REVIEW"),  # too few measures to bound it
        (201.0, 300.0, "FAIL"),
    ],
)
def test_d14_latency_passes_by_its_bound(p95: float, bound: float | None, expected: str) -> None:
    gate = GateConfig(deploy=100, review=200)
    facts = make_facts(latency=make_latency(p95, bound))
    assert apply_one("p95_ms", gate, facts).result == expected


def summarise(passed: int, failed: int, *, must_pass: bool = False) -> EdgeCases:
    results = [
        EdgeCaseResult(
            id=f"c{i}",
            category="",
            must_pass=must_pass and i >= passed,
            passed=i < passed,
            failures=[],
        )
        for i in range(passed + failed)
    ]
    return summarise_cases(results)


@pytest.mark.parametrize(
    ("passed", "failed", "must_pass", "expected"),
    [
        (8, 0, False, "DEPLOY"),  # 0.025 ** (1 / 8) = 0.631
        (7, 0, False, "REVIEW"),  # 0.025 ** (1 / 7) = 0.590
        (60, 40, False, "REVIEW"),
        (59, 41, False, "FAIL"),
        (90, 10, False, "DEPLOY"),
        (90, 10, True, "FAIL"),
    ],
)
def test_d14_edge_cases_pass_by_the_exact_bound(passed, failed, must_pass, expected: str) -> None:
    summary = summarise(passed, failed, must_pass=must_pass)
    gate = GateConfig(deploy=0.6, review=0.6)
    result = apply_one("edge_cases", gate, make_facts(edge_cases=summary))
    assert result.result == expected
    assert result.value == pytest.approx(passed / (passed + failed))
    if failed == 0:
        assert result.bound == pytest.approx(0.025 ** (1 / passed))
    assert ("c90" in result.reason and "must pass" in result.reason) == must_pass


def test_gates_whose_facts_are_not_at_hand_are_left_out() -> None:
    own = ("dimensions", "class_f1", "val_test_gap", "convergence", "p95_ms", "edge_cases")
    assert apply_gates({name: GateConfig(deploy=1) for name in own}, make_facts()) == []


def rule(*results: GateResult, **changes: Any) -> Outcome:
    usual: dict[str, Any] = {"findings": [], "shortage": None}
    return decide(results, **{**usual, **changes})


def test_the_worst_gate_decides_and_says_why() -> None:
    good, bad = apply_mae(np.full(50, 0.5)), apply_mae(np.full(50, 2.0))
    open_one = apply_mae(np.full(50, 1.1))
    assert rule(good) == ("DEPLOY", [good.reason])
    assert rule(good, open_one, bad) == ("FAIL", [bad.reason, open_one.reason])
    assert rule(good, open_one) == ("REVIEW", [open_one.reason])


@pytest.mark.parametrize(
    ("change", "decision", "said"),
    [
        (
            {
                "findings": [
                    Finding(
                        check="contamination",
                        status="invalid",
                        variants=[],
                        message="seen in training",
                    )
                ]
            },
            "FAIL",
            "seen in tr",
        ),
        (
            {
                "findings": [
                    Finding(
                        check="contamination", status="warning", variants=[], message="cut a little"
                    )
                ]
            },
            "DEPLOY",
            "is at most 1",
        ),
        (shorten_all(19, 19), "REVIEW", "19 rows are too few for evidence"),
        (shorten_all(20, 10), "DEPLOY", "is at most 1"),
        (shorten_all(500, 9), "REVIEW", "500 rows in 9 clusters are too few"),
        ({"few_seeds": ["a", "b"]}, "REVIEW", "since a, b have fewer than 3 seeds"),
        ({"coverage": 0.979}, "REVIEW", "only 97.9 % of the rows could be measured, below 98 %"),
    ],
)
def test_what_forbids_to_deploy(change: dict, decision: str, said: str) -> None:
    ruling = rule(apply_mae(np.full(50, 0.5)), **change)
    assert ruling.decision == decision
    (reason,) = ruling.reasons
    assert said in reason


def test_without_gates_a_person_decides() -> None:
    assert rule() == ("REVIEW", ["no gate was set, so a person has to decide"])


@pytest.mark.parametrize(
    ("baseline", "low", "high", "finding", "result", "said"),
    [
        ("constant", 0.2, 0.6, "better", "DEPLOY", "mae is 0.400 better than that of the best"),
        ("constant", -0.1, 0.9, "not told apart", "REVIEW", "not told apart from the best"),
        ("constant", -0.6, 0.2, "not told apart", "FAIL", "a value worse than 0 fails"),
        ("tfidf", 0.01, 0.2, "better", "DEPLOY", "better than that of TF-IDF"),
        ("tfidf", -0.6, -0.2, "worse", "REVIEW", "mae is 0.400 worse than that of TF-IDF"),
    ],
)  # fmt: skip
def test_d9_default_gates_ask_for_bounds_above_the_baselines(
    baseline: str, low: float, high: float, finding: Any, result: str, said: str
) -> None:
    gain = BaselineGain(gain=(low + high) / 2, interval=Interval(low, high), finding=finding)
    facts = make_facts(metrics={"mae": 1.0}, gains={baseline: gain})
    name = f"beats_{baseline}"
    found = apply_one(name, DEFAULT_GATES[name], facts)
    assert found.result == result
    assert said in found.reason


def test_a_baseline_without_the_metric_is_no_gate_but_a_model_without_it_is_a_doubt() -> None:
    gates = {name: DEFAULT_GATES[name] for name in ("beats_constant", "beats_tfidf")}
    facts = make_facts(
        metric="spearman", metrics={"spearman": 0.5}, baselines={"constant": None, "tfidf": None}
    )
    assert apply_gates(gates, facts) == []
    facts = make_facts(
        metric="spearman", metrics={"spearman": None}, baselines={"constant": 0.1, "tfidf": 0.2}
    )
    assert len(apply_gates(gates, facts)) == 2
    for found in apply_gates(gates, facts):
        assert found.result == "REVIEW"
        assert "in spearman is not defined" in found.reason
