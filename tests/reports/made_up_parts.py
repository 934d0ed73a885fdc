"""Metrics, rows and outcomes made up by hand, for every type of labels."""

from typing import Any

from llmft.results.evaluation import (
    Interval,
    Labels,
    LabelType,
    Matrix,
    Measurement,
    Metrics,
    PartIntervals,
    Parts,
    Reliability,
    ReliabilityBin,
    RowResult,
    ScoreCalibration,
    Stratum,
    TierConfusion,
)


def make_metrics(error: float, *, label_type: LabelType) -> Metrics:
    match label_type:
        case "scores":
            return {
                "mae": error, "rmse": error * 1.3, "r2": -error, "spearman": None,
                "skill": 0.4 - error, "overall_mae": error * 0.9, "tier_accuracy": 0.97 - error / 9,
            }  # fmt: skip
        case "class":
            return {
                "accuracy": 1 - error / 7, "balanced_accuracy": None, "f1_macro": 0.9 - error / 7,
                "roc_auc": 0.98 - error / 8, "average_precision": 0.95 - error / 8,
                "top_3_accuracy": None, "quadratic_kappa": 0.4 - error,
            }  # fmt: skip
        case _:
            return {
                "accuracy": 0.7 - error / 7, "f1_macro": 0.9 - error / 7,
                "f1_micro": 0.93 - error / 7, "hamming_loss": error / 9, "roc_auc": None,
                "average_precision": 0.95 - error / 8,
            }  # fmt: skip


def make_intervals(metrics: Metrics) -> dict[str, Interval | None]:
    return {
        name: None if value is None else Interval(value - 0.0613, value + 0.0717)
        for name, value in metrics.items()
    }


def make_parts(error: float, *, names: list[str], label_type: LabelType) -> Parts:
    if label_type == "scores":
        return {
            name: {
                "mae": error + 0.03 * i, "rmse": error * 1.3, "r2": -error, "spearman": None,
                "skill": 0.4 - error,
            }
            for i, name in enumerate(names)
        }  # fmt: skip
    return {
        name: {
            "precision": 0.31, "recall": 0.37, "f1": 0.95 - error * (0.1 + i * 7 % 13 / 26),
            "support": 5.0 + i,
        }
        for i, name in enumerate(names)
    }  # fmt: skip


def make_measurement(error: float, *, names: list[str], label_type: LabelType) -> Measurement:
    parts = make_parts(error, names=names, label_type=label_type)
    return Measurement(
        metrics=make_metrics(error, label_type=label_type),
        **{name_parts(label_type): parts},  # type: ignore[arg-type]
    )


def make_baselines(names: list[str], *, label_type: LabelType) -> dict[str, Measurement]:
    return {
        name: make_measurement(error, names=names, label_type=label_type)
        for name, error in (("constant", 1.413), ("tfidf", 1.127))
    }


def name_parts(label_type: LabelType) -> str:
    return "per_dimension" if label_type == "scores" else "per_class"


def make_labels(i: int, names: list[str], *, label_type: LabelType) -> Labels:
    match label_type:
        case "scores":
            return {name: float((i + j) % 11) for j, name in enumerate(names)}
        case "class":
            return names[i % len(names)]
        case _:
            return names[: i % 3]


def make_predicted(names: list[str], *, label_type: LabelType) -> str | list[str]:
    return names[-1] if label_type == "class" else names[:2]


def make_rows(names: list[str], variants: list[str], *, label_type: LabelType) -> list[RowResult]:
    return [
        RowResult(
            id=f"row-{i}",
            labels=make_labels(i, names, label_type=label_type),
            outputs={
                variant: [0.125 * i + 0.25 * j for j in range(len(names))] for variant in variants
            },
            errors={variant: 0.57 + i for variant in variants},
            predicted=dict.fromkeys(variants, make_predicted(names, label_type=label_type))
            if label_type != "scores"
            else {},
            text=f"Article {i} on markets.",
            slices={"language": ("de", "en")[i % 2], "length": "short"},
        )
        for i in range(6)
    ]


def make_matrix(size: int) -> Matrix:
    counts = [[(3 * i + 5 * j) % 17 // 15 for j in range(size)] for i in range(size)]
    for i in range(size):
        counts[i][i] = 4 + i % 5
    counts[0][-1] = 7
    return counts


def make_outcomes(error: float, *, names: list[str], label_type: LabelType) -> dict[str, Any]:
    """Return what is found of a variant besides its metrics, as fields of its result."""
    part_metric = "mae" if label_type == "scores" else "f1"
    ends = {
        name: Interval((found[part_metric] or 0) - 0.09, (found[part_metric] or 0) + 0.08)
        for name, found in make_parts(error, names=names, label_type=label_type).items()
    }
    found: dict[str, Any] = {
        "intervals": make_intervals(make_metrics(error, label_type=label_type)),
        "part_intervals": PartIntervals(metric=part_metric, intervals=ends),
    }
    if label_type == "scores":
        strata = [
            Stratum(low=i, high=i + 3, num_rows=7 + i, mean_true=i + 1.43,
                    mean_predicted=3.11 + 0.3 * i)
            for i in (0, 3, 6)
        ]  # fmt: skip
        line = ScoreCalibration(slope=0.3019, intercept=2.713, bias=-0.4127, strata=strata)
        calibration = dict.fromkeys(names, line)
        calibration[names[-1]] = ScoreCalibration(
            slope=None, intercept=None, bias=0.0317, strata=[]
        )
        tiers = TierConfusion(names=["noise", "blue", "red"], confusion_matrix=make_matrix(3))
        return {**found, "calibration": calibration, "tiers": tiers}
    bins = [
        ReliabilityBin(low=i / 5, high=(i + 1) / 5, num_rows=3 + 9 * i,
                       mean_predicted=i / 5 + 0.11, fraction_true=i / 6 + 0.07)
        for i in range(1, 5)
    ]  # fmt: skip
    found["reliability"] = Reliability(
        ece=0.0837, ece_by_chance=0.0411, brier=0.2913, brier_interval=Interval(0.2713, 0.3119),
        bins=bins,
    )  # fmt: skip
    if label_type == "class":
        found["confusion_matrix"] = make_matrix(len(names))
    else:
        found["label_confusions"] = {
            name: [[40 - i % 30, 3], [2 + i % 9, 60 - i % 50]] for i, name in enumerate(names)
        }
    return found
