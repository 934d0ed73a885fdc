"""A base in 4 bit, by bitsandbytes: QLoRA (Dettmers et al. 2023, arXiv:2305.14314)."""

from typing import Any

import torch
from torch import nn

from llmft.config.recipe import Precision
from llmft.errors import UserError
from llmft.models.device import choose_device


def require_bitsandbytes() -> None:
    """Raise if bitsandbytes cannot quantise a base to 4 bit on this machine.

    Raises:
        UserError: If it is not installed, too old for transformers, or does not run on the device.
    """
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise UserError(
            "base.tuning: qlora needs the package bitsandbytes, which is not installed or too old; "
            "install it with `pip install 'llmft[qlora]'`"
        )
    from bitsandbytes.functional import quantize_4bit

    device = choose_device()
    try:
        quantize_4bit(torch.ones(64, device=device), compress_statistics=True, quant_type="nf4")
    except RuntimeError as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"base.tuning: qlora needs bitsandbytes, which does not run on {device}: {first_line}; "
            "`python -m bitsandbytes` says what it looked for. Install a version for this driver, "
            "or use lora"
        ) from error


def make_quantisation(model_config: Any, *, precision: Precision) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a base in NF4 with double quantisation.

    Each process loads a copy onto its own device. The head and all other new modules are not
    quantised, since they are trained (H2, H8).

    Args:
        model_config: Configuration of the base.
        precision: Compute dtype of the dequantised weights.
    """
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(model_config)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {
        "device_map": {"": str(choose_device())},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, precision),
            llm_int8_skip_modules=[name for name in linear if not belongs_to_base(model, name)],
        ),
    }


def belongs_to_base(model: Any, name: str) -> bool:
    """Return whether a module or tensor, by its name, comes with the base; a pooler may not."""
    return name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name


def prepare_quantised(model: Any) -> None:
    """Freeze a model in 4 bit and make it compute the same in training and evaluation, in place."""
    from bitsandbytes.nn import Linear4bit
    from peft import prepare_model_for_kbit_training

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            # On CPUs with avx512_bf16, bitsandbytes would repack weights in evaluation for good:
            # with scales rounded to bfloat16, in whatever precision, and without a backward pass.
            layer.support_avx512bf16_for_cpu = False
            # Else the backward pass makes a float32 copy of the weights first.
            layer.weight.quant_state.dtype = layer.compute_dtype
    # The trainer switches checkpointing on where the recipe says so.
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def is_quantised(model: Any) -> bool:
    """Return whether the base of a model is in 4 bit."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def count_weights(parameter: nn.Parameter) -> int:
    """Return the number of weights of a parameter, also if it is quantised or sharded."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:  # two of 4 bit share a byte
        return int(state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves it empty
