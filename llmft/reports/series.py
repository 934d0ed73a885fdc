"""Who is shown: the arms and the baselines, each with one look in every table and plot."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmft.config.metrics import METRICS
from llmft.results.comparison import EnsembleResult
from llmft.results.variant import Interval, LabelType, Measurement, Metrics, Parts, VariantResult

MAX_PARTS = 20
NUM_WORST, NUM_BEST = 15, 5
GAP = "⋯"
"""What stands for the dimensions, classes or labels that are left out."""
MAX_POINTS = 2000
"""Of more rows, so many are drawn: a fuller cloud shows no more."""
MAX_COUNTED_CLASSES = 12
"""With more, the cells of a confusion matrix are too small for their counts."""

INK, MUTED, GRID, CARD = "#1c2026", "#667080", "#e3e6eb", "#fefefe"
GOOD, BAD = "#2e7d4f", "#b3261e"
# After Okabe and Ito, without the tones that fade on white or on black; the marker says it again.
LOOKS = (
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
    parts: Parts
    colour: str
    marker: str
    """Matplotlib's sign for the marker."""
    glyph: str
    """The same marker as a character."""
    intervals: dict[str, Interval | None]
    """Metric -> its interval, as far as it was measured."""
    part_intervals: dict[str, Interval | None]
    """Dimension, class or label -> the interval of the metric that is shown of it."""
    is_baseline: bool = False

    def get_part(self, part: str, metric: str) -> float | None:
        """Return a metric of a dimension, class or label; None where there is none."""
        return self.parts[part].get(metric) if part in self.parts else None


def is_higher_better(metric: str) -> bool:
    """Return the direction of a metric; those of one class are all better when higher."""
    return METRICS[metric].higher_is_better if metric in METRICS else True


def style_variant(index: int, *, name: str, found: VariantResult, metric: str) -> Series:
    """Return a variant with the look of its place in the suite.

    Args:
        index: Its place.
        name: Its name.
        found: What was measured of it.
        metric: The one that is shown by dimension, class or label.
    """
    by_part = found.part_intervals
    return Series(
        name,
        found.metrics,
        found.parts,
        *LOOKS[index % len(LOOKS)],
        intervals=found.intervals,
        part_intervals=by_part.intervals if by_part and by_part.metric == metric else {},
    )


def style_ensemble(index: int, *, name: str, found: EnsembleResult) -> Series:
    """Return an ensemble with a look that no variant has."""
    look = LOOKS[index % len(LOOKS)]
    return Series(name, found.metrics, {}, *look, intervals=found.intervals, part_intervals={})


def list_baselines(baselines: Mapping[str, Measurement]) -> list[Series]:
    """Return the baselines, with their looks."""
    series = []
    for key, found in baselines.items():
        name, colour, marker, glyph = _BASELINES.get(key, (key, "#8b929c", "d", "◇"))
        series.append(Series(name, found.metrics, found.parts, colour, marker, glyph, {}, {}, True))
    return series


def list_metrics(series: Sequence[Series]) -> list[str]:
    """Return the names of the metrics, in the order of the file."""
    return list(dict.fromkeys(key for s in series for key in s.metrics))


def choose_part_metric(leading: str, *, parts: Sequence[Parts], label_type: LabelType) -> str:
    """Return the metric to show by dimension or class: a class has an f1, and no f1_macro."""
    if any(leading in metrics for found in parts for metrics in found.values()):
        return leading
    return "mae" if label_type == "scores" else "f1"


def choose_parts(series: Sequence[Series], *, metric: str) -> list[str]:
    """Return the dimensions, classes or labels to show at first sight.

    Up to `MAX_PARTS` are all shown, in the order of the file. Of more, those that some arm is worst
    at come first, then a gap, then those that all arms are best at.
    """
    parts = list(dict.fromkeys(part for s in series for part in s.parts))
    if len(parts) <= MAX_PARTS:
        return parts
    higher = is_higher_better(metric)
    judges = [s for s in series if not s.is_baseline] or series
    ranks: dict[str, float] = {}
    for part in parts:
        found = [s.get_part(part, metric) for s in judges]
        known = [value if higher else -value for value in found if value is not None]
        if known:
            ranks[part] = min(known)
    ranked = sorted(ranks, key=lambda part: ranks[part])
    return [*ranked[:NUM_WORST], GAP, *ranked[NUM_WORST:][-NUM_BEST:]]
