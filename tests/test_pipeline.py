"""The spine, as a user walks it: prepare, check, train, evaluate, compare, predict."""

import json
from pathlib import Path

import pandas as pd

from llmft.cli import main


def test_whole_way(write_scores_task, write_recipe, tiny_bert, tiny_qwen, workspace: Path) -> None:
    task = write_scores_task()
    assert main(["prepare", str(task)]) == 0
    plain = write_recipe(tiny_bert, name="bert")
    qwen = write_recipe(tiny_qwen, name="qwen", tuning="lora", prompt="task : {text} .")
    for recipe in (plain, qwen):
        assert main(["check", str(recipe)]) == 0
        assert main(["train", str(recipe)]) == 0
    assert main(["evaluate", "runs/bert"]) == 0
    (workspace / "suite.yaml").write_text(
        "task: task.yaml\nvariants: {bert: runs/bert, qwen: [runs/qwen]}\n"
        "reference: bert\nmetric: mae\nmargin: 0.1\noutput_dir: reports/risk\n"
    )
    assert main(["compare", "suite.yaml"]) == 0
    results = json.loads((workspace / "reports/risk/comparison.json").read_text())
    assert results["verdict"] in ("WINNER", "REFERENCE_HOLDS", "UNRESOLVED")
    assert main(["predict", "runs/qwen", "--input", "rows.jsonl", "--output", "out.parquet"]) == 0
    assert list(pd.read_parquet("out.parquet")["id"]) == [f"row{i}" for i in range(60)]
