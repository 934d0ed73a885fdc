"""What is fitted to outputs on validation: calibration curves, and thresholds for decisions."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import precision_recall_curve

from llmft.data.labels import LABEL_THRESHOLD
from llmft.prediction.fits import weigh_classes
from llmft.results.fit import Curve

Floats = NDArray[np.floating[Any]]
_ROUNDING = 1e-12
_MAX_SWEEPS = 10
_NO_ROW = "{name}: {what} of val has it, so its threshold stays 0.5"


class Thresholds(NamedTuple):
    """One threshold per class or label, and what could not be done."""

    values: dict[str, float]
    """In (0, 1); `LABEL_THRESHOLD` where nothing is gained by another one."""
    warnings: list[str]


def fit_curves(labels_ND: Floats, outputs_ND: Floats, *, names: list[str]) -> dict[str, Curve]:
    """Fit the rising step-and-line curve that makes each dimension's scores right on average.

    It gives nothing beyond the lowest and the highest label, so calibrated scores stay in range.

    Source:
        Zadrozny and Elkan 2002, "Transforming classifier scores into accurate multiclass
        probability estimates"; scikit-learn's `IsotonicRegression`.
    """
    curves = {}
    for i, name in enumerate(names):
        fitted = IsotonicRegression(out_of_bounds="clip").fit(
            outputs_ND[:, i].astype(np.float64), labels_ND[:, i].astype(np.float64)
        )
        curves[name] = Curve(x=fitted.X_thresholds_.tolist(), y=fitted.y_thresholds_.tolist())
    return curves


def fit_label_thresholds(
    labels_NL: NDArray[np.bool_],
    probs_NL: Floats,
    *,
    names: list[str],
    min_recall: float | None = None,
) -> Thresholds:
    """Choose the probability from which on each label applies.

    Args:
        labels_NL: Which labels apply, [N, L].
        probs_NL: Their probabilities, [N, L].
        names: The labels.
        min_recall: Choose the highest precision among thresholds with this recall; by default the
            highest F1.
    """
    found = Thresholds({}, [])
    for i, name in enumerate(names):
        _add(found, name, labels_NL[:, i], probs_NL[:, i], min_recall=min_recall)
    return found


def fit_class_thresholds(
    labels_N: NDArray[np.int64],
    probs_NC: Floats,
    *,
    names: list[str],
    min_recall: float | None = None,
) -> Thresholds:
    """Choose how large a share a class needs of its own and its strongest rival's probability.

    Of two classes only the last one gets a threshold: its share is its probability. Of more, what
    one class gains others lose, so the mean over the classes is bettered, one threshold at a time,
    until none betters it further: the F1, or the precision once no recall can come closer to the
    one that is wanted. On these rows it is never worse than without thresholds.

    Args:
        labels_N: The classes, [N].
        probs_NC: Their probabilities, [N, C].
        names: The classes.
        min_recall: As in `fit_label_thresholds`.
    """
    found = Thresholds(dict.fromkeys(names, LABEL_THRESHOLD), [])
    if len(names) == 2:
        _add(found, names[1], labels_N == 1, probs_NC[:, 1], min_recall=min_recall)
        return found
    support_C = np.bincount(labels_N, minlength=len(names))
    for name, support in zip(names, support_C, strict=True):
        if support == 0:
            found.warnings.append(_NO_ROW.format(name=name, what="no row"))
    thresholds_C = _ascend(labels_N, probs_NC.astype(np.float64), min_recall=min_recall)
    found.values.update(zip(names, thresholds_C.tolist(), strict=True))
    if min_recall is not None:
        chosen_N = weigh_classes(probs_NC, thresholds_C).argmax(axis=1)
        hits_C = np.bincount(labels_N[chosen_N == labels_N], minlength=len(names))
        for name, hits, support in zip(names, hits_C, support_C, strict=True):
            if hits < min_recall * support - _ROUNDING:
                found.warnings.append(
                    f"{name}: a recall of {min_recall:g} on val would cost other classes theirs; "
                    f"it has {hits / support:.2f}"
                )
    return found


def _ascend(labels_N: NDArray[np.int64], probs_NC: Floats, *, min_recall: float | None) -> Floats:
    """Return a threshold per class, by coordinate ascent from 0.5, [C]."""
    thresholds_C = np.full(probs_NC.shape[1], LABEL_THRESHOLD)
    for _ in range(_MAX_SWEEPS):
        before_C = thresholds_C.copy()
        for i in np.unique(labels_N):
            thresholds_C[i] = _choose_share(
                int(i), labels_N, probs_NC, thresholds_C, min_recall=min_recall
            )
        if (before_C == thresholds_C).all():
            break
    return thresholds_C


def _choose_share(
    own: int,
    labels_N: NDArray[np.int64],
    probs_NC: Floats,
    thresholds_C: Floats,
    *,
    min_recall: float | None,
) -> float:
    """Return the best threshold of one class, those of the others being as they are."""
    weighed_NC = probs_NC * (1 - thresholds_C) / thresholds_C
    weighed_NC[:, own] = -1
    rival_N = weighed_NC.argmax(axis=1)
    strongest_N = weighed_NC.max(axis=1)
    share_N = probs_NC[:, own] / (probs_NC[:, own] + strongest_N)
    order_N = np.argsort(-share_N, kind="stable")
    share_N, rival_N, labels_N = share_N[order_N], rival_N[order_N], labels_N[order_N]
    # Position m: the class takes the m rows with the highest shares, and rivals keep the others.
    marks_C = np.arange(probs_NC.shape[1])
    kept_NC = rival_N[:, None] == marks_C
    is_hit_NC = kept_NC & (labels_N == rival_N)[:, None]
    num_chosen_MC = _count_left(kept_NC)
    num_hits_MC = _count_left(is_hit_NC)
    num_chosen_MC[:, own] = np.arange(len(labels_N) + 1)
    num_hits_MC[1:, own] = np.cumsum(labels_N == own)
    ends = np.flatnonzero(np.append(share_N[:-1] != share_N[1:], True)) + 1
    ends = ends[share_N[ends - 1] > 0]
    thresholds_M = np.append((1 + share_N[0]) / 2, _place_thresholds(share_N[ends - 1][::-1])[::-1])
    usable_M = thresholds_M < 1
    positions_M = np.append(0, ends)[usable_M]
    goals = _list_goals(
        num_hits_MC[positions_M], num_chosen_MC[positions_M],
        np.bincount(labels_N, minlength=len(marks_C)), min_recall=min_recall,
    )  # fmt: skip
    return _pick(thresholds_M[usable_M], goals)


def _count_left(marks_NC: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many are marked from each position on, [N + 1, C]."""
    sums_NC = np.cumsum(marks_NC, axis=0)
    zeros_1C = np.zeros_like(sums_NC[:1])
    return np.asarray(sums_NC[-1] - np.concatenate([zeros_1C, sums_NC]))


