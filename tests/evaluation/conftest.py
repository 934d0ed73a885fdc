"""Trained runs for every type of labels, which all tests of evaluation share."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmft.cli import main
from tests.conftest import make_recipe_writer

LABELS = {
    "several": "{type: multilabel, from: [crisis, profit]}",
    "ordered": "{type: class, from: mood, order: [bad, good], map: {bad: bad, good: good}}",
    "plain": "{type: class, from: mood}",
    "tiered": "{type: scores, from: score, dimensions: [risk], tiers: {low: 0, high: 5}}",
}
HEADS = {
    "several": "multilabel", "ordered": "binary", "plain": "multiclass", "tiered": "regression",
}  # fmt: skip


def make_row(number: int) -> dict[str, Any]:
    crisis, profit = number % 2, number // 2 % 2
    words = ["crisis"] * crisis * 3 + ["profit"] * profit * 3
    return {
        "id": f"row{number}",
        "text": f"bank loan {' '.join(words)} w{number}",
        "crisis": crisis,
        "profit": profit,
        "mood": "good" if profit else "bad",
        "score": 9 * crisis,
    }


def write_rows(path: str, numbers: range) -> None:
    Path(path).write_text("".join(json.dumps(make_row(i)) + "\n" for i in numbers))


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A working folder with a trained and evaluated run for each type of labels, twice."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_rows("rows.jsonl", range(240))
        write = make_recipe_writer(folder)
        for kind, labels in LABELS.items():
            Path("task.yaml").write_text(
                f"name: {kind}\nsources: [{{path: rows.jsonl}}]\nfields: {{id: id}}\n"
                f"labels: {labels}\nclean: {{near_duplicates: 1.0}}\noutput: prepared/{kind}\n"
            )
            assert main(["prepare", "task.yaml"]) == 0
            write(tiny_bert, name=kind, head=HEADS[kind], train=", metric: loss, limit_rows: 100")
            assert main(["train", f"{kind}.yaml"]) == 0
            assert main(["evaluate", f"runs/{kind}"]) == 0
            shutil.copytree(f"runs/{kind}", f"runs/{kind}-again")
            Path("task.yaml").rename(f"{kind}-task.yaml")
    return folder
