"""Random masks for dropout on a CPU, cheap to draw and to apply."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_NUM_VALUES = 2**15


class DropoutMask(NamedTuple):
    """Which elements stay."""

    kept: Tensor
    """Int16, all bits set where an element stays, else 0."""
    scale: float
    """What the kept ones are multiplied by, so that the mean stays."""

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the tensor with zeros for what is dropped, not scaled."""
        if tensor.element_size() == 2:
            return tensor.view(torch.int16).bitwise_and(self.kept).view(tensor.dtype)
        return self.kept.to(tensor.dtype).mul_(tensor).neg_()  # all bits set is -1


def draw_mask(shape: Sequence[int], *, share: float) -> DropoutMask:
    """Draw which elements to keep, on the CPU, from PyTorch's default generator.

    Args:
        shape: Shape of the mask.
        share: Share to drop, above 0 and below 1; it is met to 1/32768.
    """
    num_dropped = min(max(round(share * _NUM_VALUES), 1), _NUM_VALUES - 1)
    num_elements = math.prod(shape)
    # Four elements share one number. The sign bit of each is left out: the last one's is always 0.
    numbers = torch.empty(math.ceil(num_elements / 4), dtype=torch.int64).random_()
    values = numbers.view(torch.int16)[:num_elements].bitwise_and_(_NUM_VALUES - 1)
    # Below 0, whose sign the shift spreads over all bits, are values from num_dropped on.
    kept = values.neg_().add_(num_dropped - 1).bitwise_right_shift_(15)
    return DropoutMask(kept.view(*shape), _NUM_VALUES / (_NUM_VALUES - num_dropped))
