"""Two processes learn what one learns at the same global batch, and only one of them speaks."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llmft.cli import main
from tests.launched.conftest import TORCHRUN, launch, read_epochs, read_metadata

pytestmark = pytest.mark.launched

DEEPSPEED = str(Path(__file__).with_name("deepspeed_on_cpu.py"))
CONFIGS = Path(__file__).parents[2] / "ds_configs"
WAYS = {
    # A device gets one row at a time, and none in the last steps of an epoch (R8).
    "ddp": ["train.batch_size=1", "train.gradient_accumulation_steps=4"],
    "zero2": ["train.batch_size=4", f"launch.deepspeed={CONFIGS}/zero2.json"],
    "zero2 by the launcher": ["train.batch_size=4"],
    "zero3": ["train.batch_size=4", f"launch.deepspeed={CONFIGS}/zero3.json"],
}


@pytest.fixture(scope="module")
def alone(recipes: None) -> None:
    """The recipes, trained in one process with 8 rows at a time."""
    for recipe in ("bert", "qwen", "four_bit"):
        assert main(["train", f"{recipe}.yaml", "--set", f"output_dir=runs/{recipe}"]) == 0


@pytest.mark.parametrize(
    ("recipe", "way"),
    [
        *itertools.product(["bert", "qwen"], ["ddp", "zero2", "zero3"]),
        ("four_bit", "zero2 by the launcher"),
    ],
)
def test_r1_l7_two_processes_learn_what_one_learns(alone: None, recipe: str, way: str) -> None:
    run = f"runs/{recipe}-{way.replace(' ', '-')}"
    environment = {}
    if way == "zero2 by the launcher":
        environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    overrides = [x for value in [*WAYS[way], f"output_dir={run}"] for x in ("--set", value)]
    script = ["-m", "llmft.train"] if way == "ddp" else [DEEPSPEED]
    done = launch(*script, f"{recipe}.yaml", *overrides, launcher=TORCHRUN, **environment)
    assert done.returncode == 0, done.stderr[-4000:]

    for expected, found in zip(read_epochs(f"runs/{recipe}"), read_epochs(run), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    metadata = read_metadata(run)
    assert metadata["world_size"] == 2
    assert metadata["global_batch_size"] == 8
    assert metadata["per_device_batch_size"] == (1 if way == "ddp" else 4)
    assert metadata["distributed_type"] == ("MULTI_CPU" if way == "ddp" else "DEEPSPEED")
    assert metadata["prompt_shared"] is (recipe != "bert")
    assert metadata["num_parameters"] == read_metadata(f"runs/{recipe}")["num_parameters"]

    for path in Path(run, "model").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert all(0 not in file.get_slice(name).get_shape() for name in file.keys())  # noqa: SIM118
    assert main(["predict", run, "--input", "prepared/val.jsonl", "--output", f"{run}.jsonl"]) == 0
    reopened = [json.loads(line) for line in Path(f"{run}.jsonl").read_text().splitlines()]
    for folder in (run, f"runs/{recipe}"):
        stored = pq.read_table(f"{folder}/predictions/val.parquet").to_pylist()
        assert [row["id"] for row in stored] == [row["id"] for row in reopened]
        for name in ("score_risk", "score_calm"):
            expected_N = [row[name] for row in stored]
            assert np.allclose([row[name] for row in reopened], expected_N, atol=1e-3)


def test_two_processes_fit_the_head_that_one_fits(recipes: None) -> None:
    settings = ["base.tuning=frozen", "base.pooling=auto", "base.lora=null"]
    frozen = [part for setting in settings for part in ("--set", setting)]
    done = launch(
        "-m", "llmft.train", "qwen.yaml", *frozen, "--set", "output_dir=runs/frozen-two",
        launcher=TORCHRUN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_metadata("runs/frozen-two")["world_size"] == 2
    shutil.rmtree("prepared/states")
    assert main(["train", "qwen.yaml", *frozen, "--set", "output_dir=runs/frozen-one"]) == 0
    one, two = (
        load_file(f"runs/frozen-{name}/model/3_Dense/model.safetensors") for name in ("one", "two")
    )
    for key, weights in one.items():
        assert two[key].numpy() == pytest.approx(weights.numpy(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("way", ["ddp", "zero2"])
def test_two_processes_begin_at_the_probe_and_measure_it(recipes: None, way: str) -> None:
    changes = ["head.init=probe", "base.pooling=mean", "train.epochs=4", "train.steps=null"]
    for run, more in {"one": [], f"two-{way}": WAYS[way]}.items():
        shutil.rmtree("prepared/states", ignore_errors=True)
        sets = [*changes, *more, f"output_dir=runs/begun-{run}"]
        arguments = ["qwen.yaml", *(x for value in sets for x in ("--set", value))]
        if not more:
            assert main(["train", *arguments]) == 0
            continue
        script = ["-m", "llmft.train"] if way == "ddp" else [DEEPSPEED]
        done = launch(*script, *arguments, launcher=TORCHRUN)
        assert done.returncode == 0, done.stderr[-4000:]
    for expected, found in zip(
        read_epochs("runs/begun-one"), read_epochs(f"runs/begun-two-{way}"), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-3)
    done = launch("-m", "llmft.evaluate", f"runs/begun-two-{way}", launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(Path(f"runs/begun-two-{way}/evaluation/test.json").read_text())
    assert result["baselines"]["probe"]["metrics"]["mae"] is not None
    shutil.rmtree("prepared/states")
    shutil.rmtree("runs/begun-one/evaluation", ignore_errors=True)
    alone = launch("-m", "llmft.evaluate", "runs/begun-one")
    assert alone.returncode == 0, alone.stderr[-4000:]
    expected = json.loads(Path("runs/begun-one/evaluation/test.json").read_text())
    assert "probe" in result["gains"]
    assert result["baselines"]["probe"]["metrics"]["mae"] == pytest.approx(
        expected["baselines"]["probe"]["metrics"]["mae"], rel=1e-3
    )


@pytest.mark.parametrize("change", ["head.init=probe", "base.pooling=mean"])
def test_sharded_weights_refuse_what_they_cannot_have(recipes: None, change: str) -> None:
    sets = [*WAYS["zero3"], change, "output_dir=runs/refused"]
    arguments = [x for value in sets for x in ("--set", value)]
    done = launch(DEEPSPEED, "qwen.yaml", *arguments, launcher=TORCHRUN)
    assert done.returncode != 0
    assert f"{change.partition('=')[0]}: is not supported with DeepSpeed ZeRO-3" in done.stderr
    assert not Path("runs/refused/model").exists()


def test_h2_deepspeed_computes_in_bfloat16_with_a_float32_head(alone: None) -> None:
    overrides = [*WAYS["zero2"], "train.precision=bfloat16", "output_dir=runs/bfloat16"]
    sets = [x for value in overrides for x in ("--set", value)]
    done = launch(DEEPSPEED, "qwen.yaml", *sets, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr[-4000:]
    for expected, found in zip(read_epochs("runs/qwen"), read_epochs("runs/bfloat16"), strict=True):
        assert found == pytest.approx(expected, rel=0.05)
        assert found["train_loss"] != pytest.approx(expected["train_loss"], rel=1e-6)
    for name, weight in load_file("runs/bfloat16/model/adapter_model.safetensors").items():
        assert weight.dtype == torch.float32, name
        assert not torch.equal(weight, weight.bfloat16().float()), f"{name} was rounded"


def test_only_the_main_process_writes_and_speaks(alone: None) -> None:
    done = launch(
        "-m", "llmft.train", "qwen.yaml", "--set", "train.batch_size=4",
        "--set", "output_dir=runs/quiet", launcher=TORCHRUN,
    )  # fmt: skip
    logged = Path("runs/quiet/logs/training.log").read_text()
    for text in (done.stdout + done.stderr, logged):
        assert text.count("epoch 1.00, step 7 of 14") == 1
        assert text.count("wrote runs/quiet/model") == 1
    assert "%|" not in done.stderr, "no bars but on a terminal"
    assert len(list(Path("runs/quiet/logs/tensorboard").iterdir())) == 1


def test_the_samples_own_base_is_the_same_in_all_processes(recipes: None, tmp_path: Path) -> None:
    """A process that does not write files must still build it whole, if it is the first."""
    Path("sample.yaml").write_text(
        Path("qwen.yaml").read_text().replace("name: qwen", "name: sample")
    )
    done = launch(
        "-m", "llmft.train", "sample.yaml", "--set", "base.model=builtin:tiny-qwen2",
        "--set", "output_dir=runs/sample", "--set", "train.steps=2",
        launcher=TORCHRUN, XDG_CACHE_HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(list((tmp_path / "llmft").glob("tiny-qwen2-*"))) == 1


def test_a_fault_got_sigterm_once_and_stops_all_processes(alone: None) -> None:
    for fault, message in {
        "train.batch_size=0": "train.batch_size",  # found by all
        "output_dir=prepared": "prepared: contains files that are not a run",  # by the main one
    }.items():
        done = launch("-m", "llmft.train", "bert.yaml", "--set", fault, launcher=TORCHRUN)
        assert done.returncode != 0
        assert done.stderr.count("llmft: ") == 1
        assert message in done.stderr
        assert "exitcode  : 2" in done.stderr


def test_r6_accelerate_that_starts_one_process_instead_of_two_is_found_out(recipes: None) -> None:
    accelerate = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    arguments = ["-m", "llmft.train", "bert.yaml", "--set", "output_dir=runs/accelerate"]
    done = launch(*accelerate, *arguments, "--set", "train.world_size=2")
    assert "the recipe asks for 2, but found 1 process;" in done.stderr
    assert not Path("runs/accelerate").exists()
