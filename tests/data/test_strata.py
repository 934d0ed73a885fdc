"""What the labels say of all rows: strata, gaps in the splits, and whether there is a task."""

from typing import Any

import pytest

from llmft.config.task import SourceConfig, Task
from llmft.data.splitting import find_gaps, list_strata, refuse_constant_labels
from llmft.errors import UserError
from tests.data.conftest import SCORES_LABELS, number_rows

CLASSES = {"type": "class", "from": "mood"}
TOPICS = {"type": "multilabel", "from": ["sport", "music", "rare"]}
SCORES = {"type": "scores", "from": "scores", "dimensions": ["risk", "calm"]}


def make_task(labels: dict[str, Any], **settings: Any) -> Task:
    sources = [SourceConfig(path="rows.jsonl")]
    return Task.model_validate(
        {"name": "news", "sources": sources, "labels": labels, "output": "out", **settings}
    )


def make_records(*labels: Any) -> list[dict[str, Any]]:
    return [{"labels": found} for found in labels]


def score(risk: float, calm: float) -> dict[str, float]:
    return {"risk": risk, "calm": calm}


def test_rows_are_stratified_by_class_rarest_label_tier_or_quantile() -> None:
    assert list_strata(make_records("a", "b"), make_task(CLASSES)) == ["a", "b"]
    topics = make_records(
        ["sport", "rare"], ["sport", "music"], ["sport"], ["music"], ["sport"], []
    )
    assert list_strata(topics, make_task(TOPICS)) == [
        "rare",
        "music",
        "sport",
        "music",
        "sport",
        "",
    ]
    scores = make_records(*(score(i, i) for i in range(10)))
    assert list_strata(scores, make_task(SCORES)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    tiers = SCORES | {"tiers": {"low": 0, "high": 7}, "weights": {"risk": 1}}
    assert list_strata(make_records(score(7, 0), score(6, 10)), make_task(tiers)) == [1, 0]


@pytest.mark.parametrize(
    ("labels", "records", "complaint"),
    [
        (CLASSES, make_records("a", "a"), "all 2 usable rows are of the class 'a'"),
        (CLASSES, make_records(*"aaabb"), r"classes with too few rows to be in .*: 'b' \(2\); add"),
        (SCORES, make_records(score(1, 2), score(1, 2)), "all 2 usable rows have the same scores"),
        (TOPICS, make_records(["rare"], ["rare"]), "all 2 usable rows have the same labels"),
        (TOPICS, make_records([], []), "all 2 usable rows have the same labels"),
    ],
)
def test_labels_that_leave_nothing_to_learn_are_refused(
    labels: dict[str, Any], records: list[dict[str, Any]], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        refuse_constant_labels(records, make_task(labels))


@pytest.mark.parametrize("split", [{"stratify": False}, {"by": "day"}])
def test_a_small_class_is_allowed_where_nothing_is_stratified(split: dict[str, Any]) -> None:
    refuse_constant_labels(make_records(*"aaabb"), make_task(CLASSES, split=split))


def test_what_a_split_lacks_is_a_warning() -> None:
    gaps = find_gaps(
        {"train": make_records("a", "b"), "val": make_records("a"), "test": make_records("b", "a")},
        make_task(CLASSES),
    )
    assert gaps == ["val has no row with b"]
    splits = {s: make_records(score(5, 1), score(5, 2)) for s in ("train", "val", "test")}
    assert find_gaps(splits, make_task(SCORES)) == [
        "risk is 5 in every row of train, so it cannot be learned"
    ]
    splits = {s: make_records(["sport"], []) for s in ("train", "val", "test")}
    assert find_gaps(splits, make_task(TOPICS)) == [
        f"{split} has no row with music, rare" for split in ("train", "val", "test")
    ]


def test_a_class_that_train_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"no row of train is of the class b; add rows, leave"):
        find_gaps(
            {"train": make_records("a"), "val": make_records("b"), "test": make_records("a")},
            make_task(CLASSES),
        )


def test_several_labels_go_the_whole_way(prepare) -> None:
    rows = number_rows(60)
    for i, row in enumerate(rows):
        row |= {"sport": i % 2, "music": int(i % 3 == 0), "rare": int(i % 20 == 0)}
    del rows[7]["music"]
    outcome = prepare(
        rows, labels="{type: multilabel, from: [sport, music, rare], map: {rare: chess}}"
    )
    assert outcome.reasons == [(8, "label missing: music")]
    assert outcome.rows["r0"]["labels"] == ["music", "chess"]
    assert outcome.rows["r2"]["labels"] == []
    manifest = outcome.manifest
    assert manifest["label_names"] == ["sport", "music", "chess"]
    assert manifest["split"]["strata"] == "rarest label of the row"
    assert sum(stats.get("chess", 0) for stats in manifest["label_stats"].values()) == 3


def test_ordinal_classes_keep_their_order_and_excluded_ones_are_rejected(prepare) -> None:
    rows = number_rows(60)
    for i, row in enumerate(rows):
        row["mood"] = ["strong", "none", "weak", "unsure"][i % 4]
    labels = "{type: class, from: mood, order: [none, weak, strong], exclude: [unsure]}"
    outcome = prepare(rows, labels=labels)
    assert outcome.manifest["label_names"] == ["none", "weak", "strong"]
    assert outcome.manifest["rejected"] == {"excluded class": 15}


def test_tiers_are_counted_and_equally_frequent(prepare) -> None:
    labels = SCORES_LABELS[:-1] + ", tiers: {low: 0, high: 7}, weights: {risk: 1}}"
    manifest = prepare(number_rows(110), labels=labels).manifest
    tiers = {name: stats["tiers"] for name, stats in manifest["label_stats"].items()}
    assert tiers["train"] == {"low": 56, "high": 32}
    assert abs(tiers["val"]["high"] - 4) <= 1
    assert abs(tiers["test"]["high"] - 4) <= 1
