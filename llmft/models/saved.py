"""A trained model as a folder that other tools open, and the card that llmft lays into it."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from llmft.config.recipe import BaseConfig, TokensConfig
from llmft.config.task import FieldsConfig
from llmft.data.files import hash_file, hash_text, read_json, write_json
from llmft.data.prompts import Prompt
from llmft.errors import UserError
from llmft.models.bases import LabelSpace, hash_base, load_base_for_adapter
from llmft.models.device import Precision
from llmft.models.heads import compute_head_in_float32

CARD_NAME = "llmft.json"


class ModelCard(BaseModel):
    """All that prediction needs beside the weights; `model/llmft.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = 1
    llmft_version: str
    name: str
    """Name of the recipe."""
    task: str
    """Name of the task."""
    base: BaseConfig
    """The base, its revision pinned to a commit where it is on the Hub."""
    base_hash: str | None
    """Hash of a local base's weights."""
    base_pretrained: bool
    head: str
    label_names: list[str]
    label_range: list[float] | None
    prompt: dict[str, str] | None
    """Parts `before`, `article`, `after`; None if the prompt was excluded."""
    fields: FieldsConfig
    tokens: TokensConfig
    precision: Precision
    data_fingerprint: str
    num_parameters: int
    num_trainable: int

    @property
    def labels(self) -> LabelSpace:
        """What the head puts out."""
        return LabelSpace(self.head, self.label_names)

    def make_prompt(self, empty: Prompt) -> Prompt:
        """Return the prompt that the model was trained with."""
        return Prompt(**self.prompt) if self.prompt else empty


class SavedModel(NamedTuple):
    """A model opened from its folder."""

    model: nn.Module
    tokenizer: Any
    card: ModelCard


def save_model(model: Any, *, tokenizer: Any, card: ModelCard, folder: Path) -> None:
    """Write the folder whole or not at all.

    Raises:
        UserError: If a tensor would be saved empty (R1) or the disk is full.
    """
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        if hasattr(model, "peft_config"):
            model.save_pretrained(building, save_embedding_layers=False)  # "auto" asks the Hub (H7)
            model.get_base_model().config.save_pretrained(building)  # PEFT leaves it out
        else:
            model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        write_json(building / CARD_NAME, card.model_dump(mode="json"))
        _refuse_empty_tensors(building)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: the model cannot be saved: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def load_saved(folder: Path) -> SavedModel:
    """Open a folder that `save_model` wrote, in float32, in evaluation mode.

    Raises:
        UserError: If it is no such folder, or its base is not there.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    card = read_card(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if (folder / "adapter_config.json").is_file():
            from peft import PeftModel

            if hash_base(card.base) != card.base_hash:
                raise UserError(
                    f"{folder}: the base {card.base.model} is not the one that this adapter was "
                    "trained on: its weights changed; restore them or train again"
                )
            base = load_base_for_adapter(
                card.base, labels=card.labels, pad_token_id=tokenizer.pad_token_id
            )
            model: nn.Module = PeftModel.from_pretrained(base, folder)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: the model cannot be loaded: {error}") from error
    compute_head_in_float32(model)
    return SavedModel(model.eval(), tokenizer, card)


def read_card(folder: Path) -> ModelCard:
    """Read `llmft.json`.

    Raises:
        UserError: If the folder holds no trained model of llmft.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        raise UserError(
            f"{path}: not there, so {folder.parent} is no finished run; train it with "
            "`llmft train RECIPE`"
        )
    try:
        return ModelCard.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UserError(
            f"{path}: {where}: {fault['msg']}; was it written by another version of llmft?"
        ) from error


def hash_model(folder: Path) -> str:
    """Return a hash over weights, configuration, tokenizer and card: the model's identity.

    Raises:
        UserError: If the folder is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not there, so the run holds no model; train it again")
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json"))
    return hash_text("\n".join(f"{p.name} {hash_file(p)}" for p in files))


def _refuse_empty_tensors(folder: Path) -> None:
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if 0 in file.get_slice(name).get_shape():
                    raise UserError(f"{path}: the tensor {name} would be saved empty")
