"""Words for messages: counts, lists, and text from data that is safe to show."""

import re
from collections.abc import Sequence

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters without tab and line feed, and those that turn the direction of text."""


def count(number: float, noun: str) -> str:
    """Return a number with its noun, as in "1 row", "1,200 rows", "2 classes" and "0.5 epochs"."""
    if number == 1:
        return f"1 {noun}"
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}{'es' if noun.endswith(('s', 'x', 'tch', 'sh')) else 's'}"


def shorten_list(names: Sequence[str], *, longest: int = 20) -> str:
    """Return names for a message, joined by commas, with the number of those left out."""
    more = f" and {len(names) - longest} more" if len(names) > longest else ""
    return ", ".join(names[:longest]) + more


def escape_controls(text: str) -> str:
    r"""Return text with control characters but line breaks and tabs as `\x1b` and the like.

    A terminal would follow them, and names and ids come from data.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
