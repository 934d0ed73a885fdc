"""Weights that are there already: of a run to begin from, or of a checkpoint."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llmft.config.recipe import RecipeConfig
from llmft.errors import UserError
from llmft.models.bases import hash_base
from llmft.models.saved import read_card


def refuse_unfit_run(config: RecipeConfig, *, label_names: list[str]) -> None:
    """Stop if the weights of `init_from` do not fit the model that the recipe describes.

    Raises:
        UserError: With both values.
    """
    assert config.init_from is not None
    card = read_card(Path(config.init_from) / "model")
    pairs = {
        "base.model": (config.base.model, card.base.model),
        "base.tuning": (config.base.tuning, card.base.tuning),
        "base.lora": (config.base.lora, card.base.lora),
        "base.model (its weights)": (hash_base(config.base), card.base_hash),
        "head.type": (config.head.type, card.head),
        "labels": (label_names, card.label_names),
    }
    for name, (here, there) in pairs.items():
        if here != there:
            raise UserError(
                f"init_from: {config.init_from} was trained with another {name}: {there}, but the "
                f"recipe has {here}; take a run that agrees, or leave init_from out"
            )


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights of a saved model or a checkpoint into a model of the same kind, in place.

    Args:
        model: As `load_model` returns it.
        folder: Holds the adapter, or the whole model in one or several files.
    """
    if hasattr(model, "peft_config"):
        import peft

        weights = load_file(folder / "adapter_model.safetensors")
        unknown = peft.set_peft_model_state_dict(model, weights).unexpected_keys
        assert not unknown, f"weights for no place in the model: {unknown}"
        return
    # By way of the library, since it may have saved the weights under the names of old.
    found, info = type(model).from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"], f"weights that were not saved: {info['missing_keys']}"
    model.load_state_dict(found.state_dict())
