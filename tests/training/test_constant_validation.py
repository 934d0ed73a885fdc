"""Validation rows that all have the same labels choose no checkpoint (D24)."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmft
from tests.training.test_probe import LABELS, make_frame

SAME: dict[str, dict[str, Any]] = {
    "multiclass": {"level": "low"},
    "multilabel": {"weak": 0, "strong": 0},
    "regression": {"risk": 3, "calm": 7},
}


def make_constant(model: Path, head: str, *, tuning: str = "frozen", **train: Any) -> llmft.Recipe:
    """Return a recipe whose rows of val all have the same labels, as one day's may have."""
    frame = make_frame(110)
    val = frame[88:99].assign(**SAME[head])
    parts: list[tuple[Any, pd.DataFrame]] = [
        ("train", frame[:88]), ("val", val), ("test", frame[99:]),
    ]  # fmt: skip
    task = llmft.Task(
        name="days", labels=LABELS[head], output="data", fields={"id": "id"},
        sources=[{"path": rows, "split": split} for split, rows in parts],
    )  # fmt: skip
    llmft.prepare(task)
    return llmft.Recipe(
        name="days", task=task, base={"model": model, "tuning": tuning},
        head={"type": head}, tokens={"max_length": 96, "min_article": 16},
        train={"precision": "float32", **train}, output_dir="runs/days",
    )  # fmt: skip


@pytest.mark.parametrize("head", SAME)
def test_d24_nothing_is_chosen_on_rows_that_tell_nothing(
    head: str, lively_bert: Path, workspace: Path
) -> None:
    recipe = make_constant(lively_bert, head)
    for verb in (llmft.check, llmft.train):
        with pytest.raises(llmft.UserError, match=r"val: all of its 11 rows have the same labels"):
            verb(recipe)
    assert not Path("runs/days/model").exists()


def test_a_recipe_that_chooses_by_the_loss_may(lively_bert: Path, workspace: Path) -> None:
    recipe = make_constant(lively_bert, "multilabel", metric="loss")
    assert llmft.train(recipe).curve.metric == "loss"
    assert not Path("runs/days/fit.json").exists(), "such rows tell nothing of thresholds"


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_d24_a_trial_chooses_by_the_loss_and_says_so(
    tuning: str, lively_bert: Path, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = {"epochs": 1, "batch_size": 8} if tuning == "full" else {}
    recipe = make_constant(lively_bert, "multiclass", tuning=tuning, limit_rows=40, **train)
    with caplog.at_level(logging.INFO, logger="llmft"):
        run = llmft.train(recipe)
    assert "by f1_macro: by the loss instead; raise train.limit_rows" in caplog.text
    assert run.curve.metric == "loss"
    assert run.record.best_metric_name == "val_loss"
    assert run.record.recipe.train.metric is None, "the recipe stays as it is"
    assert llmft.train(recipe).path == run.path
    assert llmft.evaluate(run).metric == "f1_macro"
