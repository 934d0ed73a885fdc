"""The comparison that this project began with, made small (D1).

A long prompt stood before each article, the limit cut the articles away, and the variant that had
seen none was reported to lose by 52.6 %. The same data with room for both is a comparison.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from llmft.cli import main
from tests.conftest import WORDS, make_recipe_writer, make_task_writer

NUM_PROMPT_WORDS = 60
NUM_PROMPT_TOKENS = 62
PROMPT = " ".join(WORDS[i % len(WORDS)] for i in range(NUM_PROMPT_WORDS)) + " : {text}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_qwen: Path) -> Path:
    """A folder with a task, three recipes and two suites."""
    folder = tmp_path_factory.mktemp("mistake")
    make_task_writer(folder)(num_rows=200)
    write = make_recipe_writer(folder)
    write(tiny_qwen, name="distillation")
    write(tiny_qwen, name="cut", prompt=PROMPT)
    write(tiny_qwen, name="fair", prompt=PROMPT)
    for name, tokens in (
        ("distillation", "{max_length: 256, min_article: 16}"),
        ("cut", f"{{max_length: {NUM_PROMPT_TOKENS + 8}, min_article: 1, waive: an old habit}}"),
        ("fair", "{max_length: 256, min_article: 16}"),
    ):
        path = folder / f"{name}.yaml"
        text = path.read_text().replace("{max_length: 96, min_article: 16}", tokens)
        path.write_text(text.replace("1e-3", "3e-3").replace("epochs: 2", "epochs: 4"))
        (folder / f"{name}-suite.yaml").write_text(
            "task: task.yaml\nvariants:\n"
            "  distillation: {recipe: distillation.yaml, seeds: [1]}\n"
            f"  instruction: {{recipe: {name}.yaml, seeds: [1]}}\n"
            "reference: distillation\nmetric: mae\nmargin: 0.1\n"
            f"output_dir: reports/{name}\n"
        )
    return folder


def compare(home: Path, name: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["compare", f"{name}-suite.yaml", "--train"]) == 0
    results: dict[str, Any] = json.loads((home / f"reports/{name}/comparison.json").read_text())
    return results


def test_d1_a_variant_that_saw_no_articles_makes_the_comparison_invalid(home: Path) -> None:
    results = compare(home, "cut")
    assert results["verdict"] == "INVALID"
    assert results["winner"] is None
    assert results["pairs"] == []
    invalid = [f for f in results["audit"] if f["status"] == "invalid"]
    assert {f["check"] for f in invalid} >= {"truncation"}
    assert "instruction" in results["why"]
    assert "article" in results["why"]
    page = (home / "reports/cut/report.html").read_text()
    assert "INVALID" in page
    assert "an old habit" in page  # the reason that was given for the limit


def test_d1_with_room_for_both_there_is_a_verdict(home: Path) -> None:
    results = compare(home, "fair")
    assert results["verdict"] in ("WINNER", "REFERENCE_HOLDS", "UNRESOLVED")
    assert results["variants"]["instruction"]["valid"]
    assert results["pairs"][0]["interval"][0] <= results["pairs"][0]["gain"]
    kept = [f for f in results["audit"] if f["check"] == "truncation"]
    assert kept and all(f["status"] in ("ok", "note") for f in kept)
