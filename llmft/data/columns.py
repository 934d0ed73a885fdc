"""What the columns of a table are likely to be: text, labels, id, group, date."""

import ast
import itertools
import json
import math
import random
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from llmft.config.task import name_class
from llmft.data.fields import Row, RowFaultError, is_missing, list_fields, read_number
from llmft.data.reading import read_date
from llmft.errors import UserError
from llmft.wording import count, shorten_list

Kind = Literal[
    "empty", "constant", "text", "class", "flag", "number", "list", "scores", "date", "unique",
    "repeated", "other",
]  # fmt: skip
Role = Literal["text", "label", "id", "group", "date", "unused"]
_ROLES: dict[Role, str] = {
    "id": "a different value in every row",
    "group": "values that repeat: rows that share one belong together",
    "date": "every row has one",
}
"""Role -> why a column has it."""

_NAMED = {
    "label": {"label", "labels", "target", "targets", "class", "y", "gold"},
    "class": {"label", "class", "category", "intent", "topic", "emotion", "target", "kategorie",
              "sentiment", "stance"},
    "score": {"score", "scores", "rating", "stars", "grade", "level", "points", "bewertung"},
    "title": {"title", "headline", "subject", "titel", "judul"},
    "reason": {"reason", "reasoning", "rationale", "explanation", "justification"},
    "id": {"id", "ids", "uuid", "guid", "key", "index", "idx"},
    "group": {"group", "user", "author", "customer", "thread", "conversation", "session", "patient",
              "document", "doc", "speaker", "account", "case"},
    "meta": {"source", "lang", "language", "country", "publisher", "domain", "url", "link",
             "split", "fold", "version", "year", "month", "day", "quarter", "platform", "location",
             "device", "type", "annotator", "model", "status", "count", "length", "words", "chars"},
}  # fmt: skip
"""What a column is for -> words of its name that tell; its values count more."""
_RANGES = ((0, 1), (1, 5), (0, 5), (0, 10), (0, 100), (-1, 1))
_MONTH = re.compile(r"\d{4}[-/.](0?[1-9]|1[0-2]|Q[1-4])")
_URL = re.compile(r"\w+://\S+|www\.\S+|\S+@\S+\.\w+")
_MOST_MISSING = 0.04
"""Fraction of rows without a value that a task rejects without being told to; it stops at 5 %."""
_SHARED_TEXTS = 0.7
"""Fraction of different texts below which rows with the same one stay together."""
_FEW_CLASSES = 10
_ROWS_PER_VALUE = 20
_MOST_CODES = 4
"""Integers without a telling name: up to so many are classes, more are scores."""
_OFTEN = 0.9
_ROWS_PER_CLASS = 5
"""With fewer rows a class is left out; a column named as one may have so many values."""
_FEWEST_ROWS, _FEWEST_GROUPS = 30, 20
_PROSE_WORDS, _PROSE_SHARE = 4, 0.2
"""Texts have so many words in the median (one less if nearly all differ), and so many different
values."""
_WITHOUT_SPACES = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Thai, Japanese, Chinese and Korean, where a few letters are a sentence."""
_PLACEHOLDERS = {"n/a", "na", "#n/a", "nan", "null", "?", "-", "--"}
"""Text, in lower case, that stands for a missing value."""
_MOST_NAMES, _LONGEST_NAME = 100, 30
_LEAK = 0.5
"""Fraction of rows that name their own class from which on the text tells it."""


class Column(NamedTuple):
    """A column, and what its values look like."""

    name: str
    kind: Kind
    num_missing: int
    counts: Counter[str]
    """Value, or entry of its lists -> in how many rows."""
    dimensions: list[str] = []  # noqa: RUF012 - never changed
    """Of an object of scores."""
    range: tuple[float, float] = (0.0, 0.0)
    """Lowest and highest number."""
    is_integral: bool = False
    placeholders: list[str] = []  # noqa: RUF012 - never changed
    """Values such as N/A that stand for a missing one."""

    def is_named(self, what: str) -> bool:
        """Return whether a word of its name says what it is for."""
        words = re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", self.name))
        return not _NAMED[what].isdisjoint(word.casefold() for word in words)

    @property
    def scale(self) -> tuple[float, float] | None:
        """The usual scale that its numbers are on; None if they are on none."""
        low, high = self.range
        fits = (scale for scale in _RANGES if scale[0] <= low and high <= scale[1])
        return next(fits, None)


class Choice(NamedTuple):
    """Columns that may be the labels."""

    names: list[str]
    labels: dict[str, Any]
    """Section `labels` of the task."""
    why: str
    rank: int
    """Only choices of the highest rank are considered."""


class GuessedTask(NamedTuple):
    """What the columns of a table were taken for."""

    roles: dict[str, tuple[Role, str]]
    """Column -> what it is taken for, and why."""
    text: list[str]
    labels: dict[str, Any]
    """Section `labels` of the task."""
    num_classes: int
    """Classes or labels; 0 for scores."""
    id: str | None
    group: str | None
    date: str | None
    incomplete: list[str]
    """Columns of labels or text in which many rows have no value."""
    placeholders: dict[str, list[str]]
    """Column of labels -> values that stand for a missing one."""
    warnings: list[str]


def guess_task(
    rows: Sequence[Row], *, label: Sequence[str] = (), text: Sequence[str] = (), where: str
) -> GuessedTask:
    """Tell what the columns of a table are, by their values and names.

    Args:
        rows: The rows of the table.
        label: Columns of the labels; none to guess.
        text: Columns of the text, in their order; none to guess.
        where: The file, for messages.

    Raises:
        UserError: If a named column is not there or cannot be what it is named as, or if no column,
            or several, may be the label or the text: with the choices.
    """
    names = list_fields(rows)
    _refuse_request(rows, names, label=label, text=text, where=where)
    columns = {name: _describe(name, [row.get(name) for row in rows]) for name in names}
    choice = _choose_label(columns, rows, label=label, without=text, where=where)
    others = {name: c for name, c in columns.items() if name not in choice.names}
    texts = list(dict.fromkeys(text)) or _guess_text(list(others.values()), where=where)
    roles: dict[str, tuple[Role, str]] = {name: ("label", choice.why) for name in choice.names}
    roles |= {name: ("text", _describe_text(columns[name], rows)) for name in texts}
    found: dict[Role, str] = {}
    for name, column in others.items():
        if name not in roles:
            role = _find_role(column, taken=found)
            roles[name] = role, _ROLES.get(role) or _explain_unused(column)
            found[role] = name
    for name in texts:
        num_texts = len(columns[name].counts)
        if "group" not in found and num_texts < _SHARED_TEXTS * len(rows):
            found["group"] = name
            why = f"{roles[name][1]}; {num_texts:,} different ones, so it is the group too"
            roles[name] = "text", why
    required = [*choice.names, *(texts if len(texts) == 1 else [])]
    lacking = sum(any(_lacks(row, name) for name in required) for row in rows)
    incomplete = [name for name in required if columns[name].num_missing]
    return GuessedTask(
        {name: roles[name] for name in names}, texts, choice.labels,
        _count_classes(choice, columns), found.get("id"), found.get("group"), found.get("date"),
        incomplete if lacking > _MOST_MISSING * len(rows) else [],
        {name: columns[name].placeholders for name in choice.names if columns[name].placeholders},
        _find_leaks(rows, texts, choice),
    )  # fmt: skip


def _refuse_request(
    rows: Sequence[Row], names: list[str], *, label: Sequence[str], text: Sequence[str], where: str
) -> None:
    """Stop if there are too few rows, or if named columns are not there or do not go together."""
    absent = [name for name in (*label, *text) if name not in names]
    both = [name for name in text if name in label]
    if absent:
        raise UserError(f"{where}: has no column {absent[0]!r}; choose among {shorten_list(names)}")
    if both:
        raise UserError(f"{where}: {both[0]!r} is named by --label and --text; choose one")
    if len(rows) < _FEWEST_ROWS:
        raise UserError(
            f"{where}: has {count(len(rows), 'row')}, too few to train and test on; add rows, at "
            f"least {_FEWEST_ROWS}"
        )
    if "text" in text and len(set(text)) > 1:
        raise UserError(
            f"{where}: --text {_quote(list(text))}: a column named text cannot be joined with "
            "others, since prepared rows hold the joined text under this name; rename it"
        )


def _choose_label(
    columns: dict[str, Column], rows: Sequence[Row], *, label: Sequence[str],
    without: Sequence[str], where: str,
) -> Choice:  # fmt: skip
    """Return the columns of the labels: those that the user named, or the likely ones."""
    if label:
        choice = _take_label(list(columns.values()), label, where)
    else:
        free = [column for name, column in columns.items() if name not in without]
        choice = _guess_label(free, rows, where)
    first = columns[choice.names[0]]
    if len(choice.names) > 1 and first.kind == "flag":
        return _look_at_flags(choice, rows)
    large = [name for name, n in first.counts.items() if n >= _ROWS_PER_CLASS]
    if choice.labels["type"] == "class" and len(large) < 2:
        raise UserError(
            f"{where}: {first.name} has {choice.why}; add rows until two classes have "
            f"{_ROWS_PER_CLASS} or more"
        )
    return choice


def _find_role(column: Column, *, taken: dict[Role, str]) -> Role:
    """Return what a column is that holds neither text nor labels; each role is given once."""
    if "id" not in taken and column.kind == "unique" and column.num_missing == 0:
        return "id"
    if "group" not in taken and _may_group(column):
        return "group"
    if "date" not in taken and column.kind == "date" and _orders_rows(column):
        return "date"
    return "unused"


def _lacks(row: Row, name: str) -> bool:
    value = row.get(name)
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def _count_classes(choice: Choice, columns: dict[str, Column]) -> int:
    if choice.labels["type"] == "scores":
        return 0
    if isinstance(choice.labels["from"], list):
        return len(choice.names) + ("otherwise" in choice.labels)
    return len(columns[choice.names[0]].counts) - len(choice.labels.get("exclude", []))


def _describe(name: str, values: list[Any]) -> Column:
    present = [value for value in values if not is_missing(value) and value != ""]
    missing = len(values) - len(present)
    if any(isinstance(value, dict) for value in present):
        dimensions = _find_dimensions(present)
        kind: Kind = "scores" if dimensions else "other"
        numbers = [_as_score(value, d) or 0.0 for value in present for d in dimensions]
        span = (min(numbers), max(numbers)) if numbers else (0.0, 0.0)
        return Column(name, kind, missing, Counter(), dimensions, span)
    lists = [_as_list(value) for value in present]
    if not present or any(found is None for found in lists):
        lists = _split_names(present)
    if lists and all(found is not None for found in lists):
        entries = Counter(name_class(item) for found in lists for item in set(found or ()))
        return Column(name, "list", missing, entries)
    texts = [name_class(value).strip() for value in present if not isinstance(value, list)]
    texts = [text for text in texts if text]
    known = [text for text in texts if text.lower() not in _PLACEHOLDERS]
    placeholders = sorted(set(texts) - set(known))
    texts = known or texts
    missing, counts = len(values) - len(texts), Counter(texts)
    kind = _find_kind(name, texts, counts)
    found = [read_number(text) for text in counts] if kind in ("number", "class", "flag") else []
    numbers = [number for number in found if number is not None]
    if not numbers or len(numbers) < len(counts):
        return Column(name, kind, missing, counts, placeholders=placeholders)
    return Column(
        name, kind, missing, counts, [], (min(numbers), max(numbers)),
        all(number.is_integer() for number in numbers), placeholders,
    )  # fmt: skip


def _find_kind(name: str, texts: list[str], counts: Counter[str]) -> Kind:
    num_rows, num_values = len(texts), len(counts)
    if num_values <= 1:
        return "constant" if num_values else "empty"
    if set(counts) <= {"0", "1", "true", "false"}:
        return "flag"
    column = Column(name, "other", 0, counts)
    is_distinct, is_unique = num_values > 0.5 * num_rows, num_values == num_rows
    is_class = column.is_named("class")
    words = statistics.median(len(text.split()) for text in texts)
    length = statistics.median(map(len, counts))
    is_number = _share(counts, _is_number) == 1
    is_id = column.is_named("id") and not is_class
    few = max(_FEW_CLASSES, num_rows / (_ROWS_PER_CLASS if is_class else _ROWS_PER_VALUE))
    is_long = words >= _PROSE_WORDS or (words == _PROSE_WORDS - 1 and num_values > 0.9 * num_rows)
    has_prose = is_long and num_values > max(few, _PROSE_SHARE * num_rows)
    is_dense = length >= 4 and _share(counts, lambda t: bool(_WITHOUT_SPACES.search(t))) > _LEAK
    kinds: list[tuple[Kind, bool]] = [
        ("date", _share(counts, _is_date) >= _OFTEN),
        ("unique", is_number and is_unique and (is_id or _counts_up(texts))),
        ("repeated", is_number and is_id),
        ("number", is_number),
        ("other", _share(counts, lambda text: _URL.fullmatch(text) is not None) >= _OFTEN),
        ("text", has_prose or (is_distinct and is_dense)),
        ("unique", is_unique and words < 2),
        ("other", is_distinct),
        ("class", num_values <= few and not is_id),
        ("repeated", True),
    ]
    return next(kind for kind, holds in kinds if holds)


def _share(counts: Counter[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, counts)) / len(counts)


def _is_number(text: str) -> bool:
    number = read_number(text)
    return number is not None and math.isfinite(number)


def _is_date(text: str) -> bool:
    if _MONTH.fullmatch(text):
        return True
    number = read_number(text)
    if number is not None:
        return number.is_integer() and 1900 <= number <= 2100
    try:
        return read_date(text, name="")[0] == "date"
    except RowFaultError:
        return re.fullmatch(r"\d{1,2}[-/.]\d{1,2}[-/.]\d{4}", text) is not None


def _orders_rows(column: Column) -> bool:
    """Return whether every row has a date, in a form that a task can split by."""
    try:
        return (
            column.num_missing == 0 and len({read_date(v, name="")[0] for v in column.counts}) == 1
        )
    except RowFaultError:
        return False


def _counts_up(texts: list[str]) -> bool:
    numbers = [read_number(text) or 0 for text in texts]
    return all(b - a == 1 for a, b in itertools.pairwise(numbers))


def _as_list(value: Any) -> list[Any] | None:
    """Return a list of names, also from text as JSON or Python writes it; None for all else."""
    if isinstance(value, str) and value[:1] == "[":
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    is_plain = isinstance(value, list) and all(
        item is None or isinstance(item, str | int | float) for item in value
    )
    return value if is_plain else None


def _split_names(values: list[Any]) -> list[list[str] | None]:
    """Return names that text separates by commas, if a few names make up all of it; else none."""
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values) or not any("," in t for t in texts) or texts[0][:1] in "[({":
        return []
    split = [[name.strip() for name in text.split(",") if name.strip()] for text in texts]
    counts = Counter(name for names in split for name in names)
    are_names = all(len(name) <= _LONGEST_NAME and len(name.split()) <= 3 for name in counts)
    recur = len(counts) <= min(_MOST_NAMES, len(texts) / _ROWS_PER_CLASS)
    has_numbers = any(read_number(name) is not None for name in counts)
    return list(split) if are_names and recur and not has_numbers else []


def _find_dimensions(values: list[Any]) -> list[str]:
    """Return the keys of scores that nearly all objects have; none if they hold something else."""
    held = Counter(
        name
        for value in values
        if isinstance(value, dict) and isinstance(value.get("dimensions", value), dict)
        for name in value.get("dimensions", value)
        if _as_score(value, name) is not None
    )
    return [name for name, count in held.items() if count > _OFTEN * len(values)]


def _as_score(value: Any, name: str) -> float | None:
    held = value.get("dimensions", value) if isinstance(value, dict) else None
    found = held.get(name) if isinstance(held, dict) else None
    found = found.get("score") if isinstance(found, dict) else found
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _guess_label(columns: list[Column], rows: Sequence[Row], where: str) -> Choice:
    choices = [choice for choice in _list_choices(columns) if choice.rank >= 0]
    choices = _drop_codes(choices, {column.name: column for column in columns}, rows)
    best = [c for c in choices if c.rank == max(other.rank for other in choices)]
    if not best:
        raise UserError(
            f"{where}: no column looks like labels (few different values, numbers on a scale, "
            f"lists of names, columns of 0 and 1); name it with --label; the columns are "
            f"{shorten_list([column.name for column in columns])}"
        )
    if len(best) > 1:
        listed = "\n".join(f"  --label {_quote(c.names)}   {c.why}" for c in best)
        raise UserError(f"{where}: {len(best)} columns may be the label; choose one:\n{listed}")
    return best[0]


def _quote(names: list[str]) -> str:
    return " ".join(map(shlex.quote, names))


def _list_choices(columns: list[Column]) -> list[Choice]:
    found = []
    flags = [c for c in columns if c.kind == "flag" and not c.is_named("meta")]
    if len(flags) > 1:
        found.append(_choose_flags(flags))
    scales: dict[Any, list[Column]] = {}
    for column in columns:
        if column.kind == "number" and not _is_coded(column) and not column.is_named("meta"):
            scales.setdefault(column.scale, []).append(column)
    for scale, scored in scales.items():
        groups = [scored] if scale is not None else [[column] for column in scored]
        found += [_choose_scores(group) for group in groups]
    rest = [c for c in columns if c.kind not in ("flag", "number") or _is_coded(c)]
    rest += flags if len(flags) == 1 else []
    return found + [choice for c in rest if (choice := _choose(c)) is not None]


def _is_coded(column: Column) -> bool:
    """Return whether integers stand for classes."""
    if column.kind != "number" or not column.is_integral or column.is_named("score"):
        return False
    low, high = column.range
    count_on = low in (0, 1) and high - low + 1 == len(column.counts)
    few = sum(column.counts.values()) / 3 if count_on else _FEW_CLASSES
    return len(column.counts) <= (few if column.is_named("class") else _MOST_CODES)


def _choose(column: Column) -> Choice | None:
    """Return a column as labels; None if it holds none."""
    rank = 3 if column.is_named("label") else 1
    rank = 0 if rank == 1 and (column.is_named("meta") or column.is_named("group")) else rank
    match column.kind:
        case "class" | "flag":
            return Choice([column.name], *_make_classes(column), rank)
        case "number" if _is_coded(column):
            return Choice([column.name], *_make_classes(column), rank)
        case "list" if column.counts:
            why = f"lists of {len(column.counts):,} names: {_show_counts(column.counts)}"
            labels: dict[str, Any] = {"type": "multilabel", "from": column.name}
            rare = [name for name, n in column.counts.items() if n < _ROWS_PER_CLASS]
            if len(rare) > 0.5 * len(column.counts):
                rank = -1
            return Choice([column.name], labels, why, rank)
        case "scores":
            low, high = column.scale or column.range
            labels = {"type": "scores", "from": column.name, "dimensions": column.dimensions,
                      "range": [low, high]}  # fmt: skip
            why = f"{len(column.dimensions)} scores on a scale from {low:g} to {high:g}"
            tells = column.scale is not None and column.range[0] < column.range[1]
            rank = max(rank, 1) + 1 if tells and not column.is_named("meta") else -1
            return Choice([column.name], labels, why, rank)
        case _:
            return None


def _make_classes(column: Column) -> tuple[dict[str, Any], str]:
    labels: dict[str, Any] = {"type": "class", "from": column.name}
    rare = sorted(name for name, n in column.counts.items() if n < _ROWS_PER_CLASS)
    if len(column.counts) - len(rare) >= 2 and rare:
        labels["exclude"] = rare
    return labels, f"{len(column.counts):,} classes: {_show_counts(column.counts)}"


def _choose_flags(flags: list[Column]) -> Choice:
    names = [column.name for column in flags]
    return Choice(
        names, {"type": "multilabel", "from": names}, f"one of {len(names)} columns of 0 and 1", 1
    )


def _look_at_flags(choice: Choice, rows: Sequence[Row]) -> Choice:
    """Return columns of 0 and 1 as one class if no row has several 1, else as several labels."""
    marks = [sum(name_class(row.get(n)) in ("1", "true") for n in choice.names) for row in rows]
    if choice.labels["type"] != "multilabel" or max(marks) > 1:
        return choice
    labels = {"type": "class", "from": choice.names}
    if min(marks) == 0:
        labels["otherwise"] = "none"
    why = f"one of {len(choice.names)} columns of 0 and 1, of which one is 1 in a row"
    return choice._replace(labels=labels, why=why if min(marks) else f"{why} or none")


def _choose_scores(columns: list[Column]) -> Choice:
    """Return columns of numbers on one scale as scores."""
    scale = columns[0].scale
    low = min(column.range[0] for column in columns) if scale is None else scale[0]
    high = max(column.range[1] for column in columns) if scale is None else scale[1]
    names = [column.name for column in columns]
    rank = 3 if any(c.is_named("label") for c in columns) else 1 if scale is not None else 0
    labels = {"type": "scores", "dimensions": names, "range": [low, high]}
    why = f"numbers from {low:g} to {high:g}"
    return Choice(names, labels, why if len(names) == 1 else f"one of {len(names)} {why}", rank)


def _drop_codes(
    choices: list[Choice], columns: dict[str, Column], rows: Sequence[Row]
) -> list[Choice]:
    """Leave out a column of numbers that stand for the names in another column."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: columns[c.names[0]].is_integral):
        column = columns[choice.names[0]]
        twins = [
            other
            for other in kept
            if column.is_integral and _are_one_to_one(column, columns[other.names[0]], rows)
        ]
        if not twins:
            kept.append(choice)
    return kept


