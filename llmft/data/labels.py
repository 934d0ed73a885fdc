"""Parse the labels of a row, or raise why they cannot be used; nothing is imputed."""

import ast
import contextlib
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.config.task import (
    ClassConfig,
    LabelsConfig,
    MultilabelConfig,
    ScoresConfig,
    name_class,
    write_value,
)
from llmft.data.fields import (
    Row,
    RowFaultError,
    as_text,
    has_decimal_comma,
    is_missing,
    read_number,
)

Labels = dict[str, float] | str | list[str]
"""Labels of a prepared row: scores by dimension, a class, or the labels that apply."""
_ADJACENT = re.compile(r"""['"]\s+['"]""")
LABEL_THRESHOLD = 0.5
"""Probability from which on one of several labels applies."""
Floats = NDArray[np.floating[Any]]


def parse_labels(values: Row, config: LabelsConfig, *, accepts_unknown: bool = False) -> Labels:
    """Return the labels of a row.

    Args:
        values: Its fields.
        config: Where its labels stand, and which there are.
        accepts_unknown: Whether a class or label that the task does not list is accepted, by the
            name that it has in the data.

    Raises:
        RowFaultError: If they are missing or do not match the task.
    """
    match config:
        case ScoresConfig():
            return parse_scores(values, config)
        case ClassConfig():
            return parse_class(values, config, accepts_unknown=accepts_unknown)
        case MultilabelConfig():
            return parse_multilabel(values, config, accepts_unknown=accepts_unknown)


def parse_scores(values: Row, config: ScoresConfig) -> dict[str, float]:
    """Return {dimension: score} from any of the three formats of `labels.from`.

    Raises:
        RowFaultError: If a score is missing, not a number, or out of range.
    """
    found = values if config.from_ is None else _get_label(values, config.from_)
    if isinstance(found, str):
        found = _parse_cell(found, config)
    if isinstance(found, dict) and isinstance(found.get("dimensions"), dict):
        found = found["dimensions"]
    if len(config.dimensions) == 1 and not isinstance(found, dict):
        found = {config.dimensions[0]: found}
    if not isinstance(found, dict):
        raise RowFaultError(f"label missing: {config.from_} is not an object")
    return {name: _parse_score(found, name, config.range) for name in config.dimensions}


def parse_class(values: Row, config: ClassConfig, *, accepts_unknown: bool = False) -> str:
    """Return the name of the row's class.

    Raises:
        RowFaultError: If it is missing, not one of the task's, or excluded; see `parse_labels`.
    """
    if isinstance(config.from_, list):
        name = _find_marked(values, config.from_, otherwise=config.otherwise)
        name = (config.map or {}).get(name_class(name), name) if name in config.from_ else name
    else:
        found = _get_label(values, config.from_)
        if isinstance(found, dict | list) or (
            isinstance(found, float) and not math.isfinite(found)
        ):
            raise RowFaultError(f"not a class: {config.from_} holds {_show(found)}")
        name = name_class(as_text(found, name=config.from_))
        if not name:
            raise RowFaultError(f"label missing: {config.from_}")
        if config.map is not None and name not in config.map and not accepts_unknown:
            raise RowFaultError(f"unknown class: {name[:80]!r} is not in the map of {config.from_}")
        name = (config.map or {}).get(name, name)
    if name in config.exclude:
        raise RowFaultError(f"excluded class: {name}")
    if config.order is not None and name not in config.order and not accepts_unknown:
        raise RowFaultError(f"unknown class: {name[:80]!r} is not in the order of the classes")
    return name


def parse_multilabel(
    values: Row, config: MultilabelConfig, *, accepts_unknown: bool = False
) -> list[str]:
    """Return the labels that apply to the row; there may be none.

    Raises:
        RowFaultError: If a field is missing, holds neither 0 nor 1, or no list of known labels; see
            `parse_labels`.
    """
    if isinstance(config.from_, list):
        return [config.rename(field) for field in config.from_ if _parse_mark(values, field)]
    listed = _parse_list(_get_label(values, config.from_), name=config.from_)
    named = dict.fromkeys(map(config.rename, listed))
    unknown = [name for name in named if config.names is not None and name not in config.names]
    if unknown and not accepts_unknown:
        raise RowFaultError(f"unknown label: {unknown[0][:80]!r} is not among the names")
    return list(named)


def _parse_list(found: Any, *, name: str) -> list[str]:
    """Return the names in a list, or in text that holds one as JSON, as Python or by commas."""
    if isinstance(found, str):
        found = _split_labels(found.strip(), name=name)
    if isinstance(found, dict):
        raise RowFaultError(f"not a list: {name} holds an object")
    items = found if isinstance(found, list) else [found]
    if any(item is None for item in items):
        raise RowFaultError(f"label missing: {name} holds an empty entry")
    numbers = [item for item in items if isinstance(item, int | float)]
    if len(numbers) > len(set(numbers)):
        raise RowFaultError(
            f"not a list: {name} holds a number twice, as a list of 0 and 1 for each label does; "
            "write these as columns"
        )
    names = [name_class(as_text(item, name=name)) for item in items]
    return [label for label in names if label]


