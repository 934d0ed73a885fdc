"""Formatting of values of a results file: numbers for people, and escaped text."""

import math
import re
from typing import Any

from markupsafe import Markup, escape

from llmft.results.evaluation import Interval, Labels

MISSING = "–"
"""Shown for missing values."""

_MARKDOWN_SPECIAL = re.compile(r"([\\`*\[\]|~#!$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_HTML_SPECIAL = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def format_metric(value: float | None) -> str:
    """Return a metric with three decimals."""
    return _format(value, "z.3f")


def format_score(value: float | None) -> str:
    """Return one score or probability of a row with two decimals."""
    return _format(value, "z.2f")


def format_p_value(value: float | None) -> str:
    """Return a p-value with three decimals, or "< 0.001"."""
    return "< 0.001" if value is not None and value < 0.001 else format_metric(value)


def format_threshold(value: float | None) -> str:
    """Return a number from a configuration file without trailing zeros."""
    return _format(value, "g")


def format_count(value: float | None) -> str:
    """Return an integer."""
    return _format(value, ".0f")


def format_quantity(value: float | None) -> str:
    """Return three significant digits, or an integer from 100 on."""
    return _format(value, ",.0f" if value is not None and abs(value) >= 100 else "#.3g")


def format_percent(value: float | None) -> str:
    """Return a fraction as a percentage."""
    return _format(value, ".1%").replace("%", " %")


def format_size(value: float | None) -> str:
    """Return a large count with its unit: 24.4 k, 1.54 B."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # From 999.5 on three digits would read 1e+03.
        if value is not None and value >= 0.9995 * unit:
            return f"{value / unit:.3g} {letter}"
    return _format(value, ".0f")


def format_seconds(value: float | None) -> str:
    """Return a duration: 26.6 s, 12 min 34 s, 3 h 05 min."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 59.95:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_interval(interval: Interval | None) -> str:
    """Return both ends of an interval of a metric."""
    if interval is None:
        return MISSING
    return f"{format_metric(interval.low)} to {format_metric(interval.high)}"


def note_interval(interval: Interval | None) -> str:
    """Return the interval as a note of a value; empty without an interval."""
    return format_interval(interval) if interval else ""


def format_percent_interval(interval: Interval | None) -> str:
    """Return both ends of an interval of a fraction as percentages."""
    if interval is None:
        return MISSING
    return " to ".join(format_percent(end) for end in interval)


def format_labels(labels: Labels) -> str:
    """Return the labels of a row: a class, the labels that apply, or scores by dimension."""
    match labels:
        case str():
            return labels
        case list():
            return ", ".join(labels) or "none"
        case _:
            return ", ".join(f"{name} {format_threshold(value)}" for name, value in labels.items())


def join_values(value: Any) -> str:
    """Return any JSON value on one line; nothing for null."""
    match value:
        case None:
            return ""
        case dict():
            return ", ".join(f"{name} {join_values(found)}" for name, found in value.items())
        case list():
            return ", ".join(join_values(found) for found in value)
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)


def shorten(text: str, *, length: int) -> str:
    """Return the start of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def make_breakable(text: str) -> Markup:
    """Return a name as HTML that may be broken after its underscores and slashes."""
    return Markup(re.sub(r"(?<=[^_/])([_/])(?=[^_/])", r"\1<wbr>", str(escape(text))))


def escape_markdown(value: Any) -> Markup:
    """Return a value as Markdown that renders as exactly that text, on one line.

    Pipes, HTML, links, images and code are escaped.
    """
    if isinstance(value, Markup):
        return value
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    escaped = _MARKDOWN_SPECIAL.sub(r"\\\1", line)
    return Markup("".join(_HTML_SPECIAL.get(c, c) for c in escaped))


def _format(value: float | None, spec: str) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    return format(value, spec)
