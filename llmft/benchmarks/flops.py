"""How many floating point operations a model needs: its linear layers and its attention.

What is small beside them is left out: norms, activations, embeddings, the head and the optimiser.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

_IN_LAYER = re.compile(r"(^|\.)layers?\.\d+\.")


class Work(NamedTuple):
    """What goes through a model."""

    num_tokens: int
    """Through the linear layers."""
    num_pairs: int
    """Of a query and a key that it sees."""


class FlopRates(NamedTuple):
    """What a model needs per token and per pair of query and key."""

    forward_per_token: int
    """Linear layers, without adapters, which are merged in prediction."""
    training_per_token: int
    """Forward and backward: three times as much for weights that are trained, twice for frozen
    ones, which need no gradient of their own; adapters included."""
    forward_per_pair: int
    """Attention: the product of query and key, and the weight times the value; all layers."""
    shapes: list[tuple[int, int]]
    """Inputs and outputs of every linear layer, without adapters."""

    def count_forward(self, work: Work) -> int:
        """Return the FLOPs of a forward pass."""
        return self.forward_per_token * work.num_tokens + self.forward_per_pair * work.num_pairs

    def count_training(self, work: Work) -> int:
        """Return the FLOPs of a forward and a backward pass, nothing computed twice."""
        return (
            self.training_per_token * work.num_tokens + 3 * self.forward_per_pair * work.num_pairs
        )


def find_flop_rates(model: Any) -> FlopRates:
    """Return what a Hugging Face model needs, as it is tuned: all of it, or adapters only.

    Linear layers count that stand in its stack of layers; those behind it see one token a row.

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


def count_plain_work(lengths: Sequence[int], *, is_causal: bool) -> Work:
    """Return the work of inputs of these lengths, without padding, each on its own."""
    pairs = [n * (n + 1) // 2 if is_causal else n * n for n in lengths]
    return Work(sum(lengths), sum(pairs))


def count_cached_work(article_lengths: Sequence[int], *, num_prompt_tokens: int) -> Work:
    """Return the work of articles behind a prompt whose keys and values are there; causal."""
    own = count_plain_work(article_lengths, is_causal=True)
    return Work(own.num_tokens, own.num_pairs + own.num_tokens * num_prompt_tokens)


def count_shared_work(article_lengths: Sequence[int], *, num_prompt_tokens: int) -> Work:
    """Return the work of a prompt, once, and of the articles behind it; causal."""
    prompt = count_plain_work([num_prompt_tokens], is_causal=True)
    articles = count_cached_work(article_lengths, num_prompt_tokens=num_prompt_tokens)
    return Work(prompt.num_tokens + articles.num_tokens, prompt.num_pairs + articles.num_pairs)
