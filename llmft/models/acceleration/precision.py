"""Frozen weights in bfloat16: autocast's own rounding, done once and not at every step."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from llmft.models.heads import find_head


def cast_frozen_weights(model: nn.Module) -> None:
    """Round the frozen linear layers of a model to bfloat16, in place.

    Under bfloat16 autocast, and only there, all results stay the same, bit for bit: it rounds
    these weights at each use, and keeps the result only of weights that are trained. Norms and
    embeddings, which autocast leaves alone, and the head (H2) stay in float32.

    Call it before training with adapters, whose weights alone are saved, or in prediction, after
    `requires_grad_(False)`; never on a model that is saved whole or merged afterwards.
    """
    for parameter in _list_linear_weights(model):
        if parameter.dtype == torch.float32 and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()


def cast_other_weights_up(model: nn.Module, *, new: Collection[str]) -> None:
    """Make all weights float32 that `cast_frozen_weights` would leave in it, in place.

    For a model that was loaded in bfloat16: linear layers are not made float32 and rounded again,
    so that memory never holds both.

    Args:
        model: The model.
        new: Names of weights that the base did not have, and that are trained.
    """
    trained = {id(p) for name, p in model.named_parameters() if name in new}
    kept = {id(p) for p in _list_linear_weights(model)} - trained
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and id(tensor) not in kept:
            tensor.data = tensor.data.float()


def _list_linear_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that only linear layers outside of the head have."""
    in_head = {id(module) for module in find_head(model).modules()}
    linear: dict[int, nn.Parameter] = {}
    others: set[int] = set()  # such as an embedding that an output layer is tied to
    for module in model.modules():
        own = {id(parameter): parameter for parameter in module.parameters(recurse=False)}
        if isinstance(module, nn.Linear) and id(module) not in in_head:
            linear |= own
        else:
            others |= own.keys()
    return [parameter for key, parameter in linear.items() if key not in others]


@contextmanager
def cast_up_at_use(model: nn.Module) -> Iterator[None]:
    """Compute in float32 with the weights that `cast_frozen_weights` rounded, within the context.

    Weights are cast up at each use, so at most one layer is in float32 at a time; those that
    the model has stay the same tensors.
    """
    rounded = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight.dtype == torch.bfloat16
    ]
    for layer in rounded:
        compute = partial(_Float32Product.apply, layer.weight, layer.bias)
        layer.forward = compute  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in rounded:
            del layer.forward


class _Float32Product(torch.autograd.Function):
    """A frozen linear layer that saves only its bfloat16 weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, weight_OI: Tensor, bias_O: Tensor | None, input: Tensor) -> Tensor:
        ctx.save_for_backward(weight_OI)
        return F.linear(input, weight_OI.float(), None if bias_O is None else bias_O.float())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        (weight_OI,) = ctx.saved_tensors
        return None, None, grad @ weight_OI.float()
