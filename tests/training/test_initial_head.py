"""Fine-tuning with another pooling, and from the head of a probe."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers import BertConfig

import llmft
from llmft.config.recipe import BaseConfig, load_recipe
from llmft.models.module_folder import read_declared_pooling
from llmft.results.run import Pooling, ResolvedDefaults, RunIdentity
from llmft.training.launch import ONE_PROCESS, Launch
from llmft.training.run_folder import claim_run_folder, update_run
from llmft.training.train_model import resolve_defaults
from tests.families import CONFIGS, DECODERS, build_base
from tests.training.test_probe import LABELS, make_frame, make_recipe, write_prompt

ZERO3 = Launch(2, "zero3", {})
TRAIN = {"steps": 6, "batch_size": 8, "precision": "float32", "learning_rate": 1e-4,
         "warmup_ratio": 0.0}  # fmt: skip


def make_trained(
    model: Path, tuning: str = "full", *, head: str = "regression", pooling: str = "mean",
    init: str = "probe", **changes: Any,
) -> llmft.Recipe:  # fmt: skip
    """Return a recipe of a trained base that begins at the probe."""
    recipe = make_recipe(model, head=head)
    made = {
        "name": "tuned", "base": {"model": model, "tuning": tuning, "pooling": pooling},
        "head": {"type": head, "init": init}, "train": TRAIN,
    }  # fmt: skip
    values = {name: getattr(recipe, name) for name in ("task", "tokens", "output_dir")}
    return llmft.Recipe(**{**values, **made, **changes})


@pytest.mark.parametrize(
    ("name", "tuning", "head"),
    [
        *(("lively_bert", "full", head) for head in LABELS),
        ("tiny_qwen", "lora", "regression"),
        ("tiny_qwen", "lora", "multiclass"),
    ],
)
def test_a_pooled_model_goes_the_whole_way(
    name: str, tuning: str, head: str, workspace: Path, request: pytest.FixtureRequest
) -> None:
    prompt = write_prompt() if name == "tiny_qwen" else {}
    recipe = make_trained(request.getfixturevalue(name), tuning, head=head, prompt=prompt)
    assert llmft.check(recipe).memory_gib is not None
    run = llmft.train(recipe)
    assert run.record.head_fit is not None
    assert run.record.head_fit.pooling.how == "mean"
    assert run.record.prompt_shared is (name == "tiny_qwen")
    seconds = run.curve.epochs[-1].seconds + run.record.head_fit.seconds
    assert run.record.train_seconds >= seconds - 0.02
    result = llmft.evaluate(run)
    assert result.metrics[result.metric] is not None
    assert len(llmft.load(run).predict(make_frame().tail(5))) == 5
    again = llmft.train(recipe, overrides={"init_from": run.path, "head.init": "auto",
        "output_dir": "runs/again", "train.learning_rate": 1e-12, "train.steps": 1})  # fmt: skip
    before, after = (llmft.load(one).predict(make_frame().tail(9)) for one in (run, again))
    numbers = [c for c in before.columns if c.startswith(("score_", "prob_"))]
    assert after[numbers].to_numpy() == pytest.approx(before[numbers].to_numpy(), abs=1e-3)


@pytest.mark.parametrize(
    ("tuning", "precision"),
    [("full", "bfloat16"), ("lora", "bfloat16"), ("qlora", "bfloat16"), ("qlora", "float32")],
)
def test_a_pooled_model_takes_every_tuning_and_precision(
    tuning: str, precision: str, workspace: Path, tiny_qwen: Path
) -> None:
    train = {**TRAIN, "precision": precision, "gradient_checkpointing": tuning != "full"}
    recipe = make_trained(tiny_qwen, tuning, prompt=write_prompt(), train=train)
    run = llmft.train(recipe)
    assert run.record.head_fit is not None
    assert run.record.best_metric < 1.05 * run.record.head_fit.best
    assert len(llmft.load(run).predict(make_frame().tail(5))) == 5


@pytest.mark.parametrize(
    ("family", "pooling", "tuning"),
    [
        *((family, "auto", "full") for family in CONFIGS),
        *((family, "mean", "lora") for family in ("bert", "modernbert", "qwen2")),
    ],
)
def test_training_begins_at_the_probe(
    family: str, pooling: str, tuning: str, workspace: Path
) -> None:
    model = build_base(family, workspace / "base")
    train = {**TRAIN, "steps": 1, "learning_rate": 1e-12}
    recipe = make_trained(model, tuning, pooling=pooling, train=train)
    run = llmft.train(recipe)
    assert run.record.head_fit is not None
    assert run.record.best_metric == pytest.approx(run.record.head_fit.best, abs=1e-3)
    random = llmft.train(recipe, overrides={"head.init": "random", "output_dir": "runs/random"})
    assert random.record.head_fit is None
    assert random.record.best_metric > run.record.best_metric
    is_stock = family not in DECODERS if pooling == "auto" else family == "modernbert"
    assert (Path(run.path, "model", "modules.json").is_file()) is not is_stock


def test_a_killed_run_resumes_with_the_probe_in_its_record(
    workspace: Path, lively_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmft.training.checkpoints import Checkpointing

    recipe = make_trained(lively_bert, train={**TRAIN, "save_steps": 2, "eval_steps": 2})
    seal = Checkpointing.on_save

    def stop(self: Checkpointing, *args: Any, **more: Any) -> None:
        seal(self, *args, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointing, "on_save", stop)
        with pytest.raises(KeyboardInterrupt):
            llmft.train(recipe)
    resumed = llmft.train(recipe)
    assert resumed.record.resumed_from_step == 2
    whole = llmft.train(recipe, overrides={"output_dir": "runs/whole"})
    assert resumed.record.head_fit is not None
    assert resumed.record.head_fit.best == whole.record.head_fit.best
    assert resumed.record.best_metric == pytest.approx(whole.record.best_metric, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "runs/a"}, "head.init: has no effect with init_from"),
        ({"base": {"model": "m", "tuning": "frozen"}}, "head.init: has no effect with tuning: f"),
        ({"base": {"model": "m", "layer": "last"}}, "base.layer: has no effect with tuning: full"),
        (
            {"base": {"model": "m", "tuning": "frozen", "pooling": "transformers"}},
            "base.pooling: found transformers, but a frozen base takes",
        ),
    ],
)
def test_what_contradicts_an_initial_head_is_refused(changes: dict[str, Any], message: str) -> None:
    keys = {
        "name": "pooled", "task": "task.yaml", "base": {"model": "m"},
        "head": {"type": "regression", "init": "probe"}, "output_dir": "runs/pooled",
    }  # fmt: skip
    with pytest.raises(llmft.UserError) as caught:
        llmft.Recipe(**{**keys, **changes})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ("mean", "auto", "another base.pooling: mean of layer 2, but the recipe has transformers"),
        ("auto", "mean", "another base.pooling: transformers, but the recipe has mean"),
    ],
)
def test_weights_of_another_pooling_are_refused(
    then: str, now: str, message: str, workspace: Path, lively_bert: Path
) -> None:
    run = llmft.train(make_trained(lively_bert, pooling=then))
    changes = {"init_from": run.path, "head.init": "auto", "base.pooling": now}
    with pytest.raises(llmft.UserError) as caught:
        llmft.train(make_trained(lively_bert), overrides={**changes, "output_dir": "runs/b"})
    assert message in str(caught.value)
    same = {**changes, "base.pooling": "mean" if then == "mean" else "transformers"}
    llmft.train(make_trained(lively_bert), overrides={**same, "output_dir": "runs/c"})


def test_the_first_token_of_a_decoder_is_refused(workspace: Path, tiny_qwen: Path) -> None:
    for call in (llmft.check, llmft.train):
        with pytest.raises(llmft.UserError, match=r"base\.pooling: cls reads the first token"):
            call(make_trained(tiny_qwen, pooling="cls"))
    assert not Path("runs/probe/model").exists()


def declare_pooling(base: Path, folder: Path, *, how: str = "mean", scales: bool = True) -> Path:
    """Copy a base as a sentence-transformers folder."""
    shutil.copytree(base, folder)
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    if scales:
        paths["Normalize"] = "2_Normalize"
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(paths.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    mode = {"pooling_mode": "lasttoken" if how == "last" else how}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(mode))
    return folder


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_declared_scaling_to_length_1_is_kept(
    tuning: str, workspace: Path, lively_bert: Path
) -> None:
    base = declare_pooling(lively_bert, workspace / "declared")
    run = llmft.train(make_trained(base, tuning))
    assert run.record.head_fit is not None
    assert run.record.head_fit.pooling.normalises
    model = llmft.load(run)
    assert model.spec.pooling == run.record.head_fit.pooling
    other = llmft.train(make_trained(base, tuning, pooling="last", output_dir="runs/last"))
    assert other.record.head_fit is not None
    assert not other.record.head_fit.pooling.normalises, "it declares another pooling"


MEAN = Pooling(how="mean", num_layers=2, normalises=False)
SCALED = MEAN.replace(normalises=True)


@pytest.mark.parametrize(
    ("declared", "changes", "pooling", "init"),
    [
        (None, {}, None, "random"),
        (None, {"base.pooling": "mean"}, MEAN, "probe"),
        (None, {"base.pooling": "cls"}, MEAN.replace(how="cls"), "probe"),
        (None, {"head.init": "probe"}, None, "probe"),
        (("mean", True), {}, SCALED, "probe"),
        (("mean", False), {}, MEAN, "probe"),
        (("cls", True), {}, SCALED.replace(how="cls"), "probe"),
        (("cls", False), {}, MEAN.replace(how="cls"), "probe"),
        (("mean", True), {"base.tuning": "lora"}, SCALED, "probe"),
        (("mean", True), {"head.init": "random"}, SCALED, "random"),
        (("mean", True), {"base.pooling": "transformers"}, None, "random"),
        (("mean", True), {"base.pooling": "last"}, MEAN.replace(how="last"), "probe"),
        (("mean", True), {"init_from": "runs/a"}, SCALED, None),
        (("mean", True), {"launch": ZERO3}, None, "random"),
    ],
)
def test_defaults_follow_what_the_base_declares(
    declared: tuple[str, bool] | None, changes: dict[str, Any], pooling: Pooling | None,
    init: str | None, workspace: Path, lively_bert: Path,
) -> None:  # fmt: skip
    base = lively_bert
    if declared is not None:
        base = declare_pooling(base, workspace / "base", how=declared[0], scales=declared[1])
    recipe = make_trained(base, pooling="auto", init="auto")
    overrides = {key: value for key, value in changes.items() if key != "launch"}
    launch = changes.get("launch", ONE_PROCESS)
    resolved = load_recipe(recipe, overrides=overrides)
    found = resolve_defaults(resolved, launch)
    assert found is not None
    assert (found.pooling, found.head_init) == (pooling, init)
    written = resolved._replace(config=found.apply(resolved.config))
    assert resolve_defaults(written, launch) == found
    assert llmft.Recipe(**written.config.model_dump(by_alias=True)) == written.config


@pytest.mark.parametrize(
    ("tuning", "width", "rate"),
    [
        ("full", 32, 2e-4), ("full", 384, 2e-4), ("full", 768, 1e-4), ("full", 1536, 5e-5),
        ("lora", 384, 1e-3), ("qlora", 1536, 2.5e-4), ("lora", 3584, 1.1e-4),
    ],
)  # fmt: skip
def test_wider_bases_take_smaller_learning_rates(
    tuning: str, width: int, rate: float, workspace: Path
) -> None:
    BertConfig(hidden_size=width).save_pretrained("base")
    recipe = make_trained(Path("base"), tuning, train={})
    found = resolve_defaults(load_recipe(recipe), ONE_PROCESS)
    given = load_recipe(recipe, overrides={"train.learning_rate": 3e-3})
    as_given = resolve_defaults(given, ONE_PROCESS)
    assert found is not None
    assert as_given is not None
    assert (found.learning_rate, as_given.learning_rate) == (rate, 3e-3)


def test_a_training_by_default_begins_at_the_probe_of_the_declared_pooling(
    workspace: Path, lively_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = declare_pooling(lively_bert, workspace / "declared")
    recipe = make_trained(
        base, pooling="auto", init="auto", train={"steps": 2, "precision": "float32"}
    )
    line = (
        "head: mean of layer 2, scaled to length 1; begins at a linear head that is first fitted "
        "to the frozen base; learning rate 0.0002"
    )
    with caplog.at_level("INFO", logger="llmft"):
        llmft.check(recipe)
        assert caplog.text.count(line) == 1
        run = llmft.train(recipe)
        assert caplog.text.count(line) == 2
    assert run.record.head_fit is not None
    assert run.record.head_fit.pooling == SCALED
    assert run.record.recipe.head.init == "auto"
    assert run.record.resolved_recipe.train.learning_rate == 2e-4
    written = load_recipe(Path(run.path, "recipe.resolved.yaml")).config
    assert (written.head.init, written.base.pooling) == ("probe", "mean")
    assert llmft.train(recipe).record == run.record, "the recipe is still the same"
    again = llmft.train(written.model_copy(update={"output_dir": "runs/again"}))
    assert again.record.best_metric == run.record.best_metric


@pytest.mark.parametrize("how", ["mean", "last"])
def test_a_saved_adapter_keeps_its_pooling_whatever_the_base_declares_now(
    how: str, workspace: Path, lively_bert: Path
) -> None:
    base = declare_pooling(lively_bert, workspace / "declared", how=how)
    run = llmft.train(make_trained(base, "lora", pooling="auto", init="auto"))
    before = llmft.load(run).predict(make_frame().tail(5))
    (base / "modules.json").unlink()
    pd.testing.assert_frame_equal(llmft.load(run).predict(make_frame().tail(5)), before)


def test_a_run_that_has_not_learned_begins_anew_under_another_launch(
    workspace: Path, lively_bert: Path
) -> None:
    base = declare_pooling(lively_bert, workspace / "declared")
    identity = RunIdentity(
        recipe=make_trained(base), task=make_trained(base).task, data_fingerprint="a",
        prompt_sha256=None, init_hash=None,
    )  # fmt: skip
    resolved = ResolvedDefaults(pooling=SCALED, head_init="probe", learning_rate=1e-4)
    run = claim_run_folder(Path("runs/a"), identity, launch=ONE_PROCESS, resume="auto")
    assert run is not None
    update_run(Path("runs/a"), run, resolved=resolved, micro_batch_divisor=2)
    again = claim_run_folder(Path("runs/a"), identity, launch=ZERO3, resume="auto")
    assert again is not None
    assert (again.resolved, again.micro_batch_divisor) == (None, 2)


def test_a_base_in_the_cache_without_its_modules_is_a_warning(
    workspace: Path, lively_bert: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    repository = workspace / "models--owner--bert"
    shutil.copytree(lively_bert, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workspace))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(workspace))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(workspace), raising=False)
    assert read_declared_pooling(BaseConfig(model="owner/bert")) is None
    assert "whether owner/bert declares a pooling is not known" in caplog.text
    assert "name one to be sure" in caplog.text


@pytest.mark.launched
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("name", ["lively_bert", "tiny_qwen", "declared"])
def test_other_programs_read_a_pooled_model(
    name: str, tuning: str, workspace: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("sentence_transformers")
    if name == "declared":
        base = declare_pooling(request.getfixturevalue("lively_bert"), workspace / name)
    else:
        base = request.getfixturevalue(name)
    run = llmft.train(make_trained(base, tuning))
    texts = make_frame()["text"].tolist()[:7]
    expected = llmft.load(run).predict(texts)[["score_risk", "score_calm"]].to_numpy()
    script = Path("read.py")
    script.write_text(
        "import sys, numpy as np\n"
        "from sentence_transformers import SentenceTransformer\n"
        "found = SentenceTransformer(sys.argv[1], device='cpu').encode(sys.argv[2:])\n"
        "np.save('found.npy', found)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), f"{run.path}/model", *texts],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.load("found.npy") == pytest.approx(expected, abs=1e-4)
