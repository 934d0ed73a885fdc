"""Load a base's weights under a new head, with adapters if the recipe wants them."""

from typing import Any, NamedTuple

import torch
from torch import nn

from llmft.config.loading import suggest
from llmft.config.recipe import BaseConfig, LoraConfig, Precision
from llmft.errors import UserError
from llmft.models.acceleration.precision import cast_other_weights_up
from llmft.models.bases import (
    check_minilm_hash,
    explain_missing,
    is_stored_in_bfloat16,
    locate_base,
    read_config,
)
from llmft.models.heads import LabelSpace, compute_head_in_float32, find_head
from llmft.models.pooling import make_pooled_model, take_base
from llmft.models.quantisation import (
    belongs_to_base,
    make_quantisation,
    prepare_quantised,
    require_bitsandbytes,
)
from llmft.results.run import Pooling
from llmft.wording import count, shorten_list


class NewModel(NamedTuple):
    """A base with an untrained head, ready for training."""

    model: nn.Module
    new_modules: list[str]
    """Modules whose weights are not in the base and were initialised at random."""


def load_model(
    config: BaseConfig,
    *,
    labels: LabelSpace,
    pad_token_id: int,
    seed: int,
    precision: Precision = "float32",
    pooling: Pooling | None = None,
    num_prompt: int = 0,
    adapters: bool = True,
) -> NewModel:
    """Load the base under a new head, with adapters if the recipe wants them.

    Every module that is not in the base is trained in full and is never adapted (H2, H8). The model
    is of transformers' class, or a `PooledModel` with another pooling.

    Args:
        config: The base: loaded in float32, or for qlora in 4 bit, directly onto its device.
            Linear layers that are frozen and computed in bfloat16 stay in bfloat16 if they are
            so on disk.
        labels: The outputs of the head.
        pad_token_id: What the tokenizer pads with.
        seed: Seed of the new weights.
        precision: Compute dtype of frozen layers.
        pooling: Of a `PooledModel`; None: the class of transformers.
        num_prompt: Leading tokens of every input that a `PooledModel` does not pool.
        adapters: False leaves out the adapters that the recipe wants.

    Raises:
        UserError: If the base is not there or has no safetensors weights, or bitsandbytes is
            needed and not there.
    """
    torch.manual_seed(seed)
    model, info = _load_pretrained(
        config, labels=labels, pad_token_id=pad_token_id, precision=precision
    )
    missing = sorted(info["missing_keys"])
    _refuse_untrained_layers(model, missing, config)
    new_modules = list(dict.fromkeys(key.rpartition(".")[0] for key in missing))
    if pooling is not None:
        num_outputs = len(labels.logit_names)
        model = make_pooled_model(
            take_base(model), pooling, num_outputs=num_outputs, num_prompt=num_prompt
        )
        new_modules = ["score"]
    if not new_modules:
        raise UserError(
            f"base.model: {config.model} already has a head for this task; name a base without one"
        )
    if config.tuning != "full" and adapters:
        # A head of several layers is saved as one module, as PEFT does by itself.
        heads = [m.partition(".")[0] if m.startswith("classifier.") else m for m in new_modules]
        new_modules = list(dict.fromkeys(heads))
        model = add_adapters(model, config, new_modules)
    compute_head_in_float32(model)
    return NewModel(model, new_modules)


def stays_in_bfloat16(config: BaseConfig, precision: Precision) -> bool:
    """Return whether linear layers are in bfloat16 in the base's files, and are left so.

    They are frozen then, and autocast would round float32 weights to the same at each use.
    """
    may = precision == "bfloat16" and config.tuning in ("lora", "frozen")
    return may and is_stored_in_bfloat16(config)


def find_adapted_layers(model: Any, config: BaseConfig) -> list[nn.Linear]:
    """Return the linear layers that get adapters.

    Raises:
        UserError: If a name in `target_modules` is not a linear layer of the model.
    """
    wanted = (config.lora or LoraConfig()).target_modules
    in_head = {id(module) for module in find_head(model).modules()}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in in_head
    }
    if wanted == "all-linear":
        return list(layers.values())
    allowed = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise UserError(
                f"base.lora.target_modules: {target!r} is not a linear layer of {config.model} "
                f"outside its head.{suggest(target, allowed=allowed)} Allowed: {', '.join(allowed)}"
            )
    return [
        module
        for name, module in layers.items()
        if any(name == target or name.endswith(f".{target}") for target in wanted)
    ]


def load_base_for_adapter(
    config: BaseConfig, *, labels: LabelSpace, pad_token_id: int, precision: Precision
) -> Any:
    """Load the base of a saved adapter; the head's weights are saved with the adapter."""
    return _load_pretrained(config, labels=labels, pad_token_id=pad_token_id, precision=precision)[
        0
    ]


def load_frozen(
    config: BaseConfig, *, labels: LabelSpace, pad_token_id: int, precision: Precision
) -> Any:
    """Load a base without a head, and without a pooler, which would be untrained.

    Raises:
        UserError: If the base is not there, or lacks weights of its architecture.
    """
    model, info = _load_pretrained(
        config, labels=labels, pad_token_id=pad_token_id, precision=precision
    )
    _refuse_untrained_layers(model, sorted(info["missing_keys"]), config)
    return take_base(model)


def _refuse_untrained_layers(model: Any, missing: list[str], config: BaseConfig) -> None:
    """Raise if weights of the base are missing, hence random; only a pooler may be new."""
    inside = [key for key in missing if belongs_to_base(model, key)]
    if inside:
        raise UserError(
            f"base.model: the weights of {config.model} lack {len(inside)} tensors of its "
            f"architecture, which would be left at random: {shorten_list(inside, longest=3)}; is "
            "the file complete, and does config.json name the right architecture?"
        )


def _load_pretrained(
    config: BaseConfig, *, labels: LabelSpace, pad_token_id: int, precision: Precision
) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForSequenceClassification

    check_minilm_hash(config)
    stays_rounded = stays_in_bfloat16(config, precision)
    quantisation: dict[str, Any] = {}
    if config.tuning == "qlora":
        require_bitsandbytes()
        quantisation = make_quantisation(read_config(config), precision=precision)
    ids = dict(enumerate(labels.logit_names))
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            locate_base(config),
            revision=config.revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.bfloat16 if stays_rounded else torch.float32,
            num_labels=len(ids),
            id2label=ids,
            label2id={name: i for i, name in ids.items()},
            problem_type=labels.problem_type,
            pad_token_id=pad_token_id,
            output_loading_info=True,
            **quantisation,
        )
    except (OSError, ValueError) as error:
        raise explain_missing(config, error) from error
    except RuntimeError as error:
        raise UserError(
            f"base.model: the weights of {config.model} do not fit its configuration with "
            f"{count(len(ids), 'output')}; if it is a finished model with a head of its own, name "
            "its base"
        ) from error
    if stays_rounded:
        cast_other_weights_up(model, new=info["missing_keys"])
    if quantisation:
        prepare_quantised(model)
    return model, info


def add_adapters(model: Any, config: BaseConfig, new_modules: list[str]) -> Any:
    """Return the model with LoRA adapters; its new modules are trained in full.

    Raises:
        UserError: If a name in `target_modules` is not a linear layer of the model.
    """
    import peft

    find_adapted_layers(model, config)
    lora = config.lora or LoraConfig()
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            revision=config.revision,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            modules_to_save=list(new_modules),  # PEFT adds its own guesses to it
            exclude_modules=list(new_modules),
        ),
    )
