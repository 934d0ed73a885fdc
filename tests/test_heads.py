"""Every head walked the whole way through the verbs, on data as its users bring it."""

import csv
import json
import random
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest

from llmft.cli import main
from llmft.config.head import LOSSES, SELECTION_METRIC, Head
from tests.conftest import make_text

PARTS = {"regression": "per_dimension"}


def load(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def make_rows(num_rows: int = 240) -> list[dict[str, Any]]:
    """Rows whose mood word tells everything that is to be learned."""
    generator = random.Random(3)
    rows = []
    for i in range(num_rows):
        mood = i % 11
        rows.append(
            {
                "id": f"row{i}",
                "text": make_text(generator, mood=f"mood{mood}", num_words=12),
                "motive": make_text(generator, mood=f"mood{mood}", num_words=2),
                "scores": {"risk": mood, "calm": 10 - mood},
                "side": "up" if mood > 5 else "down",
                "weak": int(3 < mood < 8),
                "strong": int(mood >= 8),
                "odd": mood % 2,
                "trust": 1 + mood % 2,
                "year": 2000 + i // 10,
                "noise": "é",
            }
        )
    return rows


LABELS = {
    "regression": "{type: scores, from: scores, dimensions: [risk, calm], "
    "weights: {risk: 1}, tiers: {low: 0, middle: 4, high: 8}}",
    "binary": "{type: class, from: side, map: {up: rise, down: fall}, order: [fall, rise]}",
    "multiclass": "{type: class, from: [weak, strong], otherwise: none, "
    "order: [none, weak, strong]}",
    "multilabel": "{type: multilabel, from: [weak, strong, odd], map: {odd: uneven}}",
}
EXTRA = {
    "regression": "loss: {name: huber, dimension_weights: {risk: 2}, row_weights: trust}",
    "binary": "loss: {positive_weights: balanced}",
    "multiclass": "loss: {name: focal, class_weights: balanced}",
    "multilabel": "loss: {positive_weights: [1, 2, 1]}",
}
TASK = {
    "regression": "fields: {id: id, keep: [trust]}\nsplit: {by: year}\n",
    "binary": "fields: {id: id, text_pair: motive}\n",
    "multiclass": "fields: {id: id}\nbalance: {reduce_majority_to: 1, oversample: 0.9}\n",
    "multilabel": "fields: {id: id}\nfilters: [{field: year, min: 2001}]\n",
}
METRICS = {
    "regression": {"mae", "overall_mae", "tier_accuracy", "skill"},
    "binary": {"accuracy", "balanced_accuracy", "f1_macro", "roc_auc", "average_precision"},
    "multiclass": {"f1_macro", "quadratic_kappa", "roc_auc"},
    "multilabel": {"f1_micro", "f1_macro", "hamming_loss", "accuracy", "roc_auc"},
}
DECIDING = {"regression": "mae", "multilabel": "f1_micro"}
EXPECTED = {
    "regression": {"risk": {"min": -99}},
    "binary": {"label": "rise"},
    "multiclass": {"label": "strong"},
    "multilabel": {"labels": ["strong"]},
}


def test_no_head_is_left_out() -> None:
    assert set(LABELS) == set(get_args(Head)) == set(SELECTION_METRIC) == set(LOSSES)


@pytest.fixture(params=list(LABELS))
def head(request: pytest.FixtureRequest, workspace: Path, tiny_bert: Path) -> str:
    """Write data, task, recipe and suite for a head into the working folder."""
    name: str = request.param
    rows = make_rows()
    if name == "regression":
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = "path: rows.jsonl"
    elif name == "multilabel":
        pd.DataFrame(rows).drop(columns="scores").to_parquet("rows.parquet")
        source = "path: rows.parquet"
    else:
        with Path("rows.csv").open("w", newline="", encoding="latin-1") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        source = "path: rows.csv, encoding: latin-1"
    Path("task.yaml").write_text(
        f"name: {name}\nsources: [{{{source}}}]\n{TASK[name]}labels: {LABELS[name]}\n"
        "output: prepared\n"
    )
    Path("variant.yaml").write_text(
        f"name: variant\ntask: task.yaml\nbase: {{model: {tiny_bert}}}\n"
        f"head: {{type: {name}, {EXTRA[name]}}}\ntokens: {{max_length: 64}}\n"
        "train: {epochs: 6, batch_size: 16, learning_rate: 3e-3, precision: float32}\n"
        "output_dir: runs/variant\n"
    )
    Path("suite.yaml").write_text(
        "task: task.yaml\nvariants:\n  long: {recipe: variant.yaml, seeds: [1]}\n"
        "  short: {recipe: short.yaml, seeds: [1]}\nreference: short\n"
        f"metric: {DECIDING.get(name, 'f1_macro')}\nmargin: 0.01\nedge_cases: cases.jsonl\n"
        "waive: [{check: collapsed_predictions, reason: 20 rows teach little}]\n"
        "output_dir: reports\n"
    )
    Path("short.yaml").write_text(
        "extends: variant.yaml\nname: short\ntrain: {limit_rows: 20}\noutput_dir: runs/short\n"
    )
    case = {"id": "c1", "text": "market mood9 mood9", "motive": "mood9", "expect": EXPECTED[name]}
    Path("cases.jsonl").write_text(json.dumps(case) + "\n")
    return name


def test_a_head_goes_the_whole_way(head: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "task.yaml"]) == 0
    assert main(["check", "variant.yaml", "--show", "0"]) == 0
    assert main(["train", "variant.yaml"]) == 0
    assert main(["evaluate", "runs/variant"]) == 0
    found = load("runs/variant/evaluation/test.json")
    assert METRICS[head] <= set(found["metrics"])
    assert METRICS[head] <= set(found["intervals"])
    main_metric = DECIDING.get(head, "f1_macro")
    better = -1 if head == "regression" else 1
    gain = found["metrics"][main_metric] - found["baselines"]["constant"]["metrics"][main_metric]
    assert better * gain > 0, "it learned something"
    assert set(found[PARTS.get(head, "per_class")]) == set(found["label_names"])
    assert Path("runs/variant/evaluation/report.html").is_file()

    assert main(["compare", "suite.yaml", "--train"]) == 0
    comparison = load("reports/comparison.json")
    assert comparison["verdict"] == "CONFOUNDED"
    assert "limit_rows" in comparison["why"]
    trials = [f for f in comparison["audit"] if f["check"] == "trial_run"]
    assert [f["variants"] for f in trials] == [["short"]]
    assert "20 rows" in Path("reports/report.md").read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_predict_gives_the_columns_of_the_head(head: str) -> None:
    assert main(["prepare", "task.yaml"]) == 0
    assert main(["train", "variant.yaml", "--set", "train.steps=2"]) == 0
    articles = [{"text": "market mood9", "motive": "mood9"}, {"text": "bank", "motive": "mood1"}]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in articles))
    expected = {
        "regression": ["prediction", "tier", "score_risk", "score_calm"],
        "binary": ["prediction", "prob_fall", "prob_rise"],
        "multiclass": ["prediction", "prob_none", "prob_weak", "prob_strong"],
        "multilabel": ["prediction", "prob_weak", "prob_strong", "prob_uneven"],
    }[head]
    for ending, read in (
        ("jsonl", lambda path: pd.read_json(path, lines=True)),
        ("csv", pd.read_csv),
        ("parquet", pd.read_parquet),
    ):
        arguments = ["--input", "new.jsonl", "--output", f"out.{ending}"]
        assert main(["predict", "runs/variant", *arguments]) == 0
        columns = read(f"out.{ending}").columns
        assert [name for name in columns if name not in ("text", "motive")] == expected, ending
