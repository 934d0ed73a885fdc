"""What a task file may say."""

import pytest

from llmft.config.task import ClassConfig, load_task
from llmft.errors import UserError
from tests.config.examples import CLASS_TASK, SCORES_TASK


def test_one_text_field_needs_no_list(write) -> None:
    task = load_task(write("task.yaml", CLASS_TASK + "fields: {text: body}\n"))
    assert task.fields.text == ["body"]


def test_numbered_classes_are_text_on_both_sides(write) -> None:
    text = CLASS_TASK.replace("mood}", "mood, map: {0: no, 01: 1, -1: 2.5}}")
    labels = load_task(write("task.yaml", text)).labels
    assert isinstance(labels, ClassConfig)
    assert labels.map == {"0": "no", "01": "1", "-1": "2.5"}


@pytest.mark.parametrize(
    ("found", "instead", "complaint"),
    [
        ("[risk, calm]", "[risk, risk]", "task.yaml:3: labels: dimensions: a name stands twice"),
        ("[risk, calm]", "[]", "labels.dimensions: found [], but"),
        ("[0, 10]", "[10, 0]", "labels: range: the first must be below the second"),
        ("[0, 10]", "[5, 5]", "labels: range: the first must be below the second"),
        ("[0, 10]", "[0]", "labels.range: found [0], but"),
        ("[0, 10]", "[0, .inf]", "labels.range.1: found inf, but input should be a finite number"),
        ("[0, 10]", "[.nan, 1]", "labels.range.0: found nan, but input should be a finite number"),
        ("[0, 10]", "[0, 1e300]", "labels.range.1: found 1e+300, but"),
        ("name: risk", "name: a/b", "task.yaml:1: name: found 'a/b', allowed: letters, digits"),
        ("name: risk", "name: 7", "name: found 7, but input should be a valid string"),
    ],
)
def test_scores_that_make_no_sense(write, found: str, instead: str, complaint: str) -> None:
    assert SCORES_TASK.count(found) == 1
    with pytest.raises(UserError) as caught:
        load_task(write("task.yaml", SCORES_TASK.replace(found, instead)))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("split: {train: 0.9}", "task.yaml:5: split: train + val + test must be 1, found 1.1"),
        ("split: {train: 1.0, val: 0, test: 0}", "split.val: found 0, but"),
        ("split: {train: 1.2, val: -0.1, test: -0.1}", "split.train: found 1.2, but"),
        ("clean: {near_duplicates: 0}", "clean.near_duplicates: found 0, but"),
        ("clean: {near_duplicates: 1.1}", "clean.near_duplicates: found 1.1, but"),
        ("fields: {text: []}", "fields.text: found [], but"),
        ("fields: {text: 5}", "fields.text: found 5, but"),
        ("fields: {text: [title, text]}", "prepared rows hold the joined text under this name"),
        ("fields: {text: labels}", "fields: 'labels' cannot be among them"),
        ("fields: {keep: [labels]}", "fields: 'labels' cannot be among them"),
        ("fields: {id: uid, keep: [id]}", "fields: 'id' cannot be among them"),
        ("fields: {text: body, keep: [text]}", "fields: 'text' cannot be among them"),
        ("fields: {group: group, text: group}", "fields: 'group' cannot be among them"),
    ],
)
def test_sections_that_make_no_sense(write, section: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_task(write("task.yaml", f"{CLASS_TASK}{section}\n"))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "section",
    [
        "split: {train: 0.7, val: 0.2, test: 0.1}",
        "clean: {near_duplicates: 1}",
        "fields: {id: id, text: text, keep: [id, text]}",
        "fields: {group: group, keep: [group]}",
        "fields: {id: text, text: text}",
    ],
)
def test_sections_that_make_sense(write, section: str) -> None:
    assert load_task(write("task.yaml", f"{CLASS_TASK}{section}\n"))
