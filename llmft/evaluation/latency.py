"""Latency, memory and cost of predictions, measured for all variants in turns."""

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from llmft.config.suite import LatencyConfig
from llmft.data.fields import Row
from llmft.models.device import choose_device, name_device
from llmft.models.memory.peak import measure_free_memory, measure_peak_memory, reset_peak_memory
from llmft.prediction.inference import Predictor
from llmft.results.evaluation import Latency
from llmft.results.run import RunRecord

logger = logging.getLogger(__name__)

_NUM_WARM_UP = 3
NUM_SINGLES = 59
"""The slowest of 59 is above the 95th percentile with 95 % certainty: 1 - 0.95^59 (Wilks 1941)."""
NUM_BATCHES = 10
"""Batches that are timed."""
_MIN_MEASURES = 5
BUSY = 0.1
"""Fraction of the time that other work may have the CPU without a warning."""
MAX_SECONDS = 60.0
"""For each variant; beyond it only the minimum number of measurements is taken."""


_BYTES = {"float32": 4.0, "bfloat16": 2.5, "qlora": 1.0}
_WORKING_GIB = 0.5
"""Size of a weight in memory, some of which stay float32, and what a prediction needs besides."""


def group_by_memory(records: Mapping[str, RunRecord]) -> list[list[str]]:
    """Return the variants in groups whose models fit together into the memory that is free.

    Args:
        records: Variant -> the run whose model is to be opened.
    """
    free_gib = measure_free_memory(choose_device())
    groups: list[list[str]] = [[]]
    used = 0.0
    for name, record in records.items():
        tuning = record.recipe.base.tuning
        each = _BYTES["qlora" if tuning == "qlora" else record.precision]
        size = record.num_parameters * each / 2**30 + _WORKING_GIB
        if groups[-1] and used + size > free_gib:
            groups.append([])
            used = 0.0
        groups[-1].append(name)
        used += size
    return groups


class _ModelTimes(NamedTuple):
    """The measured seconds of one model, and its peak memory."""

    predictor: Predictor
    peak_memory_gib: float
    can_batch: bool
    singles: list[float]
    uncached: list[float]
    batches: list[float]


def measure_latencies(
    predictors: Mapping[str, Predictor], rows: Sequence[Row], config: LatencyConfig
) -> dict[str, Latency]:
    """Time every variant's predictions of single articles and of batches.

    The variants take turns (ABAB), so that a machine that slows down meanwhile slows all of them.
    A variant takes about a minute at most, unless its minimum number of measurements takes longer.

    Args:
        predictors: Variant -> its open model.
        rows: Articles; they are repeated if there are too few.
        config: Batch size and price.
    """
    models = {
        variant: _warm_up(predictor, rows, batch_size=config.batch_size)
        for variant, predictor in predictors.items()
    }
    before = _read_schedule()
    turns = itertools.cycle(rows)
    for _ in range(NUM_SINGLES):
        row = [next(turns)]
        for model in models.values():
            if _may_go_on(model.singles, others=model.uncached):
                model.singles.append(_time_predict(model.predictor, row))
                if model.predictor.keeps_prompt:
                    model.predictor.forget_prompt()
                    model.uncached.append(_time_predict(model.predictor, row))
    for _ in range(NUM_BATCHES):
        batch = list(itertools.islice(turns, config.batch_size))
        for model in models.values():
            if model.can_batch and _may_go_on(model.batches):
                model.batches.append(_time_predict(model.predictor, batch))
    waited = _measure_waiting(before, _read_schedule())
    if waited is not None and waited > BUSY:
        logger.warning(
            "latency: threads waited for a CPU for %.0f %% of their time (other work, or more "
            "threads than CPUs), so predictions may be faster than these figures; measure again "
            "on an idle machine", 100 * waited,
        )  # fmt: skip
    return {variant: _summarise(model, config, waited) for variant, model in models.items()}


def _read_schedule() -> tuple[int, int] | None:
    """Return the nanoseconds that all threads ran, and waited for a CPU; None if unknown."""
    try:
        found = [path.read_text().split() for path in Path("/proc/self/task").glob("*/schedstat")]
    except OSError:  # not Linux, or a thread has just ended
        return None
    if not found:
        return None
    return sum(int(ran) for ran, *_ in found), sum(int(waited) for _, waited, *_ in found)


def _measure_waiting(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Return the fraction of the time between two readings in which threads waited for a CPU."""
    if before is None or after is None:
        return None
    ran, waited = after[0] - before[0], after[1] - before[1]
    return waited / (ran + waited) if ran > 0 and waited >= 0 else None


def _warm_up(predictor: Predictor, rows: Sequence[Row], *, batch_size: int) -> _ModelTimes:
    """Warm a model up, and measure its peak memory."""
    fastest = min(_time_predict(predictor, [row]) for row in rows[:_NUM_WARM_UP])
    can_batch = fastest * batch_size * _MIN_MEASURES < MAX_SECONDS / 2
    some = list(itertools.islice(itertools.cycle(rows), batch_size if can_batch else 1))
    predictor.forget_prompt()  # a cached prompt counts towards this model's memory
    reset_peak_memory()
    before = measure_peak_memory()
    _time_predict(predictor, some)
    peak = measure_peak_memory() - before + predictor.measure_weights()
    return _ModelTimes(predictor, peak, can_batch, [], [], [])


def _may_go_on(seconds: list[float], *, others: Sequence[float] = ()) -> bool:
    """Return whether the time limit allows another measurement, of singles or of batches."""
    return len(seconds) < _MIN_MEASURES or sum(seconds) + sum(others) < MAX_SECONDS / 2


def _time_predict(predictor: Predictor, rows: Sequence[Row]) -> float:
    _wait_for_device()
    started = time.perf_counter()
    predictor.predict(rows, show_progress=False)
    _wait_for_device()
    return time.perf_counter() - started


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _summarise(model: _ModelTimes, config: LatencyConfig, waited: float | None) -> Latency:
    size = config.batch_size
    counted = (size, model.batches) if model.batches else (1, model.singles)
    per_second = counted[0] * len(counted[1]) / sum(counted[1])
    cost = None
    if config.price_per_hour is not None:
        cost = config.price_per_hour / 3_600 / per_second * 1e6
    batch_p50, batch_p95 = _find_quantiles(model.batches)
    uncached_p50, uncached_p95 = _find_quantiles(model.uncached)
    p50, p95 = _find_quantiles(model.singles)
    assert p50 is not None and p95 is not None
    enough = len(model.singles) >= NUM_SINGLES
    return Latency(
        single_p50_ms=p50,
        single_p95_ms=p95,
        single_p95_bound_ms=1_000 * max(model.singles) if enough else None,
        batch_p50_ms=batch_p50,
        batch_p95_ms=batch_p95,
        batch_size=size,
        articles_per_second=per_second,
        peak_memory_gib=model.peak_memory_gib,
        num_singles=len(model.singles),
        num_batches=len(model.batches),
        device=name_device(),
        uncached_p50_ms=uncached_p50,
        uncached_p95_ms=uncached_p95,
        cost_per_million=cost,
        waited=waited,
    )


def _find_quantiles(seconds: list[float]) -> tuple[float | None, float | None]:
    """Return the median and the 95th percentile in milliseconds."""
    if not seconds:
        return None, None
    p50, p95 = np.quantile(np.array(seconds) * 1_000, [0.5, 0.95]).tolist()
    return p50, p95
