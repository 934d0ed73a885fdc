"""Turn what a row says into labels, or say why it cannot be done. Nothing is ever imputed."""

import json
import math
from typing import Any

from llmft.config.task import ClassConfig, ScoresConfig
from llmft.data.sources import RowFaultError, as_text


def parse_scores(values: dict[str, Any], config: ScoresConfig) -> dict[str, float]:
    """Return {dimension: score} from any of the three shapes of the task file.

    Raises:
        RowFaultError: If a score is missing, no number, or out of range.
    """
    found = _get_label(values, config.from_)
    if isinstance(found, str):
        try:
            found = json.loads(found)  # CSV cells hold objects as JSON text
        except (ValueError, RecursionError) as error:
            raise RowFaultError(f"label missing: {config.from_} is not an object") from error
    if isinstance(found, dict) and isinstance(found.get("dimensions"), dict):
        found = found["dimensions"]
    if not isinstance(found, dict):
        raise RowFaultError(f"label missing: {config.from_} is not an object")
    return {name: _parse_score(found, name, config.range) for name in config.dimensions}


def parse_class(values: dict[str, Any], config: ClassConfig) -> str:
    """Return the name of the row's class.

    Raises:
        RowFaultError: If it is missing or not in the task's map.
    """
    found = _get_label(values, config.from_)
    if isinstance(found, dict | list) or (isinstance(found, float) and not math.isfinite(found)):
        raise RowFaultError(f"not a class: {config.from_} holds {_show(found)}")
    if isinstance(found, bool):
        found = json.dumps(found)  # as it stands in the data: true, not True
    name = as_text(found, name=config.from_)
    if not name:
        raise RowFaultError(f"label missing: {config.from_}")
    if config.map is None:
        return name
    if name not in config.map:
        raise RowFaultError(f"unknown class: {name[:80]!r} is not in the map of {config.from_}")
    return config.map[name]


def _show(value: Any) -> str:
    if isinstance(value, dict | list):  # may be nested too deeply to be printed
        return "an object" if isinstance(value, dict) else "a list"
    return repr(value)[:80]


def _get_label(values: dict[str, Any], name: str) -> Any:
    if values.get(name) is None:
        raise RowFaultError(f"label missing: {name}")
    return values[name]


def _parse_score(scores: dict[str, Any], name: str, limits: list[float]) -> float:
    score = scores.get(name)
    if isinstance(score, dict):
        score = score.get("score")
    if score is None:
        raise RowFaultError(f"label missing: {name}")
    if isinstance(score, bool) or not isinstance(score, int | float):
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
