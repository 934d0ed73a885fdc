"""Reports where the packages of the extra `report` are not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmft.reports.comparison import write_comparison_report
from llmft.reports.evaluation import write_evaluation_report
from tests.reports.made_up import make_comparison, make_evaluation
from tests.reports.reading import Page

pytestmark = pytest.mark.with_packages("matplotlib", "docx")


@pytest.fixture(autouse=True)
def logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", logger="llmft")
    return caplog


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # to import it raises, as if it was absent


@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_a_comparison_has_all_but_plots_and_document(
    tmp_path: Path, label_type: str, monkeypatch: pytest.MonkeyPatch, logs
) -> None:
    results = make_comparison(label_type=label_type)
    whole = Page(write_comparison_report(results, folder=tmp_path).read_text("utf-8"))
    assert (tmp_path / "report.docx").exists()
    hide(monkeypatch, "matplotlib", "docx")
    html = write_comparison_report(results, folder=tmp_path).read_text("utf-8")
    assert not (tmp_path / "report.docx").exists(), "it showed earlier results"
    assert "no plots, since matplotlib is not installed; run `pip install 'llmft[rep" in logs.text
    assert "no report.docx, since python-docx is not installed" in logs.text
    markdown = (tmp_path / "report.md").read_text("utf-8")
    for text in (html, markdown):
        assert "No plots: matplotlib was not installed." in text
    assert "<svg" not in html
    assert "](plots/" not in markdown
    assert set(whole.number_cells) <= set(Page(html).number_cells)


@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_an_evaluation_has_all_but_plots(
    tmp_path: Path, label_type: str, monkeypatch: pytest.MonkeyPatch, logs
) -> None:
    hide(monkeypatch, "matplotlib", "docx")
    results = make_evaluation(label_type=label_type)
    html = write_evaluation_report(results, folder=tmp_path).read_text("utf-8")
    assert logs.text.count("not installed") == 1
    assert "Learning curves" not in html
    assert "Calibration" in html
    assert not (tmp_path / "plots").exists()


def test_one_of_both_packages_is_used_without_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs
) -> None:
    with monkeypatch.context() as patch:
        hide(patch, "docx")
        write_comparison_report(make_comparison(), folder=tmp_path / "plotted")
    assert (tmp_path / "plotted/plots/gains.png").exists()
    assert not (tmp_path / "plotted/report.docx").exists()
    hide(monkeypatch, "matplotlib")
    write_comparison_report(make_comparison(), folder=tmp_path / "written")
    assert (tmp_path / "written/report.docx").exists()
    assert not (tmp_path / "written/plots").exists()


def test_neither_is_imported_before_something_is_drawn() -> None:
    code = (
        "import sys, llmft.reports.comparison, llmft.reports.evaluation, llmft.reports.terminal\n"
        "assert not {'matplotlib', 'docx'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
