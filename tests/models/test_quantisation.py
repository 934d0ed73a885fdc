"""A base in 4 bit is trained, saved, reopened and predicted with as any other (L8, H1, H2, H6)."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from safetensors import safe_open
from torch import nn

from llmft.cli import main
from llmft.config.recipe import BaseConfig, LoraConfig, Precision
from llmft.data.batches import BatchShape
from llmft.errors import UserError
from llmft.models.acceleration.shared_prompt import SharedPrompt
from llmft.models.bases import read_config
from llmft.models.device import autocast, choose_device
from llmft.models.heads import LabelSpace, find_output_layer
from llmft.models.loading import find_adapted_layers, load_base_for_adapter, load_model
from llmft.models.memory.estimates import Step, measure_footprint
from llmft.models.quantisation import count_weights
from llmft.models.saved import load_saved, read_spec
from tests.conftest import make_byte_tokenizer, make_recipe_writer, make_task_writer
from tests.models.acceleration.test_shared_prompt import make_batch, measure, measure_difference

SCORES = LabelSpace("regression", ["risk", "calm"])
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
DEVICE = choose_device()
"""Where a base in 4 bit lies from the start."""
IDS = torch.arange(5, 45, device=DEVICE).reshape(4, 10)
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with prepared data and a base whose rows are whole blocks of 64."""
    from transformers import Qwen2Config, Qwen2Model

    folder = tmp_path_factory.mktemp("qlora")
    torch.manual_seed(0)
    model = Qwen2Model(
        Qwen2Config(
            vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            initializer_range=0.2,
        )
    )  # fmt: skip
    model.save_pretrained(folder / "base")
    make_byte_tokenizer().save_pretrained(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_task_writer(folder)()
        assert main(["prepare", "task.yaml"]) == 0
        yield folder


@pytest.fixture(scope="module")
def train(home: Path) -> Callable[..., Path]:
    """Return a function that trains with a prompt through the command, into a run of its own."""

    def run(name: str, *settings: str, train: str = "") -> Path:
        recipe = make_recipe_writer(home)(
            home / "base", name=name, tuning="qlora", prompt="task : {text} .", train=train
        )
        overrides = [part for setting in settings for part in ("--set", setting)]
        assert main(["train", str(recipe), *overrides]) == 0
        return home / "runs" / name

    return run


@pytest.fixture(scope="module")
def runs(train: Callable[..., Path]) -> dict[str, Path]:
    """A run of six epochs in each precision."""
    settings = ["train.epochs=6", "base.pooling=transformers"]  # so that PEFT opens it
    return {p: train(p, f"train.precision={p}", *settings) for p in PRECISIONS}


def make_base(home: Path, **lora: Any) -> BaseConfig:
    lora = {"rank": 4, "dropout": 0, **lora}
    return BaseConfig(model=str(home / "base"), tuning="qlora", lora=LoraConfig(**lora))


def load(base: BaseConfig, *, precision: Precision = "float32") -> Any:
    """Load a model whose adapters are no longer 0."""
    model = load_model(base, labels=SCORES, pad_token_id=0, seed=1, precision=precision).model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def find_quantised(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}


def read_losses(run: Path) -> list[float]:
    history = json.loads((run / "training_history.json").read_text())
    return [epoch["train_loss"] for epoch in history["epochs"]]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_l8_it_learns_and_every_command_takes_the_run(
    runs: dict[str, Path], precision: Precision
) -> None:
    run = runs[precision]
    losses = read_losses(run)
    assert losses[-1] < losses[0] / 2
    assert main(["evaluate", str(run)]) == 0
    output = run / "predicted.jsonl"
    assert main(["predict", str(run), "--input", "rows.jsonl", "--output", str(output)]) == 0
    assert len(output.read_bytes().splitlines()) == 60


@pytest.mark.launched
@pytest.mark.parametrize("precision", PRECISIONS)
def test_h1_a_fresh_process_predicts_the_same(runs: dict[str, Path], precision: Precision) -> None:
    command = ["predict", str(runs[precision]), "--input", "rows.jsonl", "--output"]
    assert main([*command, "here.jsonl"]) == 0
    there = [sys.executable, "-m", "llmft", *command, "there.jsonl"]
    subprocess.run(there, check=True, timeout=300)
    assert Path("here.jsonl").read_bytes() == Path("there.jsonl").read_bytes()


@pytest.mark.launched
@pytest.mark.parametrize("precision", PRECISIONS)
def test_h1_h5_it_is_a_peft_folder_without_the_base(
    runs: dict[str, Path], precision: Precision, tmp_path: Path
) -> None:
    folder = runs[precision] / "model"
    assert [path.name for path in folder.glob("*.safetensors")] == ["adapter_model.safetensors"]
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert len(tensors) == 2 * 2 * len(LINEAR) + 1
    assert all(".lora_" in name or ".score." in name for name in tensors)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    output = tmp_path / "found.json"
    script = Path(__file__).with_name("reload_folders.py")
    subprocess.run([sys.executable, str(script), str(output), str(folder)], check=True, timeout=300)
    found = json.loads(output.read_text())[str(folder)]
    with torch.inference_mode():
        ids = torch.tensor([[5, 6, 7, 8, 9]], device=DEVICE)
        expected = load_saved(folder).model(input_ids=ids).logits[0].tolist()
    for way in ("plain", "llmft"):
        assert found[way] == pytest.approx(expected, abs=1e-5), way


@pytest.mark.parametrize("precision", PRECISIONS)
def test_h2_the_base_is_in_4_bit_and_what_is_trained_in_float32(
    home: Path, precision: Precision
) -> None:
    model = load(make_base(home), precision=precision)
    layers = find_quantised(model)
    assert {name.split(".")[-2] for name in layers} == LINEAR
    assert len(layers) == 2 * len(LINEAR)
    for layer in layers.values():
        weight, state = layer.weight, layer.weight.quant_state
        assert (weight.dtype, state.quant_type, state.nested) == (torch.uint8, "nf4", True)
        assert weight.numel() * 2 == layer.in_features * layer.out_features == count_weights(weight)
        assert layer.compute_dtype == getattr(torch, precision)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(layers) + 1
    assert all("lora_" in name or "score" in name for name in trained)
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert type(find_output_layer(model)) is nn.Linear


def test_every_parameter_is_counted_once(home: Path, runs: dict[str, Path]) -> None:
    base = make_base(home)
    plain = base.model_copy(update={"tuning": "lora"})
    spec = read_spec(runs["float32"] / "model")
    step = Step(BatchShape(2, 8), None, "float32", False, accumulates=False, on_gpu=False)
    counted = measure_footprint(read_config(spec.base), spec.base, labels=SCORES, step=step)
    assert spec.num_trainable == counted.trainable
    assert spec.num_parameters == counted.total
    models = [load_model(b, labels=SCORES, pad_token_id=0, seed=1).model for b in (base, plain)]
    totals = [sum(count_weights(p) for p in model.parameters()) for model in models]
    assert totals[0] == totals[1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_l8_evaluation_leaves_base_and_gradients_as_they_were(
    home: Path, precision: Precision
) -> None:
    """On some CPUs bitsandbytes repacks weights in evaluation, without a backward pass."""
    model = load(make_base(home), precision=precision)
    named = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    before = {n: p.detach().clone() for n, p in named if "bias" not in n}
    scales = {n: m.weight.quant_state.absmax.clone() for n, m in find_quantised(model).items()}

    def compute() -> list[torch.Tensor]:
        model.zero_grad()
        with autocast(DEVICE, precision):
            logits = model.train()(input_ids=IDS).logits
        logits.square().sum().backward()
        return [logits, *[p.grad.clone() for p in model.parameters() if p.requires_grad]]

    expected = compute()
    with torch.inference_mode(), autocast(DEVICE, precision):
        evaluated = model.eval()(input_ids=IDS).logits
    assert torch.equal(evaluated, expected[0])
    assert all(torch.equal(a, b) for a, b in zip(compute(), expected, strict=True))
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    optimiser.step()
    assert not torch.equal(compute()[0], expected[0])
    for name, parameter in model.named_parameters():
        assert name not in before or torch.equal(parameter, before[name]), name
    for name, layer in find_quantised(model).items():
        assert torch.equal(layer.weight.quant_state.absmax, scales[name])


def test_h2_logits_keep_more_bits_than_bfloat16_has(home: Path, runs: dict[str, Path]) -> None:
    model = load_saved(runs["bfloat16"] / "model").model.to(DEVICE)
    with torch.inference_mode(), autocast(DEVICE, "bfloat16"):
        logits = model(input_ids=IDS).logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_l1_l2_a_shared_prompt_gives_the_same_outputs_and_gradients(
    home: Path, targets: Any, is_checkpointed: bool
) -> None:
    batch = make_batch(17, [5, 1, 9])
    whole, own = ({k: x.to(DEVICE) for k, x in b.items()} for b in (batch.whole, batch.own))
    model = load(make_base(home, target_modules=targets)).train()
    if is_checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected = measure(model, whole)
    assert all(g.norm() > 0 for g in expected.gradients.values())
    SharedPrompt(model, batch.prompt)
    assert measure_difference(expected, measure(model, own)) < 1e-5


def test_checkpointing_changes_nothing_but_the_memory(train: Callable[..., Path]) -> None:
    settings = ["base.lora.dropout=0", "train.steps=6"]
    plain, checked = (
        read_losses(train(f"checkpointing-{on}", *settings, f"train.gradient_checkpointing={on}"))
        for on in ("false", "true")
    )
    assert plain == pytest.approx(checked, rel=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_h2_adapters_are_put_on_what_the_recipe_names(home: Path, targets: Any) -> None:
    base = make_base(home, target_modules=targets)
    names = LINEAR if targets == "all-linear" else set(targets)
    model = load(base)
    adapted = {n.split(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n}
    assert {name.rpartition(".")[2] for name in adapted} == names
    assert len(adapted) == 2 * len(names)
    plain = load_base_for_adapter(base, labels=SCORES, pad_token_id=0, precision="float32")
    assert len(find_adapted_layers(plain, base)) == len(adapted)


def test_an_unknown_target_is_named_before_training(home: Path) -> None:
    with pytest.raises(UserError, match=r"'q_prj' is not a linear layer.*Did you mean `q_proj`"):
        load(make_base(home, target_modules=["q_prj"]))


@pytest.mark.parametrize("verb", ["check", "train"])
def test_bitsandbytes_that_is_absent_got_sigterm_before_anything_is_loaded(
    home: Path, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe_writer(home)(home / "base", name="absent", tuning="qlora")
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    assert main([verb, str(recipe)]) == 2
    said = capsys.readouterr()
    assert "pip install 'llmft[qlora]'" in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (home / "runs" / "absent").exists()
    monkeypatch.undo()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Configured CUDA binary not found\nmore")

    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", fail)
    assert main([verb, str(recipe)]) == 2
    assert f"does not run on {DEVICE}: Configured CUDA binary not found;" in capsys.readouterr().err


def test_h2_a_base_that_is_quantised_already_is_refused(home: Path, tmp_path: Path) -> None:
    """Its head may be in 4 bit as well."""
    config = json.loads((home / "base" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantised already; name the base that they were made"):
        read_config(BaseConfig(model=str(tmp_path), tuning="lora"))
