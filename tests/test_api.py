"""The Python API: the same verbs as on the command line, on objects in memory."""

import inspect
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import llmft
from llmft.cli import main
from llmft.config.recipe import load_recipe
from llmft.training.run_folder import log_to_file

VERBS = ("check", "compare", "evaluate", "predict", "prepare", "train")
ROOT = Path(__file__).parents[1]


def run_python(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, *arguments, "-c", textwrap.dedent(code)],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_importing_the_package_loads_nothing_and_sets_nothing(tmp_path: Path) -> None:
    done = run_python(
        """
        import os, sys
        before = dict(os.environ)
        import llmft
        assert dict(os.environ) == before
        print(sorted({"torch", "pandas", "numpy", "pydantic", "yaml"} & sys.modules.keys()))
        print(set(llmft.__all__) <= set(dir(llmft)))
        """,
        folder=tmp_path,
    )
    assert (done.stdout, done.stderr) == ("[]\nTrue\n", "")


IMPORTS = {
    "attribute": "import llmft; llmft.train",
    "from the package": "from llmft import train, compare",
    "from the module": "from llmft.train import train",
    "the module": "import llmft.train",
    "evaluate": "import llmft.evaluate",
    "predict": "import llmft.predict",
    "check": "import llmft.check",
    "another verb that imports it": "import llmft.compare; from llmft.prepare import prepare",
}


@pytest.mark.launched
def test_every_import_order_leaves_modules_that_can_be_called(tmp_path: Path) -> None:
    orders = ["; ".join(order) for order in permutations(IMPORTS.values(), 2)]
    code = f"""
        import importlib, sys
        for order in {orders!r}:
            for name in [name for name in sys.modules if name.split(".")[0] == "llmft"]:
                del sys.modules[name]
            scope = {{}}
            exec("import llmft.errors; " + order, scope)
            import llmft
            for verb in {VERBS!r}:
                module = importlib.import_module(f"llmft.{{verb}}")
                assert callable(getattr(llmft, verb)), (order, verb)
                assert getattr(llmft, verb) is module, (order, verb)
                assert callable(getattr(module, verb)) and callable(module.main), (order, verb)
            from llmft.train import train
            for call in (llmft.train, train, scope.get("train", train)):
                try:
                    call("gone.yaml")
                except llmft.UserError as error:
                    assert "gone.yaml" in str(error), order
                else:
                    raise AssertionError(order)
        print("done")
        """
    done = run_python(code, folder=tmp_path)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_shows_the_signature_of_its_function(verb: str) -> None:
    module = getattr(llmft, verb)
    assert inspect.signature(module) == inspect.signature(getattr(module, verb))
    assert "Raises:" in inspect.getdoc(getattr(module, verb))


def test_what_is_public_is_documented() -> None:
    for name in llmft.__all__:
        assert getattr(llmft, name).__doc__, name
    assert "Recipe file, or a recipe made in Python" in (llmft.train.__doc__ or "")
    assert pickle.loads(pickle.dumps(llmft.train)) is llmft.train
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        llmft.trian  # noqa: B018