def _are_one_to_one(one: Column, other: Column, rows: Sequence[Row]) -> bool:
    if len(one.counts) != len(other.counts) or "class" not in (one.kind, other.kind):
        return False
    pairs = {(name_class(row.get(one.name)), name_class(row.get(other.name))) for row in rows}
    return len(pairs) == len(one.counts)


def _take_label(columns: list[Column], names: Sequence[str], where: str) -> Choice:
    """Return the columns that the user named as labels.

    Raises:
        UserError: If they cannot be labels.
    """
    found = {column.name: column for column in columns}
    named = [found[name] for name in names]
    kinds = {column.kind for column in named}
    choice = None
    if len(named) == 1 and kinds <= {"number"} and not _is_coded(named[0]):
        choice = _choose_scores(named)
    elif len(named) == 1 and (choice := _choose(named[0])) is not None:
        choice = choice._replace(rank=3)
    elif kinds == {"flag"}:
        choice = _choose_flags(named)
    elif kinds <= {"number", "flag"}:
        choice = _choose_scores(named)
    num_values, num_filled = len(named[0].counts), sum(named[0].counts.values())
    if choice is None and len(named) == 1 and 1 < num_values <= num_filled / 2:
        choice = Choice([named[0].name], *_make_classes(named[0]), 3)
    if choice is not None and choice.rank >= 0:
        return choice
    if len(named) > 1:
        other = next(column.name for column in named if column.kind not in ("flag", "number"))
        raise UserError(
            f"{where}: --label {_quote(list(names))}: several columns have to hold numbers, or 0 "
            f"and 1; {other} does not; name others"
        )
    num_rows = sum(named[0].counts.values())
    what = {"empty": "nothing", "constant": "the same value in every row", "date": "dates"}.get(
        named[0].kind,
        f"{len(named[0].counts):,} different values in {num_rows:,} rows, free text or ids",
    )
    raise UserError(
        f"{where}: --label {names[0]}: holds {what}, which cannot be labels; name another column"
    )


