"""Classes on real texts: given test sets, columns of 0 and 1, groups, another encoding.

Run with `pytest -m real -s`; the figures are printed.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmft.cli import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DATA = Path(os.environ.get("LLMFT_REAL_DATA", ROOT.parent / "shared/data"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "banking77").is_dir(), reason="the data sets are not here"),
]


def train_and_evaluate(recipe: str, run: str, *overrides: str) -> dict[str, Any]:
    """Return the results on test, printed."""
    arguments = [part for o in overrides for part in ("--set", o)]
    assert main(["train", recipe, *arguments]) == 0
    assert main(["evaluate", run]) == 0
    results = json.loads((Path(run) / "evaluation/test.json").read_text())
    for variant, found in {
        "model": results["metrics"],
        **{name: b["metrics"] for name, b in results["baselines"].items()},
    }.items():
        shown = {k: round(v, 3) for k, v in found.items() if isinstance(v, float)}
        print(recipe, variant, shown)
    return results


@pytest.fixture
def home(workspace: Path) -> Path:
    """A working folder with the data, our tasks and recipes."""
    (workspace / "datasets").mkdir()
    (workspace / "datasets" / "hate_speech").symlink_to(DATA / "hate_speech")
    (workspace / "recipes").symlink_to(ROOT / "recipes")
    for path in (DATA / "banking77").iterdir():
        (workspace / path.name).symlink_to(path)
    (workspace / "us_labels.csv").symlink_to(DATA / "fiscal" / "us_labels.csv")
    for path in HERE.glob("*.yaml"):
        shutil.copy(path, workspace)
    return workspace


def test_d5_questions_of_77_intents_with_a_given_test_set(home: Path) -> None:
    assert main(["prepare", "banking77.yaml"]) == 0
    manifest = json.loads(Path("training/banking77/manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["input"] == 13_083
    assert counts["input"] == sum(counts[k] for k in ("train", "val", "test", "rejected"))
    assert 3_000 < counts["test"] <= 3_080
    assert manifest["rejected"]["leak"] > 100
    results = train_and_evaluate("banking77_minilm.yaml", "runs/banking77_minilm")
    assert results["metrics"]["accuracy"] > results["baselines"]["tfidf"]["metrics"]["accuracy"]


def test_tweets_in_latin_1_graded_by_columns(home: Path) -> None:
    assert main(["prepare", "recipes/tasks/hate_speech_jv.yaml"]) == 0
    results = train_and_evaluate(
        "recipes/hate_speech_jv.yaml", "runs/hate", "base.model=builtin:minilm", "train.epochs=3",
        "train.learning_rate=1e-4", "output_dir=runs/hate",
    )  # fmt: skip
    assert results["label_names"] == ["none", "weak", "moderate", "strong"]
    assert results["metrics"]["f1_macro"] > 0.6


def test_d6_passages_of_an_act_are_never_in_two_splits(home: Path) -> None:
    assert main(["prepare", "fiscal_exogeneity.yaml"]) == 0
    acts = {
        split: {
            json.loads(line)["group"]
            for line in Path(f"training/fiscal_exogeneity/{split}.jsonl").read_text().splitlines()
        }
        for split in ("train", "val", "test")
    }
    assert not acts["train"] & acts["test"]
    assert not acts["val"] & (acts["train"] | acts["test"])
    results = train_and_evaluate("fiscal_exogeneity_minilm.yaml", "runs/fiscal_exogeneity_minilm")
    assert results["metrics"]["roc_auc"] > 0.5
