"""Both reports show what a post-hoc fit did, and say nothing where there is none."""

from pathlib import Path

import pytest

from llmft.reports.comparison import write_comparison_report
from llmft.reports.evaluation import write_evaluation_report
from llmft.results.evaluation import LabelType
from tests.reports.made_up import make_comparison, make_evaluation
from tests.reports.made_up_pairs import make_fit
from tests.reports.reading import Page, count_table_columns, list_written_numbers, split_cell


@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_an_evaluation_shows_every_metric_before_and_after(
    tmp_path: Path, label_type: LabelType
) -> None:
    fit = make_fit(0.7777, label_type=label_type)
    results = make_evaluation(label_type=label_type, fit=fit)
    page = Page(write_evaluation_report(results, folder=tmp_path).read_text("utf-8"))
    markdown = (tmp_path / "report.md").read_text("utf-8")
    method = {"scores": "isotonic regression"}.get(label_type, "the highest F1")
    for said in ("Calibrators and thresholds", method, "fitted on val"):
        assert said in page.text and said in markdown
    assert all(len(widths) == 1 for widths in count_table_columns(markdown))
    written = list_written_numbers(results)
    assert [c for c in page.number_cells if not set(split_cell(c)) <= written] == []
    if label_type == "scores":
        assert "0.778" in page.number_cells
        (row,) = [line for line in markdown.splitlines() if "| mae" in line and "0.778" in line]
        assert row.split("|")[2:4] == [" 0.778 ", " **0.610** "]


def test_a_comparison_shows_the_variants_that_are_fitted(tmp_path: Path) -> None:
    results = make_comparison(variants=("one", "two", "three"), invalid=("three",))
    two = results.variants["two"].replace(fit=make_fit(0.8888, label_type="scores"))
    one = results.variants["one"].replace(fit=None)
    results = results.replace(variants={**results.variants, "one": one, "two": two})
    page = Page(write_comparison_report(results, folder=tmp_path).read_text("utf-8"))
    assert "two: isotonic regression of the scores" in page.text
    assert "one: isotonic regression" not in page.text
    assert "0.889" in page.number_cells


def test_without_a_fit_there_is_no_such_section(tmp_path: Path) -> None:
    html = write_evaluation_report(make_evaluation(), folder=tmp_path).read_text("utf-8")
    assert "Post-hoc" not in html
    assert "Post-hoc" not in (tmp_path / "report.md").read_text("utf-8")