def _guess_text(columns: list[Column], *, where: str) -> list[str]:
    texts = [column for column in columns if column.kind == "text"]
    filled = [column for column in texts if column.num_missing <= sum(column.counts.values())]
    unbiased = [column for column in filled if not column.is_named("reason")]
    texts = unbiased or filled or texts
    alone = [column for column in texts if column.name == "text"]
    texts = alone or texts  # it cannot be joined with others
    if not texts:
        raise UserError(
            f"{where}: no column looks like free text; name it with --text; the columns are "
            f"{shorten_list([column.name for column in columns])}"
        )
    titles = [column for column in texts if column.is_named("title")]
    return [column.name for column in titles + [c for c in texts if c not in titles]]


def _describe_text(column: Column, rows: Sequence[Row]) -> str:
    lengths = [len(str(row.get(column.name) or "").split()) for row in rows]
    ordered = sorted(lengths)
    return f"free text, median {ordered[len(ordered) // 2]:,} words, longest {ordered[-1]:,}"


def _may_group(column: Column) -> bool:
    """Return whether rows with the same value may belong together."""
    if len(column.counts) < _FEWEST_GROUPS or column.num_missing > 0:
        return False
    if column.kind == "repeated":
        return not column.is_named("meta")
    return column.kind in ("class", "number") and column.is_named("group")


