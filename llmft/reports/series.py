"""Who is shown: the arms and the baselines, each with one look in every table and plot."""

from collections.abc import Sequence
from typing import Any, NamedTuple

Metrics = dict[str, float | None]

# After Okabe and Ito, without the tones that fade on white or on black; the marker says it again.
_LOOKS = (
    ("#0072b2", "o", "●"),
    ("#d55e00", "s", "■"),
    ("#009e73", "^", "▲"),
    ("#b65a9c", "D", "◆"),
    ("#a67c00", "v", "▼"),
    ("#3b9fd4", "P", "✚"),
    ("#8a5a44", "X", "✖"),
    ("#6a6fd0", "*", "★"),
)
_BASELINES = {
    "constant": ("best constant", "#8b929c", "|", "┃"),
    "tfidf": ("TF-IDF", "#8b929c", "d", "◇"),
}


class Series(NamedTuple):
    """An arm or a baseline."""

    name: str
    metrics: Metrics
    """Empty for an arm that the audit struck out."""
    parts: dict[str, Metrics]
    """Dimension or class -> its metrics."""
    colour: str
    marker: str
    """Matplotlib's sign for the marker."""
    glyph: str
    """The same marker as a character."""
    is_baseline: bool = False


def style_arm(index: int, *, name: str, metrics: Metrics, parts: dict[str, Metrics]) -> Series:
    """Return an arm with the look of its place in the suite."""
    return Series(name, metrics, parts, *_LOOKS[index % len(_LOOKS)])


def list_baselines(results: dict[str, Any], *, parts_key: str) -> list[Series]:
    """Return the baselines of a results file."""
    series = []
    for key, found in results["baselines"].items():
        name, colour, marker, glyph = _BASELINES.get(key, (key, "#8b929c", "d", "◇"))
        metrics = {k: v for k, v in found.items() if k != parts_key}
        parts = found.get(parts_key, {})
        series.append(Series(name, metrics, parts, colour, marker, glyph, is_baseline=True))
    return series


def find_parts_key(results: dict[str, Any]) -> str:
    """Return `per_class` if the results are of classes, else `per_dimension`."""
    return "per_class" if results.get("per_class") else "per_dimension"


def choose_part_metric(metric: str, *, parts_key: str) -> str:
    """Return the metric to show by dimension or class: a class has an f1, and no f1_macro."""
    return "f1" if parts_key == "per_class" else metric


def list_metrics(series: Sequence[Series]) -> list[str]:
    """Return the names of the metrics, in the order of the file."""
    return list(dict.fromkeys(key for s in series for key in s.metrics))
