"""How long a prediction takes."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

_NUM_WARM_UP = 3
_NUM_SINGLE = 30


class Latency(NamedTuple):
    """Measured times of one model, tokenisation included, model already loaded."""

    single_p50_ms: float
    """Median time for one article alone."""
    single_p95_ms: float
    articles_per_second: float
    """Throughput over all rows, in batches."""
    num_rows: int


def measure_latency(
    predict: Callable[[Sequence[dict[str, Any]]], object], rows: Sequence[dict[str, Any]]
) -> Latency:
    """Time single articles and a whole set; `predict` has to have finished when it returns."""
    for row in rows[:_NUM_WARM_UP]:
        predict([row])
    singles = [_time(lambda row=row: predict([row])) for row in rows[:_NUM_SINGLE]]  # type: ignore[misc]
    whole = _time(lambda: predict(rows))
    p50, p95 = np.quantile(np.array(singles) * 1_000, [0.5, 0.95])
    return Latency(float(p50), float(p95), len(rows) / whole, len(rows))


def _time(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
