"""How much memory a training will take, told from the base's configuration alone."""

from typing import Any, NamedTuple

import torch

from llmft.config.recipe import BaseConfig, LoraConfig, TrainConfig
from llmft.data.batches import BatchShape
from llmft.models.bases import read_config
from llmft.models.heads import LabelSpace, find_head
from llmft.models.loading import find_adapted_layers

_GIB = 2**30


class ParameterCount(NamedTuple):
    """Size of a model."""

    total: int
    trainable: int


class MemoryEstimate(NamedTuple):
    """Memory of a training step on one device, in GiB."""

    weights_gib: float
    """In float32."""
    optimiser_gib: float
    """Gradients and the two moments of AdamW, in float32, of what is trained."""
    activations_gib: float
    """What the forward pass keeps for the backward pass."""

    @property
    def total_gib(self) -> float:
        """All of it; the libraries take about half a GiB more."""
        return sum(self)


def count_parameters(config: BaseConfig, *, labels: LabelSpace) -> ParameterCount:
    """Count the parameters from the base's configuration, without its weights.

    Raises:
        UserError: If the base is not there.
    """
    from transformers import AutoModelForSequenceClassification

    found = read_config(config)
    found.num_labels = len(labels.logit_names)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(found)
    total = sum(p.numel() for p in model.parameters())
    if config.tuning == "full":
        return ParameterCount(total, total)
    adapted = find_adapted_layers(model, config)
    rank = (config.lora or LoraConfig()).rank
    added = sum(rank * (layer.in_features + layer.out_features) for layer in adapted)
    in_head = sum(p.numel() for p in find_head(model).parameters())
    return ParameterCount(total + added, added + in_head)


def estimate_memory(
    parameters: ParameterCount,
    model_config: Any,
    train: TrainConfig,
    *,
    batch: BatchShape,
    num_shared: int | None = None,
) -> MemoryEstimate:
    """Estimate the peak memory of a training step.

    Args:
        parameters: Size of the model.
        model_config: Configuration of the base.
        train: For gradient checkpointing.
        batch: The largest batch.
        num_shared: Tokens of a shared prompt, which `batch` leaves out; None if rows are computed
            whole.

    Source:
        Activations of a transformer layer: Korthikanti et al. 2022, arXiv:2205.05198, sec. 4,
        in float32, with the attention matrices where they are kept (on CPU).
    """
    hidden = model_config.hidden_size
    layers = model_config.num_hidden_layers
    heads = model_config.num_attention_heads
    inner = getattr(model_config, "intermediate_size", None) or 4 * hidden
    num_tokens = batch.num_tokens + (num_shared or 0)
    per_layer = 4 * num_tokens * (9 * hidden + 3 * inner)
    if num_shared is None and not torch.cuda.is_available():
        per_layer += 4 * 3 * heads * batch.num_tokens * batch.longest
    kept = per_layer * layers
    if train.gradient_checkpointing:
        kept = per_layer + 4 * num_tokens * hidden * layers
    return MemoryEstimate(
        weights_gib=4 * parameters.total / _GIB,
        optimiser_gib=12 * parameters.trainable / _GIB,
        activations_gib=kept / _GIB,
    )
