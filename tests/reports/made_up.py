"""Results made up by hand, small but with every part that a report may meet.

They are made from the models that the code writes, so that no key can be misspelt here.
"""

from typing import Any

from llmft.config.suite import WaiverConfig
from llmft.results.comparison import ComparisonResult, Gap, UnseenRows, VerdictName
from llmft.results.evaluation import (
    Decision,
    EvaluationResult,
    Finding,
    LabelType,
    RunResult,
    VariantResult,
)
from tests.reports.made_up_gates import make_gates
from tests.reports.made_up_pairs import (
    make_edge_cases,
    make_ensembles,
    make_few_gates,
    make_fit,
    make_latency,
    make_noise,
    make_pair,
    make_rare,
    make_slices,
)
from tests.reports.made_up_parts import (
    make_baselines,
    make_measurement,
    make_outcomes,
    make_rows,
)
from tests.results.made_up import (
    make_curve,
    make_identity,
    make_manifest,
    make_recipe,
    make_record,
    make_task,
)

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> | `x` [a](http://b)\n# $y$ </td>"
SCORE_NAMES = ["severity", "stress"]
NAMED: list[tuple[LabelType, int]] = [
    ("scores", 2),
    ("scores", 5),
    ("class", 3),
    ("class", 77),
    ("multilabel", 3),
    ("multilabel", 13),
]
"""Types of labels, each with few and with many names."""
CLASS_NAMES = ["none", "weak", "strong"]
WAIVED = "a spare machine was used"


def make_audit() -> list[Finding]:
    return [
        Finding(check="same_data", status="ok", variants=[], message="all the same"),
        Finding(check="truncation", status="warning", variants=[], message="saw 61.0% of it"),
        Finding(check="pretrained_base", status="note", variants=[],
                message="was never pretrained"),
        Finding(check="comparability", status="confounded", variants=[],
                message="other devices", waived=WAIVED),
    ]  # fmt: skip


def make_variant(
    place: int, name: str, *, valid: bool, pretrained: bool, metric: str, names: list[str],
    label_type: LabelType,
) -> VariantResult:  # fmt: skip
    """Return a variant at a place of the suite, struck out by the audit or with all that it has."""
    error = 0.612 + 0.111 * place
    identity = make_identity(
        task=make_task(names=names, label_type=label_type),
        recipe=make_recipe(
            base={"model": "Qwen/Qwen2.5-1.5B", "tuning": "lora"},
            prompt={"mode": "include", "file": "p.md"},
            tokens={"max_length": 4608},
        ),
    )
    record = make_record(
        identity,
        training_mode="instruction_tuning",
        base_pretrained=pretrained,
        num_parameters=1_562_179_072,
        num_trainable=18_464_768,
        packages={"torch": "2.13.0"},
        git_revision="89ab",
    )
    result = VariantResult(
        valid=valid,
        runs=[
            RunResult(
                path=f"runs/{name}/seed-{seed}",
                record=record,
                curve=make_curve(0.9, 0.45, metric=metric),
                num_test_reads=seed,
            )
            for seed in (1, 2)
        ],
        train_seconds=754.2,
        peak_memory_gib=11.43,
        num_test_reads=3,
    )
    if not valid:
        return result
    measurement = make_measurement(error, names=names, label_type=label_type)
    return result.replace(
        **dict(measurement),
        metrics_per_run=[measurement.metrics] * 2,
        **make_outcomes(error, names=names, label_type=label_type),
        fit=make_fit(0.7417, label_type=label_type),
        latency=make_latency(place),
        edge_cases=make_edge_cases(),
        gates=make_few_gates(metric),
        decision="REVIEW",
        reasons=[f"{metric}: the bound 0.732 does not pass 0.7"],
    )


def make_comparison(
    verdict: VerdictName = "WINNER",
    *,
    variants: tuple[str, ...] = ("distillation", "instruction"),
    invalid: tuple[str, ...] = (),
    label_type: LabelType = "scores",
    names: list[str] | None = None,
) -> ComparisonResult:
    names = names or (SCORE_NAMES if label_type == "scores" else CLASS_NAMES)
    metric = "mae" if label_type == "scores" else "f1_macro"
    valid = [variant for variant in variants if variant not in invalid]
    rows = make_rows(names, valid, label_type=label_type)
    decisions: dict[str, Decision] = {"WINNER": "DEPLOY", "REFERENCE_HOLDS": "REVIEW"}
    is_class = label_type == "class"
    return ComparisonResult(
        llmft_version="0.1.0",
        created="2026-01-02T03:04:05Z",
        suite="eval/suite.yaml",
        task="market_risk",
        verdict=verdict,
        winner={"WINNER": variants[-1], "REFERENCE_HOLDS": variants[0]}.get(verdict),
        why=f"because of what {variants[-1]} did",
        decision=decisions.get(verdict, "FAIL"),
        reasons=[f"{metric}: the bound 0.732 does not pass 0.7"],
        scope="models",
        left_out={variants[0]: ["runs/distillation/seed-9"]},
        recommended=variants[-1] if verdict == "WINNER" else None,
        reference=variants[0],
        metric=metric,
        margin=0.2,
        min_difference=0.05,
        num_rows=6,
        num_test_rows=8,
        num_dropped=2,
        num_clusters=4,
        label_type=label_type,
        label_names=names,
        treatment=["prompt", "base"],
        waivers=[WaiverConfig(check="comparability", reason=WAIVED)],
        data=make_manifest(names=names, label_type=label_type),
        audit=make_audit(),
        pairs=[make_pair(name, variants[0], names=names, is_class=is_class) for name in valid[1:]],
        unseen=UnseenRows(rate=0.053, largest_error=None if is_class else 10.0),
        gaps={
            name: Gap(
                gap=0.317 * i, lower=0.257 * max(0, i - 1), upper=0.377 * i, may_be_best=i < 2,
                within_margin=i == 0,
            )
            for i, name in enumerate(reversed(valid))
        },
        ensembles=make_ensembles(valid, names=names, label_type=label_type)
        if len(valid) > 1
        else {},
        slices=make_slices(valid, metric),
        rare=make_rare(valid, names=names, label_type=label_type),
        noise=make_noise(valid, names=names, label_type=label_type),
        variants={
            variant: make_variant(
                i, variant, valid=variant in valid, pretrained=variant != variants[-1],
                metric=metric, names=names, label_type=label_type,
            )
            for i, variant in enumerate(variants)
        },
        baselines=make_baselines(names, label_type=label_type),
        rows=rows if valid else [],
        worst_rows=[rows[5].replace(text="A long article. " * 40)] if valid else [],
    )  # fmt: skip


def make_evaluation(
    decision: Decision = "REVIEW",
    *,
    name: str = "bert",
    data: str = "test",
    label_type: LabelType = "scores",
    names: list[str] | None = None,
    **changes: Any,
) -> EvaluationResult:
    names = names or (SCORE_NAMES if label_type == "scores" else CLASS_NAMES)
    metric = "mae" if label_type == "scores" else "f1_macro"
    rows = make_rows(names, [name], label_type=label_type)
    identity = make_identity(
        recipe=make_recipe(
            base={"model": "answerdotai/ModernBERT-base"}, train={"learning_rate": 2e-5, "seed": 7}
        ),
        task=make_task(names=names, label_type=label_type),
    )
    run = RunResult(
        path=f"runs/{name}",
        record=make_record(identity, token_budget=make_record().token_budget),
        curve=make_curve(0.9, 0.45, metric=metric),
        num_test_reads=1,
    )
    measurement = make_measurement(0.61, names=names, label_type=label_type)
    made: dict[str, Any] = {
        **dict(measurement),
        **make_outcomes(0.61, names=names, label_type=label_type),
        "llmft_version": "0.1.0",
        "created": "2026-01-02T03:04:05Z",
        "runs": [run],
        "train_seconds": 26.62,
        "peak_memory_gib": 0.567,
        "num_test_reads": 1,
        "metrics_per_run": [measurement.metrics],
        "name": name,
        "task": "market_risk",
        "data": data,
        "label_type": label_type,
        "label_names": names,
        "num_rows": 6,
        "num_clusters": 6,
        "num_test_rows": 6,
        "num_dropped": 0,
        "left_out": {"label missing": 2},
        "coverage": 0.97,
        "decision": decision,
        "reasons": [f"{metric}: 0.612; the bound 0.732 does not pass 0.7"],
        "metric": metric,
        "gates": make_gates(metric, decision, label_type=label_type),
        "baselines": make_baselines(names, label_type=label_type),
        "audit": make_audit()[:2],
        "rows": rows,
        "worst_rows": [rows[5].replace(text="A long article. " * 40)],
    }
    return EvaluationResult(**{**made, **changes})
