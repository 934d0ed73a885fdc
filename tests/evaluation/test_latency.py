"""Variants are timed in turns, batches as large as in production, a kept prompt twice."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmft.config.recipe import BaseConfig
from llmft.config.suite import LatencyConfig
from llmft.evaluation import latency
from llmft.evaluation.latency import group_by_memory, measure_latencies
from llmft.prediction.inference import Predictor
from tests.prediction.test_inference import make_predictor
from tests.results.made_up import make_recipe, make_record

ROWS = [{"id": str(i), "text": f"bank loan mood{i}"} for i in range(6)]
PROMPT = "task : " + "market rate crisis . " * 12 + "{text}"


class Recorder:
    """A real predictor that writes down what it was asked."""

    def __init__(self, name: str, predictor: Predictor, seen: list[tuple[str, int]]) -> None:
        self._name, self._predictor, self._seen = name, predictor, seen

    def __getattr__(self, key: str) -> Any:
        return getattr(self._predictor, key)

    def predict(self, rows: Sequence[dict[str, Any]], **given: Any) -> Any:
        self._seen.append((self._name, len(rows)))
        return self._predictor.predict(rows, **given)


@pytest.fixture(scope="module", autouse=True)
def few_measurements() -> Iterator[None]:
    """Undo that of all tests: as many measurements as users get."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "NUM_SINGLES", 59)
        patch.setattr(latency, "NUM_BATCHES", 10)
        yield


@pytest.fixture(scope="module")
def bert(tiny_bert: Path) -> Predictor:
    return make_predictor(BaseConfig(model=str(tiny_bert)), head="regression")


def test_variants_take_turns_and_all_is_measured(bert: Predictor) -> None:
    seen: list[tuple[str, int]] = []
    variants = {name: Recorder(name, bert, seen) for name in ("a", "b")}
    config = LatencyConfig(batch_size=8, price_per_hour=3.6)
    found = measure_latencies(variants, ROWS, config)  # type: ignore[arg-type]
    warm_up = 2 * (3 + 1)
    assert seen[warm_up : warm_up + 118] == [("a", 1), ("b", 1)] * 59
    assert seen[warm_up + 118 :] == [("a", 8), ("b", 8)] * 10  # more than there are rows
    for one in found.values():
        assert (one.num_singles, one.num_batches, one.batch_size) == (59, 10, 8)
        assert 0 < one.single_p50_ms <= one.single_p95_ms <= one.single_p95_bound_ms
        assert 0 < one.batch_p50_ms <= one.batch_p95_ms
        assert one.articles_per_second * one.batch_p95_ms >= 1_000 * 8 * 0.5
        # 3.6 an hour is a thousandth a second.
        assert one.cost_per_million == pytest.approx(1e3 / one.articles_per_second)
        assert one.peak_memory_gib >= bert.measure_weights() > 0
        assert one.uncached_p50_ms is one.uncached_p95_ms is None
        assert one.device


def test_a_prompt_that_is_kept_is_timed_without_that_too(tiny_qwen: Path) -> None:
    predictor = make_predictor(BaseConfig(model=str(tiny_qwen)), head="regression", prompt=PROMPT)
    assert predictor.keeps_prompt
    found = measure_latencies({"a": predictor}, ROWS, LatencyConfig(batch_size=4))["a"]
    assert found.uncached_p50_ms is not None
    assert found.uncached_p50_ms > found.single_p50_ms
    assert found.cost_per_million is None


def test_a_forgotten_prompt_changes_no_output(tiny_qwen: Path) -> None:
    predictor = make_predictor(BaseConfig(model=str(tiny_qwen)), head="regression", prompt=PROMPT)
    kept = predictor.predict(ROWS).outputs
    predictor.forget_prompt()
    assert predictor.predict(ROWS).outputs == pytest.approx(kept, abs=1e-6)


def test_a_slow_variant_is_measured_no_more_than_it_has_to(
    bert: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Recorder):
        def predict(self, rows: Sequence[dict[str, Any]], **given: Any) -> Any:
            time.sleep(0.05 * len(rows))
            return super().predict(rows, **given)

    monkeypatch.setattr(latency, "MAX_SECONDS", 1.2)
    slow = Slow("slow", bert, [])
    config = LatencyConfig(batch_size=2)
    variants = {"slow": slow, "fast": bert}
    found = measure_latencies(variants, ROWS, config)  # type: ignore[arg-type]
    assert 5 <= found["slow"].num_singles <= 12
    assert 5 <= found["slow"].num_batches <= 6
    assert found["slow"].single_p95_bound_ms is None  # too few to bound the 95th percentile
    assert found["fast"].num_singles > found["slow"].num_singles

    long = measure_latencies({"a": slow}, ROWS, LatencyConfig(batch_size=64))["a"]  # type: ignore[dict-item]
    assert (long.num_batches, long.batch_p50_ms, long.batch_p95_ms) == (0, None, None)
    assert 0 < long.articles_per_second < 20


@pytest.mark.parametrize(
    ("free_gib", "expected"),
    [
        (99, [["a", "b", "c", "d"]]),
        (9, [["a", "b"], ["c"], ["d"]]),
        (1, [["a"], ["b"], ["c"], ["d"]]),
    ],
)
def test_models_that_do_not_fit_together_are_grouped(
    free_gib: float, expected: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "measure_free_memory", lambda device: free_gib)
    made = {
        "a": make_record(precision="float32", num_parameters=10**9),  # 4.2 GiB
        "b": make_record(precision="bfloat16", num_parameters=10**9),  # 2.8 GiB
        "c": make_record(precision="float32", num_parameters=2 * 10**9),  # 8.0 GiB
        "d": make_record(precision="bfloat16", num_parameters=7 * 10**9).replace(
            recipe=make_recipe(base={"model": "m", "tuning": "qlora"})
        ),  # 7.0 GiB
    }
    assert group_by_memory(made) == expected


def test_d24_figures_of_a_busy_machine_say_so(
    bert: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for readings, waited in (
        ([(0, 0), (900, 300)], 0.25), ([(0, 0), (950, 50)], 0.05), ([None, (900, 300)], None),
    ):  # fmt: skip
        caplog.clear()
        monkeypatch.setattr(latency, "_read_schedule", iter(readings).__next__)
        found = measure_latencies({"a": bert}, ROWS, LatencyConfig(batch_size=2))["a"]
        assert found.waited == waited
        assert ("threads waited for a CPU for 25 % of their time" in caplog.text) == (
            waited == 0.25
        )


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="Linux tells this")
def test_the_time_that_threads_wait_for_a_cpu_is_read() -> None:
    before = latency._read_schedule()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    after = latency._read_schedule()
    assert before is not None and after is not None
    assert after[0] - before[0] > 1e7
    assert 0 <= latency._measure_waiting(before, after) < 1
