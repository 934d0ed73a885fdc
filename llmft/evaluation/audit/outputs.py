"""Do the predictions say anything? (D1, D9)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.evaluation.metrics import compute_metric, decide_labels, find_label_type, is_better
from llmft.results.variant import Finding

Floats = NDArray[np.floating[Any]]
_LEAST_SPREAD = 0.2
_LEAST_SKILL = 0.05
_MOST_FREQUENT = 0.99
_NEAR_CHANCE = 0.02


def check_variation(
    arm: str, labels: NDArray[Any], outputs_by_seed: dict[int, Floats]
) -> list[Finding]:
    """An arm that says the same of every row has learned nothing, whatever its error is (D9).

    Args:
        arm: Name of the arm.
        labels: Scores float [N, D], classes int [N], or labels bool [N, L].
        outputs_by_seed: Seed -> outputs [N, C] of the run with it.
    """
    constant = {s: why for s, o in outputs_by_seed.items() if (why := _find_constant(labels, o))}
    if not constant:
        return []
    seeds = ", ".join(map(str, constant))
    why = next(iter(constant.values()))
    if len(constant) < len(outputs_by_seed):
        message = f"{arm} answers with a constant in some of its runs (seed {seeds}): {why}"
        return [
            Finding(check="predictions vary", status="warning", variants=[arm], message=message)
        ]
    message = f"{arm} answers with a constant (seed {seeds}): {why}"
    return [Finding(check="predictions vary", status="invalid", variants=[arm], message=message)]


def check_baselines(
    metric: str, arms: dict[str, float | None], baselines: dict[str, float | None]
) -> list[Finding]:
    """A model that costs more than a baseline ought to beat it (D9).

    Args:
        metric: Name of the metric that decides.
        arms: Its value for each arm.
        baselines: Its value for each baseline.
    """
    findings = []
    for arm, value in arms.items():
        unbeaten = [
            name for name, other in baselines.items() if not is_better(metric, value, other)
        ]
        if unbeaten:
            message = f"{arm} does not beat the baseline {' or '.join(unbeaten)} in {metric}"
            findings.append(
                Finding(
                    check="beats the baselines", status="warning", variants=[arm], message=message
                )
            )
    return findings or [
        Finding(
            check="beats the baselines",
            status="ok",
            variants=[],
            message="every arm beats both baselines",
        )
    ]


def _find_constant(labels: NDArray[Any], outputs_NC: Floats) -> str | None:
    """Return why the outputs count as one constant answer; None if they do not."""
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
                f"its predictions spread {ratio:.0%} as far as the labels, with a skill of "
                f"{skill:.2f} over the best constant"
            )
        case "class":
            share = np.bincount(outputs_NC.argmax(axis=1)).max() / len(labels)
            recall = compute_metric("balanced_accuracy", labels, outputs_NC)
            chance = 1 / len(np.unique(labels))
        case "multilabel":
            decided_NL = decide_labels(outputs_NC)
            share = np.unique(decided_NL, axis=0, return_counts=True)[1].max() / len(labels)
            recall, chance = _average_recall(labels, decided_NL), 0.5
    if len(np.unique(labels, axis=0)) < 2 or recall is None:
        return None
    if share <= _MOST_FREQUENT or recall > chance + _NEAR_CHANCE:
        return None
    return (
        f"it says the same of {share:.1%} of the rows, with a balanced accuracy of {recall:.2f} "
        f"where chance has {chance:.2f}"
    )


def _average_recall(labels_NL: NDArray[np.bool_], decided_NL: NDArray[np.bool_]) -> float | None:
    """Return the mean balanced accuracy of the labels that some rows have and some have not."""
    found: Sequence[float] = [
        float((decided[label].mean() + (~decided[~label]).mean()) / 2)
        for label, decided in zip(labels_NL.T, decided_NL.T, strict=True)
        if label.any() and not label.all()
    ]
    return float(np.mean(found)) if found else None