def _split_labels(text: str, *, name: str) -> Any:
    """Return the labels in text: a list as JSON or Python writes it, or separated by commas.

    An object is returned as it is.
    """
    if not text:
        raise RowFaultError(f"label missing: {name} (a row to which none applies has [])")
    if text[0] in "[({":
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            found = ast.literal_eval(text)
            if isinstance(found, dict):
                return found
            # ['a' 'b'] of numpy would be one label, and ('a') its letters.
            if not isinstance(found, str) and not _ADJACENT.search(text):
                return list(found)
        raise RowFaultError(f"not a list: {name} holds {_show(text)}")
    if "," not in text and any(mark in text for mark in ";|\t\n"):
        raise RowFaultError(f"not a list: {name} holds {_show(text)}; separate labels by commas")
    items = [item.strip() for item in text.split(",")]
    return [i[1:-1] if len(i) > 1 and i[0] == i[-1] and i[0] in "'\"" else i for i in items]


def list_scores(rows: Sequence[Row], config: ScoresConfig) -> NDArray[np.float64]:
    """Return the scores of prepared rows, shape [N, D]."""
    return np.array([[row["labels"][name] for name in config.dimensions] for row in rows])


def compute_overall(scores_ND: Floats, config: ScoresConfig) -> Floats:
    """Return the overall score of each row, the weighted mean over the dimensions, shape [N]."""
    weights = config.weights or dict.fromkeys(config.dimensions, 1.0)
    weights_D = np.array([weights.get(name, 0.0) for name in config.dimensions])
    return np.asarray(scores_ND @ (weights_D / weights_D.sum()))


def assign_tiers(overall_N: Floats, config: ScoresConfig) -> NDArray[np.int64]:
    """Return for each overall score the index of its tier, shape [N].

    A prediction below the lowest bound is in the lowest tier.
    """
    assert config.tiers is not None
    # Weighted means of scores such as 7, 7 and 7 may come out as 6.999999.
    bounds = np.round(list(config.tiers.values()), 6)
    found = np.searchsorted(bounds, np.round(overall_N, 6), side="right") - 1
    return np.asarray(np.maximum(found, 0))


def _find_marked(values: Row, fields: list[str], *, otherwise: str | None) -> str:
    """Return the only field that is 1; `otherwise` if there is none."""
    marked = [field for field in fields if _parse_mark(values, field)]
    if len(marked) > 1:
        raise RowFaultError(f"several classes: {' and '.join(marked)} are 1")
    if marked:
        return marked[0]
    if otherwise is None:
        raise RowFaultError(f"label missing: none of {', '.join(fields)} is 1")
    return otherwise


def _parse_mark(values: Row, field: str) -> bool:
    found = _get_label(values, field)
    text = found.strip() if isinstance(found, str) else write_value(found)
    if text.lower() not in ("0", "1", "0.0", "1.0", "false", "true"):
        hint = f"; write `from: {field}` for a list of labels" if isinstance(found, list) else ""
        raise RowFaultError(f"not 0 or 1: {field} holds {_show(found)}{hint}")
    return text.lower() in ("1", "1.0", "true")


def _show(value: Any) -> str:
    if isinstance(value, dict | list):  # may be nested too deeply to be printed
        return "an object" if isinstance(value, dict) else "a list"
    return repr(value)[:80]


def _parse_cell(text: str, config: ScoresConfig) -> Any:
    """Parse a CSV cell with JSON; for a single dimension it may be a number."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if len(config.dimensions) == 1:
            return text
        raise RowFaultError(f"label missing: {config.from_} is not an object") from error


def _get_label(values: Row, name: str) -> Any:
    if values.get(name) is None:
        raise RowFaultError(f"label missing: {name}")
    return values[name]


def _parse_score(scores: Row, name: str, limits: list[float]) -> float:
    score = scores.get(name)
    if isinstance(score, dict):
        score = score.get("score")
    if is_missing(score) or score == "":
        raise RowFaultError(f"label missing: {name}")
    if isinstance(score, str):  # as a CSV has it
        number = read_number(score)
        if number is None and has_decimal_comma(score):
            raise RowFaultError(f"not a number: {name} is {_show(score)}, with a decimal comma")
        score = score if number is None else number
    if isinstance(score, bool) or not isinstance(score, int | float | Decimal):
        raise RowFaultError(f"not a number: {name} is {_show(score)}")
    try:
        score = float(score)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise RowFaultError(f"not a number: {name} is {score}")
    if not limits[0] <= score <= limits[1]:
        raise RowFaultError(
            f"out of range: {name} is {score:g}, allowed {limits[0]:g} to {limits[1]:g}"
        )
    return score


def has_unknown_label(labels: Any, label_names: list[str]) -> bool:
    """Return whether a row has a class or label that is not among the model's."""
    named = {labels} if isinstance(labels, str) else set(labels)
    return not named <= set(label_names)


def list_unknown_labels(labels: Sequence[Labels], label_names: list[str]) -> list[str]:
    """Return the classes or labels of rows that are not among the model's, in order of the name."""
    return sorted(list_named(labels) - set(label_names))


def list_named(labels: Sequence[Labels]) -> set[str]:
    """Return the classes or labels that rows have, or their dimensions."""
    return {name for one in labels for name in ([one] if isinstance(one, str) else one)}


def find_alike(names: Sequence[str]) -> list[list[str]]:
    """Return names that are likely one: equal but for case, spaces, width and form of numbers.

    Booleans next to the numbers that stand for them are alike too (D24).
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        visible = [c for c in folded if unicodedata.category(c) not in ("Cf", "Zs", "Cc")]
        key = "".join(visible)
        number = read_number({"false": "0", "true": "1"}.get(key, key))
        alike.setdefault(key if number is None else repr(number), []).append(name)
    return [found for found in alike.values() if len(found) > 1]
