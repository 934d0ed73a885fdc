"""Rendering: save plots, and fill in the templates with escaped text."""

import importlib.util
import logging
import re
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmft.files import replace_file, write_text
from llmft.reports.entries import BAD, CARD, GAP, GOOD, GRID, INK, MUTED
from llmft.reports.formatting import (
    MISSING,
    escape_markdown,
    format_labels,
    format_threshold,
    make_breakable,
    shorten,
)
from llmft.results.evaluation import EvaluationBase

if TYPE_CHECKING:
    from llmft.reports.plots.figures import Plot

logger = logging.getLogger(__name__)

_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", CARD: "card", GOOD: "good", BAD: "bad"}


def has_package(name: str, *, needed_for: str) -> bool:
    """Return whether a package of the extra `report` is installed; warn if it is not."""
    module = {"matplotlib": "matplotlib", "python-docx": "docx"}[name]
    if importlib.util.find_spec(module) is not None:
        return True
    logger.info(
        "warning: no %s, since %s is not installed; run `pip install 'llmft[report]'`",
        needed_for, name,
    )  # fmt: skip
    return False


class SavedPlot(NamedTuple):
    """A plot for the templates."""

    title: str
    alt: str
    svg: Markup
    """Inline SVG, in the page's font and colours, light or dark."""
    path: str
    """Path of the PNG, relative to the folder of the report."""


def save_plot(plot: "Plot", *, folder: Path, prefix: str = "") -> SavedPlot:
    """Save a plot as PNG with a legend; return it as SVG without, since the page has one."""
    from llmft.reports.plots.figures import lay_out

    path = f"plots/{prefix}{plot.name}.png"
    buffer = StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with lay_out(plot.figure):
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    with replace_file(folder / path) as file:
        plot.figure.savefig(file, format="png", dpi=144)
    return SavedPlot(plot.title, plot.alt, _inline_svg(buffer.getvalue(), plot), path)


def write_report(
    name: str, *, folder: Path, result: EvaluationBase, content: dict[str, Any]
) -> Path:
    """Fill in the HTML and the Markdown template of a report.

    Args:
        name: `comparison` or `evaluation`.
        folder: Where to write `report.html` and `report.md`.
        result: The results.
        content: Tables, saved plots and texts for the templates.

    Returns:
        Path of `report.html`.
    """
    for ending in ("html", "md"):
        template = _make_environment(ending).get_template(f"{name}.{ending}.j2")
        text = template.render(r=result, **content)
        write_text(folder / f"report.{ending}", re.sub(r"\n{3,}", "\n\n", text))
    return folder / "report.html"


def name_file(text: str) -> str:
    """Return text as part of a file name that needs no quoting in a URL."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)[:40].strip("-")


def _make_environment(ending: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("llmft.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Escapes all values in Markdown, as autoescape does in HTML.
        finalize=escape_markdown if ending == "md" else None,
    )
    environment.filters.update(
        breakable=make_breakable,
        labels=format_labels,
        shorten=shorten,
        threshold=format_threshold,
    )
    environment.globals.update(gap=GAP, missing=MISSING)
    return environment


def _inline_svg(text: str, plot: "Plot") -> Markup:
    """Return SVG for inline use in HTML: unique ids, no namespaces, the colours of the page."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.S)
    opening, body = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', opening)
    assert view_box is not None
    # Only within tags: the text between them may be the name of a variant.
    body = re.sub(r"<[^>]+>", lambda tag: _adapt_tag(tag.group(), plot.name), body)
    start = Markup('<svg {} role="img" aria-label="{}">').format(Markup(view_box.group()), plot.alt)
    return start + Markup(body)


def _adapt_tag(tag: str, name: str) -> str:
    tag = re.sub(r' id="[^"]*_\d+"', "", tag)
    tag = tag.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-")
    tag = tag.replace('xlink:href="#', f'href="#{name}-').replace("xlink:href", "href")
    tag = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag
