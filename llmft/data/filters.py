"""Leave out rows that do not meet a condition, and say which one."""

import math
import re
from collections.abc import Sequence
from typing import Any

from llmft.config.task import FilterConfig
from llmft.data.fields import Row, RowFaultError, as_text, is_missing, write_value


def apply_filters(values: Row, filters: Sequence[FilterConfig]) -> None:
    """Check a source row against every filter.

    Raises:
        RowFaultError: Naming the first filter that the row does not pass.
    """
    for condition in filters:
        reason = _find_reason(values.get(condition.field), condition)
        if reason is not None:
            raise RowFaultError(f"filtered by {condition.field}: {reason}")


def _find_reason(value: Any, condition: FilterConfig) -> str | None:
    text = _as_text(value, name=condition.field)
    reasons = [
        _judge_presence(text, condition),
        _judge_number(text, condition),
        _judge_text(text, condition),
    ]
    return next(filter(None, reasons), None)


def _judge_presence(text: str, condition: FilterConfig) -> str | None:
    if condition.empty in (None, text == ""):
        return None
    return f"it is not empty, but {text[:80]!r}" if text else "it is empty"


def _judge_number(text: str, condition: FilterConfig) -> str | None:
    if condition.min is None and condition.max is None:
        return None
    number = _as_number(text)
    if number is None:
        return f"{text[:80]!r} is no number" if text else "it is empty"
    if condition.min is not None and number < condition.min:
        return f"{number:g} is below {condition.min:g}"
    if condition.max is not None and number > condition.max:
        return f"{number:g} is above {condition.max:g}"
    return None


def _judge_text(text: str, condition: FilterConfig) -> str | None:
    if condition.in_ is not None and text not in map(write_value, condition.in_):
        return f"{text[:80]!r} is not in the list"
    if condition.not_in is not None and text in map(write_value, condition.not_in):
        return f"{text[:80]!r} is in not_in"
    if condition.matches is not None and not re.search(condition.matches, text):
        return f"no match of {condition.matches!r}"
    if condition.not_matches is not None and re.search(condition.not_matches, text):
        return f"a match of {condition.not_matches!r}"
    return None


def _as_text(value: Any, *, name: str) -> str:
    if is_missing(value) or value in ([], {}):
        return ""
    return as_text(value if isinstance(value, bytes) else write_value(value), name=name)


def _as_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
