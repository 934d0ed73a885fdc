"""Collapsed predictions, and variants that do not beat the baselines (D1, D9)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.audit.findings import make_finding
from llmft.metrics.definitions import (
    Floats,
    compute_metric,
    decide_labels,
    find_label_type,
    is_better,
)
from llmft.results.evaluation import Finding

_LEAST_SPREAD = 0.2
_LEAST_SKILL = 0.05
_MOST_FREQUENT = 0.99
_NEAR_CHANCE = 0.02


def check_collapsed_predictions(
    variant: str, labels: NDArray[Any], runs: Sequence[tuple[int, Floats]]
) -> list[Finding]:
    """Find variants that predict the same for every row: they learned nothing (D9).

    Args:
        variant: Name of the variant.
        labels: Scores float [N, D], classes int [N], or labels bool [N, L].
        runs: Seed and outputs [N, C] of each run.
    """
    found = [(seed, _explain_collapse(labels, outputs)) for seed, outputs in runs]
    collapsed = [(seed, why) for seed, why in found if why is not None]
    if not collapsed:
        return []
    seeds, why = ", ".join(str(seed) for seed, _ in collapsed), collapsed[0][1]
    if len(collapsed) < len(runs):
        message = f"the predictions of {variant} collapsed in some runs (seed {seeds}): {why}"
        return [make_finding("collapsed_predictions", "warning", message, variant)]
    message = f"the predictions of {variant} collapsed (seed {seeds}): {why}"
    return [make_finding("collapsed_predictions", "invalid", message, variant)]


def check_baselines(
    metric: str, variants: dict[str, float | None], baselines: dict[str, float | None]
) -> list[Finding]:
    """Find variants that do not beat a baseline, which costs less (D9).

    Args:
        metric: Name of the metric of the comparison.
        variants: Its value for each variant.
        baselines: Its value for each baseline.
    """
    if not variants:
        return []
    findings = []
    for variant, value in variants.items():
        unbeaten = [
            name for name, other in baselines.items() if not is_better(metric, value, other)
        ]
        if unbeaten:
            message = (
                f"{variant} does not beat the baseline {' or '.join(unbeaten)} in {metric}, by the "
                "values alone"
            )
            findings.append(make_finding("baselines", "warning", message, variant))
    return findings or [
        make_finding("baselines", "ok", "every variant beats the best constant and TF-IDF")
    ]


def _explain_collapse(labels: NDArray[Any], outputs_NC: Floats) -> str | None:
    """Return why the predictions count as constant; None if they do not."""
    match find_label_type(labels):
        case "scores":
            spread_D = labels.std(axis=0)
            varying = spread_D > 0
            if not varying.any():
                return None
            ratio = float((outputs_NC.std(axis=0)[varying] / spread_D[varying]).mean())
            skill = compute_metric("skill", labels[:, varying], outputs_NC[:, varying])
            if ratio >= _LEAST_SPREAD or skill is None or skill >= _LEAST_SKILL:
                return None
            return (
                f"its predictions have {ratio:.0%} of the standard deviation of the labels, and a "
                f"skill of {skill:.2f} over the best constant"
            )
        case "class":
            fraction = np.bincount(outputs_NC.argmax(axis=1)).max() / len(labels)
            recall = compute_metric("balanced_accuracy", labels, outputs_NC)
            chance = 1 / len(np.unique(labels))
        case "multilabel":
            decided_NL = decide_labels(outputs_NC)
            fraction = np.unique(decided_NL, axis=0, return_counts=True)[1].max() / len(labels)
            recall, chance = _average_balanced_accuracy(labels, decided_NL), 0.5
    if len(np.unique(labels, axis=0)) < 2 or recall is None:
        return None
    if fraction <= _MOST_FREQUENT or recall > chance + _NEAR_CHANCE:
        return None
    return (
        f"it predicts the same for {fraction:.1%} of the rows, with a balanced accuracy of "
        f"{recall:.2f} (chance: {chance:.2f})"
    )


def _average_balanced_accuracy(
    labels_NL: NDArray[np.bool_], decided_NL: NDArray[np.bool_]
) -> float | None:
    """Return the mean balanced accuracy over the labels with positive and negative rows."""
    found: Sequence[float] = [
        float((decided[label].mean() + (~decided[~label]).mean()) / 2)
        for label, decided in zip(labels_NL.T, decided_NL.T, strict=True)
        if label.any() and not label.all()
    ]
    return float(np.mean(found)) if found else None
