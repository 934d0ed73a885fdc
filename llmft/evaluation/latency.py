"""How long predictions take, what they need and what they cost: all arms side by side."""

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from llmft.config.suite import LatencyConfig
from llmft.data.fields import Row
from llmft.models.device import name_device
from llmft.models.peak_memory import measure_peak_memory, reset_peak_memory
from llmft.prediction.inference import Predictor
from llmft.results.variant import Latency

_NUM_WARM_UP = 3
_NUM_SINGLES = 59
"""The slowest of 59 is above the 95th percentile with 95 % certainty: 1 - 0.95^59 (Wilks 1941)."""
_NUM_BATCHES = 10
_MIN_MEASURES = 5
_MAX_SECONDS = 60.0
"""For each arm; beyond it only the fewest measures are taken."""


class _Subject(NamedTuple):
    """One arm while it is timed; the lists hold seconds."""

    predictor: Predictor
    peak_memory_gib: float
    can_batch: bool
    singles: list[float]
    uncached: list[float]
    batches: list[float]


def measure_latencies(
    predictors: Mapping[str, Predictor], rows: Sequence[Row], config: LatencyConfig
) -> dict[str, Latency]:
    """Time every arm's predictions of single articles and of batches.

    The arms take turns (ABAB), so that a machine that slows down meanwhile slows all of them. An
    arm takes about a minute at most, unless its fewest measures take longer.

    Args:
        predictors: Arm -> its open model.
        rows: Articles; they are used again where there are too few.
        config: Batch size and price.
    """
    subjects = {
        arm: _warm_up(predictor, rows, batch_size=config.batch_size)
        for arm, predictor in predictors.items()
    }
    turns = itertools.cycle(rows)
    for _ in range(_NUM_SINGLES):
        row = [next(turns)]
        for subject in subjects.values():
            if _may_go_on(subject.singles, others=subject.uncached):
                subject.singles.append(_time_predict(subject.predictor, row))
                if subject.predictor.keeps_prompt:
                    subject.predictor.forget_prompt()
                    subject.uncached.append(_time_predict(subject.predictor, row))
    for _ in range(_NUM_BATCHES):
        batch = list(itertools.islice(turns, config.batch_size))
        for subject in subjects.values():
            if subject.can_batch and _may_go_on(subject.batches):
                subject.batches.append(_time_predict(subject.predictor, batch))
    return {arm: _summarise(subject, config) for arm, subject in subjects.items()}


def _warm_up(predictor: Predictor, rows: Sequence[Row], *, batch_size: int) -> _Subject:
    """Run a model until it is at speed, and measure its memory on the way."""
    fastest = min(_time_predict(predictor, [row]) for row in rows[:_NUM_WARM_UP])
    can_batch = fastest * batch_size < _MAX_SECONDS
    some = list(itertools.islice(itertools.cycle(rows), batch_size if can_batch else 1))
    predictor.forget_prompt()  # what is kept of it belongs to this model's memory
    reset_peak_memory()
    before = measure_peak_memory()
    _time_predict(predictor, some)
    peak = measure_peak_memory() - before + predictor.measure_weights()
    return _Subject(predictor, peak, can_batch, [], [], [])


def _may_go_on(seconds: list[float], *, others: Sequence[float] = ()) -> bool:
    """Singles and batches have half of the time each."""
    return len(seconds) < _MIN_MEASURES or sum(seconds) + sum(others) < _MAX_SECONDS / 2


def _time_predict(predictor: Predictor, rows: Sequence[Row]) -> float:
    _wait_for_device()
    started = time.perf_counter()
    predictor.predict(rows, show_progress=False)
    _wait_for_device()
    return time.perf_counter() - started


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _summarise(subject: _Subject, config: LatencyConfig) -> Latency:
    size = config.batch_size
    counted = (size, subject.batches) if subject.batches else (1, subject.singles)
    per_second = counted[0] * len(counted[1]) / sum(counted[1])
    cost = None
    if config.price_per_hour is not None:
        cost = config.price_per_hour / 3_600 / per_second * 1e6
    batch_p50, batch_p95 = _find_quantiles(subject.batches)
    uncached_p50, uncached_p95 = _find_quantiles(subject.uncached)
    p50, p95 = _find_quantiles(subject.singles)
    assert p50 is not None and p95 is not None
    enough = len(subject.singles) >= _NUM_SINGLES
    return Latency(
        single_p50_ms=p50,
        single_p95_ms=p95,
        single_p95_bound_ms=1_000 * max(subject.singles) if enough else None,
        batch_p50_ms=batch_p50,
        batch_p95_ms=batch_p95,
        batch_size=size,
        articles_per_second=per_second,
        peak_memory_gib=subject.peak_memory_gib,
        num_singles=len(subject.singles),
        num_batches=len(subject.batches),
        device=name_device(),
        uncached_p50_ms=uncached_p50,
        uncached_p95_ms=uncached_p95,
        cost_per_million=cost,
    )


def _find_quantiles(seconds: list[float]) -> tuple[float | None, float | None]:
    """Return the median and the 95th percentile in milliseconds."""
    if not seconds:
        return None, None
    p50, p95 = np.quantile(np.array(seconds) * 1_000, [0.5, 0.95]).tolist()
    return p50, p95
