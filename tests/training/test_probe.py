"""A frozen base with a linear head: the whole way, kept states, and the same head however made."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

import llmft
from llmft.data.state_cache import StateCache
from tests.conftest import make_text

PROMPT = "Score the risk of this bank . market rate crisis calm growth\n\n{text}\n"
LABELS: dict[str, dict[str, Any]] = {
    "regression": {"type": "scores", "dimensions": ["risk", "calm"]},
    "binary": {"type": "class", "from": "side", "order": ["down", "up"]},
    "multiclass": {"type": "class", "from": "level"},
    "multilabel": {"type": "multilabel", "from": ["weak", "strong"]},
}


def make_frame(num_rows: int = 330) -> pd.DataFrame:
    generator = random.Random(1)
    rows = []
    for i in range(num_rows):
        mood = i % 11
        rows.append(
            {
                "id": f"row{i}", "risk": mood, "calm": 10 - mood,
                "text": make_text(generator, mood=f"mood{mood}", num_words=8 + i % 9),
                "side": "up" if mood > 5 else "down",
                "level": ["low", "middle", "high"][mood // 4], "weak": int(mood < 3),
                "strong": int(mood > 6), "trust": 1 + i % 3,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def make_recipe(model: Path, *, head: str = "regression", **changes: Any) -> llmft.Recipe:
    """Prepare the task of a head in the working folder, and return a recipe for it."""
    task = llmft.Task(
        name="moods", sources=[make_frame()], fields={"id": "id", "keep": ["trust"]},
        labels=LABELS[head], output="data",
    )  # fmt: skip
    if not Path("data").exists():
        llmft.prepare(task)
    made: dict[str, Any] = {
        "name": "probe", "task": task, "base": {"model": model, "tuning": "frozen"},
        "head": {"type": head}, "tokens": {"max_length": 96, "min_article": 16},
        "train": {"precision": "float32"}, "output_dir": "runs/probe",
    }  # fmt: skip
    return llmft.Recipe(**{**made, **changes})


def write_prompt() -> dict[str, Any]:
    Path("prompt.md").write_text(PROMPT)
    return {"mode": "include", "file": "prompt.md"}


def read_head(run: str = "runs/probe") -> dict[str, np.ndarray]:
    found = load_file(f"{run}/model/3_Dense/model.safetensors")
    return {name.removeprefix("linear."): weights for name, weights in found.items()}


def list_states() -> list[Path]:
    return sorted(Path("data/states").rglob("*.safetensors"))


@pytest.mark.parametrize("head", LABELS)
@pytest.mark.parametrize("name", ["lively_bert", "tiny_qwen"])
def test_a_head_goes_the_whole_way(
    name: str, head: str, workspace: Path, request: pytest.FixtureRequest
) -> None:
    prompt = write_prompt() if name == "tiny_qwen" else {}
    recipe = make_recipe(request.getfixturevalue(name), head=head, prompt=prompt)
    checked = llmft.check(recipe)
    assert checked.num_steps == 0
    assert checked.memory_gib is not None
    run = llmft.train(recipe)
    record = run.record
    assert record.head_fit is not None
    assert record.num_trainable == sum(weights.size for weights in read_head().values())
    assert record.prompt_shared is (name == "tiny_qwen")
    assert record.head_fit.num_computed == record.num_rows["train"] + record.num_rows["val"]
    assert record.best_metric == run.curve.epochs[0].val[record.best_metric_name[4:]]
    result = llmft.evaluate(run)
    metric = result.metric
    better = -1 if metric == "mae" else 1
    constant = result.baselines["constant"].metrics[metric]
    assert better * (result.metrics[metric] - constant) > 0, "it learned something"
    assert "convergence" not in {gate.name for gate in result.gates}
    found = llmft.load(run).predict(make_frame().tail(5))
    assert len(found) == 5
    assert llmft.train(recipe).record == record, "it is finished"


def test_states_are_computed_once_for_all_recipes(workspace: Path, tiny_qwen: Path) -> None:
    recipe = make_recipe(tiny_qwen)
    first = llmft.train(recipe)
    again = llmft.train(recipe, overrides={"output_dir": "runs/again", "train.seed": 7})
    assert again.record.head_fit is not None
    assert (again.record.head_fit.num_computed, first.record.head_fit.num_computed) == (0, 297)
    assert read_head("runs/again").keys() == {"weight", "bias"}
    for key, weights in read_head().items():
        assert (read_head("runs/again")[key] == weights).all(), "no seed changes it"
    config = json.loads((tiny_qwen / "config.json").read_text())
    shutil.copytree(tiny_qwen, "changed")
    Path("changed/config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    changed = {"output_dir": "runs/changed", "base.model": "changed"}
    assert llmft.train(recipe, overrides=changed).record.head_fit.num_computed == 297
    other = llmft.train(recipe, overrides={"output_dir": "runs/other", "base.layer": "last"})
    assert other.record.head_fit.num_computed == 0
    prompted = make_recipe(tiny_qwen, prompt=write_prompt(), output_dir="runs/prompted")
    assert llmft.train(prompted).record.head_fit.num_computed == 297


def test_a_pass_that_was_killed_goes_on(
    workspace: Path, lively_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmft.training import probe

    monkeypatch.setattr(probe, "ROWS_PER_FILE", 80)
    recipe = make_recipe(lively_bert)
    write = StateCache.write

    def stop(self: StateCache, *args: Any) -> None:
        if len(list_states()) == 8:  # two files of each of four poolings
            raise KeyboardInterrupt
        write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(StateCache, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            llmft.train(recipe)
    broken = list_states()[0]
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    resumed = llmft.train(recipe)
    assert 80 < resumed.record.head_fit.num_computed < 240
    whole = llmft.train(recipe, overrides={"output_dir": "runs/whole"})
    assert whole.record.head_fit.num_computed == 0
    for path in list_states():
        path.unlink()
    llmft.train(recipe, overrides={"output_dir": "runs/anew"})
    for key, weights in read_head().items():
        assert read_head("runs/anew")[key] == pytest.approx(weights, rel=1e-3, abs=1e-4)


def test_a_shared_prompt_changes_nothing(workspace: Path, tiny_qwen: Path) -> None:
    for share in (True, False):
        recipe = make_recipe(
            tiny_qwen, prompt={**write_prompt(), "share": share}, output_dir=f"runs/{share}"
        )
        assert llmft.train(recipe).record.prompt_shared is share
    frames = [llmft.load(f"runs/{share}").predict(make_frame()) for share in (True, False)]
    for column in ("score_risk", "score_calm"):
        assert frames[0][column].to_numpy() == pytest.approx(frames[1][column], abs=1e-2)


def test_bfloat16_gives_nearly_the_same_scores(workspace: Path, tiny_qwen: Path) -> None:
    recipe = make_recipe(tiny_qwen)
    found = []
    for precision in ("float32", "bfloat16"):
        run = llmft.train(
            recipe,
            overrides={"train.precision": precision, "output_dir": f"runs/{precision}"},
        )
        assert read_head(f"runs/{precision}")["weight"].dtype == np.float32
        found.append(llmft.load(run).predict(make_frame())["score_risk"].to_numpy())
    assert np.abs(found[0] - found[1]).mean() < 0.5


def test_row_weights_count(workspace: Path, lively_bert: Path) -> None:
    plain = make_recipe(lively_bert, output_dir="runs/plain")
    weighted = make_recipe(
        lively_bert, head="regression", output_dir="runs/weighted",
    ).model_copy(update={"head": llmft.Recipe.model_fields["head"].annotation(  # type: ignore[misc]
        type="regression", loss={"row_weights": "trust"})})  # fmt: skip
    llmft.train(plain)
    llmft.train(weighted)
    assert (
        np.abs(read_head("runs/plain")["weight"] - read_head("runs/weighted")["weight"]).max() > 0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"head": {"type": "regression", "loss": {"name": "huber"}}},
            "head.loss.name: found huber",
        ),
        (
            {"head": {"type": "regression", "loss": {"dimension_weights": {"risk": 2}}}},
            "head.loss.dimension_weights: has no effect with tuning: frozen",
        ),
        ({"base": {"model": "m", "tuning": "frozen", "lora": {}}}, "lora settings have no effect"),
        ({"init_from": "runs/a"}, "init_from: has no effect with tuning: frozen"),
    ],
)
def test_what_a_frozen_base_cannot_have_is_refused(change: dict[str, Any], message: str) -> None:
    keys = {
        "name": "probe", "task": "task.yaml", "base": {"model": "m", "tuning": "frozen"},
        "head": {"type": "regression"}, "output_dir": "runs/probe",
    }  # fmt: skip
    with pytest.raises(llmft.UserError) as caught:
        llmft.Recipe(**{**keys, **change})
    assert message in str(caught.value)


def test_states_that_are_not_finite_name_the_row(workspace: Path, lively_bert: Path) -> None:
    base = Path("broken")
    base.mkdir()
    for path in lively_bert.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    weights = load_file(base / "model.safetensors")
    name = next(key for key in weights if key.endswith("word_embeddings.weight"))
    weights[name][:] = np.nan
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(llmft.UserError, match=r"states of \d+ rows are not finite, .*'row\d+'"):
        llmft.train(make_recipe(base))
    assert not Path("runs/probe/model").exists()


def test_another_base_than_that_of_the_head_is_refused(workspace: Path, lively_bert: Path) -> None:
    base = Path("base")
    base.mkdir()
    for path in lively_bert.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    run = llmft.train(make_recipe(base))
    weights = load_file(base / "model.safetensors")
    weights[next(iter(weights))][:] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(llmft.UserError, match="is not the one that it was trained on"):
        llmft.load(run)


def test_frozen_against_full_is_a_treatment_and_needs_one_seed(
    workspace: Path, lively_bert: Path
) -> None:
    frozen = make_recipe(lively_bert)
    full = llmft.Recipe(
        **{
            **{name: getattr(frozen, name) for name in ("task", "head", "tokens")},
            "name": "full", "base": {"model": lively_bert}, "output_dir": "runs/full",
            "train": {"steps": 4, "batch_size": 8, "precision": "float32"},
        }
    )  # fmt: skip
    other = frozen.model_copy(update={"name": "last", "output_dir": "runs/last",
        "base": frozen.base.model_copy(update={"pooling": "mean"})})  # fmt: skip
    suite = llmft.Suite(
        task=frozen.task, reference="full", metric="mae", margin=0.0, output_dir="reports",
        variants={
            "full": {"recipe": full, "seeds": [1, 2, 3]},
            "frozen": {"recipe": frozen, "seeds": [1]}, "last": {"recipe": other, "seeds": [1]},
        },
    )  # fmt: skip
    result = llmft.compare(suite, train=True)
    assert not [f for f in result.audit if f.status in ("invalid", "confounded")]
    assert "num_seeds" not in {f.check for f in result.audit}
    assert result.scope == "recipes", "the frozen ones have no luck of training"


@pytest.mark.launched
def test_other_programs_read_it_as_a_sentence_transformer(
    workspace: Path, lively_bert: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    run = llmft.train(make_recipe(lively_bert, base={
        "model": lively_bert, "tuning": "frozen", "pooling": "mean", "layer": "last"}))  # fmt: skip
    texts = make_frame()["text"].tolist()[:7]
    expected = llmft.load(run).predict(texts)[["score_risk", "score_calm"]].to_numpy()
    script = Path("read.py")
    script.write_text(
        "import sys, numpy as np\n"
        "from sentence_transformers import SentenceTransformer, models\n"
        "base, head, texts = sys.argv[1], sys.argv[2], sys.argv[3:]\n"
        "body, dense = models.Transformer(base, max_seq_length=96), models.Dense.load(head)\n"
        "pooling = models.Pooling(body.get_embedding_dimension(), pooling_mode='mean')\n"
        "SentenceTransformer(modules=[body, pooling, dense], device='cpu').save('folder')\n"
        "found = SentenceTransformer('folder', device='cpu').encode(texts)\n"
        "np.save('found.npy', found)\n"
    )
    arguments = [str(lively_bert), "runs/probe/model/3_Dense", *texts]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert np.load("found.npy") == pytest.approx(expected, abs=1e-4)


def test_the_record_says_how_the_head_was_chosen(workspace: Path, lively_bert: Path) -> None:
    run = llmft.train(make_recipe(lively_bert, head="multiclass"))
    found = json.loads(Path("runs/probe/training_metadata.json").read_text())["head_fit"]
    assert found["strength"] > 0
    assert found["by_strength"][f"{found['strength']:g}"] == run.record.best_metric
    assert len(found["by_pooling"]) == 4, "mean and cls, in one and two layers"
    assert found["encoding_seconds"] > 0


@pytest.mark.launched
def test_sigterm_saves_the_states_so_far(workspace: Path, lively_bert: Path) -> None:
    script = Path("train.py")
    script.write_text(
        "import os, signal, sys, time, llmft\n"
        "from llmft.models.forward import BatchForward\n"
        "from tests.training.test_probe import make_recipe\n"
        "compute = BatchForward.compute\n"
        "def slow(self, rows):\n"
        "    for i, found in enumerate(compute(self, rows)):\n"
        "        yield found\n"
        "        if i == 2: os.kill(os.getpid(), signal.SIGTERM)\n"
        "BatchForward.compute = slow\n"
        "from llmft.training import probe\n"
        "probe.ROWS_PER_FILE = 300\n"
        "sort = BatchForward.__init__\n"
        "def few(self, *args, **more): sort(self, *args, **more, max_tokens_per_batch=200)\n"
        "BatchForward.__init__ = few\n"
        "from llmft.errors import StoppedError\n"
        "try: llmft.train(make_recipe(sys.argv[1]))\n"
        "except StoppedError as error: print(error); sys.exit(143)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(lively_bert)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    assert "with those so far saved" in done.stdout
    assert 0 < llmft.train(make_recipe(lively_bert)).record.head_fit.num_computed < 297
