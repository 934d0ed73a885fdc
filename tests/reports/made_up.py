"""Results files made up by hand, small but with every part that a report may meet."""

from typing import Any

from tests.reports.made_up_gates import make_gates
from tests.reports.made_up_judgement import (
    make_latency,
    make_mixed,
    make_noise,
    make_pair,
    make_rare,
    make_slices,
    make_verdict_on_arm,
)
from tests.reports.made_up_parts import (
    make_baselines,
    make_metrics,
    make_outcomes,
    make_parts,
    make_rows,
    name_parts,
)

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> | `x` [a](http://b)\n# $y$ </td>"
SCORE_NAMES = ["severity", "stress"]
NAMED = [
    ("scores", 2),
    ("scores", 5),
    ("class", 3),
    ("class", 77),
    ("multilabel", 3),
    ("multilabel", 13),
]
"""Types of labels, each with few and with many names."""
NEW_KEYS = ("intervals", "part_intervals", "calibration", "tiers", "label_confusions")
CLASS_NAMES = ["none", "weak", "strong"]


def make_history(metric: str) -> dict[str, Any]:
    epochs = [
        {"epoch": float(e), "train_loss": 1 / e, "val_loss": 1.2 / e, f"val_{metric}": 0.9 / e}
        for e in (1, 2)
    ]
    return {"metric": metric, "epochs": epochs}


def make_comparison(
    verdict: str = "WINNER",
    *,
    arms: tuple[str, ...] = ("distillation", "instruction"),
    invalid: tuple[str, ...] = (),
    label_type: str = "scores",
    names: list[str] | None = None,
) -> dict[str, Any]:
    names = names or (SCORE_NAMES if label_type == "scores" else CLASS_NAMES)
    metric = "mae" if label_type == "scores" else "f1_macro"
    valid = [arm for arm in arms if arm not in invalid]
    baselines = make_baselines(names, label_type=label_type)
    key = name_parts(label_type)
    errors = {arm: 0.612 + 0.111 * i for i, arm in enumerate(arms)}
    rows = make_rows(names, valid, label_type=label_type)
    by_part = {
        name: {
            arm: make_parts(errors[arm], names=names, label_type=label_type)[name] for arm in valid
        }
        | {base: found[key][name] for base, found in baselines.items()}
        for name in names
    }
    results = {
        "schema_version": 2,
        "llmft_version": "0.1.0",
        "created": "2026-01-02T03:04:05Z",
        "suite": "eval/suite.yaml",
        "task": "market_risk",
        "verdict": verdict,
        "winner": {"WINNER": arms[-1], "REFERENCE_HOLDS": arms[0]}.get(verdict),
        "why": f"because of what {arms[-1]} did",
        "decision": {"WINNER": "DEPLOY", "REFERENCE_HOLDS": "REVIEW"}.get(verdict, "FAIL"),
        "reasons": ["mae: the bound 0.732 does not pass 0.7"],
        "provisional": True,
        "recommended": arms[-1] if verdict == "WINNER" else None,
        "reference": arms[0],
        "metric": metric,
        "margin": 0.2,
        "min_difference": 0.05,
        "num_rows": 6,
        "num_test_rows": 8,
        "num_dropped": 2,
        "num_groups": 4,
        "label_type": label_type,
        "label_names": names,
        "treatment": ["prompt", "base.*"],
        "waivers": [{"check": "device", "arms": [], "reason": "a spare machine was used"}],
        "data": {
            "fingerprint": "0123abcd",
            "counts": {"input": 63, "train": 41, "val": 6, "test": 6, "rejected": 10},
            "rejected": {"label missing": 10},
            "near_duplicates": {"threshold": 0.9, "num_clusters": 3, "num_rows": 7},
            "split": {"train": 0.8, "stratify": True, "group": None},
        },
        "audit": [
            {"check": check, "status": status, "arms": [], "message": message, "waived": waived}
            for check, status, message, waived in (
                ("same data", "ok", "all the same", None),
                ("seen", "warning", "saw 61.0% of it", None),
                ("base", "note", "was never pretrained", None),
                ("device", "confounded", "other devices", "a spare machine was used"),
            )
        ],
        "pairs": [make_pair(arm, arms[0], names=names, is_class=label_type == "class")
                  for arm in valid[1:]],
        "mixed": make_mixed(valid, names=names, label_type=label_type) if len(valid) > 1 else {},
        "slices": make_slices(valid, metric),
        "rare": make_rare(valid) if valid else None,
        "noise": make_noise(valid, names=names) if label_type == "scores" else [],
        "variants": {},
        "baselines": baselines,
        "per_dimension": {},
        key: by_part,
        "rows": rows if valid else [],
        "worst_rows": [{**rows[5], "text": "A long article. " * 40}] if valid else [],
        "edge_cases": {},
        "latency": make_latency(valid),
    }  # fmt: skip
    for arm in arms:
        results["variants"][arm] = {  # type: ignore[index]
            "valid": arm in valid,
            "runs": [f"runs/{arm}/seed-1", f"runs/{arm}/seed-2"],
            "seeds": [1, 2],
            "base": "Qwen/Qwen2.5-1.5B",
            "base_pretrained": arm != arms[-1],
            "tuning": "lora",
            "prompt_mode": "include",
            "training_mode": "instruction_tuning",
            "max_length": 4608,
            "num_parameters": 1_562_179_072,
            "num_trainable": 18_464_768,
            "train_seconds": 754.2,
            "peak_memory_gib": 11.43,
            "token_budget": {"share_kept": 0.9143},
            "device": "NVIDIA H100",
            "precision": "bfloat16",
            "histories": [make_history(metric), make_history(metric)],
            "packages": {"torch": "2.13.0"},
            "git_revision": "89ab",
            "test_reads": 3,
            **make_verdict_on_arm(metric),
        }
        if arm in valid:
            results["variants"][arm] |= {  # type: ignore[index]
                "metrics": make_metrics(errors[arm], label_type=label_type),
                "metrics_per_run": [make_metrics(errors[arm], label_type=label_type)] * 2,
                "interval": [errors[arm] - 0.06, errors[arm] + 0.07],
                **make_outcomes(errors[arm], names=names, label_type=label_type),
            }
    return results


def make_edge_cases(*arms: str) -> dict[str, Any]:
    case = {
        "id": "fraud-denied", "category": "negation", "must_pass": True, "passed": False,
        "failures": ["severity: expected at most 3, found 6.21"],
    }  # fmt: skip
    return {
        arm: {
            "num_passed": 25,
            "num_cases": 27,
            "pass_rate_interval": [0.757, 0.991],
            "must_pass_failed": ["fraud-denied"],
            "by_category": {
                "negation": {"num_passed": 8, "num_cases": 10, "interval": [0.444, 0.975]}
            },
            "cases": [case, {**case, "id": "passed-one", "passed": True, "failures": []}],
        }
        for arm in arms
    }


def make_evaluation(
    decision: str = "REVIEW",
    *,
    name: str = "bert",
    data: str = "test",
    label_type: str = "scores",
    names: list[str] | None = None,
) -> dict[str, Any]:
    names = names or (SCORE_NAMES if label_type == "scores" else CLASS_NAMES)
    metric = "mae" if label_type == "scores" else "f1_macro"
    rows = make_rows(names, [name], label_type=label_type)
    return {
        "schema_version": 2,
        "llmft_version": "0.1.0",
        "created": "2026-01-02T03:04:05Z",
        "run": f"runs/{name}",
        "name": name,
        "task": "market_risk",
        "data": data,
        "label_type": label_type,
        "label_names": names,
        "num_rows": 6,
        "num_rejected": 2,
        "decision": decision,
        "reasons": [f"{metric}: 0.612; the bound 0.732 does not pass 0.7"],
        "metric": metric,
        "gates": make_gates(metric, decision, label_type=label_type),
        "edge_cases": {},
        "latency": {},
        "metrics": make_metrics(0.6123, label_type=label_type),
        name_parts(label_type): make_parts(0.61, names=names, label_type=label_type),
        **make_outcomes(0.61, names=names, label_type=label_type),
        "baselines": make_baselines(names, label_type=label_type),
        "audit": [{"check": "seen", "status": "warning", "arms": [], "message": "saw 61 %"}],
        "history": make_history(metric),
        "training": {
            "recipe": {
                "base": {"model": "answerdotai/ModernBERT-base", "tuning": "full"},
                "prompt": {"mode": "exclude"},
                "tokens": {"max_length": 512},
                "train": {"learning_rate": 2e-5, "seed": 7},
            },
            "base_pretrained": True,
            "training_mode": "knowledge_distillation",
            "num_parameters": 149_605_632,
            "num_trainable": 149_605_632,
            "token_budget": {"train": {"share_kept": 0.913}},
            "global_batch_size": 16,
            "num_steps": 300,
            "best_epoch": 2.0,
            "train_seconds": 26.62,
            "tokens_per_second": 416.5,
            "peak_memory_gib": 0.567,
            "device": "NVIDIA H100",
            "precision": "bfloat16",
            "world_size": 2,
            "distributed_type": "DEEPSPEED",
            "data_fingerprint": "0123abcd",
            "model_hash": "4567ef",
            "prompt_sha256": None,
            "git_revision": None,
            "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
        },
        "rows": rows,
        "worst_rows": [{**rows[5], "text": "A long article. " * 40}],
    }
