"""Pairs, gates, ensembles, slices and noise: on the page, in Markdown and in Word."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import docx
import pytest
from docx.document import Document
from docx.oxml.ns import qn

from llmft.config.suite import Check
from llmft.reports.comparison import write_comparison_report
from llmft.reports.plots import find_front
from llmft.reports.sections import group_findings
from llmft.results.comparison import ComparisonResult, VerdictName
from llmft.results.evaluation import Decision, Finding, LabelType, Status
from tests.reports.made_up import EVIL, make_comparison
from tests.reports.reading import Page, count_table_columns, list_headings, list_outside_links
from tests.results.made_up import edit

pytestmark = pytest.mark.with_packages("docx")

UNDEFINED = {"value": None, "interval": None}
CONTROL = "a\x00b\x1b[31m\ufffe\x0c"


class Written(NamedTuple):
    html: str
    markdown: str
    document: Document

    @property
    def word_text(self) -> str:
        cells = {
            cell.text for table in self.document.tables for row in table.rows for cell in row.cells
        }
        return "\n".join([*(p.text for p in self.document.paragraphs), *sorted(cells)])


def write(result: ComparisonResult, folder: Path) -> Written:
    path = write_comparison_report(result, folder=folder)
    markdown = (folder / "report.md").read_text("utf-8")
    return Written(path.read_text("utf-8"), markdown, docx.Document(str(folder / "report.docx")))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    results = make_comparison(variants=("distillation", "instruction", "full"))
    return write(results, tmp_path_factory.mktemp("report"))


def test_sections_stand_in_the_order_in_which_they_are_asked_for(written: Written) -> None:
    assert list_headings(written.html) == [
        "Side by side", "Gains over distillation", "By dimension", "Learning curves", "Latency",
        "Gates", "Slices", "Rare events", "Label noise", "Edge cases",
        "Calibrators and thresholds", "Predicted against true", "Calibration",
        "Statistical procedures", "Rows with the largest errors",
        "Rows", "Data and training",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "expected",
    [
        "mae: the bound 0.732 does not pass 0.7",  # reasons
        "waived by the suite: a spare machine was used",
        "2 excluded as near-duplicates of train or validation rows; near-duplicates, pairs of one",
        "not recommended",  # of a mixed column
        "severity by distillation, stress by instruction",
        "< 0.001", "0.026", "0.813", "0.642 to 0.934", "1733",  # p, Holm, power, rows needed
        "0.263 to 0.377",  # one-sided bounds
        "two-sided, computed at 96.7 %", "better by more than the margin",
        "up to 5.3 % of all clusters of articles may be of a kind that no test row shows",
        "if no row's error is above 10, these would change a gain in mae by at most 0.530",
        "assume only the range of the errors",
        "bootstrap-t", "Hall 1988, doi:10.1214/aos/1176350933", "Waudby-Smith and Ramdas 2024",
        "208", "49.7", "1.93", "21.4 %",  # batch, uncached prompt, cost of a million
        "p95_ms", "one calibrator per dimension; fitted on val", "0.742",
        "overall score of at least 7", "0.289 to 0.823",
        "another oracle", "0.361 to 0.523",
        "8 of 10", "44.4 % to 97.5 %", "fraud-denied",
        "mae by language",
    ],
)  # fmt: skip
def test_what_a_file_holds_is_in_every_format(written: Written, expected: str) -> None:
    markdown = written.markdown.replace("&lt;", "<").replace("**", "")
    assert expected in Page(written.html).text
    assert expected in markdown
    assert expected in written.word_text


def test_a_finding_names_the_variant_that_is_ahead(written: Written) -> None:
    table = next(t for t in written.document.tables if t.cell(0, 0).text == "dimension")
    (finding,) = (i for i, c in enumerate(table.rows[0].cells) if c.text == "instruction: finding")
    assert [row.cells[finding].text for row in table.rows[1:]] == ["instruction", "distillation"]


def test_word_has_its_own_headings_tables_and_described_pictures(written: Written) -> None:
    document = written.document
    headings = [p.text for p in document.paragraphs if p.style and p.style.name == "Heading 1"]
    assert headings == ["Executive summary", "Method", "Results", "Decision", "Appendix: plots"]
    first = document.tables[0]
    assert first.cell(0, 0).text == "metric"
    assert all(table.style and table.style.name != "Normal Table" for table in document.tables)
    descriptions = [shape._inline.docPr.get("descr") for shape in document.inline_shapes]
    assert len(descriptions) > 10
    assert all(descriptions)


@pytest.mark.with_packages("matplotlib", "docx")
@pytest.mark.parametrize(("verdict", "invalid"), [("INVALID", ("a", "b")), ("CONFOUNDED", ())])
def test_without_a_result_the_reason_is_in_every_format(
    tmp_path: Path, verdict: VerdictName, invalid: tuple[str, ...]
) -> None:
    """D1, D2: what cannot be compared is said, and said why."""
    results = make_comparison(verdict, variants=("a", "b"), invalid=invalid)
    results = results.replace(why="only one variant saw its articles", winner=None)
    if invalid:
        results = results.replace(pairs=[], ensembles={}, slices=[], rare=None, noise=[])
    found = write(results, tmp_path)
    for text in (Page(found.html).text, found.markdown, found.word_text):
        assert verdict in text
        assert "only one variant saw its articles" in text
    assert ("Gains over a" in list_headings(found.html)) == (not invalid)


@pytest.mark.with_packages("matplotlib", "docx")
@pytest.mark.parametrize("label_type", ["scores", "class", "multilabel"])
def test_null_is_a_dash(tmp_path: Path, label_type: LabelType) -> None:
    def empty(r: dict[str, Any]) -> None:
        for pair in (*r["pairs"], *(found["pair"] for found in r["ensembles"].values())):
            pair.update(dict.fromkeys(("mcnemar", "power", "needed")), parts={})
        for table in r["slices"]:
            for value in table["values"]:
                value["metrics"] = {name: UNDEFINED for name in value["metrics"]}
        for found in r["rare"]["variants"].values() if r["rare"] else ():
            found.update(dict.fromkeys(set(found) - {"at_k"}), at_k=[])
        for noise in r["noise"]:
            noise.update(oracle=UNDEFINED)
            noise["variants"] = {name: UNDEFINED for name in noise["variants"]}
        for variant in r["variants"].values():
            variant["gates"][0].update(value=None, interval=None, bound=None, review=None)
            variant.update(fit=None, latency=None)
        for found in r["ensembles"].values():
            found.update(pair=None, cost=dict.fromkeys(found["cost"]))
        r.update(recommended=None, num_clusters=515)

    found = write(edit(make_comparison(label_type=label_type), empty), tmp_path)
    assert "None" not in Page(found.html).text
    assert all(len(widths) == 1 for widths in count_table_columns(found.markdown))


def test_a_comparison_without_rows_has_no_script(tmp_path: Path) -> None:
    found = write(make_comparison().replace(rows=[], worst_rows=[]), tmp_path)
    assert "<script" not in found.html and "script-src" not in found.html


@pytest.mark.with_packages("matplotlib", "docx")
def test_text_that_no_format_can_hold_as_it_is(tmp_path: Path) -> None:
    """HTML, Markdown and characters that XML forbids, wherever a text can come from data."""
    text = f"</script>{EVIL}{CONTROL}"

    def plant(r: dict[str, Any]) -> None:
        r.update(why=text, task=text, reasons=[text], recommended=EVIL)
        r["audit"][3].update(message=text, waived=text)
        r["data"]["rejected"] = {text: 3}
        r["slices"][0]["name"] = r["slices"][0]["values"][0]["value"] = text
        r["rare"]["what"] = r["noise"][0]["file"] = text
        for case in r["variants"][EVIL]["edge_cases"]["cases"]:
            case.update(id=text, category=text, failures=[text])
        for row in r["rows"]:
            row.update(id=text, text=text, slices={text: text})
        for variant in r["variants"].values():
            variant["gates"][0].update(name=text, reason=text)

    results = edit(
        make_comparison(variants=("a", EVIL), names=[f"{EVIL}{CONTROL}", "stress"]), plant
    )
    found = write(results, tmp_path)
    assert list_outside_links(found.html) == []
    assert EVIL in Page(found.html).text
    assert "<" not in found.markdown
    assert all(len(widths) == 1 for widths in count_table_columns(found.markdown))
    assert EVIL.split("\n")[0] in found.word_text
    assert re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", found.word_text) is None


def test_the_front_has_whoever_no_other_beats_in_both() -> None:
    points = {"slow best": (90.0, 0.5), "fast": (10.0, 0.8), "beaten": (20.0, 0.9),
              "as fast, worse": (10.0, 0.85), "middle": (50.0, 0.6)}  # fmt: skip
    assert find_front(points, higher_is_better=False) == ["fast", "middle", "slow best"]
    assert find_front(points, higher_is_better=True) == ["as fast, worse", "beaten"]


def test_a_slicing_names_its_own_metric_and_why(tmp_path: Path) -> None:
    result = make_comparison(label_type="class")
    language, tier = result.slices
    by_class = tier.replace(name="true class", metric="accuracy")
    found = write(result.replace(slices=[language, by_class]), tmp_path)
    expected = "accuracy by true class, higher is better (f1_macro is meaningless within one class)"
    for text in (Page(found.html).text, found.markdown, found.word_text):
        assert expected in text
        assert "f1_macro by language, higher is better" in text


def test_the_audit_is_sorted_by_severity_and_each_bar_names_its_check() -> None:
    found: list[tuple[Check, Status, str | None]] = [
        ("truncation", "note", None), ("same_data", "ok", None),
        ("truncation", "warning", None), ("comparability", "confounded", "spare"),
        ("contamination", "invalid", None), ("truncation", "warning", None),
    ]  # fmt: skip
    bars = group_findings([
        Finding(check=check, status=status, variants=[], waived=waived, message=str(i))
        for i, (check, status, waived) in enumerate(found)
    ])  # fmt: skip
    assert [(bar.status, bar.check, [f.message for f in bar.findings]) for bar in bars] == [
        ("invalid", "contamination", ["4"]),
        ("waived", "comparability", ["3"]),
        ("warning", "truncation", ["2", "5"]),
        ("note", "truncation", ["0"]),
        ("ok", "same_data", ["1"]),
    ]


@pytest.mark.parametrize(("num_notes", "num_folded"), [(3, 1), (4, 2)])
def test_many_notes_of_the_audit_are_folded(
    tmp_path: Path, num_notes: int, num_folded: int
) -> None:
    checks: list[Check] = [
        "same_data",
        "comparability",
        "test_reads",
        "unknown_classes",
        "post_hoc_fit",
    ]
    audit = [
        Finding(check=check, status="note" if i else "ok", variants=[], message=f"message {i}")
        for i, check in enumerate(checks[: num_notes + 1])
    ]
    html = write(make_comparison().replace(audit=audit), tmp_path).html
    shown = html[html.index('<ul class="audit"') : html.index("</header>")]
    assert shown.count("<details>") == num_folded
    assert all(f.check in shown and f.message in shown for f in audit)


@pytest.mark.parametrize(
    ("decision", "lead"),
    [
        ("REVIEW", "Why REVIEW and not DEPLOY:"),
        ("FAIL", "Why FAIL, and then what would still be REVIEW:"),
        ("DEPLOY", None),
    ],
)
def test_reasons_say_what_they_are_reasons_for(
    tmp_path: Path, decision: Decision, lead: str | None
) -> None:
    found = write(make_comparison().replace(decision=decision, reasons=["few rows"]), tmp_path)
    for text in (Page(found.html).text, found.markdown, found.word_text):
        assert "few rows" in text
        assert lead in text if lead else "Why " not in text


def test_a_pair_of_classifiers_says_what_was_counted_and_what_could_be_found(
    tmp_path: Path,
) -> None:
    results = make_comparison(label_type="class")
    found = write(
        edit(results, lambda r: r["pairs"][0]["mcnemar"].update(p_value=0.0002)), tmp_path
    )
    for expected in (
        "of the first run of each: only instruction is right on 61 rows, only distillation on 37",
        "McNemar p < 0.001",
        "power for a gain of 0.2 + 0.05",
        "by chance: up to 0.041", "0.271 to 0.312",  # ece, Brier
        "at k = 14 (number of rare rows)",
    ):  # fmt: skip
        assert expected in Page(found.html).text, expected
        assert expected in found.markdown.replace("&lt;", "<"), expected
        assert expected in found.word_text, expected


def test_cases_without_a_category_and_costs_without_a_best(tmp_path: Path) -> None:
    def add(r: dict[str, Any]) -> None:
        by_category = r["variants"]["distillation"]["edge_cases"]["by_category"]
        by_category[""] = by_category["negation"]

    found = write(edit(make_comparison(), add), tmp_path)
    assert "no category" in Page(found.html).text
    assert not {"12.3", "49.4", "3.71", "1.93"} & set(Page(found.html).best_cells)


def test_word_tables_keep_the_gates_of_a_variant_together_and_rows_whole(written: Written) -> None:
    tables = [t for t in written.document.tables if t.cell(0, 0).text == "gate"]
    heads = [[cell.text for cell in table.rows[0].cells] for table in tables]
    assert heads == [["gate", "value", "bound", "deploy", "review", "result"]] * 3
    rows = [row for table in written.document.tables for row in table.rows]
    assert all(row._tr.trPr.find(qn("w:cantSplit")) is not None for row in rows)


def test_the_decision_says_what_it_is_about(tmp_path: Path) -> None:
    write_comparison_report(make_comparison(), folder=tmp_path)
    winner = make_comparison().winner
    assert f"**Deployment of {winner}: " in (tmp_path / "report.md").read_text("utf-8")
