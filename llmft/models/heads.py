"""The head: the new layers that turn a pooled token into scores or classes."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from llmft.config.head import Head
from llmft.errors import UserError

_HEAD_NAMES = ("score", "classifier")


class LabelSpace(NamedTuple):
    """The outputs of a head: their number and their names."""

    head: Head
    names: list[str]
    """Dimensions, classes or labels, in the order of the outputs."""

    @property
    def logit_names(self) -> list[str]:
        """Names of the logits; a binary head has one logit, for the second class."""
        return self.names[1:] if self.head == "binary" else self.names

    @property
    def problem_type(self) -> str:
        """`problem_type` of transformers; binary and multilabel heads apply a sigmoid per logit."""
        match self.head:
            case "regression":
                return "regression"
            case "multiclass":
                return "single_label_classification"
            case _:
                return "multi_label_classification"


class TargetScale(NamedTuple):
    """Affine map between labels and what the head learns: label = mean + std * output."""

    mean_D: Tensor
    """Shape [D]; zeros where the head has no bias to fold it into."""
    std_D: Tensor
    """Shape [D], positive."""

    def to_targets(self, labels_BD: Tensor) -> Tensor:
        """Return the targets that the head learns, shape [B, D]."""
        return (labels_BD - self.mean_D) / self.std_D

    def to_labels(self, outputs_BD: Tensor) -> Tensor:
        """Return outputs in the labels' units, shape [B, D]."""
        return self.mean_D + self.std_D * outputs_BD


def fit_target_scale(labels_ND: Tensor, *, has_bias: bool) -> TargetScale:
    """Fit the scale to training labels, shape [N, D]; a constant dimension is scaled to 1.

    With a bias no target comes near -100, which `transformers.Trainer` takes for "not a target".
    """
    std_D = labels_ND.std(dim=0, correction=0)
    std_D = torch.where(std_D > 0, std_D, labels_ND[0].abs().clamp(min=1.0))
    mean_D = labels_ND.mean(dim=0) if has_bias else torch.zeros_like(std_D)
    return TargetScale(mean_D, std_D)


def is_far_from_zero(labels_ND: Tensor) -> bool:
    """Return whether a dimension's mean is more than 20 standard deviations away from 0.

    A head without a bias, as decoders have, would need too many optimizer steps to get there.
    """
    std_D = labels_ND.std(dim=0, correction=0)
    return bool(((labels_ND.mean(dim=0).abs() > 20 * std_D) & (std_D > 0)).any())


def to_outputs(logits_BC: Tensor, head: Head) -> Tensor:
    """Convert logits to float32 outputs: scores, or probabilities of classes or labels.

    Args:
        logits_BC: Logits, shape [B, C]; [B, 1] for a binary head.
        head: Type of the head.

    Returns:
        Shape [B, C]; a binary head gives both classes.
    """
    logits_BC = logits_BC.float()
    match head:
        case "regression":
            return logits_BC
        case "binary":
            return torch.cat([-logits_BC, logits_BC], dim=1).sigmoid()
        case "multiclass":
            return logits_BC.softmax(dim=-1)
        case "multilabel":
            return logits_BC.sigmoid()


def find_head(model: nn.Module) -> nn.Module:
    """Return the head of a sequence classification model, adapted or not.

    Raises:
        UserError: If the head has an unknown name.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    for name in _HEAD_NAMES:
        if hasattr(inner, name):
            return cast(nn.Module, getattr(inner, name))
    raise UserError(
        f"base.model: a {type(inner).__name__} has no head named {' or '.join(_HEAD_NAMES)}; "
        "name another base"
    )


def find_output_layer(model: nn.Module) -> nn.Linear:
    """Return the last linear layer of the head that is in use."""
    head: Any = find_head(model)
    if hasattr(head, "modules_to_save"):  # PEFT keeps the trained copy next to the original
        head = head.modules_to_save[head.active_adapters[0]]
    layers = [m for m in head.modules() if isinstance(m, nn.Linear)]
    return layers[-1]


def remove_output_layer(model: nn.Module) -> None:
    """Make a model return what its output layer reads, [B, E], in place."""
    layer = find_output_layer(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child is layer:
                setattr(module, name, nn.Identity())


def compute_head_in_float32(model: nn.Module) -> None:
    """Keep the head out of autocast, in place (H2).

    Float32 weights are not enough: autocast would still round the head's inputs and products to
    bfloat16. Call it after adapters are in place, since PEFT copies the head.
    """
    head = find_head(model).float()
    compute: Callable[..., Tensor] = head.forward

    def forward(features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return compute(features.float(), *args, **kwargs)

    head.forward = forward


@torch.no_grad()
def set_output_layer(model: nn.Module, weight_CE: Tensor, bias_C: Tensor) -> None:
    """Give the output layer weights; without a bias of its own, it gets none."""
    layer = find_output_layer(model)
    layer.weight.copy_(weight_CE)
    if layer.bias is not None:
        layer.bias.copy_(bias_C)


@torch.no_grad()
def fold_scale(model: nn.Module, scale: TargetScale) -> None:
    """Fold the scale into the head's weights, in place: outputs are then in the labels' units."""
    layer = find_output_layer(model)
    std_D = scale.std_D.to(layer.weight.device)
    layer.weight.mul_(std_D[:, None])
    if layer.bias is not None:
        layer.bias.mul_(std_D).add_(scale.mean_D.to(layer.weight.device))


@torch.no_grad()
def unfold_scale(model: nn.Module, scale: TargetScale) -> None:
    """Undo `fold_scale`, in place, so that training can continue from a saved head."""
    layer = find_output_layer(model)
    std_D = scale.std_D.to(layer.weight.device)
    layer.weight.div_(std_D[:, None])
    if layer.bias is not None:
        layer.bias.sub_(scale.mean_D.to(layer.weight.device)).div_(std_D)
