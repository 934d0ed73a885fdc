"""Are the rare rows found? Recall and precision among the highest rows, and of the decision."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.labels import ClassConfig, LabelsConfig, ScoresConfig
from llmft.data.labels import compute_overall
from llmft.evaluation.intervals import bound_share
from llmft.results.comparison import ListQuality, RareEvents, RareFindings, TopListQuality

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


class _Event(NamedTuple):
    """What is rare, and how outputs speak of it."""

    what: str
    true_N: Bools
    rank: Callable[[Floats], Floats]
    """Outputs [N, C] to a number per row, the higher the likelier."""
    decide: Callable[[Floats], Bools]
    """Outputs [N, C] to the rows that are called high."""


def measure_rare(
    labels: NDArray[Any],
    arms: dict[str, list[Floats]],
    *,
    ids: Sequence[str],
    names: list[str],
    config: LabelsConfig,
    high: float | None,
    top_k: Sequence[int],
) -> RareEvents | None:
    """Return how each arm finds the rows that are high.

    High are rows whose overall score reaches a bound; of two or of ordered classes it is the last
    one. `recall` and `precision` are those of the decision (predicted to reach the bound; the last
    class is the likeliest), `at_k` those of the list of the k highest rows, by overall score or by
    the last class's probability. Rows that tie stand by their id. k is each of `top_k` that is at
    most half of the rows, and the number of rows that are high, where the two are the same number.
    Of several runs the first is ranked: their mean would be an ensemble, which is better than any.

    The 95 % intervals are exact (Clopper and Pearson 1934) for the rows that the share is of; they
    take rows as independent and an arm's list as given.

    Args:
        labels: Scores [N, D], classes [N], or labels [N, L].
        arms: Arm -> outputs [N, C] of each of its runs.
        ids: Of the rows, [N].
        names: Of the dimensions, classes or labels.
        config: What the task says of its labels.
        high: Bound on the overall score; None: that of the last tier.
        top_k: Lengths of the list.

    Returns:
        None if nothing is high: no bound, classes without an order, or several labels. A share of
        no rows is None.
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
            arm: _measure_arm(event, runs[0].astype(np.float64), ids, sorted(lengths))
            for arm, runs in arms.items()
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


def _measure_arm(
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
        precision_interval=bound_share(num_found, num_called) if num_called else None,
        recall=num_found / num_high if num_high else None,
        recall_interval=bound_share(num_found, num_high) if num_high else None,
    )
