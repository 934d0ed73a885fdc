"""How a training is launched: the settings of launcher and recipe, and their conflicts."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmft.config.recipe import Recipe
from llmft.errors import UserError
from llmft.files import read_json
from llmft.processes import get_world_size, has_launcher
from llmft.results.run import Parallelism
from llmft.wording import count

logger = logging.getLogger(__name__)

_OWNED = {
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_clipping": "train.max_grad_norm",
}
"""Key of DeepSpeed -> key of the recipe that sets it."""
_PRECISIONS = ("fp16", "bf16", "torch_autocast")


class Launch(NamedTuple):
    """How a training is distributed over processes."""

    world_size: int
    parallelism: Parallelism
    """none = one process; ddp = replicated parameters; zero = DeepSpeed with replicated parameters
    (stages 0 to 2); zero3 and fsdp = sharded parameters."""
    deepspeed: dict[str, Any] | None
    """The DeepSpeed configuration; keys that the recipe sets are `auto`."""

    @property
    def has_replicated_weights(self) -> bool:
        """Whether parameters are replicated, so that every process can read and change them."""
        return self.parallelism in ("none", "ddp", "zero")

    def describe(self) -> str:
        """Return the number of processes and the sharding, in words."""
        names = {"none": "", "ddp": "", "zero": " under ZeRO-2", "zero3": " under ZeRO-3"}
        names["fsdp"] = " under FSDP"
        return count(self.world_size, "process") + names[self.parallelism]


ONE_PROCESS = Launch(1, "none", None)


def read_launch(config: Recipe) -> Launch:
    """Return how the training is distributed, by launcher and recipe; no model is loaded yet.

    Raises:
        UserError: If recipe and launcher clash, the number of processes is not the one that the
            recipe asks for (R6), or the libraries cannot do it (R2).
    """
    world_size, wanted = get_world_size(), config.train.world_size
    if wanted is not None and wanted != world_size:
        raise UserError(
            f"train.world_size: the recipe asks for {wanted}, but found "
            f"{count(world_size, 'process')}; "
            f"start it with `torchrun --nproc_per_node {wanted} -m llmft.train ...` or `accelerate "
            "launch --multi_gpu`, as `accelerate launch --cpu --num_processes` starts only one"
        )
    if world_size == 1 and _is_set("ACCELERATE_USE_CPU") and "MASTER_PORT" in os.environ:
        # what `accelerate launch --cpu --num_processes 2` leaves, without a rank or a world size
        logger.warning(
            "one process runs: `accelerate launch --cpu` starts one, whatever --num_processes "
            "says; for several on CPUs: `torchrun --nproc_per_node 2 -m llmft.train ...`"
        )
    deepspeed = _find_deepspeed(config)
    uses_fsdp = _is_set("ACCELERATE_USE_FSDP")
    if deepspeed is not None and uses_fsdp:
        raise UserError(
            f"launch.deepspeed: the recipe says {config.launch.deepspeed}, but the launcher says "
            "FSDP; remove one of them"
        )
    if deepspeed is not None:
        deepspeed = _complete(deepspeed)
    launch = Launch(world_size, "fsdp" if uses_fsdp else _name(world_size, deepspeed), deepspeed)
    _refuse_impossible(launch, config)
    return launch


def plan_launch(config: Recipe) -> Launch:
    """Return the launch that a recipe asks for, whatever launcher there is now.

    Raises:
        UserError: If its DeepSpeed file cannot be read.
    """
    world_size, deepspeed = config.train.world_size or 1, _read_wanted_deepspeed(config)
    return Launch(world_size, _name(world_size, deepspeed), deepspeed)


def _name(world_size: int, deepspeed: dict[str, Any] | None) -> Parallelism:
    if deepspeed is not None:
        return "zero3" if _stage(deepspeed) == 3 else "zero"
    return "none" if world_size == 1 else "ddp"


def _read_wanted_deepspeed(config: Recipe) -> dict[str, Any] | None:
    """Return the DeepSpeed configuration that a recipe names, if it names one."""
    named = config.launch.deepspeed
    return None if named is None else read_deepspeed(Path(named), key="launch.deepspeed")


def _find_deepspeed(config: Recipe) -> dict[str, Any] | None:
    """Return the DeepSpeed configuration of recipe or launcher, if one of them has any."""
    named, wanted = config.launch.deepspeed, _read_wanted_deepspeed(config)
    launched, launched_as = _read_launched_deepspeed()
    if launched is not None:
        by_file = launched_as.endswith(".json")
        same = wanted == launched if by_file else wanted and _stage(wanted) == _stage(launched)
        if wanted is not None and not same:
            raise UserError(
                f"launch.deepspeed: the recipe says {named}, but the launcher says {launched_as}; "
                "remove one of them"
            )
        return wanted or launched
    if wanted is None:
        return None
    if not has_launcher() or not _has_gpu():
        reason = "there is no GPU" if has_launcher() else "no launcher started this one process"
        logger.info("launch.deepspeed: ignored, since %s", reason)
        return None
    _refuse_absent_deepspeed()
    return wanted


def _read_launched_deepspeed() -> tuple[dict[str, Any] | None, str]:
    """Return the configuration that the launcher asks for, and how it names it."""
    if not _is_set("ACCELERATE_USE_DEEPSPEED"):
        return None, ""
    _refuse_absent_deepspeed()
    if not _has_gpu():
        raise UserError("launch: DeepSpeed needs GPUs, and there is none; launch without it")
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file != "none":
        return read_deepspeed(Path(file), key="deepspeed_config_file of the launcher"), file
    from accelerate.utils import DeepSpeedPlugin

    # The other values are defaults of accelerate, which do not depend on the recipe.
    found = {"zero_optimization": DeepSpeedPlugin().deepspeed_config["zero_optimization"]}
    return found, f"ZeRO stage {_stage(found)}"


def read_deepspeed(path: Path, *, key: str) -> dict[str, Any]:
    """Read a DeepSpeed configuration, and check its ZeRO stage, batch size and precision.

    Args:
        path: JSON file.
        key: Where it was named.

    Raises:
        UserError: If it cannot be read, or a key conflicts with the recipe or is invalid.
    """
    if not path.is_file():
        raise UserError(f"{key}: {path}: no such file, looked from {Path.cwd()}; fix the path")
    found = read_json(path)
    for name in ("zero_optimization", *_PRECISIONS):
        if not isinstance(found.get(name, {}), dict):
            raise UserError(
                f"{key}: {path}: {name}: expected an object, found {found[name]!r}; write one"
            )
    stage = found.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(
            f"{key}: {path}: zero_optimization.stage: found {stage!r}, not 0 to 3; "
            "write one of these"
        )
    for name, owner in _OWNED.items():
        if found.get(name, "auto") != "auto":
            raise UserError(
                f'{key}: {path}: {name}: found {found[name]!r}; set it to "auto", as the recipe\'s '
                f"{owner} decides"
            )
    for name in _PRECISIONS:
        if found.get(name, {}).get("enabled", False) is True:
            raise UserError(
                f"{key}: {path}: {name}.enabled: found true; remove it, as train.precision chooses "
                "the precision, and keeps the head in float32"
            )
    return found


def require_packages(config: Recipe) -> None:
    """Raise if an optional package that a recipe needs is not installed.

    Raises:
        UserError: Naming it.
    """
    if config.base.tuning == "qlora":
        # Here, since it imports torch, which few checks of a recipe need.
        from llmft.models.quantisation import require_bitsandbytes

        require_bitsandbytes()
    require_trackers(config.train.report_to)


def require_trackers(names: Sequence[str]) -> None:
    """Stop if a tracker of `train.report_to` is not installed.

    Raises:
        UserError: Naming the first one.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.report_to: {name} is not installed; `pip install 'llmft[{name}]'`, or "
                "remove it, since TensorBoard files are always written"
            )


