"""The sample: its articles and the files that go with them."""

import json
from collections import Counter
from importlib import resources
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest

from llmft.sample.articles import DIMENSIONS, make_articles

FILES = Path(str(resources.files("llmft.sample").joinpath("files")))
SCORES = "market_news_analysis"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return make_articles()


def find_fault(row: dict[str, Any]) -> str | None:
    if not row["title"] and not row["content"]:
        return "empty"
    for name in DIMENSIONS:
        score = row[SCORES].get(name)
        if score is None:
            return "missing"
        if not isinstance(score, int):
            return "not a number"
        if not 0 <= score <= 10:
            return "out of range"
    return None


def test_same_seed_gives_same_bytes(rows: list[dict[str, Any]]) -> None:
    assert json.dumps(make_articles()) == json.dumps(rows)
    assert json.dumps(make_articles(seed=8)) != json.dumps(rows)


def test_planted_rows_come_on_top(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 430
    assert len({row["id"] for row in rows}) == 430
    faults = Counter(fault for row in rows if (fault := find_fault(row)))
    assert faults == {"empty": 1, "missing": 1, "not a number": 1, "out of range": 1}


def test_only_planted_rows_repeat_others(rows: list[dict[str, Any]]) -> None:
    bags = [Counter(f"{row['title']} {row['content']}".lower().split()) for row in rows]
    words = sorted(set().union(*bags))
    counts_NW = np.array([[bag[word] for word in words] for bag in bags])
    alike: list[float] = []
    for number, counts_W in enumerate(counts_NW[1:], start=1):
        others = counts_NW[:number]
        shared = np.minimum(counts_W, others).sum(axis=1)
        alike += (shared / np.maximum(counts_W, others).sum(axis=1)).tolist()
    high = sorted(similarity for similarity in alike if similarity > 0.7)
    assert len(high) == 6
    assert 0.9 < high[0] <= high[2] < 1
    assert high[3:] == [1.0, 1.0, 1.0]


def test_contents_are_short_news(rows: list[dict[str, Any]]) -> None:
    lengths = [len(row["content"].split()) for row in rows if row["content"]]
    assert min(lengths) >= 40
    assert max(lengths) <= 90
    assert 55 <= fmean(lengths) <= 67
    assert not any(mark in row["title"] + row["content"] for row in rows for mark in "[]{}|")


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_scores_are_spread(rows: list[dict[str, Any]], dimension: str) -> None:
    scores = [row[SCORES][dimension] for row in rows if find_fault(row) is None]
    assert set(scores) == set(range(11))
    middle = median(scores)
    assert fmean(abs(score - middle) for score in scores) > 1.9


def test_too_few_articles_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        make_articles(num_articles=9)
    assert len(make_articles(num_articles=10)) == 20


def test_every_file_is_there() -> None:
    found = {str(path.relative_to(FILES)) for path in FILES.rglob("*") if path.is_file()}
    assert found == {
        "README.md",
        "eval/cases/market_news.jsonl",
        "eval/market_news.yaml",
        "recipes/market_news_distill.yaml",
        "recipes/market_news_instruct.yaml",
        "recipes/market_news_minilm.yaml",
        "recipes/prompts/market_news.md",
        "recipes/tasks/market_news.yaml",
    }


def test_prompt_holds_each_placeholder_once() -> None:
    prompt = (FILES / "recipes/prompts/market_news.md").read_text(encoding="utf-8")
    assert prompt.count("Title: {title}\n{content}\n") == 1
    example = prompt.strip().splitlines()[-1]
    assert list(json.loads(example)) == list(DIMENSIONS)


def test_edge_cases_expect_known_dimensions() -> None:
    lines = (FILES / "eval/cases/market_news.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    assert len({case["id"] for case in cases}) == len(cases) == 8
    assert any(case["must_pass"] for case in cases)
    for case in cases:
        assert set(case["expect"]) <= set(DIMENSIONS)
        assert all(0 <= span["min"] < span["max"] <= 10 for span in case["expect"].values())
