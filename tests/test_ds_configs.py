"""Every file of ds_configs is read by the library that it is for, and none is forgotten."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "ds_configs"
DEEPSPEED = sorted(FOLDER.glob("*.json"))
ACCELERATE = sorted(FOLDER.glob("accelerate/*"))
SLURM = sorted(FOLDER.glob("slurm/*"))
STAGES = {"zero2": 2, "zero3": 3, "zero3_offload": 3}


def test_no_file_is_forgotten() -> None:
    assert {path.stem for path in DEEPSPEED} == STAGES.keys()
    assert len(ACCELERATE) == 6
    assert len(SLURM) == 1
    files = {path for path in FOLDER.rglob("*") if path.is_file()}
    assert files == {*DEEPSPEED, *ACCELERATE, *SLURM}


def fill(path: Path, folder: Path) -> dict[str, Any]:
    """Return a DeepSpeed configuration with what `Trainer` puts in the place of auto."""
    from transformers import Qwen2Config, TrainingArguments
    from transformers.integrations.deepspeed import (
        HfTrainerDeepSpeedConfig,
        unset_hf_deepspeed_config,
    )

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        use_cpu=True,
        report_to=[],
    )
    config = HfTrainerDeepSpeedConfig(str(path))
    model = torch.nn.Module()
    model.config = Qwen2Config(hidden_size=64)
    try:
        config.trainer_config_process(arguments)
        config.trainer_config_finalize(arguments, model, 10)
    finally:
        unset_hf_deepspeed_config()
    return dict(config.config)


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.stem)
def test_deepspeed_reads_what_the_recipe_fills_in(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig

    filled = fill(path, tmp_path)
    assert "auto" not in json.dumps(filled)
    found = DeepSpeedConfig(filled)
    assert found.zero_optimization_stage == STAGES[path.stem]
    assert (found.train_micro_batch_size_per_gpu, found.gradient_accumulation_steps) == (4, 2)
    assert found.train_batch_size == 8
    assert found.gradient_clipping == 0.5
    zero = found.zero_config
    assert (zero.offload_param is not None) == (path.stem == "zero3_offload")
    assert (zero.offload_optimizer is not None) == (path.stem == "zero3_offload")
    assert zero.gather_16bit_weights_on_model_save == (STAGES[path.stem] == 3)


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.stem)
def test_h2_precision_is_left_to_the_recipe(path: Path) -> None:
    """DeepSpeed's own bfloat16 would round the head."""
    assert not json.loads(path.read_text()).keys() & {"bf16", "fp16", "torch_autocast", "amp"}


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, socket_enabled: None) -> Any:
    """Return a function from an accelerate file to what its launcher would start, and how.

    It looks whether a port of this machine is free.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    monkeypatch.chdir(ROOT)

    def read(path: Path, *options: str) -> tuple[Any, dict[str, str]]:
        arguments = ["--config_file", str(path), *options, "-m", "llmft.train", "recipe.yaml"]
        given = launch_command_parser().parse_args(arguments)
        args, defaults, says_precision = _validate_launch_command(given)
        environment: dict[str, str] = {}
        if args.use_deepspeed:
            fields = list(defaults.deepspeed_config)
            fields += ["mixed_precision"] if says_precision else []
            args.deepspeed_fields_from_accelerate_config = ",".join(fields)
            environment = prepare_deepspeed_cmd_env(args)[1]
        elif args.multi_gpu or args.use_fsdp:
            environment = prepare_multi_gpu_env(args)
        return args, environment

    return read


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_leaves_precision_to_the_recipe(launch: Any, path: Path) -> None:
    args, environment = launch(path, "--machine_rank", "0", "--main_process_ip", "127.0.0.1")
    assert args.module
    assert args.mixed_precision == "no"
    assert environment.get("ACCELERATE_MIXED_PRECISION", "no") == "no"
    assert args.num_processes == {"one_gpu": 1, "two_nodes": 16}.get(path.stem, 8)
    assert f"ds_configs/accelerate/{path.name}" in path.read_text()


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_accelerate_passes_deepspeed_its_file(
    launch: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deepspeed")
    from accelerate import DeepSpeedPlugin
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    args, environment = launch(FOLDER / f"accelerate/{name}.yaml")
    assert args.use_deepspeed
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == f"ds_configs/{name}.json"
    for key, value in environment.items():
        if key.startswith("ACCELERATE_"):
            monkeypatch.setenv(key, value)
    plugin = DeepSpeedPlugin()  # refuses what would not take effect
    unset_hf_deepspeed_config()
    assert plugin.zero_stage == STAGES[name]
    assert plugin.zero3_init_flag == (name == "zero3")


def test_accelerate_starts_ddp_fsdp2_and_one_gpu(launch: Any) -> None:
    args, environment = launch(FOLDER / "accelerate/eight_gpus.yaml")
    assert (args.multi_gpu, args.nproc_per_node) == (True, "8")
    args, environment = launch(FOLDER / "accelerate/fsdp2.yaml")
    assert args.use_fsdp
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    args, _ = launch(FOLDER / "accelerate/one_gpu.yaml")
    assert not (args.multi_gpu or args.use_fsdp or args.use_deepspeed or args.use_cpu)


def test_two_nodes_take_rank_and_address_from_the_command_line(launch: Any) -> None:
    path = FOLDER / "accelerate/two_nodes.yaml"
    config = yaml.safe_load(path.read_text())
    assert not config.keys() & {"machine_rank", "main_process_ip"}
    args, _ = launch(path, "--machine_rank", "1", "--main_process_ip", "10.0.0.7")
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "10.0.0.7:29500")


@pytest.mark.launched
def test_accelerate_launches_processes_from_a_file(tmp_path: Path) -> None:
    """A launch as a user does it, with two processes that tell what they were given."""
    script = tmp_path / "tell.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "names = ('WORLD_SIZE', 'ACCELERATE_DEEPSPEED_CONFIG_FILE')\n"
        "found = ' '.join(os.environ[name] for name in names)\n"
        "pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(found)\n"
    )
    command = [
        sys.executable, "-m", "accelerate.commands.launch",
        "--config_file", "ds_configs/accelerate/zero2.yaml", "--num_processes", "2",
        "--main_process_port", "0", str(script), str(tmp_path),
    ]  # fmt: skip
    pytest.importorskip("deepspeed")
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    found = {rank: (tmp_path / rank).read_text() for rank in ("0", "1")}
    assert found == dict.fromkeys(("0", "1"), "2 ds_configs/zero2.json")


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.stem)
def test_bash_reads_every_slurm_script(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert f"ds_configs/slurm/{path.name}" in path.read_text()


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job, with commands in the place of Slurm's that note their calls."""
    commands = {
        "scontrol": "[[ $1 != show ]] || { echo node1; echo node2; }",
        "srun": 'shift; exec "$@"',
        "torchrun": """trap 'exit 1' TERM
            touch ready
            [[ "$*" != *finish* ]] || exit "${@: -1}"
            sleep 60 & wait""",
        "scancel": 'kill -TERM "$(cat torchrun.pid)"',
    }
    for name, body in commands.items():
        path = tmp_path / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> calls\necho $$ > {name}.pid\n{body}\n')
        path.chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip


def test_a_job_passes_on_how_its_training_ended(slurm: dict[str, str], tmp_path: Path) -> None:
    script = ["bash", str(FOLDER / "slurm/train.sbatch")]
    for status in (0, 2):
        done = subprocess.run([*script, "finish", str(status)], env=slurm, cwd=tmp_path)
        assert done.returncode == status
    called = (tmp_path / "calls").read_text()
    for option in ("--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=node1:29500"):
        assert option in called
    assert "--module llmft.train finish 0" in called
    assert "requeue" not in called
    assert subprocess.run(script, env=slurm, cwd=tmp_path, capture_output=True).returncode == 2


def test_r9_a_job_that_runs_out_of_time_saves_and_is_queued_again(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    """`torchrun` exits 1 after SIGTERM, whatever its workers do."""
    script = ["bash", str(FOLDER / "slurm/train.sbatch"), "recipe.yaml"]
    job = subprocess.Popen(script, env=slurm, cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.terminate()
    assert job.wait(timeout=30) == 143
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-2:] == ["scancel --signal=TERM 7", "scontrol requeue 7"]
