"""Launcher and recipe have to agree, and what the libraries cannot do is refused at once."""

import importlib.util
import json
from pathlib import Path

import pytest

from llmft.config.recipe import BaseConfig, HeadConfig, LaunchConfig, Recipe, TrainConfig
from llmft.errors import UserError
from llmft.training.launch import ONE_PROCESS, read_launch, require_trackers


def make_config(*, deepspeed: str | None = None, tuning: str = "lora", **train: object) -> Recipe:
    return Recipe(
        name="variant", task="task.yaml", output_dir="run", head=HeadConfig(type="regression"),
        base=BaseConfig(model="base", tuning=tuning), train=TrainConfig(**train),
        launch=LaunchConfig(deepspeed=deepspeed),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def launcher(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Where a launcher writes what it wants, and two files for DeepSpeed."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # L7
    for stage in (2, 3):
        config = {"zero_optimization": {"stage": stage}, "gradient_clipping": "auto"}
        Path(f"zero{stage}.json").write_text(json.dumps(config))
    return monkeypatch


def start(launcher: pytest.MonkeyPatch, *, num_processes: int = 2, **environment: str) -> None:
    launcher.setenv("WORLD_SIZE", str(num_processes))
    launcher.setenv("RANK", "0")
    for name, value in environment.items():
        launcher.setenv(name, value)


def test_one_process_needs_no_launcher() -> None:
    assert read_launch(make_config()) == ONE_PROCESS
    assert read_launch(make_config(deepspeed="zero2.json")) == ONE_PROCESS, "on a laptop"


def test_without_a_gpu_the_recipe_does_without_deepspeed_and_the_launcher_cannot(launcher) -> None:
    launcher.delenv("DS_ACCELERATOR")
    start(launcher)
    assert read_launch(make_config(deepspeed="zero2.json")).parallelism == "ddp"
    start(launcher, ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="2")
    with pytest.raises(UserError, match="DeepSpeed needs GPUs"):
        read_launch(make_config())


def test_several_processes_hold_the_weights_whole_or_in_parts(launcher) -> None:
    start(launcher)
    assert read_launch(make_config()).parallelism == "ddp"
    for stage, sharing in ((2, "zero"), (3, "zero3")):
        found = read_launch(make_config(deepspeed=f"zero{stage}.json"))
        assert found.parallelism == sharing
        assert found.has_replicated_weights is (stage == 2)
        assert found.deepspeed is not None
        assert found.deepspeed["gradient_clipping"] == "auto"
    start(launcher, ACCELERATE_USE_FSDP="true", FSDP_STATE_DICT_TYPE="FULL_STATE_DICT")
    assert read_launch(make_config()).parallelism == "fsdp"


def test_the_launcher_may_bring_deepspeed_by_file_or_by_stage(launcher) -> None:
    start(launcher, ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="2")
    assert read_launch(make_config()).parallelism == "zero"
    same = read_launch(make_config(deepspeed="zero2.json"))
    assert same.deepspeed is not None
    start(launcher, ACCELERATE_DEEPSPEED_CONFIG_FILE="zero3.json")
    assert read_launch(make_config()).parallelism == "zero3"
    assert read_launch(make_config(deepspeed="zero3.json")).parallelism == "zero3", (
        "both say the same"
    )


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero3.json"}, "the launcher says zero3.json"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "the launcher says ZeRO stage 3"),
        ({"ACCELERATE_USE_FSDP": "1", "ACCELERATE_USE_DEEPSPEED": "0"}, "the launcher says FSDP"),
    ],
)
def test_a_clash_names_both_values(launcher, environment: dict[str, str], told: str) -> None:
    start(launcher, **{"ACCELERATE_USE_DEEPSPEED": "true", **environment})
    with pytest.raises(UserError, match=f"the recipe says zero2.json, but {told}"):
        read_launch(make_config(deepspeed="zero2.json"))


