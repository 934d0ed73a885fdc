"""The fields of a row, as text."""

import math
import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any

from llmft.config.loading import suggest
from llmft.config.task import FieldsConfig, write_value
from llmft.errors import UserError
from llmft.wording import shorten_list

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
Row = dict[str, Any]
"""A row of data: field -> value."""


class RowFaultError(ValueError):
    """A row that cannot be used; the message is `kind: detail`."""


def assemble_text(values: Row, fields: FieldsConfig) -> str:
    """Join the text fields of a row by a blank line.

    For a row without these fields return its prepared `text`.

    Raises:
        RowFaultError: If a field is not text, or all are empty.
    """
    names = fields.text
    if "text" in values and not any(name in values for name in names):
        names = ["text"]
    parts = [as_text(values.get(name), name=name) for name in names]
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise RowFaultError(f"empty text: nothing in {', '.join(names)}")
    return text


def join_pair(row: Row, fields: FieldsConfig) -> str:
    """Return the text of a prepared row: the article, and the text pair after a blank line."""
    pair = f"\n\n{row[fields.text_pair]}" if fields.text_pair else ""
    return f"{row['text']}{pair}"


def as_text(value: Any, *, name: str) -> str:
    """Return a field's value as stripped text.

    Raises:
        RowFaultError: If the value is a list or object, or not valid Unicode text.
    """
    if is_missing(value):
        return ""
    if isinstance(value, bytes):
        raise RowFaultError(f"not text: {name} holds bytes")
    if isinstance(value, dict | list):
        raise RowFaultError(f"not text: {name} holds a {type(value).__name__}")
    text = write_value(value).strip()
    if not any(map(_is_visible, text)):
        return ""
    if "\0" in text:
        raise RowFaultError(f"not text: {name} holds NUL bytes")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFaultError(f"not text: {name} holds a lone surrogate") from error
    return text


def has_decimal_comma(text: str) -> bool:
    """Return whether text would be a number with a point in place of its comma."""
    return "," in text and read_number(text.replace(",", ".")) is not None


def is_missing(value: Any) -> bool:
    """Return whether a value is missing: None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_visible(character: str) -> bool:
    """Return whether a character is no space, zero-width space or byte order mark."""
    return not (character.isspace() or unicodedata.category(character) == "Cf")


def read_number(text: str) -> float | None:
    """Return the number that a text is; None for anything else, such as `1_0`, `0x10` and `nan`."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def list_fields(rows: Iterable[Row]) -> list[str]:
    """Return the fields that any row has, in the order of their first row."""
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(row)
    return list(found)


def require_fields(wanted: Collection[str], found: Collection[str], *, where: str) -> None:
    """Refuse names of fields that no row has: they are most likely misspelt.

    Args:
        wanted: Fields that a recipe or task names.
        found: Fields that any row has; none if there are no rows.
        where: Start of the message.

    Raises:
        UserError: Naming these fields, and the fields that exist.
    """
    absent = [name for name in wanted if found and name not in found]
    if not absent:
        return
    faults = [
        f"no row has the field {name!r}.{suggest(name, allowed=list(found))}" for name in absent
    ]
    raise UserError(f"{where}: {' '.join(faults)} Fields found: {shorten_list(list(found))}")
