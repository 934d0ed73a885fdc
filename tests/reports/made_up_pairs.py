"""Pairs, ensembles, slices, noise, gates and times made up by hand."""

from collections.abc import Sequence

from llmft.results.comparison import (
    Cost,
    EnsembleResult,
    ListQuality,
    McNemar,
    NoiseResult,
    Pair,
    PartGain,
    Power,
    RareEvents,
    RareFindings,
    SampleSize,
    SliceTable,
    SliceValue,
    TopListQuality,
)
from llmft.results.evaluation import (
    EdgeCaseResult,
    EdgeCases,
    FitEffect,
    GateResult,
    Interval,
    LabelType,
    Latency,
    MetricValue,
    PassCount,
)
from tests.reports.made_up_gates import make_gate
from tests.reports.made_up_parts import make_intervals, make_metrics


def make_pair(
    challenger: str, reference: str, *, names: Sequence[str], is_class: bool = False
) -> Pair:
    findings = ("challenger", "reference", "tie")
    counts = McNemar(
        both_right=401, only_challenger=61, only_reference=37, both_wrong=16, p_value=0.0201
    )
    return Pair(
        challenger=challenger,
        reference=reference,
        gain=0.317,
        interval=Interval(0.251, 0.388),
        lower=0.263,
        upper=0.377,
        p_value=0.0002,
        p_margin=0.0131,
        p_margin_adjusted=0.0262,
        safety_factor=1.5,
        finding="better",
        mcnemar=counts if is_class else None,
        power=Power(effect=0.05, power=0.813, interval=Interval(0.642, 0.934)),
        needed=SampleSize(rows=1733, seeds=None),
        shortage=None,
        simultaneous=Interval(0.243, 0.396),
        assumption_free=None if is_class else -0.417,
        parts={
            name: PartGain(
                metric="f1" if is_class else "mae", gain=0.119 + i, p_value=0.003,
                interval=Interval(0.021 + i, 0.217 + i), p_adjusted=0.024,
                finding=findings[i % 3],
            )
            for i, name in enumerate(names)
        },
    )  # fmt: skip


def make_ensembles(
    variants: Sequence[str], *, names: Sequence[str], label_type: LabelType
) -> dict[str, EnsembleResult]:
    metrics = make_metrics(0.5939, label_type=label_type)
    routes = {name: variants[i % len(variants)] for i, name in enumerate(names)}
    return {
        name: EnsembleResult(
            kind=kind,
            made_of=list(variants),
            routes=routes if kind == "routing" else None,
            fitted_on="val" if kind == "routing" else None,
            metrics=metrics,
            intervals=make_intervals(metrics),
            pair=make_pair(name, variants[-1], names=[]),
            recommended=kind == "routing",
            cost=Cost(single_p50_ms=31.73, peak_memory_gib=12.21, num_parameters=3_124_358_144),
        )
        for name, kind in (("mean of all", "ensemble"), ("routed", "routing"))
    }


def make_slices(variants: Sequence[str], metric: str) -> list[SliceTable]:
    return [
        SliceTable(
            name=name,
            metric=metric,
            values=[
                SliceValue(
                    value=value,
                    num_rows=41 + i,
                    metrics={
                        variant: MetricValue(
                            value=0.503 + 0.01 * i, interval=Interval(0.401, 0.607) if i else None
                        )
                        for variant in variants
                    },
                )
                for i, value in enumerate(values)
            ],
        )
        for name, values in (("language", ["de", "en"]), ("tier", ["blue", "red"]))
    ]


def make_rare(
    variants: Sequence[str], *, names: Sequence[str], label_type: LabelType
) -> RareEvents | None:
    if not variants or label_type == "multilabel":
        return None
    both = ListQuality(
        recall=0.571, recall_interval=Interval(0.289, 0.823),
        precision=0.727, precision_interval=Interval(0.391, 0.939),
    )  # fmt: skip
    at_k = [TopListQuality(k=k, **dict(both)) for k in (10, 14, 50)]
    return RareEvents(
        what="overall score of at least 7" if label_type == "scores" else f"class {names[-1]}",
        num_rows=515,
        num_high=14,
        variants={variant: RareFindings(at_k=at_k, **dict(both)) for variant in variants},
    )


def make_noise(
    variants: Sequence[str], *, names: Sequence[str], label_type: LabelType
) -> list[NoiseResult]:
    error = MetricValue(value=0.438, interval=Interval(0.361, 0.523))
    return [
        NoiseResult(
            kind=kind,
            file="datasets/again.jsonl",
            num_rows=57,
            num_left_out=19,
            metric="mae" if label_type == "scores" else "disagreement",
            oracle=error,
            parts={} if label_type == "class" else dict.fromkeys(names, error),
            variants={
                variant: MetricValue(value=0.691, interval=Interval(0.571, 0.823))
                for variant in variants
            },
        )
        for kind in ("repeated", "second_oracle")
    ]


def make_latency(i: int) -> Latency:
    """Return the times of the variant at a place of the suite."""
    return Latency(
        single_p50_ms=12.345 * (1 + 3 * i), single_p95_ms=61.1, single_p95_bound_ms=66.6,
        batch_p50_ms=207.7, batch_p95_ms=251.9, batch_size=32, articles_per_second=412.3,
        peak_memory_gib=3.71, num_singles=64, num_batches=16, device="NVIDIA H100",
        uncached_p50_ms=49.7 if i else None, uncached_p95_ms=71.3 if i else None,
        cost_per_million=1.93, waited=0.214,
    )  # fmt: skip


def make_edge_cases() -> EdgeCases:
    case = EdgeCaseResult(
        id="fraud-denied", category="negation", must_pass=True, passed=False,
        failures=["severity: expected at most 3, found 6.21"],
    )  # fmt: skip
    return EdgeCases(
        num_passed=25,
        num_cases=27,
        pass_rate_interval=Interval(0.757, 0.991),
        must_pass_failed=["fraud-denied"],
        by_category={
            "negation": PassCount(num_passed=8, num_cases=10, interval=Interval(0.444, 0.975))
        },
        cases=[case, case.replace(id="passed-one", passed=True, failures=[])],
    )


def make_few_gates(metric: str) -> list[GateResult]:
    return [
        make_gate(metric, "REVIEW", reason=f"{metric}: the bound 0.732 does not pass 0.7"),
        make_gate("p95_ms", "REVIEW", value=None, interval=None, bound=None, deploy=80.0,
                  review=None, reason="p95_ms: was not measured"),
    ]  # fmt: skip


def make_fit(error: float, *, label_type: LabelType) -> FitEffect:
    return FitEffect(
        method="isotonic" if label_type == "scores" else "f1",
        split="val",
        num_rows=6,
        metrics_before=make_metrics(error, label_type=label_type),
    )
