"""Entries of a report: variants, ensembles and baselines, with their colours and markers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmft.config.metrics import METRICS
from llmft.results.comparison import EnsembleResult
from llmft.results.evaluation import Interval, LabelType, Measurement, Metrics, Parts, VariantResult

MAX_PARTS = 20
NUM_WORST, NUM_BEST = 15, 5
GAP = "⋯"
"""Shown in place of the dimensions, classes or labels that are left out."""
MAX_POINTS = 2000
"""Of more rows, only so many are drawn."""
MAX_COUNTED_CLASSES = 12
"""With more, the cells of a confusion matrix are too small for their counts."""

INK, MUTED, GRID, CARD = "#1c2026", "#667080", "#e3e6eb", "#fefefe"
GOOD, BAD = "#2e7d4f", "#b3261e"
# After Okabe and Ito, without the tones that are faint on white or on black; markers differ too.
MARKER_STYLES = (
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


class ReportEntry(NamedTuple):
    """A variant, an ensemble or a baseline, with its colour and marker."""

    name: str
    metrics: Metrics
    """Empty for a variant that the audit excluded."""
    parts: Parts
    colour: str
    marker: str
    """Marker of matplotlib."""
    glyph: str
    """The same marker as a character."""
    intervals: dict[str, Interval | None]
    """Metric -> its interval."""
    part_intervals: dict[str, Interval | None]
    """Dimension, class or label -> the interval of its metric in the report."""
    is_baseline: bool = False

    def get_part(self, part: str, metric: str) -> float | None:
        """Return a metric of a dimension, class or label; None where there is none."""
        return self.parts[part].get(metric) if part in self.parts else None


def is_higher_better(metric: str) -> bool:
    """Return the direction of a metric; metrics of a single class are better when higher."""
    return METRICS[metric].higher_is_better if metric in METRICS else True


def style_variant(index: int, *, name: str, found: VariantResult, metric: str) -> ReportEntry:
    """Return a variant with the colour and marker of its position in the suite.

    Args:
        index: Its position.
        name: Its name.
        found: Its results.
        metric: The metric per dimension, class or label.
    """
    by_part = found.part_intervals
    return ReportEntry(
        name,
        found.metrics,
        found.parts,
        *MARKER_STYLES[index % len(MARKER_STYLES)],
        intervals=found.intervals,
        part_intervals=by_part.intervals if by_part and by_part.metric == metric else {},
    )


def style_ensemble(index: int, *, name: str, found: EnsembleResult) -> ReportEntry:
    """Return an ensemble with a colour and marker of its own."""
    look = MARKER_STYLES[index % len(MARKER_STYLES)]
    return ReportEntry(name, found.metrics, {}, *look, intervals=found.intervals, part_intervals={})


def list_baselines(baselines: Mapping[str, Measurement]) -> list[ReportEntry]:
    """Return the baselines with their colours and markers."""
    entries = []
    for key, found in baselines.items():
        name, colour, marker, glyph = _BASELINES.get(key, (key, "#8b929c", "d", "◇"))
        entries.append(
            ReportEntry(name, found.metrics, found.parts, colour, marker, glyph, {}, {}, True)
        )
    return entries


def list_metric_names(entries: Sequence[ReportEntry]) -> list[str]:
    """Return the names of the metrics, in the order of the file."""
    return list(dict.fromkeys(key for s in entries for key in s.metrics))


def choose_part_metric(leading: str, *, parts: Sequence[Parts], label_type: LabelType) -> str:
    """Return the metric per dimension or class: a single class has an f1, but no f1_macro."""
    if any(leading in metrics for found in parts for metrics in found.values()):
        return leading
    return "mae" if label_type == "scores" else "f1"


def choose_parts(entries: Sequence[ReportEntry], *, metric: str) -> list[str]:
    """Return the dimensions, classes or labels of the main table.

    Up to `MAX_PARTS` are all there, in the order of the file. Of more, those with the worst value
    of a variant come first, then a gap, then those with the best.
    """
    parts = list(dict.fromkeys(part for s in entries for part in s.parts))
    if len(parts) <= MAX_PARTS:
        return parts
    higher = is_higher_better(metric)
    ranked_by = [s for s in entries if not s.is_baseline] or entries
    ranks: dict[str, float] = {}
    for part in parts:
        found = [s.get_part(part, metric) for s in ranked_by]
        known = [value if higher else -value for value in found if value is not None]
        if known:
            ranks[part] = min(known)
    ranked = sorted(ranks, key=lambda part: ranks[part])
    return [*ranked[:NUM_WORST], GAP, *ranked[NUM_WORST:][-NUM_BEST:]]
