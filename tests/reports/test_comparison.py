import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmft.reports.comparison import write_comparison_report
from llmft.reports.formatting import format_interval
from tests.reports.made_up import EVIL, NAMED, NEW_KEYS, make_comparison, make_edge_cases
from tests.reports.made_up_parts import name_parts
from tests.reports.reading import (
    Page,
    count_table_columns,
    list_headings,
    list_outside_links,
    list_written_numbers,
    split_cell,
)


def write(results: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Return the HTML and the Markdown."""
    path = write_comparison_report(results, folder=folder)
    assert path == folder / "report.html"
    return path.read_text("utf-8"), (folder / "report.md").read_text("utf-8")


@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_everything_is_shown_and_nothing_is_fetched(tmp_path: Path, label_type: str) -> None:
    results = make_comparison(label_type=label_type)
    results["edge_cases"] = make_edge_cases("distillation", "instruction")
    html, markdown = write(results, tmp_path)
    text = Page(html).text
    for expected in (
        "WINNER", "DEPLOY", "provisional", "because of what instruction did",
        "was never pretrained", "saw 61.0% of it",
        "best constant", "TF-IDF", "18.5 M", "1.56 B", "12 min 34 s", "91.4 %", "12.3", "412",
        "fraud-denied", "must pass", "expected at most 3, found 6.21", "25 of 27", "row-5",
        "0123abcd", "label missing 10", "NVIDIA H100", "bfloat16", "runs/instruction/seed-2",
    ):  # fmt: skip
        assert expected in text, expected
        if expected != "must pass":
            assert expected in markdown.replace("**", ""), expected
    assert list_outside_links(html) == []
    assert "http" not in html.replace("http-equiv", "")
    assert "default-src 'none'" in html


def test_plots_are_files_that_the_markdown_names(tmp_path: Path) -> None:
    _, markdown = write(make_comparison(), tmp_path)
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == [
        "calibration.png",
        "curve-train_loss.png",
        "curve-val_loss.png",
        "curve-val_mae.png",
        "gains.png",
        "latency.png",
        "parts.png",
        "predicted-1-distillation.png",
        "predicted-2-instruction.png",
        "residuals-1-distillation.png",
        "residuals-2-instruction.png",
        "tiers-1-distillation.png",
        "tiers-2-instruction.png",
    ]
    assert all(f"](plots/{name})" in markdown for name in names)
    assert all((tmp_path / "plots" / name).read_bytes()[1:4] == b"PNG" for name in names)


@pytest.mark.parametrize(("label_type", "num_names"), NAMED)
def test_every_number_in_a_table_stands_in_the_results_file(
    tmp_path: Path, label_type: str, num_names: int
) -> None:
    """D10: a report computes nothing."""
    names = [f"name {i}" for i in range(num_names)]
    results = make_comparison(label_type=label_type, names=names)
    results["edge_cases"] = make_edge_cases("distillation")
    before = json.dumps(results)
    html, _ = write(results, tmp_path)
    assert json.dumps(results) == before
    cells = Page(html).number_cells
    written = list_written_numbers(results) | {"yes", "no"}
    assert len(cells) > 60
    assert [cell for cell in cells if not set(split_cell(cell)) <= written] == []


@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_every_metric_has_its_interval(tmp_path: Path, label_type: str) -> None:
    results = make_comparison(label_type=label_type)
    html, markdown = write(results, tmp_path)
    cells = Page(html).number_cells
    for variant in results["variants"].values():
        for interval in filter(None, variant["intervals"].values()):
            assert format_interval(interval) in cells
            assert f"({format_interval(interval)})" in markdown


def test_without_intervals_of_all_metrics_the_deciding_one_has_its_own(tmp_path: Path) -> None:
    results = make_comparison(label_type="class")
    for variant in results["variants"].values():
        del variant["intervals"]
    cells = Page(write(results, tmp_path)[0]).number_cells
    assert format_interval(results["variants"]["instruction"]["interval"]) in cells


def test_the_best_of_a_column_is_marked_even_if_a_baseline_has_it(tmp_path: Path) -> None:
    """D9: an arm that a constant beats does not look like the best."""
    results = make_comparison()
    results["baselines"]["tfidf"]["mae"] = 0.107
    html, markdown = write(results, tmp_path)
    assert "0.107" in Page(html).best_cells
    assert "**0.107**" in markdown


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("WINNER", "instruction wins"),
        ("REFERENCE_HOLDS", "Keep distillation"),
        ("UNRESOLVED", "Nobody can tell yet"),
        ("CONFOUNDED", "This is no fair comparison"),
        ("INVALID", "This comparison does not count"),
    ],
)
def test_every_verdict_has_its_words(tmp_path: Path, verdict: str, said: str) -> None:
    html, markdown = write(make_comparison(verdict), tmp_path)
    assert verdict in Page(html).text and said in Page(html).text
    assert markdown.startswith(f"# {verdict}: {said}\n")


@pytest.mark.parametrize(
    ("label_type", "invalid"),
    [("scores", ("b",)), ("scores", ("a", "b")), ("class", ("a", "b")), ("multilabel", ("a",))],
)
def test_arms_that_were_struck_out_have_dashes(
    tmp_path: Path, label_type: str, invalid: tuple[str, ...]
) -> None:
    results = make_comparison("INVALID", arms=("a", "b"), invalid=invalid, label_type=label_type)
    html, markdown = write(results, tmp_path)
    assert "invalid" in Page(html).text
    assert not (tmp_path / "plots" / "gains.png").exists()
    assert all(len(widths) == 1 for widths in count_table_columns(markdown))


def test_many_arms_with_odd_names(tmp_path: Path) -> None:
    arms = ("a", "_hidden", "b$x$c", "a_name_that_" + "goes_on_" * 12, "ein Ärmel/zwei", "f", "g",
            "h", "i")  # fmt: skip
    html, _ = write(make_comparison(arms=arms, names=["severity"]), tmp_path)
    text = Page(html).text
    assert all(arm in text for arm in arms)
    assert len(list((tmp_path / "plots").glob("predicted-*.png"))) == 9


def test_many_dimensions(tmp_path: Path) -> None:
    names = [f"dimension_number_{i}" for i in range(8)]
    html, markdown = write(make_comparison(names=names), tmp_path)
    assert all(name in Page(html).text and name in markdown for name in names)


def test_text_from_data_stays_text(tmp_path: Path) -> None:
    results = make_comparison(arms=("a", EVIL), names=["severity", f"dim {EVIL}"])
    results.update(why=EVIL, task=EVIL, suite=EVIL)
    results["audit"][1]["message"] = EVIL
    results["variants"]["a"]["base"] = EVIL
    results["data"]["rejected"] = {EVIL: 3}
    results["worst_rows"][0].update(id=EVIL, text=EVIL)
    results["edge_cases"] = make_edge_cases(EVIL)
    for case in results["edge_cases"][EVIL]["cases"]:
        case.update(id=EVIL, category=EVIL, failures=[EVIL])
    html, markdown = write(results, tmp_path)
    assert list_outside_links(html) == []
    assert EVIL in Page(html).text
    assert "<" not in markdown
    assert re.search(r"(?<!\\)\]\(http", markdown) is None
    assert "\\`x\\` \\[a\\](http://b) \\# \\$y\\$" in markdown
    assert [line for line in markdown.splitlines() if line.startswith("# ")] == [
        markdown.splitlines()[0]
    ]
    assert all(len(widths) == 1 for widths in count_table_columns(markdown))


@pytest.mark.parametrize(
    ("label_type", "num_more"), [("scores", 0), ("class", 0), ("class", 40), ("multilabel", 40)]
)
def test_long_and_evil_names(tmp_path: Path, label_type: str, num_more: int) -> None:
    names = ["none", EVIL, "x" * 90, *(f"{i} {EVIL}" for i in range(num_more))]
    results = make_comparison(label_type=label_type, names=names, arms=("a", EVIL))
    results["worst_rows"] = [{**results["rows"][1], "text": EVIL}]
    html, markdown = write(results, tmp_path)
    assert EVIL in Page(html).text
    assert list_outside_links(html) == []
    assert "<" not in markdown
    assert all(len(widths) == 1 for widths in count_table_columns(markdown))


@pytest.mark.parametrize(
    ("label_type", "absent"), [("scores", True), ("class", False), ("multilabel", True)]
)
def test_what_was_not_measured_is_left_out(tmp_path: Path, label_type: str, absent: bool) -> None:
    results = make_comparison(label_type=label_type)
    for variant in results["variants"].values():
        variant.update(dict.fromkeys(NEW_KEYS), metrics=dict.fromkeys(variant["metrics"]))
        variant["confusion_matrix"] = None
    if absent:
        for variant in results["variants"].values():
            for key in NEW_KEYS:
                del variant[key]
    for holder in (results, *results["baselines"].values()):
        holder[name_parts(label_type)] = {}
    headings = list_headings(write(results, tmp_path)[0])
    assert "Side by side" in headings
    assert "Calibration" not in headings
    assert not any(heading.startswith("By ") for heading in headings)


def test_older_or_missing_parts_are_left_out(tmp_path: Path) -> None:
    results = make_comparison("UNRESOLVED")
    results["worst_rows"] = []
    results["data"]["near_duplicates"] = None
    for variant in results["variants"].values():
        variant["histories"] = [{"metric": "mae", "epochs": []}]
    text = Page(write(results, tmp_path)[0]).text
    assert "Rows that went worst" not in text
    assert "Edge cases" not in text
    assert "not looked for" in text
