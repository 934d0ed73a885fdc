"""Pairs, mixed rows, slices, noise, gates and times made up by hand."""

from collections.abc import Sequence
from typing import Any

from tests.reports.made_up_parts import make_intervals, make_metrics


def make_pair(
    challenger: str, reference: str, *, names: Sequence[str], is_class: bool = False
) -> dict[str, Any]:
    findings = ("challenger", "reference", "tie")
    counts = {"both_right": 401, "only_challenger": 61, "only_reference": 37, "both_wrong": 16}
    return {
        "challenger": challenger,
        "reference": reference,
        "gain": 0.317,
        "interval": [0.251, 0.388],
        "lower": 0.263,
        "upper": 0.377,
        "p_value": 0.0002,
        "p_margin": 0.0131,
        "p_margin_adjusted": 0.0262,
        "finding": "better",
        "mcnemar": {**counts, "p_value": 0.0201} if is_class else None,
        "power": {"effect": 0.05, "power": 0.813},
        "needed": {"rows": 1733, "seeds": None},
        "parts": {
            name: {
                "metric": "f1" if is_class else "mae", "gain": 0.119 + i, "p_value": 0.003,
                "interval": [0.021 + i, 0.217 + i], "p_adjusted": 0.024,
                "finding": findings[i % 3],
            }
            for i, name in enumerate(names)
        },
    }  # fmt: skip


def make_mixed(
    arms: Sequence[str], *, names: Sequence[str], label_type: str
) -> dict[str, dict[str, Any]]:
    metrics = make_metrics(0.5939, label_type=label_type)
    mixed = {
        "mean of all": {"kind": "ensemble", "made_of": list(arms), "routes": None},
        "routed": {
            "kind": "routing",
            "made_of": list(arms),
            "routes": {name: arms[i % len(arms)] for i, name in enumerate(names)},
        },
    }
    return {
        name: {
            **found,
            "metrics": metrics,
            "intervals": make_intervals(metrics),
            "pair": make_pair(name, arms[-1], names=[]),
            "recommended": name == "routed",
            "single_p50_ms": 31.73,
            "peak_memory_gib": 12.21,
            "num_parameters": 3_124_358_144,
        }
        for name, found in mixed.items()
    }


def make_slices(arms: Sequence[str], metric: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "metric": metric,
            "values": [
                {
                    "value": value,
                    "num_rows": 41 + i,
                    "metrics": {
                        arm: {"value": 0.503 + 0.01 * i, "interval": [0.401, 0.607] if i else None}
                        for arm in arms
                    },
                }
                for i, value in enumerate(values)
            ],
        }
        for name, values in (("language", ["de", "en"]), ("tier", ["blue", "red"]))
    ]


def make_rare(arms: Sequence[str]) -> dict[str, Any]:
    both = {
        "recall": 0.571, "recall_interval": [0.289, 0.823],
        "precision": 0.727, "precision_interval": [0.391, 0.939],
    }  # fmt: skip
    return {
        "what": "overall score of at least 7",
        "num_rows": 515,
        "num_high": 14,
        "arms": {arm: {**both, "at_k": [{"k": k, **both} for k in (10, 14, 50)]} for arm in arms},
    }


def make_noise(arms: Sequence[str], *, names: Sequence[str]) -> list[dict[str, Any]]:
    error = {"mae": 0.438, "interval": [0.361, 0.523]}
    return [
        {
            "kind": kind,
            "file": "datasets/again.jsonl",
            "num_rows": 57,
            **error,
            "per_dimension": {name: error for name in names},
            "arms": {arm: {"mae": 0.691, "interval": [0.571, 0.823]} for arm in arms},
        }
        for kind in ("repeated", "second oracle")
    ]


def make_latency(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        arm: {
            "single_p50_ms": 12.345 * (1 + 3 * i), "single_p95_ms": 61.1, "batch_p50_ms": 207.7,
            "batch_p95_ms": 251.9, "batch_size": 32, "articles_per_second": 412.3,
            "peak_memory_gib": 3.71, "num_singles": 64, "num_batches": 16, "device": "NVIDIA H100",
            "uncached_p50_ms": 49.7 if i else None, "uncached_p95_ms": 71.3 if i else None,
            "cost_per_million": 1.93,
        }
        for i, arm in enumerate(arms)
    }  # fmt: skip


def make_gates(metric: str) -> list[dict[str, Any]]:
    known = {
        "name": metric, "value": 0.6123, "interval": [0.55, 0.7321], "bound": 0.7321,
        "deploy": 0.7, "review": 1.2, "result": "REVIEW",
        "reason": f"{metric}: the bound 0.732 does not pass 0.7",
    }  # fmt: skip
    unknown = {
        "name": "p95_ms", "value": None, "interval": None, "bound": None, "deploy": 80.0,
        "review": None, "result": "REVIEW", "reason": "p95_ms: was not measured",
    }  # fmt: skip
    return [known, unknown]


def make_verdict_on_arm(metric: str) -> dict[str, Any]:
    """Return what an arm holds on whether it may be deployed, and on its fit."""
    before = {metric: 0.7417}
    return {
        "gates": make_gates(metric),
        "decision": "REVIEW",
        "reasons": [f"{metric}: the bound 0.732 does not pass 0.7"],
        "fit": {"method": "isotonic", "split": "val", "metrics_before": before},
    }
