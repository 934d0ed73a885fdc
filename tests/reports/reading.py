"""Read a report as a browser or a Markdown renderer would, as far as the tests need it."""

import base64
import re
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

from llmft.reports import formatting
from llmft.results.files import Result

_LINKS = ("src", "href", "xlink:href", "action", "data", "srcset")


class Page(HTMLParser):
    """Tags, attributes, text, and what stands in the cells of tables and in plots."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.number_cells: list[str] = []
        self.best_cells: list[str] = []
        self.drawn_texts: list[str] = []
        self.text = ""
        self._open: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "td":
            cells = self.number_cells if "number" in (dict(attrs).get("class") or "") else []
            cells.append("")
            self._open = cells
        if tag == "mark":
            self.best_cells.append("")
        if tag == "text":
            self._open = self.drawn_texts
            self._open.append("")
        if tag == "small" and self._open is not None:
            self._open.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "text"):
            self._open = None

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            return
        self.text += data
        if self._open is not None:
            self._open[-1] += data
            if self.get_starttag_text() == "<mark>":
                self.best_cells[-1] += data


def list_headings(html: str) -> list[str]:
    """Return the titles of the sections."""
    return [Page(title).text for title in re.findall(r"<h2>(.*?)</h2>", html)]


def list_outside_links(html: str) -> list[str]:
    """Return what the page would fetch, or run, from elsewhere."""
    page = Page(html)
    found = [
        value
        for name, value in page.attributes
        if name in _LINKS and not re.match(r"#|data:image/png|[\w%-]+\.json$", value)
    ]
    found += [name for name, _ in page.attributes if name.startswith("on")]
    found += _list_strange_scripts(html)
    found += [tag for tag in page.tags if tag in ("link", "iframe", "img", "object")]
    return found + re.findall(r"@import|url\((?!#)", html)


def _list_strange_scripts(html: str) -> list[str]:
    """Return the scripts that the page's own policy does not name, and that would do something."""
    scripts = re.findall(r"<script\b([^>]*)>(.*?)</script>", html, flags=re.S)
    hashes = [base64.b64encode(sha256(text.encode()).digest()).decode() for _, text in scripts]
    return [
        text[:80]
        for (attributes, text), digest in zip(scripts, hashes, strict=True)
        if attributes != ' type="application/json" id="row-data"'
        and (attributes or f"script-src 'sha256-{digest}'" not in html)
    ]


def list_written_numbers(result: Result) -> set[str]:
    """Return every number of a results file, in every way in which a report may write it."""
    numbers = set(_walk(result.model_dump(mode="json")))
    shows = [getattr(formatting, name) for name in dir(formatting) if name.startswith("format_")]
    shows.remove(formatting.format_interval)
    shows.remove(formatting.format_percent_interval)
    shows.remove(formatting.format_labels)
    return {formatting.MISSING} | {show(number) for number in numbers for show in shows}


def split_cell(text: str) -> list[str]:
    """Return the numbers of one cell."""
    return re.split(r" to | of ", text.removeprefix("by chance: up to "))


def count_table_columns(markdown: str) -> list[set[int]]:
    """Return per Markdown table the different numbers of columns that its lines have."""
    tables: list[set[int]] = []
    inside = False
    for line in markdown.splitlines():
        if line.startswith("|"):
            if not inside:
                tables.append(set())
            tables[-1].add(len(re.findall(r"(?<!\\)\|", line)))
        inside = line.startswith("|")
    return tables


def _walk(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _walk(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
