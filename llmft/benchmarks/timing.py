"""Timing of implementations in alternating order, and the FLOPs that bound their speed."""

import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from llmft.console import Progress

TimedCall = Callable[[], float]
"""One implementation: does the work once and returns the seconds."""
_IN_LAYER = re.compile(r"(^|\.)layers?\.\d+\.")


class Timings(NamedTuple):
    """Seconds of every implementation in every round."""

    seconds: dict[str, list[float]]
    """Implementation -> its seconds, one per round."""

    def take_median(self, way: str) -> float:
        """Return the median seconds of an implementation."""
        return statistics.median(self.seconds[way])

    def compare(self, way: str, *, to: str) -> float:
        """Return the speed-up of one implementation over another: the median over the rounds."""
        pairs = zip(self.seconds[to], self.seconds[way], strict=True)
        return statistics.median(other / own for other, own in pairs)


def time_interleaved(ways: Mapping[str, TimedCall], *, num_rounds: int) -> Timings:
    """Run every implementation once per round, in alternating order, after a warm-up round.

    Args:
        ways: Name -> way.
        num_rounds: Timed rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with Progress("measuring", (num_rounds + 1) * len(ways), unit="way") as progress:
        for number in range(num_rounds + 1):
            for name in list(ways)[:: -1 if number % 2 else 1]:
                gc.collect()
                took = ways[name]()
                if number > 0:
                    seconds[name].append(took)
                progress.show(last=name)
                progress.update()
    return Timings(seconds)


def time_call(work: Callable[[], object]) -> TimedCall:
    """Return a function that times a call, in wall seconds, until the GPU is done."""

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
        """Draw random matrices of the shapes of the layers.

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


class Work(NamedTuple):
    """Tokens and attention pairs of a forward pass."""

    num_tokens: int
    """Tokens in the linear layers."""
    num_pairs: int
    """Pairs of a query and a key that it attends to."""


class FlopRates(NamedTuple):
    """FLOPs of a model per token and per pair of query and key."""

    forward_per_token: int
    """Linear layers, without adapters, which are merged in prediction."""
    training_per_token: int
    """Forward and backward, with adapters: three times the forward for trained weights, twice for
    frozen ones, which need no gradient of their own."""
    forward_per_pair: int
    """Attention: the product of query and key, and the weight times the value; all layers."""
    shapes: list[tuple[int, int]]
    """Inputs and outputs of every linear layer, without adapters."""

    def count_forward(self, work: Work) -> int:
        """Return the FLOPs of a forward pass."""
        return self.forward_per_token * work.num_tokens + self.forward_per_pair * work.num_pairs

    def count_training(self, work: Work) -> int:
        """Return the FLOPs of a forward and a backward pass, without recomputation."""
        return (
            self.training_per_token * work.num_tokens + 3 * self.forward_per_pair * work.num_pairs
        )


def find_flop_rates(model: Any) -> FlopRates:
    """Return the FLOPs of a Hugging Face model, with all weights trained or adapters only.

    Only linear layers in its stack of layers count; those after it get one token per row.

    Raises:
        ValueError: If it has no such stack.
    """
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _IN_LAYER.search(name)
    ]
    if not layers:
        raise ValueError(f"a {type(model).__name__} has no linear layers in a stack of layers")
    shapes, training = [], 0
    for name, module in layers:
        size = module.in_features * module.out_features  # a weight in 4 bit is packed
        training += (3 if module.weight.requires_grad else 2) * 2 * size
        if ".lora_" not in name:
            shapes.append((module.in_features, module.out_features))
    config = model.config
    head_size = getattr(config, "head_dim", None)
    if head_size is None:
        head_size = config.hidden_size // config.num_attention_heads
    return FlopRates(
        forward_per_token=2 * sum(i * o for i, o in shapes),
        training_per_token=training,
        forward_per_pair=4 * config.num_attention_heads * head_size * config.num_hidden_layers,
        shapes=shapes,
    )


def count_unshared_work(lengths: Sequence[int], *, is_causal: bool) -> Work:
    """Return the work of the unshared forward: inputs of these lengths, without padding."""
    pairs = [n * (n + 1) // 2 if is_causal else n * n for n in lengths]
    return Work(sum(lengths), sum(pairs))


def count_cached_work(article_lengths: Sequence[int], *, num_prompt_tokens: int) -> Work:
    """Return the work of articles after a prompt with cached keys and values; causal."""
    own = count_unshared_work(article_lengths, is_causal=True)
    return Work(own.num_tokens, own.num_pairs + own.num_tokens * num_prompt_tokens)


def count_shared_work(article_lengths: Sequence[int], *, num_prompt_tokens: int) -> Work:
    """Return the work of a shared prompt, computed once, and of the articles after it; causal."""
    prompt = count_unshared_work([num_prompt_tokens], is_causal=True)
    articles = count_cached_work(article_lengths, num_prompt_tokens=num_prompt_tokens)
    return Work(prompt.num_tokens + articles.num_tokens, prompt.num_pairs + articles.num_pairs)