def test_r6_another_number_of_processes_than_asked_for_is_refused(launcher) -> None:
    with pytest.raises(UserError, match="asks for 2, but found 1 process"):
        read_launch(make_config(world_size=2))
    start(launcher, num_processes=4)
    with pytest.raises(UserError, match="asks for 2, but found 4 processes"):
        read_launch(make_config(world_size=2))
    assert read_launch(make_config(world_size=4)).world_size == 4


@pytest.mark.parametrize("sharing", ["zero3", "fsdp"])
def test_r2_what_cannot_be_divided_is_refused_before_a_weight_is_loaded(
    launcher, sharing: str
) -> None:
    """The base does not exist, so nothing can have been loaded."""
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    start(launcher, **(fsdp if sharing == "fsdp" else {}))
    deepspeed = "zero3.json" if sharing == "zero3" else None
    with pytest.raises(UserError, match=r"qlora and .* do not work together.*zero2\.json"):
        read_launch(make_config(deepspeed=deepspeed, tuning="qlora"))
    config = make_config(deepspeed=deepspeed).model_copy(update={"init_from": "runs/first"})
    with pytest.raises(UserError, match="init_from: is not supported with"):
        read_launch(config)
    start(launcher, ACCELERATE_USE_FSDP="false")
    assert read_launch(make_config(deepspeed="zero2.json", tuning="qlora")).parallelism == "zero"


def test_r1_checkpoints_hold_all_weights(launcher) -> None:
    start(launcher)
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}
    Path("own.json").write_text(json.dumps({"zero_optimization": zero}))
    found = read_launch(make_config(deepspeed="own.json")).deepspeed
    assert found is not None
    assert found["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    start(launcher, ACCELERATE_USE_FSDP="true")
    with pytest.raises(UserError, match=r"found SHARDED_STATE_DICT .* set it to FULL_STATE_DICT"):
        read_launch(make_config())


@pytest.mark.parametrize("mode", ["fp16", "bf16", "torch_autocast"])
def test_h2_deepspeed_does_not_choose_the_precision(launcher, mode: str) -> None:
    start(launcher)
    Path("own.json").write_text(json.dumps({mode: {"enabled": True}}))
    with pytest.raises(UserError, match=rf"{mode}\.enabled: found true"):
        read_launch(make_config(deepspeed="own.json"))
    Path("own.json").write_text(json.dumps({mode: {"enabled": "auto"}}))
    found = read_launch(make_config(deepspeed="own.json")).deepspeed
    assert found is not None
    assert found[mode] == {"enabled": False}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{", "cannot be read as JSON"),
        ('{"zero_optimization": 2}', "zero_optimization: expected an object, found 2"),
        ('{"zero_optimization": {"stage": "two"}}', "stage: found 'two', not 0 to 3"),
        ('{"bf16": true}', "bf16: expected an object, found True"),
        ('{"train_batch_size": 8}', 'train_batch_size: found 8; set it to "auto"'),
    ],
)
def test_a_deepspeed_file_is_looked_at_even_where_it_is_left_out(config: str, told: str) -> None:
    Path("own.json").write_text(config)
    with pytest.raises(UserError, match=told):
        read_launch(make_config(deepspeed="own.json"))


def test_deepspeed_that_is_absent_or_unreadable_got_sigterm(launcher) -> None:
    start(launcher)
    with pytest.raises(UserError, match=r"launch.deepspeed: absent\.json: no such file"):
        read_launch(make_config(deepspeed="absent.json"))
    find = importlib.util.find_spec
    launcher.setattr(
        importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name)
    )
    with pytest.raises(UserError, match=r"pip install 'llmft\[deepspeed\]'"):
        read_launch(make_config(deepspeed="zero2.json"))


def test_a_tracker_that_is_not_installed_says_how_to_get_it() -> None:
    require_trackers([])
    require_trackers(["json"])  # any importable name will do
    with pytest.raises(UserError, match=r"pip install 'llmft\[no_such_tracker\]'"):
        require_trackers(["no_such_tracker"])
