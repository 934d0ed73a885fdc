import re
from pathlib import Path
from typing import Any

import pytest

from llmft.reports.comparison import write_comparison_report
from llmft.reports.formatting import MISSING, format_interval
from llmft.results.comparison import ComparisonResult, VerdictName
from llmft.results.evaluation import LabelType
from tests.reports.made_up import EVIL, NAMED, make_comparison
from tests.reports.reading import (
    Page,
    count_table_columns,
    list_headings,
    list_outside_links,
    list_written_numbers,
    split_cell,
)
from tests.results.made_up import edit


def write(result: ComparisonResult, folder: Path) -> tuple[str, str]:
    """Return the HTML and the Markdown."""
    path = write_comparison_report(result, folder=folder)
    assert path == folder / "report.html"
    return path.read_text("utf-8"), (folder / "report.md").read_text("utf-8")


@pytest.mark.with_packages("matplotlib")
@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_everything_is_shown_and_nothing_is_fetched(tmp_path: Path, label_type: LabelType) -> None:
    html, markdown = write(make_comparison(label_type=label_type), tmp_path)
    text = Page(html).text
    for expected in (
        "WINNER", "DEPLOY", "scope", "models", "because of what instruction did",
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


@pytest.mark.with_packages("matplotlib")
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
    tmp_path: Path, label_type: LabelType, num_names: int
) -> None:
    """D10: a report computes nothing."""
    names = [f"name {i}" for i in range(num_names)]
    results = make_comparison(label_type=label_type, names=names)
    html, _ = write(results, tmp_path)
    cells = Page(html).number_cells
    written = list_written_numbers(results) | {"yes", "no"}
    assert len(cells) > 60
    assert [cell for cell in cells if not set(split_cell(cell)) <= written] == []


@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_every_metric_has_its_interval(tmp_path: Path, label_type: LabelType) -> None:
    results = make_comparison(label_type=label_type)
    html, markdown = write(results, tmp_path)
    cells = Page(html).number_cells
    for variant in results.variants.values():
        for interval in filter(None, variant.intervals.values()):
            assert format_interval(interval) in cells
            assert f"({format_interval(interval)})" in markdown


def test_the_best_of_a_column_is_marked_even_if_a_baseline_has_it(tmp_path: Path) -> None:
    """D9: a variant that a constant beats does not look like the best."""
    result = edit(make_comparison(), lambda r: r["baselines"]["tfidf"]["metrics"].update(mae=0.107))
    html, markdown = write(result, tmp_path)
    assert "0.107" in Page(html).best_cells
    assert "**0.107**" in markdown


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("WINNER", "instruction wins"),
        ("REFERENCE_HOLDS", "Keep distillation"),
        ("UNRESOLVED", "Not resolved yet"),
        ("CONFOUNDED", "This comparison is not fair"),
        ("INVALID", "This comparison is not valid"),
    ],
)
def test_every_verdict_has_its_words(tmp_path: Path, verdict: VerdictName, said: str) -> None:
    html, markdown = write(make_comparison(verdict), tmp_path)
    assert verdict in Page(html).text and said in Page(html).text
    assert markdown.startswith(f"# {verdict}: {said}\n")


@pytest.mark.with_packages("matplotlib")
@pytest.mark.parametrize(
    ("label_type", "invalid"),
    [("scores", ("b",)), ("scores", ("a", "b")), ("class", ("a", "b")), ("multilabel", ("a",))],
)
def test_variants_that_were_excluded_have_dashes(
    tmp_path: Path, label_type: LabelType, invalid: tuple[str, ...]
) -> None:
    results = make_comparison(
        "INVALID", variants=("a", "b"), invalid=invalid, label_type=label_type
    )
    html, markdown = write(results, tmp_path)
    assert "invalid" in Page(html).text
    assert not (tmp_path / "plots" / "gains.png").exists()
    assert all(len(widths) == 1 for widths in count_table_columns(markdown))


@pytest.mark.with_packages("matplotlib")
def test_many_variants_with_odd_names(tmp_path: Path) -> None:
    long = "a_name_that_" + "goes_on_" * 12
    variants = ("a", "_hidden", "b$x$c", long, "ein Ärmel/zwei", "f", "g", "h", "i")
    html, _ = write(make_comparison(variants=variants, names=["severity"]), tmp_path)
    text = Page(html).text
    assert all(variant in text for variant in variants)
    assert len(list((tmp_path / "plots").glob("predicted-*.png"))) == 9


