import json
from pathlib import Path
from typing import Any

import pytest

from llmft.reports.evaluation import write_evaluation_report
from tests.reports.made_up import EVIL, make_evaluation
from tests.reports.reading import (
    Page,
    count_table_columns,
    list_outside_links,
    list_written_numbers,
    split_cell,
)


def write(results: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Return the HTML and the Markdown."""
    path = write_evaluation_report(results, folder=folder)
    assert path == folder / "report.html"
    return path.read_text("utf-8"), (folder / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("decision", "said", "reason"),
    [
        (
            "DEPLOY",
            "bert may be deployed",
            "even the worse end of the 95 % interval, 0.732, passes",
        ),
        ("REVIEW", "bert needs a second look", "0.612 is within 1.2, but"),
        ("FAIL", "Do not deploy bert", "0.612 is beyond 1.2"),
    ],
)
@pytest.mark.parametrize("classes", [False, True])
def test_every_decision_has_its_words(
    tmp_path: Path, decision: str, said: str, reason: str, classes: bool
) -> None:
    html, markdown = write(make_evaluation(decision, classes=classes), tmp_path)
    text = Page(html).text
    for expected in (decision, said, reason, "best constant", "saw 61 %", "row-5", "0123abcd",
                     "26.6 s", "DEEPSPEED", "torch 2.13.0"):  # fmt: skip
        assert expected in text, expected
        assert expected in markdown, expected
    assert list_outside_links(html) == []
    assert "http" not in html.replace("http-equiv", "")
    assert all(len(widths) == 1 for widths in count_table_columns(markdown))


@pytest.mark.parametrize("classes", [False, True])
def test_every_number_in_a_table_stands_in_the_results_file(tmp_path: Path, classes: bool) -> None:
    """D10: a report computes nothing."""
    results = make_evaluation(classes=classes)
    before = json.dumps(results)
    html, _ = write(results, tmp_path)
    assert json.dumps(results) == before
    cells = Page(html).number_cells
    assert len(cells) > 40
    written = list_written_numbers(results)
    assert [cell for cell in cells if not set(split_cell(cell)) <= written] == []


def test_splits_of_one_folder_keep_their_plots(tmp_path: Path) -> None:
    write(make_evaluation(), tmp_path)
    _, markdown = write(make_evaluation(data="data-new rows (1)"), tmp_path)
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"test-gates.png", "data-new-rows-1-gates.png"} <= names
    assert "](plots/data-new-rows-1-gates.png)" in markdown


def test_without_gates_a_person_decides(tmp_path: Path) -> None:
    results = make_evaluation("REVIEW")
    results.update(gates=[], intervals={}, worst_rows=[])
    html, markdown = write(results, tmp_path)
    assert "no gate was set" in Page(html).text
    assert "no gate was set" in markdown


def test_an_invalid_audit_is_said_beside_the_decision(tmp_path: Path) -> None:
    results = make_evaluation("FAIL")
    results["audit"][0]["status"] = "invalid"
    assert "cannot be trusted" in Page(write(results, tmp_path)[0]).text


def test_text_from_data_stays_text(tmp_path: Path) -> None:
    results = make_evaluation(name=EVIL)
    results["worst_rows"][0].update(id=EVIL, text=EVIL)
    results["training"]["recipe"]["base"]["model"] = EVIL
    html, markdown = write(results, tmp_path)
    assert list_outside_links(html) == []
    assert EVIL in Page(html).text
    assert "<" not in markdown
    assert all(len(widths) == 1 for widths in count_table_columns(markdown))
