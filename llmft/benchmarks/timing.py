"""Time several ways to do the same thing, in turns, so that a busy machine slows all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

Way = Callable[[], float]
"""Does the work once and returns the seconds."""


class WayTimes(NamedTuple):
    """Seconds of every way in every round."""

    seconds: dict[str, list[float]]
    """Way -> its seconds, one per round."""

    def take_median(self, way: str) -> float:
        """Return the median seconds of a way."""
        return statistics.median(self.seconds[way])

    def compare(self, way: str, *, to: str) -> float:
        """Return how many times faster a way is than another: the median over the rounds."""
        pairs = zip(self.seconds[to], self.seconds[way], strict=True)
        return statistics.median(other / own for other, own in pairs)


def measure_ways(ways: Mapping[str, Way], *, num_rounds: int) -> WayTimes:
    """Run every way once per round, in alternating order, after a round that warms up.

    Args:
        ways: Name -> way.
        num_rounds: Timed rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    bar = tqdm(total=(num_rounds + 1) * len(ways), unit="way", desc="measuring", disable=None)
    with bar:
        for number in range(num_rounds + 1):
            for name in list(ways)[:: -1 if number % 2 else 1]:
                bar.set_postfix_str(name)
                gc.collect()
                took = ways[name]()
                if number > 0:
                    seconds[name].append(took)
                bar.update()
    return WayTimes(seconds)


def time_call(work: Callable[[], object]) -> Way:
    """Return a way that takes the wall time of a call, until the GPU is done."""

    def measure() -> float:
        started = read_clock()
        work()
        return read_clock() - started

    return measure


def read_clock() -> float:
    """Return seconds of a monotonic clock, after synchronising the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class MatrixProducts:
    """The forward matrix products of a model's linear layers alone, a baseline for its steps."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        *,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Make the matrices.

        Args:
            shapes: Inputs and outputs of every layer, as `FlopRates.shapes` gives them.
            num_tokens: Rows of the left matrix: the tokens of a batch.
            dtype: Of both matrices.
            device: Where to multiply.
        """

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=dtype, device=device)

        widths = {num_inputs for num_inputs, _ in shapes}
        self._inputs = {width: draw(num_tokens, width) for width in widths}
        self._weights_OI = [draw(o, i) for i, o in shapes]
        self.num_flops = 2 * num_tokens * sum(i * o for i, o in shapes)

    def __call__(self) -> None:
        """Multiply once."""
        for weight_OI in self._weights_OI:
            torch.nn.functional.linear(self._inputs[weight_OI.shape[1]], weight_OI)
