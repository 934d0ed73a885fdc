"""Frozen weights in bfloat16: autocast's own rounding, done once and not at every step."""

import torch
from torch import nn

from llmft.models.heads import find_head


def cast_frozen_weights(model: nn.Module) -> None:
    """Round the frozen linear layers of a model to bfloat16, in place.

    Under bfloat16 autocast, and only there, all results stay the same, bit for bit: it rounds
    these weights at each use, and keeps the result only of weights that are trained. Norms and
    embeddings, which autocast leaves alone, and the head (H2) stay in float32.

    Call it before training with adapters, whose weights alone are saved, or in prediction, after
    `requires_grad_(False)`; never on a model that is saved whole or merged afterwards.
    """
    in_head = {id(module) for module in find_head(model).modules()}
    frozen: dict[int, nn.Parameter] = {}
    needed: set[int] = set()  # such as an embedding that an output layer is tied to
    for module in model.modules():
        own = {id(parameter): parameter for parameter in module.parameters(recurse=False)}
        if isinstance(module, nn.Linear) and id(module) not in in_head:
            frozen |= {key: parameter for key, parameter in own.items() if _is_frozen(parameter)}
        else:
            needed |= own.keys()
    for key, parameter in frozen.items():
        if key not in needed:
            parameter.data = parameter.data.bfloat16()


def _is_frozen(parameter: nn.Parameter) -> bool:
    return parameter.dtype == torch.float32 and not parameter.requires_grad
