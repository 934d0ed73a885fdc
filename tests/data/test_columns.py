"""What the columns of other people's tables are taken for, and what is asked instead of guessed."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from llmft.data.columns import GuessedTask, guess_task
from llmft.errors import UserError
from tests.conftest import WORDS

Make = Callable[[int], Any]
MOODS = ["bad", "good", "fine"]
GENERATOR = random.Random(7)
TEXTS = [" ".join(GENERATOR.choices(WORDS, k=12)) for _ in range(100)]


def make_rows(columns: dict[str, Make], *, num_rows: int = 100) -> list[dict[str, Any]]:
    return [{name: make(i) for name, make in columns.items()} for i in range(num_rows)]


def write_text(number: int) -> str:
    return f"{TEXTS[number]} w{number}"


def name_mood(number: int) -> str:
    return MOODS[number % 3]


def guess(columns: dict[str, Make], **chosen: list[str]) -> GuessedTask:
    chosen = {"label": [], "text": [], **chosen}
    return guess_task(make_rows(columns), where="table.csv", **chosen)


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        ({"mood": name_mood}, {"type": "class", "from": "mood"}),
        ({"column_2": lambda i: i % 3}, {"type": "class", "from": "column_2"}),
        ({"Kategorie": name_mood}, {"type": "class", "from": "Kategorie"}),
        ({"is_sad": lambda i: i % 2}, {"type": "class", "from": "is_sad"}),
        ({"sad": lambda i: i % 2 == 0}, {"type": "class", "from": "sad"}),
        ({"intent": lambda i: i % 9}, {"type": "class", "from": "intent"}),
        ({"rating": lambda i: 1 + i % 5},
         {"type": "scores", "dimensions": ["rating"], "range": [1, 5]}),
        ({"x": lambda i: i % 11}, {"type": "scores", "dimensions": ["x"], "range": [0, 10]}),
        ({"risk": lambda i: i / 10, "calm": lambda i: str(9 - i / 20)},
         {"type": "scores", "dimensions": ["risk", "calm"], "range": [0, 10]}),
        ({"a": lambda i: i % 2, "b": lambda i: i // 2 % 2},
         {"type": "multilabel", "from": ["a", "b"]}),
        ({"a": lambda i: int(i % 3 == 0), "b": lambda i: int(i % 3 == 1)},
         {"type": "class", "from": ["a", "b"], "otherwise": "none"}),
        ({"a": lambda i: int(i % 2 == 0), "b": lambda i: int(i % 2 == 1)},
         {"type": "class", "from": ["a", "b"]}),
        ({"emotions": lambda i: MOODS[: i % 3]}, {"type": "multilabel", "from": "emotions"}),
        ({"emotions": lambda i: str(MOODS[: i % 3])}, {"type": "multilabel", "from": "emotions"}),
        ({"oracle": lambda i: {"risk": i % 11, "calm": {"score": 4}}},
         {"type": "scores", "from": "oracle", "dimensions": ["risk", "calm"], "range": [0, 10]}),
        ({"mood": lambda i: "odd" if i == 0 else name_mood(i)},
         {"type": "class", "from": "mood", "exclude": ["odd"]}),
    ],
)  # fmt: skip
def test_labels_are_known_by_their_values(columns: dict[str, Make], labels: dict[str, Any]) -> None:
    found = guess({"body": write_text, **columns})
    assert found.labels == labels
    assert found.text == ["body"]


def test_id_group_date_and_the_rest_are_told_apart() -> None:
    found = guess(
        {
            "row": lambda i: f"r-{i}",
            "headline": lambda i: f"News of the day {i}",
            "body": write_text,
            "user": lambda i: f"u{i % 40}",
            "day": lambda i: f"2024-{1 + i % 12:02}-{1 + i % 28:02}",
            "lang": lambda i: "en" if i % 9 else "jv",
            "url": lambda i: f"https://example.org/{i}",
            "mood": name_mood,
        }
    )
    assert (found.id, found.group, found.date) == ("row", "user", "day")
    assert found.text == ["headline", "body"]
    assert found.roles["lang"][0] == found.roles["url"][0] == "unused"
    assert next(iter(found.roles)) == "row"
    assert found.roles["mood"] == ("label", "3 classes: bad 34, good 33, fine 33")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("customer_id", lambda i: i % 4),
        ("id", lambda i: i % 3),
        ("year", lambda i: 2020 + i % 4),
        ("quarter", lambda i: f"2024-Q{1 + i % 4}"),
        ("date", lambda i: f"2024-0{1 + i % 4}-01"),
        ("signed", lambda i: f"0{1 + i % 4}-02-2024"),
        ("Unnamed: 0", lambda i: i),
        ("word_count", lambda i: 3 + i % 8),
        ("constant", lambda i: "yes"),
        ("nothing", lambda i: None),
        ("rationale", write_text),
        ("label_id", lambda i: i % 3),
    ],
)
def test_a_column_that_misleads_is_not_taken_for_the_label(name: str, make: Make) -> None:
    found = guess({"body": write_text, "mood": name_mood, name: make})
    assert found.labels == {"type": "class", "from": "mood"}
    assert found.text == ["body"]
    assert found.roles[name][0] in ("unused", "date", "id")


def test_a_column_named_label_is_the_label() -> None:
    columns = {"body": write_text, "mood": name_mood, "label": lambda i: i % 2}
    assert guess(columns).labels["from"] == "label"


def test_two_possible_labels_are_a_question() -> None:
    columns: dict[str, Make] = {
        "body": write_text, "mood": name_mood, "the topic": lambda i: "ab"[i % 2],
    }  # fmt: skip
    with pytest.raises(UserError) as raised:
        guess(columns)
    assert str(raised.value) == (
        "table.csv: 2 columns may be the label; choose one:\n"
        "  --label mood   3 classes: bad 34, good 33, fine 33\n"
        "  --label 'the topic'   2 classes: a 50, b 50"
    )
    chosen = guess(columns, label=["the topic"])
    assert chosen.labels["from"] == "the topic"
    assert chosen.roles["mood"][0] == "unused"


@pytest.mark.parametrize(
    ("chosen", "columns", "message"),
    [
        ({}, {"body": write_text}, "no column looks like labels"),
        ({}, {"mood": name_mood}, "no column looks like free text; name it with --text"),
        ({"label": ["moood"]}, {"mood": name_mood}, "has no column 'moood'; choose among mood"),
        ({"label": ["body"]}, {"body": write_text},
         "--label body: holds 100 different values in 100 rows, free text or ids, which cannot be"),
        ({"label": ["empty"]}, {"empty": lambda i: ""}, "--label empty: holds nothing"),
        ({"label": ["day"]}, {"day": lambda i: f"{1900 + i}-01-01"}, "--label day: holds dates"),
        ({"label": ["mood", "risk"]}, {"mood": name_mood, "risk": lambda i: i % 11},
         "several columns have to hold numbers, or 0 and 1; mood does not"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_says_how_to_go_on(
    chosen: dict[str, list[str]], columns: dict[str, Make], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        guess(columns, **chosen)
    assert str(raised.value).startswith("table.csv: ")
    assert message in str(raised.value)


def test_a_label_that_leaks_into_the_text_is_told() -> None:
    found = guess({"body": lambda i: f"[{name_mood(i)}] {write_text(i)}", "mood": name_mood})
    assert found.warnings == [
        "body names the row's own class in 100% of the rows: the label leaks into the text, and a "
        "model that only copies it looks perfect"
    ]
    by_chance = guess({"body": lambda i: f"bad good fine {write_text(i)}", "mood": name_mood})
    assert by_chance.warnings == []


@pytest.mark.parametrize(
    ("columns", "label", "from_"),
    [
        ({"Class Index": lambda i: 1 + i % 4}, [], "Class Index"),
        ({"label_id": lambda i: i % 6}, ["label_id"], "label_id"),
        ({"label": lambda i: i // 5}, [], "label"),
        ({"decade": lambda i: 1950 + 10 * (i % 3)}, ["decade"], "decade"),
        ({"quarter": lambda i: f"2023-Q{1 + i % 4}"}, ["quarter"], "quarter"),
        ({"label": lambda i: "ab"[i % 2], "oracle": lambda i: {"likes": i % 9}}, [], "label"),
        ({"mood": name_mood, "meta": lambda i: {"model": "x", "dimensions": 768}}, [], "mood"),
        ({"mood": name_mood, "spans": lambda i: "[('joy', [0, 5])]"}, [], "mood"),
        ({"mood": name_mood, "sets": lambda i: "[{1, 2}]"}, [], "mood"),
        ({"joys": lambda i: ["joy, fear", "joy", "fear, awe"][i % 3]}, [], "joys"),
        ({"评论": lambda i: "好坏"[i % 2]}, [], "评论"),
    ],
)
def test_tables_that_were_misread(columns: dict[str, Make], label: list[str], from_: str) -> None:
    assert guess({"body": write_text, **columns}, label=label).labels["from"] == from_


def test_text_that_repeats_is_read_and_keeps_its_rows_in_one_split() -> None:
    columns = {
        "premise": lambda i: write_text(i // 3),
        "hypothesis": write_text,
        "label": name_mood,
    }
    for chosen in ([], ["premise", "hypothesis"]):
        found = guess(columns, text=chosen)
        assert (found.text, found.group) == (["premise", "hypothesis"], "premise")
        assert "34 different ones, so it is the group too" in found.roles["premise"][1]


def test_text_is_text_whatever_its_name() -> None:
    columns = {"prompt": write_text, "model_response": lambda i: write_text(99 - i)}
    assert guess({**columns, "score": lambda i: i % 11}).text == ["prompt", "model_response"]
    chinese = guess({"评论": lambda i: f"很好的产品{i}", "label": name_mood})
    assert chinese.text == ["评论"]


def test_a_column_named_text_is_not_joined_with_others() -> None:
    columns = {"title": lambda i: f"A title of {i}", "text": write_text, "label": name_mood}
    found = guess(columns)
    assert (found.text, found.roles["title"][0]) == (["text"], "unused")
    assert "rename `text` in the file to join them" in found.roles["title"][1]
    with pytest.raises(UserError, match="cannot be joined with others"):
        guess(columns, text=["title", "text"])


def test_a_title_alone_and_a_text_named_twice_are_fine() -> None:
    found = guess({"title": write_text, "label": name_mood}, text=["title", "title"])
    assert found.text == ["title"]


def test_placeholders_stand_for_no_label() -> None:
    rating = guess({"body": write_text, "rating": lambda i: "N/A" if i < 20 else str(1 + i % 5)})
    assert rating.labels == {"type": "scores", "dimensions": ["rating"], "range": [1, 5]}
    assert rating.placeholders == {"rating": ["N/A"]}
    mood = guess({"body": write_text, "mood": lambda i: "?" if i < 20 else name_mood(i)})
    assert (mood.num_classes, mood.placeholders) == (3, {"mood": ["?"]})


@pytest.mark.parametrize("num_codes", [5, 20])
def test_codes_from_0_under_the_name_of_a_label_are_classes(num_codes: int) -> None:
    found = guess({"body": write_text, "label": lambda i: i % num_codes})
    assert found.labels["type"] == "class"


def test_too_little_to_train_on_is_told_before_anything_is_written() -> None:
    with pytest.raises(UserError, match="has 12 rows, too few"):
        guess_task(make_rows({"body": write_text, "mood": name_mood}, num_rows=12), where="t")
    with pytest.raises(UserError, match="add rows until two classes have 5 or more"):
        guess({"body": write_text, "mood": lambda i: "neg" if i == 0 else "pos"})


def test_a_few_large_groups_are_none() -> None:
    columns = {"body": write_text, "mood": name_mood, "document": lambda i: f"d{i % 10}"}
    assert guess(columns).group is None


def test_rows_without_a_label_are_left_out_by_a_filter() -> None:
    few = guess({"body": write_text, "mood": lambda i: None if i < 3 else name_mood(i)})
    many = guess({"body": write_text, "mood": lambda i: None if i < 30 else name_mood(i)})
    assert (few.incomplete, many.incomplete) == ([], ["mood"])