def _stage(deepspeed: dict[str, Any]) -> int:
    return int(deepspeed.get("zero_optimization", {}).get("stage", 0))


def _complete(deepspeed: dict[str, Any]) -> dict[str, Any]:
    """Set the keys that the recipe owns to `auto`, and save full weights in checkpoints (R1).

    DeepSpeed's precision is disabled: its bfloat16 would round the head's weights (H2), and its
    autocast does not cover validation.
    """
    zero = {**deepspeed.get("zero_optimization", {})}
    if _stage(deepspeed) == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        **deepspeed,
        **dict.fromkeys(_OWNED, "auto"),
        **{name: {"enabled": False} for name in _PRECISIONS},
        "zero_optimization": zero,
    }


def _refuse_impossible(launch: Launch, config: Recipe) -> None:
    sharing = {"zero3": "DeepSpeed ZeRO-3", "fsdp": "FSDP"}.get(launch.parallelism)
    if sharing is None:
        return
    state_dict = os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    if launch.parallelism == "fsdp" and "FULL_STATE_DICT" not in state_dict:
        raise UserError(
            f"fsdp_state_dict_type: found {state_dict} in the launcher's file; set it "
            "to FULL_STATE_DICT, as checkpoints need all weights"
        )
    if config.base.tuning == "qlora":
        raise UserError(
            f"base.tuning: qlora and {sharing} do not work together, since a base in 4 bit cannot "
            "be sharded; use DDP or ds_configs/zero2.json, which replicate it on each GPU (the "
            "weights of 7B take about 5 GiB), or tuning: lora"
        )
    given = {
        "head.init": config.head.init == "probe",
        "base.pooling": config.base.pooling not in ("auto", "transformers"),
    }
    for key, is_given in given.items():
        if is_given:
            raise UserError(
                f"{key}: is not supported with {sharing}, which shards the weights; leave it out, "
                "or use DDP or ds_configs/zero2.json"
            )
    if config.init_from is not None:
        raise UserError(
            f"init_from: is not supported with {sharing}; use DDP or ds_configs/zero2.json"
        )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or os.environ.get("DS_ACCELERATOR") == "cpu"  # for tests (L7)


def _refuse_absent_deepspeed() -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "launch: DeepSpeed is not installed; `pip install 'llmft[deepspeed]'`, or launch "
            "without it"
        )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")
