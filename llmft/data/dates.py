"""Read dates as numbers that can be put in order."""

import datetime
import math
from email.utils import parsedate_to_datetime
from typing import Any

from llmft.data.fields import RowFaultError, as_text


def read_date(value: Any, *, name: str) -> tuple[str, float]:
    """Return "date" and seconds since 1970, or "number" and the number, such as a year.

    ISO 8601 and the dates of mails and feeds are read; without a time zone they are UTC.

    Raises:
        RowFaultError: If it is neither.
    """
    text = value.isoformat() if isinstance(value, datetime.date) else as_text(value, name=name)
    if not text:
        raise RowFaultError(f"date missing: {name}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return "number", number
    for read in (datetime.datetime.fromisoformat, parsedate_to_datetime):
        try:
            return "date", _count_seconds(read(text.replace("/", "-")))
        except (ValueError, TypeError, OverflowError):
            continue
    raise RowFaultError(
        f"not a date: {name} holds {text[:80]!r}; a date begins with the year (2024-01-31), or is "
        "written as in mails (31 Jan 2024)"
    )


def _count_seconds(moment: datetime.datetime) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC).timestamp()  # an error outside of the years 1 to 9999