def test_many_dimensions(tmp_path: Path) -> None:
    names = [f"dimension_number_{i}" for i in range(8)]
    html, markdown = write(make_comparison(names=names), tmp_path)
    assert all(name in Page(html).text and name in markdown for name in names)


@pytest.mark.with_packages("matplotlib")
def test_text_from_data_stays_text(tmp_path: Path) -> None:
    def plant(r: dict[str, Any]) -> None:
        r.update(why=EVIL, task=EVIL, suite=EVIL)
        r["audit"][1]["message"] = EVIL
        r["variants"]["a"]["runs"][0]["record"]["recipe"]["base"]["model"] = EVIL
        r["data"]["rejected"] = {EVIL: 3}
        r["worst_rows"][0].update(id=EVIL, text=EVIL)
        for case in r["variants"][EVIL]["edge_cases"]["cases"]:
            case.update(id=EVIL, category=EVIL, failures=[EVIL])

    results = edit(make_comparison(variants=("a", EVIL), names=["severity", f"dim {EVIL}"]), plant)
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


@pytest.mark.with_packages("matplotlib")
@pytest.mark.parametrize(
    ("label_type", "num_more"), [("scores", 0), ("class", 0), ("class", 40), ("multilabel", 40)]
)
def test_long_and_evil_names(tmp_path: Path, label_type: LabelType, num_more: int) -> None:
    names = ["none", EVIL, "x" * 90, *(f"{i} {EVIL}" for i in range(num_more))]
    results = make_comparison(label_type=label_type, names=names, variants=("a", EVIL))
    results = results.replace(worst_rows=[results.rows[1].replace(text=EVIL)])
    html, markdown = write(results, tmp_path)
    assert EVIL in Page(html).text
    assert list_outside_links(html) == []
    assert "<" not in markdown
    assert all(len(widths) == 1 for widths in count_table_columns(markdown))


@pytest.mark.with_packages("matplotlib")
@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_what_an_invalid_comparison_lacks_is_left_out(
    tmp_path: Path, label_type: LabelType
) -> None:
    results = make_comparison(
        "INVALID", variants=("a", "b"), invalid=("a", "b"), label_type=label_type
    )
    headings = list_headings(write(results, tmp_path)[0])
    assert "Side by side" in headings
    assert not {"Calibration", "Predicted against true", "Gates", "Latency"} & set(headings)


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    results = make_comparison("UNRESOLVED").replace(worst_rows=[], slices=[], rare=None, noise=[])
    variants = {
        name: v.replace(edge_cases=None, fit=None, gates=[]) for name, v in results.variants.items()
    }
    headings = list_headings(write(results.replace(variants=variants), tmp_path)[0])
    absent = {"Rows with the largest errors", "Slices", "Rare events", "Label noise", "Edge cases",
              "Calibrators and thresholds", "Gates"}  # fmt: skip
    assert "Side by side" in headings
    assert not absent & set(headings)


@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_no_dash_stands_where_a_value_is(tmp_path: Path, label_type: LabelType) -> None:
    """D13: the disagreement of second classes was written under one key and read under another.

    So whatever a file holds of slices, rare events, noise and fits has to be in the tables.
    """
    result = make_comparison(label_type=label_type)
    _, markdown = write(result, tmp_path)
    sections = {part.split("\n")[0]: part for part in markdown.split("\n## ")}
    titles = {"Slices", "Rare events", "Label noise", "Edge cases"}
    for title in titles - ({"Rare events"} if result.rare is None else set()):
        rows = [line for line in sections[title].splitlines() if line.startswith("| ")]
        assert len(rows) > 2, title
        assert [row for row in rows if MISSING in row] == [], title
    noise = sections["Label noise"]
    metric = "mae" if label_type == "scores" else "disagreement"
    for said in (metric, "0.438 (0.361 to 0.523)", "0.691 (0.571 to 0.823)", "| 57 | 19 |"):
        assert said in noise
    fits = [
        line
        for line in sections["Calibrators and thresholds"].splitlines()
        if line.startswith("| ")
    ][1:]
    undefined = [name for name, value in result.variants["instruction"].metrics.items()
                 if value is None]  # fmt: skip
    assert [r for r in fits if MISSING in r and not any(f"| {m}" in r for m in undefined)] == []
    calibration = [line for line in Page((tmp_path / "report.html").read_text()).number_cells]
    expected = {"0.302", "-0.413"} if label_type == "scores" else {"0.084", "0.291"}
    assert expected <= set(calibration)
