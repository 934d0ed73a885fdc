"""Every family with every head, full and LoRA: trained, saved, reopened, the same in any batch.

And with QLoRA: every family once, and every head once.
"""

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import pipeline

from llmft.config.head import Head
from llmft.config.recipe import BaseConfig
from llmft.config.task import load_task
from llmft.data.preparation import prepare_task
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_model
from llmft.models.saved import load_saved, read_spec
from llmft.prediction.inference import Predictor
from llmft.train import train
from tests.conftest import make_text
from tests.families import CONFIGS, DECODERS, build_base

HEADS = {
    "regression": "{type: scores, from: scores, dimensions: [risk, calm]}",
    "binary": "{type: class, from: side}",
    "multiclass": "{type: class, from: mood}",
    "multilabel": "{type: multilabel, from: [high, odd, third]}",
}
ROWS = [
    {
        "id": f"row{i}",
        "text": make_text(random.Random(i), mood=f"mood{i % 11}", num_words=5 + i % 13),
        "scores": {"risk": i % 11, "calm": 10 - i % 11},
        "side": "up" if i % 11 > 5 else "down",
        "mood": ["low", "middle", "high"][i % 11 // 4],
        "high": int(i % 11 > 5), "odd": i % 2, "third": int(i % 3 == 0),
    }
    for i in range(44)
]  # fmt: skip
CASES = [
    *[(f, h, t) for f in CONFIGS for h in HEADS for t in ("full", "lora")],
    *[(f, "multiclass", "qlora") for f in CONFIGS],
    *[("qwen2", h, "qlora") for h in HEADS if h != "multiclass"],
]
NAMES = [" ".join(case) for case in CASES]
SOME = {
    *(f"{f} {list(HEADS)[i % 4]} full" for i, f in enumerate(CONFIGS)),
    *(f"{f} {list(HEADS)[(i + 1) % 4]} lora" for i, f in enumerate(CONFIGS)),
    "bert multiclass qlora", "qwen2 regression qlora",
}  # fmt: skip
"""Every family and every head, full and LoRA, but not every combination; two with QLoRA."""
PARAMETERS = [
    name if name in SOME else pytest.param(name, marks=pytest.mark.launched) for name in NAMES
]


def test_no_head_is_left_out() -> None:
    assert set(HEADS) == set(get_args(Head))
    assert set(NAMES) >= SOME


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a prepared task per head and a base per family; the working folder."""
    folder = tmp_path_factory.mktemp("families")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        for head, labels in HEADS.items():
            Path(f"{head}.yaml").write_text(
                f"name: {head}\nsources: [{{path: rows.jsonl}}]\nfields: {{id: id}}\n"
                f"labels: {labels}\noutput: prepared/{head}\n"
            )
            prepare_task(load_task(Path(f"{head}.yaml")))
        for family in CONFIGS:
            build_base(family, folder / "bases" / family)
        yield folder


@pytest.fixture(scope="module")
def get_run(home: Path) -> Callable[[str], Path]:
    """Return the run of a case: a short training, when it is first asked for."""

    @cache
    def get(name: str) -> Path:
        family, head, tuning = name.split()
        path = Path(f"{name.replace(' ', '-')}.yaml")
        path.write_text(
            f"name: {path.stem}\ntask: {head}.yaml\nbase: {{model: bases/{family}, "
            f"tuning: {tuning}, pooling: transformers}}\nhead: {{type: {head}}}\n"
            "tokens: {max_length: 64}\n"
            "train: {steps: 3, batch_size: 16, learning_rate: 1e-2, warmup_steps: 0, "
            f"lr_scheduler: constant, precision: float32}}\noutput_dir: runs/{path.stem}\n"
        )
        return Path(train(path))

    return get


@pytest.fixture(scope="module")
def reopened(get_run: Callable[[str], Path]) -> dict[str, Any]:
    """What a fresh process without sockets says of the saved folders."""
    script = Path(__file__).with_name("reload_folders.py")
    folders = {name: str(get_run(name) / "model") for name in NAMES}
    command = [sys.executable, str(script), "found.json", *folders.values()]
    subprocess.run(command, check=True, timeout=600)
    found = json.loads(Path("found.json").read_text())
    return {name: found[folder] for name, folder in folders.items()}


@pytest.mark.launched
@pytest.mark.parametrize("name", NAMES)
def test_h1_h5_h8_a_fresh_process_opens_it_with_equal_logits(
    name: str, get_run: Callable[[str], Path], reopened: dict[str, Any]
) -> None:
    saved = load_saved(get_run(name) / "model")
    with torch.inference_mode():
        ids = torch.tensor([[5, 6, 7, 8, 9]], device=next(saved.model.parameters()).device)
        expected = saved.model(input_ids=ids).logits[0].tolist()
    assert len(expected) == {"regression": 2, "binary": 1}.get(saved.spec.head, 3)
    for way in ("plain", "llmft"):
        assert reopened[name][way] == pytest.approx(expected, abs=1e-5), way


@pytest.mark.parametrize("name", PARAMETERS)
def test_h3_a_row_scores_the_same_alone_and_in_any_batch(
    name: str, get_run: Callable[[str], Path]
) -> None:
    predictor = Predictor.open(get_run(name))
    together = predictor.predict(ROWS[:6]).outputs
    alone = np.concatenate([predictor.predict([row]).outputs for row in ROWS[:6]])
    assert np.ptp(together, axis=0).max() > 1e-3  # else equality would prove nothing
    assert together == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("name", PARAMETERS)
def test_h2_h8_head_and_adapters_are_float32_and_have_moved(
    name: str, get_run: Callable[[str], Path]
) -> None:
    spec = read_spec(get_run(name) / "model")
    start = load_model(
        spec.base, labels=spec.label_space, pad_token_id=0, seed=42, pooling=spec.pooling
    ).model
    trained = load_saved(get_run(name) / "model").model
    before = dict(start.named_parameters())
    for key, after in trained.named_parameters():
        if before[key].requires_grad and re.search(r"score|classifier|lora_B", key):
            assert after.dtype == torch.float32, f"{key} is {after.dtype}"
            assert not torch.equal(before[key], after), f"{key} was not trained"


@pytest.mark.parametrize("name", [n for n in NAMES if "regression" in n])
def test_every_trained_weight_takes_part_in_every_step(name: str, home: Path) -> None:
    """Processes wait for each other's gradient of every trained weight."""
    family, _, tuning = name.split()
    base = BaseConfig(model=f"bases/{family}", tuning=tuning)
    labels = LabelSpace("regression", ["risk", "calm"])
    model = load_model(base, labels=labels, pad_token_id=0, seed=42).model
    model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits.sum().backward()
    idle = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


@pytest.mark.parametrize("family", [f for f in CONFIGS if f not in DECODERS])
def test_h5_a_text_pair_is_read_alike_by_plain_tools(family: str, home: Path) -> None:
    Path("pairs.yaml").write_text(
        "name: pairs\nsources: [{path: rows.jsonl}]\nfields: {id: id, text_pair: side}\n"
        "labels: {type: class, from: mood}\noutput: prepared/pairs\n"
    )
    prepare_task(load_task(Path("pairs.yaml")))
    recipe = Path(f"pairs-{family}.yaml")
    recipe.write_text(
        f"name: pairs\ntask: pairs.yaml\nbase: {{model: bases/{family}}}\n"
        "head: {type: multiclass}\ntokens: {max_length: 64}\n"
        "train: {steps: 3, batch_size: 16, learning_rate: 1e-2, "
        f"warmup_steps: 0, precision: float32}}\noutput_dir: runs/pairs-{family}\n"
    )
    run = Path(train(recipe))
    plain = pipeline("text-classification", model=str(run / "model"), top_k=None)
    ours = Predictor.open(run).predict(ROWS[:4]).outputs
    for row, expected in zip(ROWS[:4], ours, strict=True):
        found = plain({"text": row["text"], "text_pair": row["side"]})
        scores = {entry["label"]: entry["score"] for entry in found}
        assert [scores[n] for n in ("high", "low", "middle")] == pytest.approx(expected, abs=1e-4)
