import re
from pathlib import Path
from typing import Any

import pytest

from llmft.reports.evaluation import write_evaluation_report
from llmft.reports.formatting import format_interval
from llmft.reports.layout import GAP
from llmft.results.evaluation import Decision, EvaluationResult, Finding, LabelType
from tests.reports.made_up import EVIL, NAMED, make_evaluation
from tests.reports.made_up_pairs import make_edge_cases, make_latency
from tests.reports.reading import (
    Page,
    count_table_columns,
    list_outside_links,
    list_written_numbers,
    split_cell,
)
from tests.results.made_up import edit


def write(result: EvaluationResult, folder: Path) -> tuple[str, str]:
    """Return the HTML and the Markdown."""
    path = write_evaluation_report(result, folder=folder)
    stem = "report" if result.data == "test" else f"report-{result.data}"
    assert path == folder / f"{stem}.html"
    return path.read_text("utf-8"), path.with_suffix(".md").read_text("utf-8")


@pytest.mark.with_packages("matplotlib")
@pytest.mark.parametrize(
    ("label_type", "decision", "said", "reason"),
    [
        ("scores", "DEPLOY", "bert may be deployed", "mae: 0.612; the bound 0.732"),
        ("class", "REVIEW", "bert needs a review", "macro: 0.612; the bound 0.732"),
        ("multilabel", "FAIL", "Do not deploy bert", "macro: 0.612; the bound 0.732"),
    ],
)
def test_every_decision_has_its_words(
    tmp_path: Path, label_type: LabelType, decision: Decision, said: str, reason: str
) -> None:
    html, markdown = write(make_evaluation(decision, label_type=label_type), tmp_path)
    text = Page(html).text
    for expected in (decision, said, reason, "best constant", "saw 61.0%", "row-5", "0123abcd",
                     "26.6 s", "DEEPSPEED", "torch 2.13.0"):  # fmt: skip
        assert expected in text, expected
        assert expected in markdown, expected
    assert list_outside_links(html) == []
    assert "http" not in html.replace("http-equiv", "")
    assert all(len(widths) == 1 for widths in count_table_columns(markdown))


@pytest.mark.parametrize(("label_type", "num_names"), NAMED)
def test_every_number_in_a_table_stands_in_the_results_file(
    tmp_path: Path, label_type: LabelType, num_names: int
) -> None:
    """D10: a report computes nothing."""
    names = [f"name {i}" for i in range(num_names)]
    results = make_evaluation(label_type=label_type, names=names)
    html, _ = write(results, tmp_path)
    cells = Page(html).number_cells
    assert len(cells) > 40
    written = list_written_numbers(results)
    assert [cell for cell in cells if not set(split_cell(cell)) <= written] == []


@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_every_interval_is_shown(tmp_path: Path, label_type: LabelType) -> None:
    results = make_evaluation(label_type=label_type)
    cells = Page(write(results, tmp_path)[0]).number_cells
    assert results.part_intervals is not None
    shown = [*results.intervals.values(), *results.part_intervals.intervals.values()]
    assert {format_interval(interval) for interval in shown if interval} <= set(cells)


@pytest.mark.with_packages("matplotlib")
def test_compressed_scores_are_visible(tmp_path: Path) -> None:
    """D12: slope and bias stand in the report, and the strata are drawn."""
    html, markdown = write(make_evaluation(), tmp_path)
    assert {"0.302", "-0.413"} <= set(Page(html).number_cells)
    assert "| severity | 0.302 | -0.413 |" in markdown
    assert "](plots/test-calibration.png)" in markdown


@pytest.mark.parametrize("label_type", ["class", "multilabel"])
@pytest.mark.with_packages("matplotlib")
def test_the_calibration_error_is_said(tmp_path: Path, label_type: LabelType) -> None:
    html, markdown = write(make_evaluation(label_type=label_type), tmp_path)
    assert "bert: ece 0.084" in Page(html).text
    assert "ece 0.084" in markdown


@pytest.mark.with_packages("matplotlib")
def test_tiers_have_a_confusion_matrix(tmp_path: Path) -> None:
    html, markdown = write(make_evaluation(), tmp_path)
    assert "bert: tiers" in Page(html).text
    assert {"noise", "blue", "red"} <= set(Page(html).drawn_texts)
    assert "](plots/test-tiers-1-bert.png)" in markdown


@pytest.mark.with_packages("matplotlib")
def test_of_many_classes_the_worst_come_first(tmp_path: Path) -> None:
    names = [f"name {i}" for i in range(77)]

    def change(r: dict[str, Any]) -> None:
        r["per_class"]["name 40"]["f1"] = 0.013
        r["per_class"]["name 50"]["f1"] = None
        r["confusion_matrix"][12][34] = 99

    html, markdown = write(edit(make_evaluation(label_type="class", names=names), change), tmp_path)
    page = Page(html)
    drawn = [text for text in page.drawn_texts if text.startswith("name ") or text == GAP]
    assert len(drawn) == 21
    assert (drawn[0], drawn[15]) == ("name 40", GAP)
    assert "name 50" not in drawn and "name 50" in page.text
    assert "Only the worst and the best are in this table" in page.text
    assert "Only the worst and the best are in this table" in markdown
    most_confused = page.text[page.text.index("Most confused") :].split()
    assert most_confused[most_confused.index("12") :][:4] == ["12", "name", "34", "99"]


