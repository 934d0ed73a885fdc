"""Every private name of other packages that llmft uses, and the versions it is tested with.

With other versions a private name may be missing or have changed, so llmft then falls back to
public APIs: callers check `explain_untested` first, except for `read_attention` and `use_one_gpu`,
which are safe in every version. Names are resolved when they are used, not on import.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from llmft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, UntypedStorage

logger = logging.getLogger(__name__)

TESTED = {"torch": ("2.9", "2.13"), "transformers": ("5.6", "5.24")}
"""Package -> the first and the last minor version whose private names are known to work."""


@cache
def explain_untested() -> str | None:
    """Return why an installed version is outside `TESTED`; None if all are within it.

    The first call in a process warns. No package is imported.
    """
    from packaging.version import Version

    for package, (first, last) in TESTED.items():
        found = version(package)
        if not Version(first).release <= Version(found).release[:2] <= Version(last).release:
            reason = f"llmft is tested with {package} {first} to {last}, not with {found}"
            logger.warning(
                "%s: prompts are computed in every row, dropout is PyTorch's own, and "
                "memory is not estimated",
                reason,
            )
            return reason
    return None


def require_tested_versions(what: str) -> None:
    """Raise if a version is untested: a benchmark would then measure the fallback only.

    Raises:
        UserError: If a package has a version outside `TESTED`.
    """
    untested = explain_untested()
    if untested is not None:
        raise UserError(f"{what}: {untested}; install a tested version")


def read_attention(config: Any) -> str | None:
    """Return the name of a model's attention function, from its configuration."""
    return getattr(config, "_attn_implementation", None)


def switch_attention(config: Any, name: str | None) -> None:
    """Set the attention function of a model by its registered name, without further checks."""
    config._attn_implementation = name


def use_one_gpu(arguments: Any) -> None:
    """Keep the trainer from using `DataParallel`: several GPUs need a launcher."""
    arguments._n_gpu = min(1, arguments.n_gpu)


def count_changes(tensor: "Tensor") -> int:
    """Return the version counter of a tensor, which every in-place change increments."""
    return tensor._version


def identify_storage(storage: "UntypedStorage") -> int:
    """Return an id that is unique among live storages."""
    return int(storage._cdata)


def attend_with_flash(
    query: "Tensor", key: "Tensor", value: "Tensor", *, is_causal: bool, scale: float
) -> "tuple[Tensor, Tensor]":
    """Return the output [B, H, T, D] and the log-sum-exp of the scores [B, H, T], on a CPU."""
    import torch

    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found: tuple[Tensor, Tensor] = attend(query, key, value, 0.0, is_causal, scale=scale)
    return found


def differentiate_flash(
    grad: "Tensor", *inputs_and_outputs: "Tensor", is_causal: bool, scale: float
) -> "tuple[Tensor, Tensor, Tensor]":
    """Return the gradients of query, key and value.

    Args:
        grad: Gradient of the output, [B, H, T, D].
        inputs_and_outputs: Query, key, value, output and log-sum-exp of `attend_with_flash`.
        is_causal: As there.
        scale: As there.
    """
    import torch

    differentiate = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    found: tuple[Tensor, Tensor, Tensor] = differentiate(
        grad, *inputs_and_outputs, 0.0, is_causal, scale=scale
    )
    return found


def differentiate_softmax(grad: "Tensor", *, weights: "Tensor") -> "Tensor":
    """Return the gradient of the scores; `weights` are their softmax over the last dimension."""
    import torch

    return torch._softmax_backward_data(grad, weights, -1, weights.dtype)


@contextmanager
def empty_tensors(note: Callable[["UntypedStorage"], None]) -> Iterator[None]:
    """Make all tensors fake within the context, and pass the storage of each to `note`."""
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self,
            func: Any,
            types: Sequence[Any],
            args: Sequence[Any] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            output = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor):
                    note(leaf.untyped_storage())
            return output

    with FakeTensorMode(), Watch():  # type: ignore[no-untyped-call]
        yield
