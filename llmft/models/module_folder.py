"""Folders of sentence-transformers modules: what a base declares, and a pooled model as one.

Source: the files that sentence-transformers 2 to 6 read and write.
"""

import copy
import json
import logging
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from llmft.config.recipe import BaseConfig
from llmft.files import write_json
from llmft.models.bases import locate_base
from llmft.results.run import PoolingName

logger = logging.getLogger("llmft.train")

_KEYS: dict[PoolingName, tuple[str, str]] = {
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "cls": ("pooling_mode_cls_token", "cls"),
    "last": ("pooling_mode_lasttoken", "lasttoken"),
}
"""Pooling -> its flag in older files, and its name in newer ones."""
_PATHS = {
    "Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "3_Dense",
}  # fmt: skip
"""Module -> its folder."""
_ADAPTED = "base_model.model."  # what PEFT puts in front of the names of an adapted model's weights
_BASE, _HEAD = f"{_ADAPTED}model.", f"{_ADAPTED}score."


def read_declared_pooling(config: BaseConfig) -> tuple[PoolingName, bool] | None:
    """Return the pooling of a sentence-transformers folder, and whether it scales to length 1.

    None if the base declares none, or another one than those of recipes.
    """
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from transformers.utils.hub import cached_file

    base = locate_base(config)

    def read(name: str) -> Any:
        path = cached_file(
            base, name, revision=config.revision, _raise_exceptions_for_missing_entries=False
        )
        if path is not None:
            return json.loads(Path(path).read_text(encoding="utf-8"))
        if Path(base).is_dir():
            return []
        if try_to_load_from_cache(base, name, revision=config.revision) is not _CACHED_NO_EXIST:
            raise OSError(f"{name} is not in the cache, and the Hub cannot be asked")
        return []

    try:
        kinds = {m["type"].rpartition(".")[2]: m["path"] for m in read("modules.json")}
        if not {"Pooling"} <= kinds.keys() <= {"Transformer", "Pooling", "Normalize"}:
            return None
        declared = read(f"{kinds['Pooling']}/config.json")
    except OSError as error:
        first_line = str(error).strip().splitlines()[0]
        logger.warning(
            "whether %s declares a pooling is not known (%s); base.pooling: auto takes it that it "
            "does not, so name one to be sure", config.model, first_line,
        )  # fmt: skip
        return None
    except (ValueError, KeyError, TypeError):
        return None
    # Older versions write a flag for each pooling, newer ones a name.
    chosen = [
        how
        for how, (flag, name) in _KEYS.items()
        if declared.get(flag) or declared.get("pooling_mode") == name
    ]
    num_flags = sum(bool(v) for key, v in declared.items() if key.startswith("pooling_mode_"))
    is_one = len(chosen) == 1 and num_flags <= 1
    return (chosen[0], "Normalize" in kinds) if is_one else None


def save_head(model: Any, folder: Path) -> None:
    """Write the linear head of a pooled model without adapters."""
    _write_head(model.score.state_dict(), folder)


def save_modules(model: Any, *, folder: Path, max_length: int) -> None:
    """Write a pooled model as modules: the base or its adapter, the pooling, the head.

    Args:
        model: A `PooledModel`, whose base may have adapters.
        folder: Where to write them.
        max_length: Longest input in tokens.
    """
    pooled = model
    if hasattr(model, "peft_config"):
        import peft

        pooled = model.get_base_model()
        weights = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        head = {k.removeprefix(_HEAD): v for k, v in weights.items() if k.startswith(_HEAD)}
        _save_adapter(model, weights, folder)
    else:
        head = pooled.score.state_dict()
        pooled.model.save_pretrained(folder)
    flag, name = _KEYS[pooled.pooling.how]
    width = head["weight"].shape[1]
    contents: dict[str, dict[str, Any]] = {
        "Transformer": {"max_seq_length": max_length, "do_lower_case": False},
        "Pooling": {
            "word_embedding_dimension": width,
            **{key: key == flag for key, _ in _KEYS.values()},
            "pooling_mode": name,
            "include_prompt": pooled.num_prompt == 0,
        },
    }
    for kind, values in contents.items():
        path = folder / _PATHS[kind]
        write_json(path / ("config.json" if _PATHS[kind] else "sentence_bert_config.json"), values)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(_PATHS.items())
        if kind != "Normalize" or pooled.pooling.normalises
    ]
    write_json(folder / "modules.json", modules)
    _write_head(head, folder)


def _write_head(head: dict[str, Tensor], folder: Path) -> None:
    """Write a linear head as the module Dense."""
    num_outputs, width = head["weight"].shape
    config = {
        "in_features": width, "out_features": num_outputs, "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }  # fmt: skip
    write_json(folder / _PATHS["Dense"] / "config.json", config)
    tensors = {f"linear.{key}": found.detach().cpu().contiguous() for key, found in head.items()}
    save_file(tensors, _find_head(folder), metadata={"format": "pt"})


def load_modules(model: Any, folder: Path) -> None:
    """Load what `save_modules` wrote into a model of the same kind, in place."""
    import torch

    head = read_head(folder)
    if hasattr(model, "peft_config"):
        import peft

        adapter = load_file(folder / "adapter_model.safetensors")
        weights = {k.replace(_ADAPTED, _BASE, 1): v for k, v in adapter.items()}
        weights |= {f"{_HEAD}{key}": found for key, found in head.items()}
        unknown = peft.set_peft_model_state_dict(model, weights).unexpected_keys
        assert not unknown, f"weights for no place in the model: {unknown}"
        return
    found = type(model.model).from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    expected = model.model.state_dict().keys()  # without a pooler, which nothing reads
    model.model.load_state_dict({k: v for k, v in found.state_dict().items() if k in expected})
    model.score.load_state_dict(head)


def read_head(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the linear head that `save_head` or `save_modules` wrote."""
    return {k.removeprefix("linear."): v for k, v in load_file(_find_head(folder)).items()}


def has_modules(folder: Path) -> bool:
    """Return whether a folder was written by `save_modules`."""
    return _find_head(folder).is_file()


def _find_head(folder: Path) -> Path:
    return folder / _PATHS["Dense"] / "model.safetensors"


def _save_adapter(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Write the adapter as one of the base alone, which other programs put it on."""
    config = copy.copy(model.peft_config["default"])
    if not isinstance(config.target_modules, str):
        config.target_modules = {name.removeprefix("model.") for name in config.target_modules}
    config.task_type, config.inference_mode = "FEATURE_EXTRACTION", True
    config.modules_to_save = config.exclude_modules = None
    config.save_pretrained(folder)
    own = {k.replace(_BASE, _ADAPTED, 1): v for k, v in weights.items() if k.startswith(_BASE)}
    tensors = {key: found.detach().cpu().contiguous() for key, found in own.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
