"""D3, D5, D6: rows without labels, and test rows that were trained on."""

import json
import shutil
from pathlib import Path

from llmft.cli import main
from tests.planting import (
    add_test_rows,
    compare_by_command,
    compare_folders,
    find,
    load,
    load_rows,
    rewrite_splits,
)


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
    results = compare_by_command()
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
    leak = find(compare_by_command(**waive), "contamination", "more")
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
