"""The report of `llmft compare` as a Word document, with Word's own headings and tables."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import docx
from docx.document import Document
from docx.enum.section import WD_ORIENT, WD_SECTION
from docx.enum.text import WD_ALIGN_PARAGRAPH
from docx.oxml import OxmlElement
from docx.shared import Cm, Length, Pt

from llmft.files import replace_file
from llmft.reports.formatting import MISSING
from llmft.reports.layout import AuditGroup, Cell, Column, HeaderCell, SavedPlot, Section, Table
from llmft.results.comparison import ComparisonResult

_MAX_COLUMNS = 8
"""A wider table is continued below."""
_MAX_KEPT_ROWS = 14
"""A table of at most so many rows is kept on one page."""
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_METHOD = (
    "All variants predict the same test rows, joined by id. A gain is the difference to the "
    "reference on the same rows. Its 95 % interval covers the sampling of rows, or of clusters of "
    "rows, by the wider of bootstrap-t and Student's t; where each trained variant has three seeds "
    "or more, also that of seeds, else one run represents each variant, and the results are about "
    "these models only. The p-value that decides is that "
    "of a gain within the margin, with Holm's correction for several challengers.",
    "A challenger wins if the one-sided lower bound of its gain is above the margin, and its "
    "p-value after Holm is below the level of this look. The reference holds if the upper bound of "
    "every challenger is below the margin. Otherwise the comparison is unresolved. Before that, "
    "the audit looks for contamination, confounders, truncation and collapsed predictions.",
)


def write_document(
    path: Path, *, result: ComparisonResult, content: dict[str, Any], folder: Path
) -> None:
    """Write the DOCX report: summary, method, results, decision, and an appendix of plots.

    Args:
        path: Where to write.
        result: The results.
        content: The content of all formats.
        folder: Folder of the saved plots.
    """
    document = docx.Document()
    _set_style(document, result, content)
    _add_summary(document, result, content, folder)
    _add_method(document, content)
    _add_results(document, content)
    _add_decision(document, result, content)
    _add_appendix(document, content["plots"], folder)
    note = f"llmft {result.llmft_version}, {result.created}"
    _add_text(document, f"{note}; all numbers are in comparison.json.")
    with replace_file(path) as file:
        document.save(file)


def _set_style(document: Document, result: ComparisonResult, content: dict[str, Any]) -> None:
    font = document.styles["Normal"].font
    font.name, font.size = "Calibri", Pt(10.5)
    properties = document.core_properties
    properties.author, properties.comments = "llmft", ""
    properties.title = _clean(f"{result.verdict}: {content['headline']}")[:255]
    properties.created = properties.modified = datetime.fromisoformat(result.created)
    _set_page(document, wide=False)


def _add_summary(
    document: Document, result: ComparisonResult, content: dict[str, Any], folder: Path
) -> None:
    document.add_heading(_clean(f"{result.verdict}: {content['headline']}"), level=0)
    _add_text(document, f"Comparison of {result.task}, {result.suite}")
    document.add_heading("Executive summary", level=1)
    _add_text(document, result.why)
    _add_verdict_reasons(document, result, content)
    for fact in content["facts"]:
        _add_item(document, f"{fact.value} ({fact.note})", bold=f"{fact.term}: ")
    _add_audit(
        document, [group for group in content["audit"] if group.status not in ("note", "ok")]
    )
    for plot in content["plots"]["gains"]:
        _add_plots(document, [plot], folder, width=Cm(12))


def _add_verdict_reasons(
    document: Document, result: ComparisonResult, content: dict[str, Any]
) -> None:
    _add_text(document, result.decision, bold="Decision: ")
    if result.reasons and content["reasons_lead"]:
        _add_text(document, content["reasons_lead"])
    for reason in result.reasons:
        _add_item(document, reason)


def _add_method(document: Document, content: dict[str, Any]) -> None:
    document.add_heading("Method", level=1)
    for text in _METHOD:
        _add_text(document, text)
    document.add_heading("Data", level=2)
    for term, description in content["making"]:
        _add_item(document, description, bold=f"{term}: ")
    document.add_heading("Audit", level=2)
    _add_audit(document, content["audit"])


def _add_results(document: Document, content: dict[str, Any]) -> None:
    _set_page(document, wide=True)
    document.add_heading("Results", level=1)
    document.add_heading("Side by side", level=2)
    _add_text(document, content["side_intro"])
    for line in content["probe_lines"]:
        _add_text(document, line)
    _add_table(document, content["main_table"])
    for line in content["explained"]:
        _add_item(document, line)
    _add_table(document, content["costs_table"])
    sections: Sequence[Section] = content["sections"]
    for section in sections:
        blocks = [b for b in section.blocks if (b.table and not b.summary) or b.lines]
        if not blocks:
            continue
        document.add_heading(_clean(section.title), level=2)
        _add_text(document, section.intro)
        for block in blocks:
            if block.table and not block.summary:
                _add_table(document, block.table)
            for line in block.lines:
                _add_item(document, line)
    document.add_heading("How the variants were trained", level=2)
    _add_table(document, content["making_table"])
    for term, description in content["versions"]:
        _add_item(document, description, bold=f"{term}: ")


def _add_decision(document: Document, result: ComparisonResult, content: dict[str, Any]) -> None:
    _set_page(document, wide=False)
    document.add_heading("Decision", level=1)
    _add_text(document, f"{result.verdict}: {content['headline']}. {result.why}")
    _add_verdict_reasons(document, result, content)
    if result.recommended is not None:
        _add_text(document, result.recommended, bold="Recommended: ")


def _add_appendix(document: Document, plots: dict[str, list[SavedPlot]], folder: Path) -> None:
    document.add_heading("Appendix: plots", level=1)
    for key, found in plots.items():
        for i in range(0, len(found) if key != "gains" else 0, 2):
            _add_plots(document, found[i : i + 2], folder, width=Cm(7.6))


def _set_page(document: Document, *, wide: bool) -> None:
    """Start a page in portrait or landscape, unless the document is empty."""
    is_empty = len(document.element.body) <= 1
    page = document.sections[0] if is_empty else document.add_section(WD_SECTION.NEW_PAGE)
    page.orientation = WD_ORIENT.LANDSCAPE if wide else WD_ORIENT.PORTRAIT
    page.page_width, page.page_height = (Cm(29.7), Cm(21)) if wide else (Cm(21), Cm(29.7))
    page.left_margin = page.right_margin = Cm(2)
    page.top_margin = page.bottom_margin = Cm(1.8)


def _add_text(document: Document, text: str, *, bold: str = "") -> None:
    paragraph = document.add_paragraph()
    paragraph.add_run(_clean(bold)).bold = True
    paragraph.add_run(_clean(text))


def _add_item(document: Document, text: str, *, bold: str = "") -> None:
    paragraph = document.add_paragraph(style="List Bullet")
    paragraph.paragraph_format.space_after = Pt(2)
    paragraph.add_run(_clean(bold)).bold = True
    paragraph.add_run(_clean(text))


def _add_audit(document: Document, groups: Sequence[AuditGroup]) -> None:
    for finding in (finding for group in groups for finding in group.findings):
        waived = f"; waived by the suite: {finding.waived}" if finding.waived else ""
        name = f"{finding.status} ({finding.check}): "
        _add_item(document, f"{finding.message}{waived}", bold=name)


def _add_plots(
    document: Document, plots: Sequence[SavedPlot], folder: Path, *, width: Length
) -> None:
    """Add plots side by side below one caption, on the same page."""
    caption = " · ".join(plot.title for plot in plots)
    document.add_paragraph(_clean(caption), style="Caption").paragraph_format.keep_with_next = True
    paragraph = document.add_paragraph()
    for plot in plots:
        picture = paragraph.add_run().add_picture(str(folder / plot.path), width=width)
        picture._inline.docPr.set("descr", _clean(plot.alt))
        paragraph.add_run(" ")  # without it, two plots are not on one line


def _add_table(document: Document, table: Table) -> None:
    """Add a table with a caption; a wide one is split into several."""
    if not table.heads or not table.columns:
        return
    for i, piece in enumerate(_divide_table(table)):
        caption = table.caption if i == 0 else f"{table.caption}, continued"
        is_one_of_many = len(table.groups) > len(piece.groups) == 1 and piece.groups[0][0]
        if is_one_of_many:
            caption = f"{table.caption}: {piece.groups[0][0]}"
        layout = document.add_paragraph(_clean(caption), style="Caption").paragraph_format
        layout.keep_with_next, layout.space_before = True, Pt(8)
        _fill_table(document, piece, grouped=len(table.groups) > 1 and not is_one_of_many)
    document.add_paragraph()


def _divide_table(table: Table) -> list[Table]:
    """Return tables that fit a page; a group of columns stays together if it fits."""
    chunks: list[list[Column]] = []
    start = 0
    for _, span in table.groups:
        group, start = table.columns[start : start + span], start + span
        for at in range(0, span, _MAX_COLUMNS):
            piece = group[at : at + _MAX_COLUMNS]
            if chunks and len(chunks[-1]) + len(piece) <= _MAX_COLUMNS:
                chunks[-1] += piece
            else:
                chunks.append(piece)
    return [table._replace(columns=chunk) for chunk in chunks]


def _fill_table(document: Document, table: Table, *, grouped: bool) -> None:
    made = document.add_table(1 + len(table.heads), 1 + len(table.columns))
    made.style = "Light Grid Accent 1"
    lines = [row.cells for row in made.rows]
    for cells, texts in zip(lines, _list_lines(table, grouped=grouped), strict=True):
        for i, (cell, (text, note)) in enumerate(zip(cells, texts, strict=True)):
            paragraph = cell.paragraphs[0]
            paragraph.add_run(_clean(text)).font.size = Pt(8.5)
            if note:
                paragraph.add_run(f"\n{_clean(note)}").font.size = Pt(7)
            if i and table.columns[i - 1].is_number:
                paragraph.alignment = WD_ALIGN_PARAGRAPH.RIGHT
    for i, row in enumerate(made.rows, start=1):
        row._tr.get_or_add_trPr().append(OxmlElement("w:cantSplit"))
        if i < len(lines) <= _MAX_KEPT_ROWS:
            row.cells[0].paragraphs[0].paragraph_format.keep_with_next = True
    # Repeated on every page of the table.
    made.rows[0]._tr.get_or_add_trPr().append(OxmlElement("w:tblHeader"))


def _list_lines(table: Table, *, grouped: bool) -> Iterator[list[tuple[str, str]]]:
    """Yield the lines of a table, first that of the heads, as texts with notes."""
    yield [(table.corner, ""), *(_describe_column(c, grouped=grouped) for c in table.columns)]
    for head, cells in table.rows:
        yield [_describe_head(head), *(_describe_cell(cell) for cell in cells)]


def _describe_column(column: Column, *, grouped: bool) -> tuple[str, str]:
    name, note = _describe_head(column.head)
    return (f"{column.group}: {name}" if grouped and column.group else name), note


def _describe_head(head: HeaderCell) -> tuple[str, str]:
    return head.name, "; ".join(filter(None, (", ".join(head.tags), head.note)))


def _describe_cell(cell: Cell) -> tuple[str, str]:
    # The best value has a mark that does not depend on the style.
    return (f"{cell.text} ★" if cell.is_best else cell.text or MISSING), cell.note


def _clean(text: str) -> str:
    """Return text without the characters that XML does not allow."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
