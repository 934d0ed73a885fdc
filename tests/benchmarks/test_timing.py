"""Timing in turns: what counts, in which order, and how ways compare."""

import time

import pytest
import torch

from llmft.benchmarks.timing import MatrixProducts, Timings, time_call, time_interleaved


def test_every_round_runs_every_way_in_turning_order_and_the_first_does_not_count() -> None:
    ran: list[str] = []

    def make_way(name: str):
        def run() -> float:
            ran.append(name)
            return float(len(ran))

        return run

    times = time_interleaved({name: make_way(name) for name in "abc"}, num_rounds=2)
    assert "".join(ran) == "abccbaabc"
    assert times.seconds == {"a": [6.0, 7.0], "b": [5.0, 8.0], "c": [4.0, 9.0]}


def test_ways_are_compared_within_a_round_since_rounds_may_be_slow_as_a_whole() -> None:
    times = Timings({"ours": [1.0, 10.0, 1.0], "plain": [2.0, 20.0, 3.0]})
    assert times.compare("ours", to="plain") == 2.0
    assert times.take_median("plain") == 3.0


def test_a_call_takes_its_wall_time() -> None:
    assert time_call(lambda: time.sleep(0.02))() == pytest.approx(0.02, abs=0.05)
    assert time_call(lambda: time.sleep(0.02))() >= 0.02


def test_products_count_two_operations_an_element() -> None:
    products = MatrixProducts(
        [(4, 6), (6, 4)], num_tokens=5, dtype=torch.float32, device=torch.device("cpu")
    )
    assert products.num_flops == 2 * 5 * (24 + 24)
    products()
