"""The spine, as a user walks it: prepare, check, train, evaluate, compare, predict.

One trained workspace serves the tests that only read it; sockets are blocked throughout (H7).
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from llmft.cli import main

PROMPT = 'task : {text} . {"risk": 1}'


def load(path: str | Path) -> dict:
    return json.loads(Path(path).read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_qwen: Path) -> Path:
    """A workspace with three trained arms and their comparison."""
    from tests.conftest import make_recipe_writer, make_task_writer

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_task_writer(folder)()
        write = make_recipe_writer(folder)
        write(tiny_bert, name="bert")
        write(tiny_qwen, name="plain", tuning="lora")
        write(tiny_qwen, name="prompted", tuning="lora", prompt=PROMPT)
        (folder / "suite.yaml").write_text(
            "task: task.yaml\nvariants:\n"
            "  bert: {recipe: bert.yaml, seeds: [1]}\n"
            "  plain: {recipe: plain.yaml, seeds: [1, 2]}\n"
            "  prompted: {recipe: prompted.yaml, seeds: [1]}\n"
            "reference: plain\nmetric: mae\nmargin: 0.1\nedge_cases: cases.jsonl\n"
            "output_dir: reports/risk\n"
        )
        (folder / "cases.jsonl").write_text(
            '{"id": "c1", "text": "market mood9", "expect": {"risk": {"min": -99}}}\n'
        )
        assert main(["compare", "suite.yaml", "--train"]) == 0
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private copy of the trained workspace, as the working folder."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


def test_compare_train_leaves_a_real_verdict_and_reports(copy: Path) -> None:
    results = load("reports/risk/comparison.json")
    assert results["verdict"] in ("WINNER", "REFERENCE_HOLDS", "UNRESOLVED")
    assert set(results["variants"]) == {"bert", "plain", "prompted"}
    assert {p["challenger"] for p in results["pairs"]} == {"bert", "prompted"}
    assert len(results["variants"]["plain"]["metrics_per_run"]) == 2
    assert set(results["per_dimension"]["risk"]) == {
        "bert", "plain", "prompted", "constant", "tfidf",
    }  # fmt: skip
    assert results["edge_cases"]["bert"]["num_passed"] == 1
    assert results["latency"]["bert"]["single_p50_ms"] > 0
    for name in ("report.html", "report.md"):
        assert (copy / "reports/risk" / name).stat().st_size > 1000


def test_a_run_leaves_all_that_it_depended_on(copy: Path) -> None:
    run = copy / "runs/prompted/seed-1"
    metadata = load(run / "training_metadata.json")
    assert metadata["training_mode"] == "instruction_tuning"
    assert metadata["num_train_tokens"] > 0
    assert metadata["train_seconds"] > 0
    assert metadata["tokens_per_second"] > 0
    assert metadata["peak_memory_gib"] > 0
    assert metadata["world_size"] == 1
    assert metadata["packages"]["torch"]
    assert metadata["data_fingerprint"] == load("prepared/manifest.json")["fingerprint"]
    assert yaml.safe_load((run / "recipe.resolved.yaml").read_text())["train"]["seed"] == 1
    history = load(run / "training_history.json")
    assert [entry["epoch"] for entry in history["epochs"]] == [1.0, 2.0]
    assert "best val mae" in (run / "logs/training.log").read_text()
    assert list((run / "logs/tensorboard").iterdir())
    val = pq.read_table(run / "predictions/val.parquet")
    assert val.column_names[:3] == ["id", "score_risk", "score_calm"]
    plain = load(copy / "runs/plain/seed-1/training_metadata.json")
    assert plain["training_mode"] == "knowledge_distillation"


def test_arms_that_are_done_are_skipped(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in copy.glob("runs/*/*/model/*")}
    assert main(["compare", "suite.yaml", "--train"]) == 0
    assert capsys.readouterr().out.count("already trained") == 4
    assert before == {p: p.stat().st_mtime_ns for p in copy.glob("runs/*/*/model/*")}


def test_train_refuses_a_folder_with_another_run(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--set", "output_dir=runs/bert/seed-1", "--set", "train.epochs=3"]
    assert main(["train", "bert.yaml", *arguments]) == 2
    assert "train.epochs" in capsys.readouterr().err


def test_evaluate_leaves_results_with_baselines_gates_and_a_decision(copy: Path) -> None:
    assert main(["evaluate", "runs/bert/seed-1"]) == 0
    results = load("runs/bert/seed-1/evaluation/test.json")
    assert results["num_rows"] == 6
    assert {"mae", "rmse", "r2", "spearman", "skill"} <= set(results["metrics"])
    assert results["baselines"]["constant"]["mae"] > 0
    assert results["baselines"]["tfidf"]["per_dimension"]["risk"]["mae"] > 0
    assert results["decision"] in ("DEPLOY", "REVIEW", "FAIL")
    assert [g["metric"] for g in results["gates"]] == ["mae", "skill"]
    assert (copy / "runs/bert/seed-1/evaluation/report.html").is_file()
    assert main(["evaluate", "runs/bert/seed-1", "--require", "deploy"]) == 1  # two short epochs


def test_d5_evaluating_on_training_rows_from_a_file_fails(copy: Path) -> None:
    assert main(["evaluate", "runs/bert/seed-1", "--data", "rows.jsonl"]) == 0
    results = load("runs/bert/seed-1/evaluation/data-rows.json")
    assert results["num_rows"] == 60
    assert results["decision"] == "FAIL"
    assert any("54 of 60 evaluated texts" in f["message"] for f in results["audit"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_d7_d8_a_split_that_took_part_in_training_never_deploys(copy: Path, split: str) -> None:
    assert main(["evaluate", "runs/bert/seed-1", "--split", split]) == 0
    assert load(f"runs/bert/seed-1/evaluation/{split}.json")["decision"] == "FAIL"


def test_suite_gates_take_the_place_of_the_defaults(copy: Path) -> None:
    suite = (copy / "suite.yaml").read_text()
    (copy / "suite.yaml").write_text(suite + "gates: {mae: {deploy: 50, review: 60}}\n")
    arguments = ["--suite", "suite.yaml", "--require"]
    assert main(["evaluate", "runs/bert/seed-1", *arguments, "review"]) == 0
    results = load("runs/bert/seed-1/evaluation/test.json")
    assert [(g["metric"], g["deploy"]) for g in results["gates"]] == [("mae", 50)]
    assert results["decision"] == "REVIEW"  # six test rows deploy nothing (D14)
    assert main(["evaluate", "runs/bert/seed-1", *arguments, "deploy"]) == 1


def test_evaluate_refuses_a_suite_with_other_labels(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = (copy / "task.yaml").read_text()
    (copy / "task.yaml").write_text(task.replace("[risk, calm]", "[calm, risk]"))
    assert main(["evaluate", "runs/bert/seed-1", "--suite", "suite.yaml"]) == 2
    assert "has other labels" in capsys.readouterr().err


def rewrite_metadata(run: Path, change) -> None:
    path = run / "training_metadata.json"
    metadata = load(path)
    change(metadata)
    path.write_text(json.dumps(metadata))


def compare_folders(
    copy: Path, *, others: str = "bert: runs/bert/seed-1, prompted: runs/prompted/seed-1"
) -> dict:
    """Compare by run folders, so that only the audit stands between a planted fault and us."""
    (copy / "folders.yaml").write_text(
        f"task: task.yaml\nvariants: {{{others}, "
        "plain: [runs/plain/seed-1, runs/plain/seed-2]}\n"
        "reference: plain\nmetric: mae\nmargin: 0.1\noutput_dir: reports/risk\n"
    )
    assert main(["compare", "folders.yaml"]) == 0
    return load("reports/risk/comparison.json")


def test_d2_a_difference_beside_the_treatment_is_confounded(copy: Path) -> None:
    def change(metadata: dict) -> None:
        metadata["recipe"]["train"]["weight_decay"] = 0.5

    rewrite_metadata(copy / "runs/prompted/seed-1", change)
    results = compare_folders(copy)
    assert results["verdict"] == "CONFOUNDED"
    assert "train.weight_decay" in results["why"]


def test_d11_an_arm_with_other_test_rows_is_struck_out(copy: Path) -> None:
    path = copy / "runs/bert/seed-1/predictions/test.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    results = compare_folders(copy)
    assert not results["variants"]["bert"]["valid"]
    assert results["variants"]["prompted"]["valid"]
    assert results["verdict"] != "INVALID"  # two arms are left


def test_d11_shuffled_predictions_are_joined_by_id(copy: Path) -> None:
    before = load("reports/risk/comparison.json")["variants"]["bert"]["metrics"]
    path = copy / "runs/bert/seed-1/predictions/test.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(len(table)))[::-1]), path)
    assert compare_folders(copy)["variants"]["bert"]["metrics"] == pytest.approx(before)


def test_a_reference_on_other_data_makes_the_comparison_invalid(copy: Path) -> None:
    for seed in (1, 2):
        run = copy / f"runs/plain/seed-{seed}"
        rewrite_metadata(run, lambda metadata: metadata.update(data_fingerprint="other"))
    results = compare_folders(copy)
    assert (results["verdict"], results["winner"], results["pairs"]) == ("INVALID", None, [])
    assert (copy / "reports/risk/report.html").is_file()


def test_d2_runs_of_two_kinds_are_no_arm(copy: Path) -> None:
    results = compare_folders(copy, others="mixed: [runs/bert/seed-1, runs/prompted/seed-1]")
    assert results["verdict"] == "INVALID"


def test_a_run_that_the_suites_recipe_did_not_train_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "suite.yaml"]) == 0
    recipe = (copy / "bert.yaml").read_text()
    (copy / "bert.yaml").write_text(recipe.replace("epochs: 2", "epochs: 7"))
    assert main(["compare", "suite.yaml"]) == 2
    assert "differs in train.epochs" in capsys.readouterr().err


def test_mistakes_of_a_suite_are_told_before_anything_is_trained(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, cases = (copy / "suite.yaml").read_text(), (copy / "cases.jsonl").read_text()
    recipe = (copy / "bert.yaml").read_text()
    shutil.rmtree(copy / "runs")
    (copy / "bert.yaml").write_text(recipe.replace("runs/bert", "runs/plain"))
    assert main(["compare", "suite.yaml", "--train"]) == 2
    assert "both use the run" in capsys.readouterr().err
    (copy / "other.yaml").write_text((copy / "task.yaml").read_text().replace("id: id, ", ""))
    (copy / "bert.yaml").write_text(recipe.replace("task.yaml", "other.yaml"))
    assert main(["compare", "suite.yaml", "--train"]) == 2
    assert "not the suite's task" in capsys.readouterr().err
    (copy / "bert.yaml").write_text(recipe)
    (copy / "cases.jsonl").write_text(cases.replace('"min"', '"mim"'))
    assert main(["compare", "suite.yaml", "--train"]) == 2
    assert "cases.jsonl:1: not an edge case: expect.risk.mim" in capsys.readouterr().err
    assert suite == (copy / "suite.yaml").read_text()
    assert not (copy / "runs").exists()


def test_an_unreadable_run_is_status_2(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "runs/bert/seed-1")
    assert main(["compare", "suite.yaml"]) == 2
    assert "runs/bert/seed-1" in capsys.readouterr().err


def test_a_changed_model_is_not_judged_under_the_runs_name(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy / "runs/bert/seed-1"
    card = run / "model/llmft.json"
    card.write_text(card.read_text().replace('"max_length": 96', '"max_length": 48'))
    (run / "predictions/test.parquet").unlink()
    assert main(["evaluate", str(run)]) == 2
    assert "changed since it was trained" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_predict_keeps_order_and_columns(copy: Path, ending: str) -> None:
    rows = [json.loads(line) for line in (copy / "rows.jsonl").read_text().splitlines()]
    frame = pd.DataFrame(rows).drop(columns="scores").assign(extra=range(len(rows)))
    match ending:
        case "jsonl":
            frame.to_json("in.jsonl", orient="records", lines=True)
        case "csv":
            frame.to_csv("in.csv", index=False)
        case _:
            frame.to_parquet("in.parquet")
    status = main(
        ["predict", "runs/prompted/seed-1", "--input", f"in.{ending}", "--output", "out.parquet"]
    )
    assert status == 0
    found = pd.read_parquet("out.parquet")
    assert list(found.columns) == [
        "id", "title", "content", "extra", "prediction", "score_risk", "score_calm",
    ]  # fmt: skip
    assert list(found["id"]) == list(frame["id"])
    mean = found[["score_risk", "score_calm"]].mean(axis=1)
    assert list(found["prediction"]) == pytest.approx(list(mean), abs=1e-3)
    stored = pd.read_parquet("runs/prompted/seed-1/predictions/test.parquet").set_index("id")
    joined = found.set_index("id").loc[stored.index]
    assert list(joined["score_risk"]) == pytest.approx(list(stored["score_risk"]), abs=1e-4)


def test_predict_keeps_a_row_without_text_and_says_so(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.jsonl").write_text('{"id": 1, "text": "market"}\n{"id": 2, "text": ""}\n')
    arguments = ["--input", "in.jsonl", "--output", "out.jsonl"]
    assert main(["predict", "runs/bert/seed-1", *arguments]) == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["prediction"] is None for row in rows] == [False, True]
    assert "no prediction for 1 of 2 rows; the first: empty text" in capsys.readouterr().out


def test_predict_refuses_a_file_without_a_field_of_the_article(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.jsonl").write_text('{"title": "market", "contnet": "crisis"}\n')
    arguments = ["--input", "in.jsonl", "--output", "out.jsonl"]
    assert main(["predict", "runs/bert/seed-1", *arguments]) == 2
    assert "no row has the field 'content'. Did you mean `contnet`?" in capsys.readouterr().err


def test_predict_does_not_write_over_its_input_or_a_column(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["--input", "rows.jsonl", "--output", "rows.jsonl"]
    assert main(["predict", "runs/bert/seed-1", *same]) == 2
    Path("in.jsonl").write_text('{"text": "market", "prediction": 1}\n')
    assert main(["predict", "runs/bert/seed-1", "--input", "in.jsonl", "--output", "o.csv"]) == 2
    assert "'prediction' already" in capsys.readouterr().err
    assert not Path("o.csv").exists()


def test_d1_train_and_check_refuse_a_prompt_that_leaves_no_room(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "prompted.md").write_text("market " * 78 + "{text}")
    for verb in ("check", "train"):
        assert main([verb, "prompted.yaml", "--set", "output_dir=runs/new"]) == 2
        error = capsys.readouterr().err
        assert "token budget is refused" in error
        assert "the median row keeps" in error
    assert not Path("runs/new").exists()
    waived = ["--set", "tokens.waive=a planned mistake"]
    assert main(["check", "prompted.yaml", *waived]) == 0
    assert "a planned mistake" in capsys.readouterr().out


def test_a_warm_up_as_long_as_the_training_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("check", "train"):
        arguments = ["--set", "train.warmup_steps=12", "--set", "output_dir=runs/new"]
        assert main([verb, "bert.yaml", *arguments]) == 2
        assert "12 warm-up steps, but the whole training has 12" in capsys.readouterr().err


def test_max_length_beyond_the_base_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "bert.yaml", "--set", "tokens.max_length=512"]) == 2
    assert "takes at most 128 tokens" in capsys.readouterr().err


def test_check_without_data_or_base_still_checks_the_recipe(
    workspace: Path, write_scores_task, write_recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores_task()
    recipe = write_recipe("nobody/no-such-model")
    assert main(["check", str(recipe), "--no-data"]) == 0
    said = capsys.readouterr().out
    assert "nobody/no-such-model is not on this machine" in said
    assert "token budget and memory are not known" in said
    assert main(["check", str(recipe)]) == 2
    assert "llmft prepare" in capsys.readouterr().err


def test_classes_go_the_whole_way(workspace: Path, write_recipe, tiny_bert: Path) -> None:
    names = ["none", "weak", "strong"]
    moods = ["calm", "profit", "crisis"]
    lines = [{"text": f"bank loan {moods[i % 3]} w{i}", "y": i % 3} for i in range(60)]
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("task.yaml").write_text(
        "name: hate\nsources: [{path: rows.jsonl}]\n"
        f"labels: {{type: class, from: y, map: {{0: {names[0]}, 1: {names[1]}, 2: {names[2]}}}}}\n"
        "clean: {near_duplicates: 1.0}\noutput: prepared\n"
    )
    write_recipe(tiny_bert, name="one", head="multiclass")
    write_recipe(tiny_bert, name="two", head="multiclass", train=", seed: 7")
    assert main(["prepare", "task.yaml"]) == 0
    for name in ("one", "two"):
        assert main(["train", f"{name}.yaml"]) == 0
    assert main(["evaluate", "runs/one"]) == 0
    results = load("runs/one/evaluation/test.json")
    assert list(results["per_class"]) == names
    assert sum(map(sum, results["confusion_matrix"])) == results["num_rows"]
    Path("suite.yaml").write_text(
        "task: task.yaml\nvariants: {one: runs/one, two: [runs/two]}\nreference: one\n"
        "metric: f1_macro\nmargin: 0.02\noutput_dir: reports/hate\n"
    )
    assert main(["compare", "suite.yaml"]) == 0
    assert set(load("reports/hate/comparison.json")["per_class"]) == set(names)
    arguments = ["--input", "rows.jsonl", "--output", "out.csv"]
    assert main(["predict", "runs/one", *arguments]) == 0
    found = pd.read_csv("out.csv", keep_default_na=False)
    assert set(found["prediction"]) <= set(names)
    sums = found[[f"prob_{n}" for n in names]].sum(axis=1)
    assert list(sums) == pytest.approx([1] * 60, abs=1e-4)


def test_d11_classes_in_another_order_are_other_data(
    workspace: Path, write_recipe, tiny_bert: Path
) -> None:
    """Columns follow the order of the map, so the order is part of what the data is."""
    moods = ["calm", "profit", "crisis"]
    lines = [{"text": f"bank loan {moods[i % 3]} w{i}", "y": i % 3} for i in range(60)]
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fingerprints = []
    for name, order in (("task", "0: a, 1: b, 2: c"), ("other", "2: c, 0: a, 1: b")):
        Path(f"{name}.yaml").write_text(
            f"name: {name}\nsources: [{{path: rows.jsonl}}]\n"
            f"labels: {{type: class, from: y, map: {{{order}}}}}\n"
            f"clean: {{near_duplicates: 1.0}}\noutput: prepared_{name}\n"
        )
        assert main(["prepare", f"{name}.yaml"]) == 0
        fingerprints.append(load(f"prepared_{name}/manifest.json")["fingerprint"])
    assert fingerprints[0] != fingerprints[1]