@pytest.mark.with_packages("matplotlib")
def test_of_many_labels_the_most_frequent_are_drawn(tmp_path: Path) -> None:
    names = [f"name {i}" for i in range(13)]
    result = make_evaluation(label_type="multilabel", names=names)
    confusions = {**result.label_confusions, "name 3": [[99, 0], [1, 0]]}
    page = Page(write(result.replace(label_confusions=confusions), tmp_path)[0])
    # Twice: in the plot by label, and with its confusions.
    assert [name for name in names if page.drawn_texts.count(name) == 1] == ["name 3"]


@pytest.mark.parametrize(("label_type", "said"), [("class", "name 5"), ("multilabel", "none")])
def test_worst_rows_of_many_classes_show_what_matters(
    tmp_path: Path, label_type: LabelType, said: str
) -> None:
    names = [f"name {i}" for i in range(77)]
    results = make_evaluation(label_type=label_type, names=names)
    outputs = {"bert": [0.9 if i in (7, 8) else 0.8 if i == 70 else 0.001 for i in range(77)]}
    labels = "name 5" if label_type == "class" else []
    row = results.worst_rows[0].replace(labels=labels, outputs=outputs)
    html, markdown = write(results.replace(worst_rows=[row]), tmp_path)
    assert f", labels: {said}." in markdown
    shown = html[html.index("Outputs for row-5") :].split("</table>")[0]
    true = ["name 5 (true)"] if label_type == "class" else []
    assert re.findall(r"name \d+(?: \(true\))?", shown) == [*true, "name 7", "name 8", "name 70"]


def test_a_trial_is_said_on_the_first_screen(tmp_path: Path) -> None:
    result = make_evaluation()
    trial = Finding(
        check="trial_run", status="warning", variants=["bert"], message="on 200 rows only"
    )
    html, markdown = write(result.replace(audit=[*result.audit, trial]), tmp_path)
    assert "on 200 rows only" in Page(html.split("</header>")[0]).text
    assert "**warning** (trial_run): on 200 rows only" in markdown.split("##")[0]


@pytest.mark.with_packages("matplotlib")
@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_what_is_undefined_is_left_out(tmp_path: Path, label_type: LabelType) -> None:
    results = make_evaluation(label_type=label_type)
    results = results.replace(
        intervals=dict.fromkeys(results.intervals),
        metrics=dict.fromkeys(results.metrics),
        tiers=None,
        worst_rows=[],
    )
    text = Page(write(results, tmp_path)[0]).text
    assert "Against the baselines" in text
    assert "tiers" not in text and "Rows with the largest errors" not in text


def test_rows_that_do_not_count_are_reported(tmp_path: Path) -> None:
    """D5: rows that are too like those of the training are left out, and the page says so."""
    result = make_evaluation(
        num_rows=6, num_test_rows=9, num_dropped=3, left_out={"label missing": 2}
    )
    for text in write(result, tmp_path):
        assert "2 rows left out: 2 label missing" in text
        assert "3 excluded as near-duplicates of training rows" in text


def test_times_that_were_measured_for_a_gate_are_shown(tmp_path: Path) -> None:
    html, markdown = write(make_evaluation(latency=make_latency(0)), tmp_path)
    assert "| one article, ms: p95 | 61.1 |" in markdown
    assert "61.1" in Page(html).number_cells
    assert "Latency" not in Page(write(make_evaluation(), tmp_path)[0]).text


@pytest.mark.with_packages("matplotlib")
def test_splits_of_one_folder_keep_their_plots(tmp_path: Path) -> None:
    write(make_evaluation(), tmp_path)
    _, markdown = write(make_evaluation(data="data-new rows (1)"), tmp_path)
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"test-gates.png", "data-new-rows-1-gates.png"} <= names
    assert "](plots/data-new-rows-1-gates.png)" in markdown


def test_without_gates_a_person_decides(tmp_path: Path) -> None:
    result = make_evaluation("REVIEW", gates=[], worst_rows=[], reasons=["no gate was set"])
    html, markdown = write(result, tmp_path)
    assert "no gate was set" in Page(html).text
    assert "no gate was set" in markdown
    assert "Gates" not in Page(html).text


@pytest.mark.parametrize("label_type", ["scores", "class"])
@pytest.mark.with_packages("matplotlib")
def test_every_gate_has_a_row_and_an_axis_of_its_own(tmp_path: Path, label_type: LabelType) -> None:
    results = make_evaluation(label_type=label_type)
    html, markdown = write(results, tmp_path)
    page = Page(html)
    for gate in results.gates:
        name = gate.name
        assert any(text.startswith(f"{name} ") for text in page.drawn_texts), name
        assert f"| {name}" in markdown
    assert page.drawn_texts.count("REVIEW") == len(
        [gate for gate in results.gates if gate.result == "REVIEW"]
    )
    assert "| convergence ↓ | – | – | – | 0.02 | – | – | – | REVIEW |" in markdown


def test_edge_cases_that_failed_are_named_with_why(tmp_path: Path) -> None:
    html, markdown = write(make_evaluation(edge_cases=make_edge_cases()), tmp_path)
    for text in (Page(html).text, markdown):
        assert "25 of 27" in text
        assert "fraud-denied" in text
        assert "expected at most 3, found 6.21" in text
        assert "passed-one" not in text


@pytest.mark.with_packages("matplotlib")
def test_text_from_data_stays_text(tmp_path: Path) -> None:
    def plant(r: dict[str, Any]) -> None:
        r["worst_rows"][0].update(id=EVIL, text=EVIL)
        r["runs"][0]["record"]["recipe"]["base"]["model"] = EVIL

    html, markdown = write(edit(make_evaluation(name=EVIL), plant), tmp_path)
    assert list_outside_links(html) == []
    assert EVIL in Page(html).text
    assert "<" not in markdown
    assert all(len(widths) == 1 for widths in count_table_columns(markdown))
