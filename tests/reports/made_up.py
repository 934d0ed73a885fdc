"""Results files made up by hand, small but with every part that a report may meet."""

from typing import Any

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> | `x` [a](http://b)\n# $y$ </td>"
SCORE_NAMES = ["severity", "stress"]
CLASS_NAMES = ["none", "weak", "strong"]


def make_metrics(error: float, *, classes: bool) -> dict[str, float | None]:
    if classes:
        return {"accuracy": 1 - error / 7, "balanced_accuracy": None, "f1_macro": 0.9 - error / 7}
    return {"mae": error, "rmse": error * 1.3, "r2": -error, "spearman": None, "skill": 0.4 - error}


def make_parts(error: float, *, names: list[str], classes: bool) -> dict[str, Any]:
    part: dict[str, float | None] = make_metrics(error, classes=False)
    if classes:
        part = {"precision": 0.31, "recall": 0.37, "f1": 0.9 - error / 3, "support": 5.0}
    return dict.fromkeys(names, part)


def make_baselines(names: list[str], *, classes: bool) -> dict[str, Any]:
    key = "per_class" if classes else "per_dimension"
    return {
        name: {
            **make_metrics(error, classes=classes),
            key: make_parts(error, names=names, classes=classes),
        }
        for name, error in (("constant", 1.413), ("tfidf", 1.127))
    }


def make_rows(names: list[str], arms: list[str], *, classes: bool) -> list[dict[str, Any]]:
    return [
        {
            "id": f"row-{i}",
            "labels": names[i % len(names)]
            if classes
            else {name: float((i + j) % 11) for j, name in enumerate(names)},
            "outputs": {arm: [0.125 * i + 0.25 * j for j in range(len(names))] for arm in arms},
            "errors": {arm: 0.57 + i for arm in arms},
        }
        for i in range(6)
    ]  # fmt: skip


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
    classes: bool = False,
    names: list[str] | None = None,
) -> dict[str, Any]:
    names = names or (CLASS_NAMES if classes else SCORE_NAMES)
    metric = "f1_macro" if classes else "mae"
    valid = [arm for arm in arms if arm not in invalid]
    baselines = make_baselines(names, classes=classes)
    key = "per_class" if classes else "per_dimension"
    errors = {arm: 0.612 + 0.111 * i for i, arm in enumerate(arms)}
    rows = make_rows(names, valid, classes=classes)
    by_part = {
        name: {arm: make_parts(errors[arm], names=names, classes=classes)[name] for arm in valid}
        | {base: found[key][name] for base, found in baselines.items()}
        for name in names
    }
    results = {
        "schema_version": 1,
        "llmft_version": "0.1.0",
        "created": "2026-01-02T03:04:05Z",
        "suite": "eval/suite.yaml",
        "task": "market_risk",
        "verdict": verdict,
        "winner": {"WINNER": arms[-1], "REFERENCE_HOLDS": arms[0]}.get(verdict),
        "why": f"because of what {arms[-1]} did",
        "reference": arms[0],
        "metric": metric,
        "margin": 0.2,
        "num_rows": 6,
        "label_names": names,
        "data": {
            "fingerprint": "0123abcd",
            "counts": {"input": 63, "train": 41, "val": 6, "test": 6, "rejected": 10},
            "rejected": {"label missing": 10},
            "near_duplicates": {"threshold": 0.9, "num_clusters": 3, "num_rows": 7},
            "split": {"train": 0.8, "stratify": True, "group": None},
        },
        "audit": [
            {"check": "same data", "status": "ok", "arms": [], "message": "all the same"},
            {"check": "seen", "status": "warning", "arms": [], "message": "saw 61.0% of it"},
            {"check": "base", "status": "note", "arms": [], "message": "was never pretrained"},
        ],
        "pairs": [
            {
                "challenger": arm,
                "reference": arms[0],
                "gain": 0.317,
                "interval": [0.251, 0.388],
                "finding": "better",
            }
            for arm in valid[1:]
        ],
        "variants": {},
        "baselines": baselines,
        "per_dimension": {},
        key: by_part,
        "rows": rows,
        "worst_rows": [{**rows[5], "text": "A long article. " * 40}] if valid else [],
        "edge_cases": {},
        "latency": {
            arm: {"single_p50_ms": 12.345, "single_p95_ms": 61.1, "articles_per_second": 412.3}
            for arm in valid
        },
    }
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
        }
        if arm in valid:
            results["variants"][arm] |= {  # type: ignore[index]
                "metrics": make_metrics(errors[arm], classes=classes),
                "metrics_per_run": [make_metrics(errors[arm], classes=classes)] * 2,
                "interval": [errors[arm] - 0.06, errors[arm] + 0.07],
                "confusion_matrix": [[4, 1, 0], [0, 3, 2], [0, 0, 5]] if classes else None,
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
            "cases": [case, {**case, "id": "passed-one", "passed": True, "failures": []}],
        }
        for arm in arms
    }


def make_evaluation(
    decision: str = "REVIEW", *, name: str = "bert", data: str = "test", classes: bool = False
) -> dict[str, Any]:
    names = CLASS_NAMES if classes else SCORE_NAMES
    metric = "f1_macro" if classes else "mae"
    rows = make_rows(names, [name], classes=classes)
    return {
        "schema_version": 1,
        "llmft_version": "0.1.0",
        "created": "2026-01-02T03:04:05Z",
        "run": f"runs/{name}",
        "name": name,
        "task": "market_risk",
        "data": data,
        "label_names": names,
        "num_rows": 6,
        "num_rejected": 2,
        "decision": decision,
        "gates": [
            {
                "metric": metric,
                "value": 0.6123,
                "bound": 0.7321,
                "deploy": 0.7,
                "review": 1.2,
                "result": decision,
            }
        ],
        "metrics": make_metrics(0.6123, classes=classes),
        "intervals": {metric: [0.5111, 0.7321]},
        "per_class" if classes else "per_dimension": make_parts(0.61, names=names, classes=classes),
        "confusion_matrix": [[4, 1, 0], [0, 3, 2], [0, 0, 5]] if classes else None,
        "baselines": make_baselines(names, classes=classes),
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
