"""The spine, as a user walks it: prepare, check, train, evaluate, compare, predict.

Tests work on copies of one trained workspace; sockets are blocked throughout (H7).
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llmft.cli import main
from tests.planting import load


def test_compare_train_leaves_a_real_verdict_and_reports(copy: Path) -> None:
    results = load("reports/risk/comparison.json")
    assert results["verdict"] in ("WINNER", "REFERENCE_HOLDS", "UNRESOLVED")
    assert set(results["variants"]) == {"bert", "plain", "prompted"}
    assert {p["challenger"] for p in results["pairs"]} == {"bert", "prompted"}
    assert results["scope"] == "models"
    assert len(results["variants"]["plain"]["metrics_per_run"]) == 1, "one of its two runs"
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
    assert plain["training_mode"] == "fine_tuning"


def test_variants_that_are_done_are_skipped(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert results["baselines"]["constant"]["metrics"]["mae"] > 0
    assert results["baselines"]["tfidf"]["per_dimension"]["risk"]["mae"] > 0
    assert results["decision"] in ("DEPLOY", "REVIEW", "FAIL")
    gates = {gate["name"]: gate for gate in results["gates"]}
    assert list(gates) == ["beats_constant", "beats_tfidf"]
    assert all(gate["reason"].startswith(f"{name}: ") for name, gate in gates.items())
    assert set(results["reasons"]) >= {
        g["reason"] for g in gates.values() if g["result"] == results["decision"]
    }
    assert (copy / "runs/bert/seed-1/evaluation/report.html").is_file()
    assert main(["evaluate", "runs/bert/seed-1", "--require", "deploy"]) == 1  # two short epochs


def test_suite_gates_take_the_place_of_the_defaults(copy: Path) -> None:
    suite = (copy / "suite.yaml").read_text()
    off = ["beats_constant", "beats_tfidf", "edge_cases"]
    gates = ", ".join(["mae: {deploy: 50}", "p95_ms: {deploy: 1e6}", *(f"{n}: null" for n in off)])
    (copy / "suite.yaml").write_text(f"{suite}gates: {{{gates}}}\n")
    arguments = ["--suite", "suite.yaml", "--require"]
    assert main(["evaluate", "runs/bert/seed-1", *arguments, "review"]) == 0
    results = load("runs/bert/seed-1/evaluation/test.json")
    assert [(g["name"], g["deploy"]) for g in results["gates"]] == [("mae", 50), ("p95_ms", 1e6)]
    assert results["decision"] == "REVIEW"  # six test rows deploy nothing (D14)
    assert any("6 rows are too few for evidence" in reason for reason in results["reasons"])
    assert results["latency"]["num_singles"] == 5
    assert results["edge_cases"]["num_cases"] == 1
    assert main(["evaluate", "runs/bert/seed-1", *arguments, "deploy"]) == 1


def test_gaps_come_from_predictions_that_are_made_once(copy: Path) -> None:
    run = copy / "runs/bert/seed-1"
    val = (run / "predictions/val.parquet").stat().st_mtime_ns
    named = "mae: {deploy: 1}, val_test_gap: {deploy: 0.2}, train_val_gap: {deploy: 0.5}"
    with Path("suite.yaml").open("a") as file:
        file.write(f"gates: {{{named}}}\n")
    evaluate = ["evaluate", str(run), "--suite", "suite.yaml"]
    assert main(evaluate) == 0
    before = {g["name"]: g for g in load(run / "evaluation/test.json")["gates"]}
    sample = run / "predictions/train-sample.parquet"
    assert pq.read_table(sample).num_rows == 48
    written = sample.stat().st_mtime_ns
    history = load(run / "training_history.json")["epochs"]
    on_val = min(entry["val"]["mae"] for entry in history)
    on_test = before["mae"]["value"]
    assert before["val_test_gap"]["value"] == pytest.approx(on_test - on_val, abs=1e-3)

    # Planted: a model that knows its train rows by heart.
    lines = Path("prepared/train.jsonl").read_text().splitlines()
    rows = {row["id"]: row["labels"] for row in map(json.loads, lines)}
    table = pq.read_table(sample)
    for name in ("risk", "calm"):
        known = [[rows[row_id][name] for row_id in table["id"].to_pylist()]]
        column = pa.chunked_array(known, pa.float32())
        table = table.set_column(table.column_names.index(f"score_{name}"), f"score_{name}", column)
    pq.write_table(table, sample)
    planted = sample.stat().st_mtime_ns
    assert main(evaluate) == 0
    after = {g["name"]: g for g in load(run / "evaluation/test.json")["gates"]}
    assert after["train_val_gap"]["value"] == pytest.approx(on_val, abs=1e-3)
    assert after["train_val_gap"]["result"] == "REVIEW"
    assert (run / "predictions/val.parquet").stat().st_mtime_ns == val
    assert sample.stat().st_mtime_ns == planted != written


def test_a_case_that_must_pass_and_does_not_fails_the_run(copy: Path) -> None:
    (copy / "cases.jsonl").write_text(
        '{"id": "calm-seas", "text": "market", "must_pass": true, '
        '"expect": {"risk": {"min": 5, "max": 5}}}'
    )
    arguments = ["--suite", "suite.yaml", "--require", "review"]
    assert main(["evaluate", "runs/bert/seed-1", *arguments]) == 1
    results = load("runs/bert/seed-1/evaluation/test.json")
    gate = next(g for g in results["gates"] if g["name"] == "edge_cases")
    assert (gate["value"], gate["result"], results["decision"]) == (0.0, "FAIL", "FAIL")
    assert "calm-seas must pass and did not" in gate["reason"]
    assert gate["reason"] in results["reasons"]
    assert "calm-seas" in (copy / "runs/bert/seed-1/evaluation/report.md").read_text()


def test_an_edge_case_without_a_field_of_the_article_is_named(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "cases.jsonl").write_text(
        '{"id": "c1", "headline": "x", "expect": {"risk": {"min": 1}}}\n'
    )
    assert main(["evaluate", "runs/bert/seed-1", "--suite", "suite.yaml"]) == 2
    message = "cases.jsonl:1: not an edge case: 'c1' lacks the field title, content"
    assert message in capsys.readouterr().err
    # The suite's task may make its texts of other fields than the run's did.
    task = (copy / "task.yaml").read_text()
    (copy / "task.yaml").write_text(task.replace("[title, content]", "headline"))
    assert main(["evaluate", "runs/bert/seed-1", "--suite", "suite.yaml"]) == 2
    assert "edge_cases: bert cannot predict a case" in capsys.readouterr().err


def test_evaluate_refuses_a_suite_with_other_labels(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = (copy / "task.yaml").read_text()
    (copy / "task.yaml").write_text(task.replace("[risk, calm]", "[calm, risk]"))
    assert main(["evaluate", "runs/bert/seed-1", "--suite", "suite.yaml"]) == 2
    assert "has other labels" in capsys.readouterr().err


def test_a_run_that_the_suites_recipe_did_not_train_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "suite.yaml"]) == 0
    recipe = (copy / "bert.yaml").read_text()
    (copy / "bert.yaml").write_text(recipe.replace("epochs: 2", "epochs: 7"))
    assert main(["compare", "suite.yaml"]) == 2
    assert "differs in train.epochs" in capsys.readouterr().err


def test_mistakes_of_a_suite_are_reported_before_anything_is_trained(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, cases = (copy / "suite.yaml").read_text(), (copy / "cases.jsonl").read_text()
    recipe = (copy / "bert.yaml").read_text()
    shutil.rmtree(copy / "runs")
    (copy / "bert.yaml").write_text(recipe.replace("runs/bert", "runs/plain"))
    assert main(["compare", "suite.yaml", "--train"]) == 2
    assert "give each recipe its own output_dir" in capsys.readouterr().err
    (copy / "other.yaml").write_text((copy / "task.yaml").read_text().replace("id: id, ", ""))
    (copy / "bert.yaml").write_text(recipe.replace("task.yaml", "other.yaml"))
    assert main(["compare", "suite.yaml", "--train"]) == 2
    assert "but the suite's is" in capsys.readouterr().err
    (copy / "bert.yaml").write_text(recipe)
    (copy / "cases.jsonl").write_text(cases.replace('"min"', '"mim"'))
    assert main(["compare", "suite.yaml", "--train"]) == 2
    assert "cases.jsonl:1: not an edge case: expect.risk.mim" in capsys.readouterr().err
    (copy / "cases.jsonl").write_text(cases)
    config = yaml.safe_load(suite)
    for changes, expected in (
        ({"noise": {"repeated": "cases.jsonl"}}, "cases.jsonl"),
        ({"metric": "overall_mae"}, "overall_mae"),
        ({"variants": {**config["variants"], "gone": "runs/gone"}}, "runs/gone"),
    ):
        (copy / "changed.yaml").write_text(json.dumps({**config, **changes}))
        assert main(["compare", "changed.yaml", "--train"]) == 2
        assert expected in capsys.readouterr().err
    assert not (copy / "runs").exists()


def test_an_unreadable_run_is_status_2(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "runs/bert/seed-1")
    assert main(["compare", "suite.yaml"]) == 2
    assert "runs/bert/seed-1" in capsys.readouterr().err


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


def test_a_warm_up_as_long_as_the_training_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("check", "train"):
        arguments = ["--set", "train.warmup_steps=12", "--set", "output_dir=runs/new"]
        assert main([verb, "bert.yaml", *arguments]) == 2
        assert "12 warm-up steps, but the training has 12" in capsys.readouterr().err


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
    assert "token budget and memory are unknown" in said
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
