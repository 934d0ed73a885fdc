"""Rare events: precision and recall of the decisions, and at k."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.task import ClassConfig, LabelsConfig, ScoresConfig
from llmft.data.labels import compute_overall
from llmft.metrics.definitions import Bools, Floats
from llmft.results.comparison import ListQuality, RareEvents, RareFindings, TopListQuality
from llmft.statistics.intervals import bound_proportion


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
) -> RareEvents | None:
    """Return precision and recall of each variant for the rare rows.

    Rare rows have an overall score of at least a bound; of two or of ordered classes, the last
    class. `recall` and `precision` are those of the decisions (predicted to reach the bound; the
    last class is the most probable one), `at_k` those of the k rows with the highest overall score
    or probability of the last class. Ties are ordered by id. k is each of `top_k` that is at most
    half of the rows, and the number of rare rows, for which precision and recall are equal. Of
    several runs the first is ranked: their mean would be an ensemble, which is better than any.

    The 95 % intervals are exact (Clopper and Pearson 1934) for the rows of the denominator; they
    take rows as independent and a variant's list as given.

    Args:
        labels: Scores [N, D], classes [N], or labels [N, L].
        variants: Variant -> outputs [N, C] of each of its runs.
        ids: Of the rows, [N].
        names: Of the dimensions, classes or labels.
        config: The task's labels.
        high: Bound on the overall score; None: that of the last tier.
        top_k: Values of k.

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
            variant: _measure_variant(event, runs[0].astype(np.float64), ids, sorted(lengths))
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
    event: _Event, outputs_NC: Floats, ids: Sequence[str], lengths: list[int]
) -> RareFindings:
    called_N, num_high = event.decide(outputs_NC), int(event.true_N.sum())
    order = np.lexsort((np.array(ids), -event.rank(outputs_NC)))
    num_found = int((called_N & event.true_N).sum())
    found_K = event.true_N[order].cumsum()
    quality = _count(num_found, num_called=int(called_N.sum()), num_high=num_high)
    at_k = [
        TopListQuality(k=k, **dict(_count(int(found_K[k - 1]), num_called=k, num_high=num_high)))
        for k in lengths
    ]
    return RareFindings(at_k=at_k, **dict(quality))


def _count(num_found: int, *, num_called: int, num_high: int) -> ListQuality:
    return ListQuality(
        precision=num_found / num_called if num_called else None,
        precision_interval=bound_proportion(num_found, num_called) if num_called else None,
        recall=num_found / num_high if num_high else None,
        recall_interval=bound_proportion(num_found, num_high) if num_high else None,
    )
