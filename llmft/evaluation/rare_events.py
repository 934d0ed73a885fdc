"""Rare events: precision and recall of the decisions, and at k."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.task import ClassConfig, LabelsConfig, ScoresConfig
from llmft.data.labels import compute_overall
from llmft.metrics.definitions import Bools, Floats
from llmft.results.comparison import ListQuality, RareEvents, RareFindings, TopListQuality
from llmft.results.evaluation import Interval
from llmft.statistics.intervals import bound_fraction
from llmft.statistics.resampling import Groups


class _Event(NamedTuple):
    """The rare rows, and how they are ranked and predicted."""

    what: str
    true_N: Bools
    rank: Callable[[Floats], Floats]
    """Decision scores [N, C] -> a number per row, the higher the likelier, [N]."""
    decide: Callable[[Floats], Bools]
    """Decision scores [N, C] -> whether each row is predicted to be rare, [N]."""


def measure_rare(
    labels: NDArray[Any],
    variants: dict[str, list[Floats]],
    *,
    ids: Sequence[str],
    names: list[str],
    config: LabelsConfig,
    high: float | None,
    top_k: Sequence[int],
    groups: Groups | None = None,
) -> RareEvents | None:
    """Return precision and recall of each variant for the rare rows.

    Rare rows have an overall score of at least a bound; of two or of ordered classes, the last
    class. `recall` and `precision` are those of the decisions (predicted to reach the bound; the
    last class is the most probable one), `at_k` those of the k rows with the highest overall score
    or probability of the last class. Ties are ordered by id. k is each of `top_k` that is at most
    half of the rows, and the number of rare rows, for which precision and recall are equal. Of
    several runs the first is ranked: their mean would be an ensemble, which is better than any.

    The 95 % intervals are those of `bound_fraction` for the rows of the denominator; they take a
    variant's list as given.

    Args:
        labels: Scores [N, D], classes [N], or labels [N, L].
        variants: Variant -> outputs [N, C] of each of its runs.
        ids: Of the rows, [N].
        names: Of the dimensions, classes or labels.
        config: The task's labels.
        high: Bound on the overall score; None: that of the last tier.
        top_k: Values of k.
        groups: The cluster of each row, [N]; None if rows are independent.

    Returns:
        None if no rows are defined as rare: no bound, classes without an order, or multilabel.
        Precision or recall without a denominator is None.
    """
    event = _find_event(labels, names=names, config=config, high=high)
    if event is None:
        return None
    num_rows, num_high = len(labels), int(event.true_N.sum())
    lengths = {k for k in top_k if k <= num_rows / 2} | ({num_high} if num_high else set())
    return RareEvents(
        what=event.what,
        num_rows=num_rows,
        num_high=num_high,
        variants={
            variant: _measure_variant(
                event, runs[0].astype(np.float64), ids, sorted(lengths), groups
            )
            for variant, runs in variants.items()
        },
    )


def _find_event(
    labels: NDArray[Any], *, names: list[str], config: LabelsConfig, high: float | None
) -> _Event | None:
    match config:
        case ScoresConfig():
            if high is None and config.tiers is None:
                return None
            bound = high if high is not None else list((config.tiers or {}).values())[-1]

            def rank(outputs_ND: Floats) -> Floats:
                # Weighted means of scores such as 7, 7 and 7 may come out as 6.999999.
                return np.asarray(np.round(compute_overall(outputs_ND, config), 6))

            def reaches(outputs_ND: Floats) -> Bools:
                return np.asarray(rank(outputs_ND) >= round(bound, 6))

            what = f"overall score of at least {bound:g}"
            return _Event(what, reaches(labels.astype(np.float64)), rank, reaches)
        case ClassConfig(order=order) if order is not None or len(names) == 2:
            last = len(names) - 1
            return _Event(
                f"class {names[last]}",
                np.asarray(labels == last),
                lambda outputs_NC: outputs_NC[:, last],
                lambda outputs_NC: np.asarray(outputs_NC.argmax(axis=1) == last),
            )
        case _:
            return None


def _measure_variant(
    event: _Event,
    outputs_NC: Floats,
    ids: Sequence[str],
    lengths: list[int],
    groups: Groups | None,
) -> RareFindings:
    order = np.lexsort((np.array(ids), -event.rank(outputs_NC)))
    rank_N = np.argsort(order)
    at_k = [
        TopListQuality(k=k, **dict(_measure_list(rank_N < k, event.true_N, groups)))
        for k in lengths
    ]
    return RareFindings(
        at_k=at_k, **dict(_measure_list(event.decide(outputs_NC), event.true_N, groups))
    )


def _measure_list(listed_N: Bools, true_N: Bools, groups: Groups | None) -> ListQuality:
    def bound(hits_N: Bools, among_N: Bools) -> tuple[float | None, Interval | None]:
        of_rows = None if groups is None else groups[among_N]
        value = float(hits_N[among_N].mean()) if among_N.any() else None
        return value, bound_fraction(hits_N[among_N], groups=of_rows)

    precision, precision_interval = bound(true_N, listed_N)
    recall, recall_interval = bound(listed_N, true_N)
    return ListQuality(
        precision=precision, precision_interval=precision_interval,
        recall=recall, recall_interval=recall_interval,
    )  # fmt: skip
