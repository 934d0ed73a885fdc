"""Every trap of the field, D1 to D14, planted in files on disk and found through the command."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmft.cli import main
from tests.conftest import WORDS
from tests.planting import (
    compare_folders,
    find,
    find_runs,
    load,
    load_rows,
    rewrite_metadata,
    rewrite_predictions,
    rewrite_splits,
    write_suite,
)

PROMPTED = Path("runs/prompted/seed-1")
BERT = Path("runs/bert/seed-1")
PLAIN = Path("runs/plain/seed-1")


def add_test_rows(num_rows: int) -> list[dict[str, Any]]:
    """Return the test rows and so many new ones, none like another."""
    rows = load_rows("test")
    for number in range(num_rows):
        words = " ".join(WORDS[(number * 7 + i * (1 + number % 13)) % len(WORDS)] for i in range(9))
        row = {**rows[number % len(rows)], "id": f"new{number}", "title": words, "content": "bank"}
        rows.append({**row, "text": f"{words} number{number} of{number * 3}"})
    return rows


def test_d1_a_variant_that_hardly_sees_its_articles_is_excluded(copy: Path) -> None:
    whole = pq.read_table(PROMPTED / "predictions/test.parquet")["article_tokens"].to_numpy()
    rewrite_predictions(PROMPTED, kept_tokens=np.full(len(whole), 2))
    waived = "a reason for training it"
    rewrite_metadata(PROMPTED, lambda m: m["recipe"]["tokens"].update(waive=waived))
    results = compare_folders()
    assert not results["variants"]["prompted"]["valid"]
    assert results["verdict"] != "INVALID"  # two variants are left
    finding = find(results, "truncation", "prompted")
    assert finding["status"] == "invalid"
    assert re.search(
        r"leaves the median test row \d% of its article: a prompt of \d+ tokens", finding["message"]
    )
    assert waived in find(results, "token_budget", "prompted")["message"]
    assert finding["message"] in Path("reports/risk/report.md").read_text()


def test_d1_a_comparison_whose_reference_sees_nothing_is_invalid(copy: Path) -> None:
    rewrite_predictions(PLAIN, kept_tokens=np.full(6, 2))  # one of two seeds is enough
    results = compare_folders()
    assert (results["verdict"], results["winner"], results["pairs"]) == ("INVALID", None, [])
    assert "plain: truncation leaves the median test row" in results["why"]


def test_d1_rows_that_the_model_cannot_tell_apart_are_found(copy: Path) -> None:
    hashes = pq.read_table(BERT / "predictions/test.parquet")["input_hash"].to_pylist()
    rewrite_predictions(BERT, input_hash=[hashes[0]] * 2 + hashes[2:])
    results = compare_folders()
    assert not results["variants"]["bert"]["valid"]
    assert (
        "2 of 6 rows with different texts have identical inputs"
        in find(results, "identical_inputs", "bert")["message"]
    )


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


def test_d2_a_difference_next_to_the_treatment_is_confounded(copy: Path) -> None:
    def change(metadata: dict) -> None:
        metadata["recipe"]["train"]["weight_decay"] = 0.5

    rewrite_metadata(PROMPTED, change)
    results = compare_folders()
    assert results["verdict"] == "CONFOUNDED"
    assert "train.weight_decay" in results["why"]


def test_d2_what_the_suite_declares_is_the_treatment(copy: Path) -> None:
    def change(metadata: dict) -> None:
        metadata["recipe"]["train"]["weight_decay"] = 0.5

    rewrite_metadata(PROMPTED, change)
    results = compare_folders(extra="treatment: [prompt, base, train.weight_decay]\n")
    assert results["verdict"] not in ("INVALID", "CONFOUNDED")
    declared = [f for f in results["audit"] if f["check"] == "comparability"]
    assert "train.weight_decay" in declared[-1]["message"]
    assert compare_folders(extra="treatment: [train]\n")["verdict"] == "CONFOUNDED"


def test_d2_a_treatment_that_no_recipe_knows_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, expected in (
        ("train.epoch", "Did you mean `train.epochs`?"),
        ("task", "'task' is not a key"),
    ):
        assert main(["compare", write_suite(extra=f"treatment: [{key}]\n")]) == 2
        assert expected in capsys.readouterr().err


def test_d2_another_machine_is_one_note(copy: Path) -> None:
    def change(metadata: dict) -> None:
        metadata["device"], metadata["packages"]["torch"] = "another CPU", "1.0"

    rewrite_metadata(PROMPTED, change)
    finding = find(compare_folders(), "comparability", "prompted")
    assert finding["status"] == "note"
    assert "device (another CPU instead of" in finding["message"]
    assert "packages (torch)" in finding["message"]


def test_d2_a_waiver_with_its_reason_lets_a_difference_pass(copy: Path) -> None:
    def change(metadata: dict) -> None:
        metadata["recipe"]["train"]["weight_decay"] = 0.5

    rewrite_metadata(PROMPTED, change)
    waiver = "{check: comparability, variants: [prompted], reason: it hardly matters}"
    results = compare_folders(extra=f"waive: [{waiver}]\n")
    assert results["verdict"] not in ("INVALID", "CONFOUNDED")
    (waived,) = [f for f in results["audit"] if f["waived"]]
    assert (waived["status"], waived["waived"]) == ("warning", "it hardly matters")
    assert "train.weight_decay" in waived["message"]
    other = "{check: contamination, reason: no need}"
    results = compare_folders(extra=f"waive: [{other}]\n")
    assert results["verdict"] == "CONFOUNDED"
    assert "has no effect" in find(results, "waivers")["message"]


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("comparabilty", "Did you mean `comparability`?"),
        ("same_rows", "cannot be waived"),
    ],
)
def test_d2_a_waiver_of_nothing_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str], check: str, expected: str
) -> None:
    suite = Path("suite.yaml").read_text()
    Path("suite.yaml").write_text(f"{suite}waive: [{{check: {check}, reason: x}}]\n")
    assert main(["compare", "suite.yaml", "--train"]) == 2
    assert expected in capsys.readouterr().err


def test_d2_runs_of_two_kinds_are_no_variant(copy: Path) -> None:
    results = compare_folders(others="mixed: [runs/bert/seed-1, runs/prompted/seed-1]")
    assert results["verdict"] == "INVALID"


def test_d2_a_reference_on_other_data_makes_the_comparison_invalid(copy: Path) -> None:
    for seed in (1, 2):
        run = copy / f"runs/plain/seed-{seed}"
        rewrite_metadata(run, lambda metadata: metadata.update(data_fingerprint="other"))
    results = compare_folders()
    assert (results["verdict"], results["winner"], results["pairs"]) == ("INVALID", None, [])
    assert (copy / "reports/risk/report.html").is_file()


def test_d2_a_model_that_changed_since_strikes_out_its_variant(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = BERT / "model/llmft.json"
    spec.write_text(spec.read_text().replace('"max_length": 96', '"max_length": 48'))
    results = compare_folders()
    assert not results["variants"]["bert"]["valid"]
    assert results["verdict"] != "INVALID"  # two variants are left
    assert "changed since it was trained" in find(results, "changed_model", "bert")["message"]
    capsys.readouterr()
    assert main(["evaluate", str(BERT)]) == 2
    assert "changed since it was trained" in capsys.readouterr().err


def test_d3_a_missing_dimension_rejects_the_row(copy: Path) -> None:
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    del rows[5]["scores"]["calm"]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["prepare", "task.yaml"]) == 0
    (rejected,) = map(json.loads, Path("prepared/rejected.jsonl").read_text().splitlines())
    assert (rejected["id"], rejected["line"]) == ("row5", 6)
    assert "calm" in rejected["reason"]
    prepared = [row for split in ("train", "val", "test") for row in load_rows(split)]
    assert len(prepared) == 59
    assert all(sum(row["labels"].values()) == 10 for row in prepared)  # as the sources say


def test_d4_what_the_oracle_did_not_see_is_reported(copy: Path) -> None:
    task = Path("task.yaml").read_text()
    Path("task.yaml").write_text(f"{task}oracle_sees: {{max_words: 9, head_share: 1.0}}\n")
    results = compare_folders()  # articles have 34 words, and the students see them whole
    finding = find(results, "oracle_view", "plain")
    assert finding["status"] == "warning"
    expected = (
        r"plain got about 100% of the text that the oracle got, and the oracle about 2\d% of the "
        "text that plain got"
    )
    assert re.search(expected, finding["message"])
    Path("task.yaml").write_text(f"{task}oracle_sees: {{max_words: 900}}\n")
    assert find(compare_folders(), "oracle_view", "plain")["status"] == "ok"


def test_d4_cut_articles_of_an_unknown_oracle_are_noted(copy: Path) -> None:
    kept = pq.read_table(BERT / "predictions/test.parquet")["article_tokens"].to_numpy() - 1
    rewrite_predictions(BERT, kept_tokens=kept)
    assert "`oracle_sees`" in find(compare_folders(), "oracle_view")["message"]


def test_d5_test_rows_that_stand_in_train_make_all_invalid(copy: Path) -> None:
    test, train = load_rows("test"), load_rows("train")
    copied = {**test[0], "id": "copied"}
    near = {**test[1], "id": "near", "text": test[1]["text"] + " bank"}
    rewrite_splits(train=[*train, copied, near])
    results = compare_folders()
    assert results["verdict"] == "INVALID"
    expected = "2 of 6 evaluated texts were trained or selected on (1 identical"
    assert expected in find(results, "contamination")["message"]
    assert expected in results["why"]


def test_d5_a_few_known_rows_are_dropped_from_the_score_and_counted(copy: Path) -> None:
    rows = add_test_rows(100)
    near = {**rows[0], "id": "near", "text": f"{rows[0]['text']} bank"}
    rewrite_splits(test=rows, train=[*load_rows("train"), near])
    results = compare_folders()
    assert results["verdict"] != "INVALID"
    counted = [results[key] for key in ("num_rows", "num_test_rows", "num_dropped")]
    assert counted == [105, 106, 1]
    assert find(results, "contamination")["status"] == "warning"
    assert rows[0]["id"] not in {row["id"] for row in results["rows"]}
    rewrite_splits(test=rows, train=[*load_rows("train"), {**rows[0], "id": "copied"}])
    assert compare_folders()["verdict"] == "INVALID"  # word for word, a single one is too many


def test_d5_the_run_that_the_weights_come_from_counts_as_training(copy: Path) -> None:
    """Its data is another, and holds all rows that are test rows here."""
    task = Path("task.yaml").read_text().replace("output: prepared", "output: other")
    Path("other.yaml").write_text(f"{task}split: {{seed: 7}}\n")
    recipe = Path("bert.yaml").read_text()
    Path("first.yaml").write_text(recipe.replace("task.yaml", "other.yaml"))
    assert main(["prepare", "other.yaml"]) == 0
    assert main(["train", "first.yaml", "--set", "output_dir=runs/first"]) == 0
    begun = ["--set", "output_dir=runs/begun", "--set", "init_from=runs/first"]
    assert main(["train", "bert.yaml", *begun]) == 0
    results = compare_folders(others="bert: runs/bert/seed-1, begun: runs/begun")
    assert not results["variants"]["begun"]["valid"]
    leak = find(results, "initial_weights", "begun")
    assert "the initial weights of" in leak["message"]
    shutil.rmtree("other")
    results = compare_folders(others="bert: runs/bert/seed-1, begun: runs/begun")
    leak = find(results, "initial_weights", "begun")
    assert leak["status"] == "warning"
    assert "not known" in leak["message"]


def test_d5_a_waiver_of_other_data_does_not_cover_test_rows_in_it(copy: Path) -> None:
    task = Path("task.yaml").read_text().replace("output: prepared", "output: other")
    Path("other.yaml").write_text(f"{task}split: {{seed: 7}}\n")
    Path("more.yaml").write_text(Path("bert.yaml").read_text().replace("task.yaml", "other.yaml"))
    assert main(["prepare", "other.yaml"]) == 0
    assert main(["train", "more.yaml", "--set", "output_dir=runs/more"]) == 0
    waive = {"others": "more: runs/more, prompted: runs/prompted/seed-1",
             "extra": "waive: [{check: same_data, reason: it is the treatment}]"}  # fmt: skip
    results = compare_folders(**waive)
    assert not results["variants"]["more"]["valid"]
    assert find(results, "same_data", "more")["waived"]
    leak = find(results, "contamination", "more")
    assert leak["status"] == "invalid"
    assert "runs/more was trained or selected on" in leak["message"]
    shutil.rmtree("other")
    leak = find(compare_folders(**waive), "contamination", "more")
    assert leak["status"] == "warning"
    assert "not known" in leak["message"]


def test_d5_evaluating_on_training_rows_from_a_file_fails(copy: Path) -> None:
    assert main(["evaluate", "runs/bert/seed-1", "--data", "rows.jsonl"]) == 0
    results = load("runs/bert/seed-1/evaluation/data-rows.json")
    assert [results[k] for k in ("num_rows", "num_test_rows", "num_dropped")] == [6, 60, 54]
    assert results["decision"] == "FAIL"
    assert any("54 of 60 evaluated texts" in f["message"] for f in results["audit"])


def test_d6_a_group_on_both_sides_makes_all_invalid(copy: Path) -> None:
    test, train = load_rows("test"), load_rows("train")
    rewrite_splits(
        test=[{**row, "group": f"act{i}"} for i, row in enumerate(test)],
        train=[{**row, "group": f"act{i + 5}"} for i, row in enumerate(train)],
    )
    results = compare_folders()
    assert results["verdict"] == "INVALID"
    expected = "1 groups of the evaluated rows were trained or selected on, the first: 'act5'"
    assert expected in results["why"]


def test_d6_a_prompt_that_quotes_a_test_row_strikes_out_its_variant(copy: Path) -> None:
    words = load_rows("test")[2]["content"].upper().split()
    example = ", ".join(words[4:18])  # other case, other punctuation
    Path("prompted.md").write_text(f"task : {example} . 7 . {{text}}")
    quoting = ["--set", "output_dir=runs/quoting", "--set", "tokens.max_length=256"]
    assert main(["train", "prompted.yaml", *quoting]) == 0
    results = compare_folders(others="bert: runs/bert/seed-1, quoting: runs/quoting")
    assert not results["variants"]["quoting"]["valid"]
    assert results["variants"]["bert"]["valid"]
    finding = find(results, "few_shot_contamination", "quoting")
    assert finding["message"] == "the prompt of quoting quotes 1 of 6 evaluated texts"


@pytest.mark.parametrize("split", ["train", "val"])
def test_d7_d8_a_split_that_took_part_in_training_never_deploys(copy: Path, split: str) -> None:
    assert main(["evaluate", "runs/bert/seed-1", "--split", split]) == 0
    assert load(f"runs/bert/seed-1/evaluation/{split}.json")["decision"] == "FAIL"


def test_d8_test_reads_are_counted_in_every_report(copy: Path) -> None:
    first = load("reports/risk/comparison.json")
    assert find(first, "test_reads", "bert")["status"] == "ok"
    finding = find(compare_folders(), "test_reads", "bert")
    assert finding["status"] == "note"
    assert "the test rows of bert were read 2 times" in finding["message"]
    path = BERT / "evaluation/test_reads.json"
    log = load(path)
    reads = log["reads"]
    assert [(r["by"], r["report"]) for r in reads] == [
        ("compare", "reports/risk/comparison.json")
    ] * 2
    path.write_text(json.dumps({**log, "reads": reads * 5}))
    assert find(compare_folders(), "test_reads", "bert")["status"] == "warning"


def test_d8_a_broken_count_of_test_reads_is_reported(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for broken in ("{", "{}"):
        (BERT / "evaluation/test_reads.json").write_text(broken)
        assert main(["compare", "suite.yaml"]) == 2
        assert "test_reads.json" in capsys.readouterr().err


def test_d8_a_checkpoint_that_the_test_rows_chose_is_invalid(copy: Path) -> None:
    rewrite_metadata(BERT, lambda m: m.update(best_metric_name="test_mae"))
    results = compare_folders()
    assert not results["variants"]["bert"]["valid"]
    assert "was chosen by test_mae" in find(results, "checkpoint_selection", "bert")["message"]


def test_d9_a_variant_that_answers_with_a_constant_is_excluded(copy: Path) -> None:
    rewrite_predictions(
        PROMPTED,
        score_risk=np.full(6, 5.0, dtype=np.float32),
        score_calm=np.linspace(4.9, 5.1, 6, dtype=np.float32),
    )
    results = compare_folders()
    assert not results["variants"]["prompted"]["valid"]
    finding = find(results, "collapsed_predictions", "prompted")
    assert "the predictions of prompted collapsed (seed 1)" in finding["message"]


def test_d9_a_variant_below_a_baseline_is_warned_of(copy: Path) -> None:
    rewrite_predictions(
        BERT,
        score_risk=np.linspace(90, 10, 6, dtype=np.float32),
        score_calm=np.linspace(10, 90, 6, dtype=np.float32),
    )
    finding = find(compare_folders(), "baselines", "bert")
    assert finding["status"] == "warning"
    assert "baseline constant or tfidf" in finding["message"]


def test_d10_reports_say_what_the_results_file_says(copy: Path) -> None:
    results = compare_folders()
    report = Path("reports/risk/report.md").read_text().replace("\N{MINUS SIGN}", "-")
    for pair in results["pairs"]:
        assert f"{pair['gain']:.3f}" in report
        assert f"{pair['interval'][0]:.3f} to {pair['interval'][1]:.3f}" in report
    for finding in results["audit"]:
        assert finding["message"] in report
    assert results["why"].replace("\N{MINUS SIGN}", "-") in report


def test_d11_a_variant_with_other_test_rows_is_excluded(copy: Path) -> None:
    path = BERT / "predictions/test.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    results = compare_folders()
    assert not results["variants"]["bert"]["valid"]
    assert results["variants"]["prompted"]["valid"]
    assert results["verdict"] != "INVALID"  # two variants are left


def test_d11_shuffled_predictions_are_joined_by_id(copy: Path) -> None:
    before = load("reports/risk/comparison.json")["variants"]["bert"]["metrics"]
    path = BERT / "predictions/test.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(len(table)))[::-1]), path)
    assert compare_folders()["variants"]["bert"]["metrics"] == pytest.approx(before)


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


def test_d12_a_compressed_range_shows_in_slope_and_bias(copy: Path) -> None:
    labels = {row["id"]: row["labels"]["risk"] for row in load_rows("test")}
    ids = pq.read_table(BERT / "predictions/test.parquet")["id"].to_pylist()
    squeezed = np.array([5 + 0.4 * (labels[i] - 5) for i in ids], dtype=np.float32)
    rewrite_predictions(BERT, score_risk=squeezed)
    calibration = compare_folders()["variants"]["bert"]["calibration"]
    assert calibration["risk"]["slope"] == pytest.approx(0.4, abs=1e-4)


def test_d14_six_rows_prove_nothing_however_large_the_gain(copy: Path) -> None:
    labels = {row["id"]: row["labels"] for row in load_rows("test")}
    ids = pq.read_table(BERT / "predictions/test.parquet")["id"].to_pylist()
    scores = {
        f"score_{name}": np.array([labels[i][name] for i in ids], dtype=np.float32)
        for name in ("risk", "calm")
    }
    rewrite_predictions(BERT, **scores)
    results = compare_folders()
    assert results["verdict"] == "UNRESOLVED"
    assert "20 test rows" in results["why"]


def test_a_quick_trial_is_compared_by_the_validation_rows_that_it_saw(copy: Path) -> None:
    for run in find_runs():
        rewrite_metadata(run, lambda m: m["recipe"]["train"].update(limit_rows=4))
    results = compare_folders(others="prompted: runs/prompted/seed-1")
    assert "mean ensemble" in results["ensembles"]
    assert find(results, "trial_run", "plain")["status"] == "warning"


def test_a_variant_whose_model_says_no_number_is_excluded(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    num_rows = len(load_rows("test"))
    rewrite_predictions(PROMPTED, score_risk=np.full(num_rows, np.nan, dtype=np.float32))
    results = compare_folders()
    assert not results["variants"]["prompted"]["valid"]
    assert f"NaN or infinity for {num_rows} of" in find(results, "same_rows")["message"]
    capsys.readouterr()
    assert main(["evaluate", str(PROMPTED)]) == 2
    assert "NaN or infinity" in capsys.readouterr().err


def test_a_winner_that_its_gates_fail_is_not_recommended(copy: Path) -> None:
    rows = add_test_rows(60)
    rewrite_splits(test=rows)
    for path, error in ((PLAIN, 4.0), (PROMPTED, 2.0)):
        assert main(["evaluate", str(path)]) == 0
        signs = [1 if i % 2 else -1 for i in range(len(rows))]
        columns = {
            f"score_{name}": np.array(
                [row["labels"][name] + error * s for row, s in zip(rows, signs, strict=True)],
                dtype=np.float32,
            )
            for name in ("risk", "calm")
        }
        rewrite_predictions(path, **columns)
    Path("two.yaml").write_text(
        f"task: task.yaml\nvariants: {{plain: {PLAIN}, prompted: {PROMPTED}}}\n"
        "reference: plain\nmetric: mae\nmargin: 0.1\noutput_dir: reports/two\n"
    )
    assert main(["compare", "two.yaml"]) == 0
    results = load("reports/two/comparison.json")
    assert [results[key] for key in ("verdict", "winner", "decision", "recommended")] == [
        "WINNER", "prompted", "FAIL", None,
    ]  # fmt: skip