def _explain_unused(column: Column) -> str:
    low, high = column.range
    values = f"{len(column.counts):,} values: {_show_counts(column.counts)}"
    reasons: dict[str, str] = {
        "empty": "empty", "constant": "one value only", "class": values, "flag": values,
        "number": f"numbers from {low:g} to {high:g}", "list": "lists", "date": "dates",
        "text": f"free text, {_explain_text(column)}",
        "unique": "a different value in every row", "repeated": values,
    }  # fmt: skip
    return reasons.get(column.kind, "neither text nor labels")


def _explain_text(column: Column) -> str:
    if column.is_named("reason"):
        return "by its name written about the label: it would leak"
    if column.num_missing > sum(column.counts.values()):
        return "mostly empty"
    return "not joined with the text; rename `text` in the file to join them"


def _show_counts(counts: Counter[str], *, most: int = 4) -> str:
    shown = ", ".join(
        f"{repr(name[:30]) if ',' in name else name[:30]} {n:,}"
        for name, n in counts.most_common(most)
    )
    return shown + (", ..." if len(counts) > most else "")


def _find_leaks(rows: Sequence[Row], texts: list[str], choice: Choice) -> list[str]:
    """Warn of a text column in which most rows name their own class."""
    if choice.labels["type"] != "class" or len(choice.names) > 1:
        return []
    warnings: list[str] = []
    labels = [name_class(row.get(choice.names[0])).casefold() for row in rows]
    shuffled = random.Random(0).sample(labels, len(labels))
    for name in texts:
        held = [str(row.get(name) or "").casefold() for row in rows]
        own, other = _share_naming(held, labels), _share_naming(held, shuffled)
        if own > _LEAK and own - other > _LEAK / 2:
            warnings.append(
                f"{name} names the row's own class in {own:.0%} of the rows: the label leaks into "
                "the text, and a model that only copies it looks perfect"
            )
    return warnings


def _share_naming(texts: list[str], labels: list[str]) -> float:
    named = [len(x) > 1 and x in text for text, x in zip(texts, labels, strict=True)]
    return sum(named) / len(named)