def _list_goals(
    num_hits_MC: NDArray[np.int64],
    num_chosen_MC: NDArray[np.int64],
    support_C: NDArray[np.int64],
    *,
    min_recall: float | None,
) -> list[Floats]:
    """Return what is to be as high as possible, [M] each, the most important first."""
    occurs_C = support_C > 0
    num_hits_MC, num_chosen_MC = num_hits_MC[:, occurs_C], num_chosen_MC[:, occurs_C]
    support_C = support_C[occurs_C]
    if min_recall is None:
        return [(2 * num_hits_MC / (num_chosen_MC + support_C)).mean(axis=1)]
    recall_MC = num_hits_MC / support_C
    precision_MC = num_hits_MC / np.maximum(num_chosen_MC, 1)
    return [np.minimum(recall_MC, min_recall).mean(axis=1), precision_MC.mean(axis=1)]


def _add(
    found: Thresholds,
    name: str,
    true_N: NDArray[np.bool_],
    scores_N: Floats,
    *,
    min_recall: float | None,
) -> None:
    num_true = int(true_N.sum())
    if num_true in (0, len(true_N)):
        found.values[name] = LABEL_THRESHOLD
        what = "no row" if num_true == 0 else "every row"
        found.warnings.append(_NO_ROW.format(name=name, what=what))
        return
    found.values[name], is_kept = choose_threshold(true_N, scores_N, min_recall=min_recall)
    if not is_kept:
        found.warnings.append(
            f"{name}: no threshold has a recall of {min_recall:g} on val; the one with the highest "
            "recall was taken"
        )


def choose_threshold(
    true_N: NDArray[np.bool_], scores_N: Floats, *, min_recall: float | None = None
) -> tuple[float, bool]:
    """Return the best threshold for a score, and whether the recall could be kept.

    Among thresholds that decide all rows alike the one that is not close to any row is taken, and
    among those that are equally good the one that is nearest to 0.5.

    Args:
        true_N: What is true, with at least one row of each kind, [N].
        scores_N: Scores in [0, 1]; a score of 0 never counts as a hit, [N].
        min_recall: As in `fit_label_thresholds`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        precision_K, recall_K, scores_K = precision_recall_curve(
            true_N, scores_N.astype(np.float64)
        )
    precision_K, recall_K = precision_K[:-1], recall_K[:-1]  # the last is that of no hit at all
    thresholds_K = _place_thresholds(scores_K)
    usable_K = (scores_K > 0) & (thresholds_K < 1)
    if not usable_K.any():
        return LABEL_THRESHOLD, min_recall is None
    precision_K, recall_K = precision_K[usable_K], recall_K[usable_K]
    thresholds_K = thresholds_K[usable_K]
    is_kept = True
    if min_recall is None:
        both_K = precision_K + recall_K
        goals = [2 * precision_K * recall_K / np.where(both_K > 0, both_K, 1)]
    else:
        keeps_K = recall_K >= min_recall - _ROUNDING
        is_kept = bool(keeps_K.any())
        goals = [np.where(keeps_K, precision_K, -1), recall_K] if is_kept else [recall_K]
    return _pick(thresholds_K, goals), is_kept


def _pick(thresholds_K: Floats, goals: list[Floats]) -> float:
    """Return the threshold with the best goals, the first of which counts first."""
    nearness_K = -np.abs(thresholds_K - LABEL_THRESHOLD)
    # The last key counts first; equal ratios of counts may differ in their last digit.
    order_K = np.lexsort([nearness_K, *(goal.round(12) for goal in reversed(goals))])
    return float(thresholds_K[order_K[-1]])


def _place_thresholds(scores_K: Floats) -> Floats:
    """Return for each of the rising scores a threshold that it passes and the one before does not.

    It is 0.5 where that lies between them, else halfway.
    """
    before_K = np.concatenate([[0.0], scores_K[:-1]])
    holds_half_K = (before_K < LABEL_THRESHOLD) & (scores_K >= LABEL_THRESHOLD)
    return np.asarray(np.where(holds_half_K, LABEL_THRESHOLD, (before_K + scores_K) / 2))