@pytest.mark.launched
def test_a_script_passes_mypy_strict(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import pandas as pd
            import llmft
            from llmft.compare import compare
            from llmft.train import train

            frame = pd.DataFrame({"text": ["a"], "risk": [1.0]})
            task = llmft.Task(
                name="risk", sources=[frame], output="data",
                labels={"type": "scores", "dimensions": ["risk"]},
            )
            recipe = llmft.Recipe(
                name="one", task=task, base={"model": "builtin:minilm"},
                head={"type": "regression"}, output_dir="runs/one",
            )
            rows: int = llmft.prepare(task).counts["train"]
            run: llmft.Run = llmft.train(recipe, overrides={"train.epochs": 1})
            again: llmft.Run = train("recipe.yaml", resume="never")
            scores: pd.DataFrame = llmft.load(run).predict(frame)
            more: pd.DataFrame = llmft.load("runs/one").predict(["a", "b"], errors="raise")
            result: llmft.ComparisonResult = compare("suite.yaml", train=True)
            value: float | None = result.variants["one"].metrics["mae"]
            decision: str = llmft.evaluate(run, data=frame).decision
            table: pd.DataFrame = llmft.check(recipe).to_frame()
            """
        )
    )
    script.write_text(script.read_text() + "llmft.train(3)\nresult.verdikt\n")
    # No type of the API is of these packages, and to analyse them takes a minute.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\nfollow_imports = silent\n"
        "[mypy-torch.*,transformers.*,sklearn.*,scipy.*,matplotlib.*]\nfollow_imports = skip\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", script.name],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    *faults, summary = done.stdout.splitlines()
    assert summary.startswith("Found 2 errors in 1 file"), done.stdout
    assert [line.rpartition("[")[2] for line in faults] == ["arg-type]", "attr-defined]"]


SCORES = {"type": "scores", "dimensions": ["risk", "calm"]}


def make_frame(num_rows: int = 60) -> pd.DataFrame:
    """Return rows whose scores depend on words of the text."""
    words = ("bank", "market", "rate", "crisis", "calm", "growth", "loan", "debt")
    generator = random.Random(1)
    texts = [" ".join(generator.choices(words, k=20)) + f" mood{i % 11}" for i in range(num_rows)]
    scores = [i % 11 for i in range(num_rows)]
    return pd.DataFrame({"text": texts, "risk": scores, "calm": [10 - s for s in scores]})


def make_task(frame: Any, **changes: Any) -> llmft.Task:
    return llmft.Task(
        **{"name": "risk", "sources": [frame], "labels": SCORES, "output": "data", **changes}
    )


def make_recipe(base: Path, task: Any, name: str = "bert", **changes: Any) -> llmft.Recipe:
    return llmft.Recipe(
        **{
            "name": name, "task": task, "base": {"model": base}, "head": {"type": "regression"},
            "tokens": {"max_length": 96, "min_article": 16},
            "train": {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32"},
            "output_dir": f"runs/{name}", **changes,
        }
    )  # fmt: skip


def test_from_a_frame_to_a_verdict_without_a_yaml(workspace: Path, lively_bert: Path) -> None:
    frame = make_frame()
    task = make_task(frame)
    manifest = llmft.prepare(task)
    assert manifest.to_frame().loc["train", "rows"] == manifest.counts["train"] == 48
    recipe = make_recipe(lively_bert, task)
    checked = llmft.check(recipe)
    assert (checked.num_steps, list(checked.to_frame().index)) == (4, ["train", "val", "test"])
    run = llmft.train(recipe, overrides={"train.seed": 5, "output_dir": Path("runs/five")})
    assert (run.path, run.record.recipe.train.seed) == ("runs/five", 5)
    assert run.to_frame()["val_mae"].min() == pytest.approx(run.record.best_metric)
    suite = llmft.Suite(
        task=task,
        variants={"trained": run, "short": {"recipe": recipe, "seeds": [1]}},
        reference="trained", metric="mae", margin=0.1, output_dir=Path("reports"),
        treatment=["train.steps"],
    )  # fmt: skip
    result = llmft.compare(suite, train=True)
    table = result.to_frame()
    assert set(table.index) >= {"trained", "short", "constant", "tfidf"}
    assert table.loc["short", "mae"] == result.variants["short"].metrics["mae"]
    assert result.verdict in result._repr_html_()
    evaluated = llmft.evaluate(run)
    assert evaluated.to_frame().loc["mae", "value"] == evaluated.metrics["mae"]
    assert (evaluated.decision, run.path) == ("REVIEW", "runs/five")
    text = Path("runs/five/recipe.resolved.yaml").read_text()
    assert "name: risk" in text, "the task is in it, since it has no file"


def test_other_rows_in_a_frame_have_to_be_prepared_again(workspace: Path, tiny_bert: Path) -> None:
    frame = make_frame()
    llmft.prepare(make_task(frame))
    llmft.check(make_recipe(tiny_bert, make_task(frame.copy())))
    other = frame.assign(risk=frame["risk"].iloc[::-1].to_numpy())
    with pytest.raises(llmft.UserError, match=r"another version of the task \(changed: sources"):
        llmft.check(make_recipe(tiny_bert, make_task(other)))


def test_frames_may_be_given_splits(workspace: Path) -> None:
    frame = make_frame()
    sources = [
        {"path": frame.iloc[:40], "split": "train"}, {"path": frame.iloc[40:50], "split": "val"},
        {"path": frame.iloc[50:], "split": "test"},
    ]  # fmt: skip
    manifest = llmft.prepare(make_task(None, sources=sources, clean={"drop": "none"}))
    assert {name: manifest.counts[name] for name in ("train", "val", "test")} == {
        "train": 40, "val": 10, "test": 10,
    }  # fmt: skip


def test_values_of_a_frame_are_those_of_a_file(workspace: Path) -> None:
    frame = make_frame().assign(day=pd.Timestamp("2024-03-01"), note=np.nan)
    frame.loc[3, "risk"] = np.nan
    frame.loc[4, "text"] = None
    fields = {"keep": ["day", "note"]}
    from_frame = llmft.prepare(make_task(frame, fields=fields, output="a"))
    frame.assign(day="2024-03-01 00:00:00").to_json("rows.jsonl", orient="records", lines=True)
    from_file = llmft.prepare(make_task({"path": "rows.jsonl"}, fields=fields, output="b"))
    assert from_frame.rejected == from_file.rejected
    assert sum(from_frame.rejected.values()) == 2
    for name in ("train", "val", "test"):
        assert Path(f"a/{name}.jsonl").read_text() == Path(f"b/{name}.jsonl").read_text()


def test_a_frame_of_another_session_is_asked_for(workspace: Path) -> None:
    llmft.prepare(make_task(make_frame()))
    from llmft.results.manifest import Manifest

    restored = Manifest.model_validate_json(Path("data/manifest.json").read_text()).task
    with pytest.raises(llmft.UserError, match="stands for a DataFrame, which is not kept"):
        llmft.prepare(restored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ouput": "x"}, "task risk: ouput: unknown key. Did you mean `output`?"),
        ({"labels": {"type": "scores", "dimension": []}}, "labels.dimensions: missing"),
        ({"fields": {"txt": "a"}}, "fields.txt: unknown key. Did you mean `text`?"),
        ({"sources": []}, "task risk: sources: found []"),
        ({"sources": [3]}, "sources.0: found 3, but expected keys and values"),
        ({"sources": [pd.DataFrame([[1, 2]], columns=["a", "a"])]}, "the column 'a' is repeated"),
    ],
)
def test_faults_of_a_task_are_worded_as_those_of_a_file(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(llmft.UserError) as caught:
        make_task("rows.jsonl", **change)
    assert message in str(caught.value)


def test_a_recipe_reports_all_its_faults_at_once(tiny_bert: Path) -> None:
    with pytest.raises(llmft.UserError) as caught:
        make_recipe(tiny_bert, 7, train={"epoch": 1}, head={"type": "regresion"})
    lines = str(caught.value).splitlines()
    assert lines[0] == "recipe bert: 3 errors"
    assert "task: found 7, but expected a task file, or its keys" in lines[1]
    assert "Did you mean `regression`" in lines[2]
    assert "train.epoch: unknown key. Did you mean `epochs`" in lines[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refrence": "a"}, "suite: refrence: unknown key. Did you mean `reference`?"),
        ({"reference": "c"}, "suite: reference: found 'c', allowed: a, b"),
        ({"variants": {"a": "runs/a"}}, "variants: found 1; a comparison needs two"),
        ({"metric": "accuracy"}, "metric: found accuracy, but the labels of risk, of type scores"),
        ({}, "data/manifest.json: does not exist, so the data is not prepared; prepare it with `l"),
    ],
)
def test_faults_of_a_suite_are_worded_as_those_of_a_file(
    workspace: Path, change: dict[str, Any], message: str
) -> None:
    keys = {
        "task": make_task(make_frame()), "variants": {"a": Path("runs/a"), "b": "runs/b"},
        "reference": "a", "metric": "mae", "margin": 0.1, "output_dir": "reports",
    }  # fmt: skip
    with pytest.raises(llmft.UserError) as caught:
        llmft.compare(llmft.Suite(**{**keys, **change}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: llmft.train({"name": "x"}),
            "found {'name': 'x'}; give a recipe file or a llm",
        ),
        (
            lambda: llmft.train(make_task({"path": "x.csv"})),
            "give a recipe file or a llmft.Recipe",
        ),
        (lambda: llmft.prepare(llmft.load), "give a task file or a llmft.Task"),
        (lambda: llmft.train("bert.yaml", overrides=["a=1"]), "overrides: found ['a=1']; write"),
        (lambda: llmft.train("bert.yaml", resume="nonsense"), "resume: found 'nonsense'; write"),
        (lambda: llmft.predict("runs/bert/seed-1", input=[], output="o.csv"), "names no file"),
        (
            lambda: llmft.predict("runs/bert/seed-1", input=make_frame(), output="o.csv"),
            "input: found a DataFrame; predict it with `llmft.load(model).predict`",
        ),
        (lambda: llmft.load("runs/bert/seed-1", max_tokens_per_batch=0), "found 0; give 1 or"),
        (lambda: llmft.evaluate("runs/bert/seed-1", data=[{"text": "a"}]), "data: path: found [{'"),
        (
            lambda: llmft.evaluate("runs/bert/seed-1", data="rows.jsonl", split="val"),
            "split: found val, but `data` takes its place",
        ),
        (
            lambda: llmft.evaluate("runs/bert/seed-1", data=pd.DataFrame({"content": ["bank"]})),
            "no row has the field",
        ),
    ],
)
def test_what_no_call_can_use_is_one_message(
    copy: Path, call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(llmft.UserError) as caught:
        call()
    assert message in str(caught.value)


def test_a_frame_is_read_when_the_task_is_made(workspace: Path) -> None:
    frame = make_frame()
    task = make_task(frame)
    frame["risk"] = 0
    assert llmft.prepare(task).label_stats["train"]["risk"].sd > 1
    close = [make_task(pd.DataFrame({"text": ["a"], "risk": [x]})) for x in (1e-12, 3e-12)]
    assert close[0] != close[1]


def test_an_override_of_a_recipe_is_that_of_its_file(copy: Path) -> None:
    text = Path("bert.yaml").read_text().replace("batch_size: 8, ", "")
    Path("bert.yaml").write_text(text)
    overrides = {"train.max_tokens_per_batch": 4_096}
    from_file = load_recipe("bert.yaml", overrides=overrides).config
    made = llmft.Recipe(**yaml.safe_load(text.replace("1e-3", "0.001")))
    assert load_recipe(made, overrides=overrides).config == from_file
    assert from_file.train.batch_size is None
    assert (made.train.batch_size, load_recipe("bert.yaml").config.train.batch_size) == (16, 16)


def test_a_frame_is_evaluated(copy: Path) -> None:
    rows = pd.read_json("rows.jsonl", lines=True).assign(id=lambda rows: "new" + rows["id"])
    words = rows["content"].str.split().str[::-1].str.join(" ")
    found = llmft.evaluate("runs/bert/seed-1", data=rows.assign(content=words + " river"))
    assert found.data.startswith("data-dataframe-")
    assert found.num_test_rows == 60


def test_overrides_reach_sections_that_were_made_in_python(workspace: Path, copy: Path) -> None:
    run = llmft.train(
        make_recipe(copy / "nowhere", "task.yaml", output_dir="runs/new"),
        overrides={"base.model": str(find_base("bert")), "train.steps": 2, "train.epochs": 9},
    )
    assert (run.record.num_steps, run.record.recipe.train.batch_size) == (2, 8)
    with pytest.raises(llmft.UserError, match=r"override train\.stps: train\.stps: unknown key"):
        llmft.train(make_recipe(copy, "task.yaml"), overrides={"train.stps": 2})


def test_tuples_and_numbers_of_numpy_are_values_of_a_file(tiny_bert: Path) -> None:
    labels = {**SCORES, "dimensions": ("risk", "calm"), "range": (np.int64(0), np.float32(10))}
    task = make_task(make_frame(), labels=labels)
    assert task.labels == make_task(make_frame(), labels={**SCORES, "range": [0, 10.0]}).labels
    recipe = make_recipe(tiny_bert, task, train={"steps": np.int32(3), "batch_size": 8})
    assert recipe.train.steps == 3
    with pytest.raises(llmft.UserError, match=r"train\.steps: found 0, but expected greater"):
        llmft.check(recipe, overrides={"train.steps": np.int64(0)}, read_data=False)
    with pytest.raises(llmft.UserError, match=r"found nan, but expected a finite number"):
        make_recipe(tiny_bert, task, train={"learning_rate": np.float64("nan")})


def find_base(variant: str) -> str:
    """Return the base of a variant in the working folder."""
    return llmft.load(f"runs/{variant}/seed-1").spec.base.model


def test_a_task_may_stand_in_the_recipe_file(copy: Path) -> None:
    text = Path("bert.yaml").read_text()
    task = Path("task.yaml").read_text().replace("\n", "\n  ")
    Path("whole.yaml").write_text(text.replace("task: task.yaml", f"task:\n  {task}"))
    assert llmft.check("whole.yaml", read_data=False).num_steps is None
    Path("whole.yaml").write_text(
        text.replace("task: task.yaml", f"task:\n  {task.replace('sources:', 'source:')}")
    )
    with pytest.raises(llmft.UserError, match=r"whole\.yaml:\d+: task.source: unknown key"):
        llmft.check("whole.yaml", read_data=False)


# Predictions ------------------------------------------------------------------------------------


def read_jsonl(path: str) -> pd.DataFrame:
    return pd.read_json(path, lines=True)


def test_predictions_are_those_of_the_command(copy: Path) -> None:
    rows = read_jsonl("rows.jsonl").head(8)[["id", "title", "content"]]
    rows.loc[2, ["title", "content"]] = ""
    rows.to_json("new.jsonl", orient="records", lines=True)
    command = ["predict", "runs/bert/seed-1", "--input", "new.jsonl", "--output", "out.jsonl"]
    assert main(command) == 0
    written = read_jsonl("out.jsonl")
    frame = rows.set_index("id")
    found = llmft.load("runs/bert/seed-1").predict(frame)
    assert list(found.index) == list(frame.index)
    columns = [name for name in written.columns if name not in rows.columns]
    assert list(found.columns) == [*columns, "reason"]
    np.testing.assert_allclose(
        found[columns].to_numpy(float), written[columns].to_numpy(float), atol=1e-5
    )
    assert found["reason"].to_list()[2] == "empty text: nothing in title, content"
    assert found["reason"].notna().sum() == 1
    assert found.loc["row2", columns].isna().all()


def test_every_form_of_rows_gives_the_same_predictions(copy: Path) -> None:
    import datasets

    model = llmft.load(Path("runs/plain/seed-1"))
    texts = ["market mood9 crisis", "calm mood1", "bank"]
    frame = pd.DataFrame({"text": texts}, index=[7, 7, "x"])
    expected = model.predict(frame)
    assert list(expected.index) == [7, 7, "x"]
    assert "reason" not in expected
    forms = {
        "texts": texts, "dicts": [{"text": text} for text in texts], "tuple": tuple(texts),
        "series": frame["text"], "dataset": datasets.Dataset.from_dict({"text": texts}),
        "numpy": [{"text": np.str_(text)} for text in texts],
    }  # fmt: skip
    for name, rows in forms.items():
        found = model.predict(rows)
        np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), atol=1e-6, err_msg=name)
    assert list(model.predict(frame["text"]).index) == [7, 7, "x"]
    assert model.predict([]).shape == (0, expected.shape[1])
    assert list(model.predict(frame.head(0)).columns) == list(expected.columns)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("one text", "found a str; give a DataFrame"),
        ([1, 2], "found a list of int"),
        (["a", {"text": "b"}], "found a list of dict, str"),
        ({"text": ["a"]}, "found a dict"),
        ([{"titel": "a"}], "no row has the field 'title'. Did you mean `titel`"),
        (None, "found a NoneType"),
    ],
)
def test_rows_of_another_form_are_refused(rows: Any, message: str, copy: Path) -> None:
    with pytest.raises(llmft.UserError, match=message):
        llmft.load("runs/bert/seed-1").predict(rows)


def test_a_row_that_cannot_be_predicted_raises_if_wanted(copy: Path) -> None:
    model = llmft.load("runs/bert/seed-1")
    frame = pd.DataFrame({"text": ["a", None, 3.5]}, index=["x", "y", "z"])
    found = model.predict(frame)
    assert found["reason"].isna().tolist() == [True, False, True]
    with pytest.raises(llmft.UserError, match="row y: empty text"):
        model.predict(frame, errors="raise")
    with pytest.raises(llmft.UserError, match="errors: found 'coerce', allowed: missing, raise"):
        model.predict(frame, errors="coerce")  # type: ignore[arg-type]


def test_what_is_missing_is_no_text(copy: Path) -> None:
    model = llmft.load("runs/bert/seed-1")
    missing = [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT]
    for rows in (["bank", *missing], [{"text": text} for text in ["bank", *missing]]):
        assert model.predict(rows)["reason"].isna().tolist() == [True] + 5 * [False]
    found = model.predict([{"text": "bank"}, None, {"text": np.array(["a", "b"])}])
    assert found["reason"].tolist()[1:] == [
        "empty text: nothing in title, content", "not text: text holds a list",
    ]  # fmt: skip


def test_nothing_is_computed_before_a_row_is_refused(copy: Path) -> None:
    model = llmft.load("runs/bert/seed-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llmft.Model, "predict_rows", lambda *_, **__: pytest.fail("computed"))
        with pytest.raises(llmft.UserError, match="row 1: empty text"):
            model.predict(["bank", ""], errors="raise")


def test_several_threads_predict_at_once(copy: Path) -> None:
    """One model per thread, and one shared by threads: each predicts what it predicts alone."""
    generator = random.Random(0)
    words = "bank market rate crisis calm growth mood1 mood9".split()
    batches = [[" ".join(generator.choices(words, k=n)) for n in range(1, 20)] for _ in range(8)]
    folders = ["runs/bert/seed-1", "runs/prompted/seed-1"]
    alone = {f: [llmft.load(f).predict(batch) for batch in batches] for f in folders}

    def work(folder: str) -> list[pd.DataFrame]:
        model = models.get(folder) or llmft.load(folder)
        return [model.predict(batch) for batch in batches]

    models: dict[str, llmft.Model] = {folders[1]: llmft.load(folders[1])}
    with ThreadPoolExecutor(4) as pool:
        for folder, found in zip(folders * 4, pool.map(work, folders * 4), strict=True):
            for one, other in zip(found, alone[folder], strict=True):
                np.testing.assert_allclose(one.to_numpy(), other.to_numpy(), atol=1e-5)


@pytest.mark.parametrize("model", ["gone", "task.yaml", "runs"])
def test_what_is_no_model_is_reported(model: str, copy: Path) -> None:
    with pytest.raises(llmft.UserError) as caught:
        llmft.load(model)
    assert main(["predict", model, "--input", "rows.jsonl", "--output", "o.csv"]) == 2
    assert model in str(caught.value)


# What a call leaves in its process ----------------------------------------------------------------


def note_state() -> dict[str, Any]:
    """Return what a call must not change."""
    import torch
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in (None, "llmft", "transformers", "DeepSpeed")]
    return {
        "environment": dict(os.environ),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "handlers": [list(logger.handlers) for logger in loggers],
        "filters": [list(logger.filters) for logger in loggers],
        "levels": [(logger.level, logger.propagate) for logger in loggers[:2]],
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "folder": Path.cwd(),
        "transformers": (
            transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled(),
        ),
    }  # fmt: skip


def test_no_call_changes_its_process(workspace: Path, lively_bert: Path) -> None:
    frame = make_frame()
    task = make_task(frame)
    recipe = make_recipe(lively_bert, task)
    suite = llmft.Suite(
        task=task, reference="a", metric="mae", margin=0.1, output_dir="reports",
        variants={name: {"recipe": make_recipe(lively_bert, task, name), "seeds": [1]}
                  for name in ("a", "b")},
    )  # fmt: skip
    frame.to_csv("rows.csv", index=False)

    def catch(call: Callable[[], Any]) -> None:
        with pytest.raises(llmft.UserError, match=r"another run, which differs in train\.seed"):
            call()

    calls = {
        "prepare": lambda: llmft.prepare(task),
        "check": lambda: llmft.check(recipe),
        "train": lambda: llmft.train(recipe),
        "load": lambda: llmft.load("runs/bert").predict(frame),
        "predict": lambda: llmft.predict("runs/bert", input="rows.csv", output="out.csv"),
        "an error": lambda: catch(lambda: llmft.train(recipe, overrides={"train.seed": 3})),
        "evaluate": lambda: llmft.evaluate("runs/bert"),
        "compare": lambda: llmft.compare(suite, train=True),
    }
    for name, call in calls.items():
        before = note_state()
        call()
        after = note_state()
        assert {key for key in before if before[key] != after[key]} == set(), name


@pytest.mark.parametrize("name", ["root", "llmft"])
def test_the_log_of_a_run_is_complete_and_the_application_sees_its_own_level(
    name: str, workspace: Path, lively_bert: Path
) -> None:
    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.startswith("llmft"):
                found.append(record.levelno)

    found: list[int] = []
    llmft.prepare(make_task(make_frame()))
    root, handler = logging.getLogger(), Collector()
    level = root.level
    llmft_logger = logging.getLogger("llmft")
    logger = {"root": root, "llmft": llmft_logger}[name]
    logger.addHandler(handler)
    root.setLevel(logging.WARNING)
    try:
        with log_to_file(Path("some.log")):
            llmft_logger.getChild("child").warning("planted")
        llmft.train(make_recipe(lively_bert, make_task(make_frame())))
    finally:
        logger.removeHandler(handler)
        root.setLevel(level)
    assert found == [logging.WARNING]
    assert "warning: planted" in Path("some.log").read_text()
    assert "best val mae" in Path("runs/bert/logs/training.log").read_text()


def test_nothing_is_printed(
    workspace: Path, lively_bert: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = make_task(make_frame())
    llmft.prepare(task)
    llmft.train(make_recipe(lively_bert, task))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_training_may_run_in_a_thread(workspace: Path, lively_bert: Path) -> None:
    task = make_task(make_frame())
    llmft.prepare(task)
    found: list[llmft.Run] = []
    recipe = make_recipe(lively_bert, task)
    thread = threading.Thread(target=lambda: found.append(llmft.train(recipe)))
    thread.start()
    thread.join()
    assert found[0].record.num_steps == 4


@pytest.mark.parametrize(
    ("signal_number", "error", "step"),
    [(signal.SIGINT, KeyboardInterrupt, 2), (signal.SIGTERM, llmft.StoppedError, 3)],
)
def test_a_training_that_got_a_signal_is_resumed_by_the_same_call(
    signal_number: int, error: type[BaseException], step: int, workspace: Path, lively_bert: Path
) -> None:
    task = make_task(make_frame())
    llmft.prepare(task)
    recipe = make_recipe(
        lively_bert, task,
        train={"steps": 6, "save_steps": 2, "batch_size": 8, "precision": "float32"},
    )  # fmt: skip

    from transformers import Trainer

    # A shell starts what runs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(*_: Any, **__: Any) -> Any:
        if Path("runs/bert/checkpoints/checkpoint-2/complete.json").exists():
            signal.raise_signal(signal_number)
        return compute(*_, **__)

    compute = Trainer.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", interrupt)
        before = note_state()
        with pytest.raises(error):
            llmft.train(recipe)
        after = note_state()
    assert {key for key in before if before[key] != after[key]} == set()
    run = llmft.train(recipe)
    assert run.record.resumed_from_step == step
