"""What oracles say a second time: joined by id, with intervals, next to the variants (D11, D13)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmft.config.task import Task
from llmft.data.batches import make_targets
from llmft.data.reading import read_labelled
from llmft.errors import UserError
from llmft.evaluation.noise import SecondLabels, measure_noise, read_second_labels
from llmft.results.comparison import NoiseResult

SCORES = {"type": "scores", "from": "scores", "dimensions": ["a", "b"]}
CLASSES = {"type": "class", "from": "topic"}
NAMES = ["a", "b"]


def make_task(labels: dict[str, Any] = SCORES, **changes: Any) -> Task:
    return Task.model_validate(
        {"name": "t", "sources": [{"path": "first.jsonl"}], "fields": {"id": "id"},
         "labels": labels, "output": "prepared", **changes}
    )  # fmt: skip


def make_row(number: int, a: float = 0, b: float = 0, **changes: Any) -> dict[str, Any]:
    row = {"id": f"r{number}", "text": f"text {number}", "scores": {"a": a, "b": b}, "topic": "x"}
    return {**row, **changes}


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    path = Path(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def in_workspace(workspace: Path) -> None:
    """All files are relative to an empty folder."""


def read(
    second: list[dict[str, Any]], first: list[dict[str, Any]], task: Task, names: list[str]
) -> tuple[SecondLabels, np.ndarray]:
    write("first.jsonl", first)
    rows, _ = read_labelled(task)
    path = write("second.jsonl", second)
    return (
        read_second_labels(path, task=task, rows=rows, names=names),
        make_targets(rows, label_names=names).numpy(),
    )


def test_d11_second_scores_are_joined_by_id_whatever_their_order() -> None:
    first = [make_row(i, a=i, b=2) for i in range(6)]
    second = [make_row(i, a=i + 1, b=5) for i in (4, 1, 9, 2)]  # 9 is in no test
    found, labels = read(second, first, make_task(), NAMES)
    assert found.positions_M.tolist() == [1, 2, 4]
    assert found.labels.tolist() == [[2, 5], [3, 5], [5, 5]]
    assert found.num_left_out == 1
    variants = {"variant": [labels + 1, labels + 3], "other": [labels * 0]}
    noise = measure_noise(
        found, labels, variants, kind="repeated", path=Path("s.jsonl"), names=NAMES
    )
    assert (noise.kind, noise.file, noise.num_rows) == ("repeated", "s.jsonl", 3)
    assert noise.oracle.value == pytest.approx((1 + 3) / 2)
    assert noise.parts["a"].value == pytest.approx(1)
    assert noise.parts["b"].value == pytest.approx(3)
    assert noise.variants["variant"].value == pytest.approx(2)  # nothing is subtracted
    assert noise.variants["other"].value == pytest.approx((1 + 2 + 4 + 6) / 6)  # the same 3 rows
    assert noise.metric == "mae"


def test_d13_the_interval_is_wide_on_few_rows() -> None:
    generator = np.random.default_rng(0)

    def measure(num_rows: int) -> NoiseResult:
        labels = generator.uniform(2, 8, size=(num_rows, 2))
        second = labels + generator.normal(size=labels.shape)
        joined = SecondLabels(np.arange(num_rows), second, 0)
        return measure_noise(joined, labels, {}, kind="repeated", path=Path("x"), names=NAMES)

    few, many = measure(5), measure(500)
    assert (few.num_rows, many.num_rows) == (5, 500)
    width = {n.num_rows: n.oracle.interval.high - n.oracle.interval.low for n in (few, many)}
    assert width[5] > 4 * width[500]
    # The mean of |N(0, 1)| is sqrt(2 / pi), its variance 1 - 2 / pi; two of them make a row.
    assert many.oracle.value == pytest.approx(np.sqrt(2 / np.pi), abs=0.06)
    half = 1.96 * np.sqrt((1 - 2 / np.pi) / 2 / 500)
    assert width[500] == pytest.approx(2 * half, rel=0.15)
    assert measure(1).oracle.interval is None


def test_rows_without_a_field_for_the_id_are_joined_by_their_text() -> None:
    task = make_task(fields={"text": ["text"]})
    first = [make_row(i, a=i) for i in range(4)]
    second = [make_row(3, a=9, id="unlike"), make_row(0, a=1, id="unlike")]
    found, _ = read(second, first, task, NAMES)
    assert found.positions_M.tolist() == [0, 3]
    assert found.labels[:, 0].tolist() == [1, 9]


def test_rows_that_cannot_be_used_are_counted() -> None:
    first = [make_row(i) for i in range(4)]
    second = [
        make_row(0),
        make_row(1, text="another article"),
        make_row(2, scores={"a": 3}),  # b is missing (D3)
        make_row(0, a=5),  # a repeat; the first stays
    ]
    found, _ = read(second, first, make_task(), NAMES)
    assert (found.positions_M.tolist(), found.num_left_out) == ([0], 3)
    assert found.labels.tolist() == [[0, 0]]


def test_the_filters_of_the_task_do_not_choose_what_the_oracle_said() -> None:
    task = make_task(filters=[{"field": "sure", "min": 0.7}])
    first = [make_row(i, sure=0.9) for i in range(3)]
    found, _ = read([make_row(0, sure=0.1), make_row(1)], first, task, NAMES)
    assert found.positions_M.tolist() == [0, 1]


def test_of_classes_it_is_the_share_of_rows_that_differ() -> None:
    first = [make_row(i, topic="xyz"[i % 3]) for i in range(12)]
    second = [make_row(i, topic="x" if i == 1 else "xyz"[i % 3]) for i in range(10)]
    second.append(make_row(10, topic="unheard of"))
    found, labels = read(second, first, make_task(CLASSES), list("xyz"))
    assert found.num_left_out == 1
    variants = {"variant": [np.eye(3)[[0] * 12]]}
    noise = measure_noise(found, labels, variants, kind="second_oracle", path=Path("f"),
                          names=list("xyz"))  # fmt: skip
    assert (noise.metric, noise.parts) == ("disagreement", {})
    assert noise.oracle.value == pytest.approx(0.1)
    # Clopper and Pearson of 1 in 10
    assert noise.oracle.interval == pytest.approx((0.0025, 0.4450), abs=1e-4)
    assert noise.variants["variant"].value == pytest.approx(0.6)


def test_of_several_labels_each_has_its_share() -> None:
    labels = np.array([[True, False]] * 10)
    again = labels.copy()
    again[:2, 0] = False
    again[2, 1] = True
    joined = SecondLabels(np.arange(10), again, 0)
    noise = measure_noise(joined, labels, {"variant": [labels * 0.9]}, kind="repeated",
                          path=Path("f"), names=NAMES)  # fmt: skip
    assert noise.oracle.value == pytest.approx(0.3)
    of_each = {name: part.value for name, part in noise.parts.items()}
    assert of_each == pytest.approx({"a": 0.2, "b": 0.1})
    assert noise.variants["variant"].value == 0


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([make_row(7), make_row(8)], "none of its 2 rows is in the test split .* 'id'"),
        ([make_row(0, text="other")], "its 1 rows with ids of test rows have other texts"),
        ([make_row(0, scores=None)], "none of its rows can be used.*line 1: label missing"),
        ([], "none of its rows can be used"),
        ([{"id": "r0", "text": "text 0", "score": 1}], "no row has the field 'scores'"),
    ],
)
def test_a_file_that_cannot_be_joined_says_how_to_mend_it(
    second: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=f"second.jsonl: {message}"):
        read(second, [make_row(0)], make_task(), NAMES)


def test_strange_texts_and_classes_say_how_to_mend_them() -> None:
    task = make_task(fields={"text": ["text"]})
    with pytest.raises(UserError, match="joined by a hash of the text"):
        read([make_row(5)], [make_row(0)], task, NAMES)
    with pytest.raises(UserError, match="classes or labels that the task does not have"):
        read([make_row(0, topic="new")], [make_row(0)], make_task(CLASSES), ["x", "y"])


def test_rows_of_one_group_count_as_one_in_the_noise() -> None:
    second = np.abs(np.repeat(np.random.default_rng(1).normal(size=30), 4))[:, None]
    positions = np.arange(0, 240, 2)  # every other row; its group is not that of its position
    joined, labels = SecondLabels(positions, second, 0), np.zeros((240, 1))
    groups = np.full(240, 99)
    groups[positions] = np.arange(120) // 4
    alone, clustered = (
        measure_noise(joined, labels, {}, kind="repeated", path=Path("x"), names=["a"], groups=g)
        for g in (None, groups)
    )
    assert alone.oracle.value == clustered.oracle.value
    width, wider = (n.oracle.interval.high - n.oracle.interval.low for n in (alone, clustered))
    assert wider / width == pytest.approx(2, rel=0.25)  # four equal rows: twice the error
