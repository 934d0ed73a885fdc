"""`comparison.json`: variants, pairs of them, and a verdict."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, computed_field

from llmft.config.metrics import METRICS
from llmft.config.suite import NoiseKind, WaiverConfig
from llmft.results.evaluation import (
    Decision,
    EdgeCases,
    EvaluationBase,
    Interval,
    Latency,
    Measurement,
    Metrics,
    MetricValue,
    VariantResult,
)
from llmft.results.files import HasTable, Result, ResultFile
from llmft.results.manifest import Manifest

if TYPE_CHECKING:
    import pandas as pd

Scope = Literal["models", "recipes"]
VerdictName = Literal["INVALID", "CONFOUNDED", "WINNER", "REFERENCE_HOLDS", "UNRESOLVED"]


class Power(Result):
    """Probability that a challenger is found better, given its true gain."""

    effect: float
    """True gain minus the margin."""
    power: float
    """In [0, 1]."""
    interval: Interval
    """95 %, by that of the standard error."""


class SampleSize(Result):
    """Rows or seeds that resolve a pair with 80 % power, if the gain stays the same.

    Both null: none would.
    """

    rows: int | None
    seeds: int | None
    """For each variant."""


class McNemar(Result):
    """McNemar's test: rows by which of two variants classifies them correctly."""

    both_right: int
    only_challenger: int
    only_reference: int
    both_wrong: int
    p_value: float | None
    """Exact, two-sided, of equal accuracy; null where rows are clustered, so not independent."""


class PartGain(Result):
    """A gain in one dimension, class or label."""

    metric: str
    gain: float
    interval: Interval
    """95 %, two-sided."""
    p_value: float
    p_adjusted: float
    """By Holm over the dimensions, classes or labels."""
    finding: Literal["challenger", "reference", "tie"]
    """Which variant is better."""


class Pair(Result):
    """By how much a challenger is better than the variant that it is compared with."""

    challenger: str
    reference: str
    gain: float
    """Negative if it is worse."""
    interval: Interval
    """95 %, two-sided."""
    simultaneous: Interval
    """95 %, two-sided, of all challengers together: it holds for whichever is named after the fact.
    """
    lower: float
    """One-sided, at the level of the comparison."""
    upper: float
    """One-sided, at the level of the comparison."""
    p_value: float
    """Two-sided, of no difference: below 0.05 if, and only if, `interval` does not contain 0."""
    p_margin: float
    """One-sided, of a gain that is not above the margin: below the level of the comparison if, and
    only if, `lower` is above the margin."""
    p_margin_adjusted: float
    """By Holm over the challengers."""
    safety_factor: float
    """The bounds are computed at error rates divided by it, and the p-values are multiplied by it,
    since on few clusters of skewed errors they hold less often than they say."""
    finding: Literal["better", "not better", "unresolved"]
    """Better: the adjusted p is below the level. Not better: `upper` is not above the margin."""
    power: Power | None
    needed: SampleSize | None
    """Null unless the finding is unresolved; with a shortage at least the rows that end it."""
    shortage: str | None
    """Why the rows are too few to find anything; null if they suffice."""
    assumption_free: float | None = None
    """One-sided lower bound, at the level of the comparison, for any distribution of errors within
    their range; null where the metric is no mean over rows."""
    mcnemar: McNemar | None = None
    """Of classes."""
    parts: dict[str, PartGain] = Field(default={})
    """Dimension, class or label -> its gain; without classes that never occur."""


class UnseenRows(Result):
    """Articles of a kind that no test row shows, and what they could do to a mean."""

    rate: float
    """As many of all articles, or clusters of them, may be of such a kind, at 95 % confidence (rule
    of three)."""
    largest_error: float | None
    """The largest possible error of one of them; null where the metric is no mean over rows."""


class Gap(Result):
    """By how much a variant is behind the best one, after Hsu (1984)."""

    gap: float
    """0 for the best."""
    lower: float
    """One-sided lower bound, of all pairs of variants together; 0 if none is surely better."""
    upper: float
    """One-sided upper bound, at the level of the comparison, of all variants together."""
    may_be_best: bool
    """Whether it cannot be told from the best: the best one is among these."""
    within_margin: bool
    """Whether `upper` is at most the margin: it is as good as the best."""


class Cost(Result):
    """Cost of one prediction; null where it is not known of a member."""

    single_p50_ms: float | None
    peak_memory_gib: float | None
    num_parameters: int | None


class EnsembleResult(Result):
    """Ensemble: the mean of all variants; or routed ensemble: the best variant per dimension."""

    kind: Literal["ensemble", "routing"]
    made_of: list[str]
    """Its members: the variants that have to run for it."""
    routes: dict[str, str] | None
    """Dimension or label -> the variant that predicts it."""
    fitted_on: Literal["val"] | None
    """Split that chose the routes (D7)."""
    metrics: Metrics
    intervals: dict[str, Interval | None]
    pair: Pair | None
    """Its gain over the best variant; null where the metric is not defined."""
    recommended: bool
    cost: Cost
    """Sum over its members."""


class SliceValue(Result):
    """One slice of the rows."""

    value: str
    num_rows: int
    metrics: dict[str, MetricValue]
    """Variant -> the metric on these rows."""


class SliceTable(Result):
    """A metric by slice of the rows."""

    name: str
    """The kept field, or `length`, `true tier`, `true class`."""
    metric: str
    values: list[SliceValue]


class ListQuality(Result):
    """Precision and recall of a list of rows predicted to be rare."""

    precision: float | None
    """Null for an empty list."""
    precision_interval: Interval | None
    """95 %, exact."""
    recall: float | None
    """Null where no row is rare."""
    recall_interval: Interval | None
    """95 %, exact."""


class TopListQuality(ListQuality):
    """Precision and recall at k: of the k rows with the highest predictions."""

    k: int


class RareFindings(ListQuality):
    """How a variant finds the rare rows: by its decisions, and among its k highest rows."""

    at_k: list[TopListQuality]


class RareEvents(Result):
    """How the variants find the rows that are rare."""

    what: str
    """Description of the rare rows."""
    num_rows: int
    num_high: int
    """Rows that are rare."""
    variants: dict[str, RareFindings]


class NoiseResult(Result):
    """Error of second labels against the first ones, and of the variants on the same rows (D13)."""

    kind: NoiseKind
    """Origin of the second labels."""
    file: str
    num_rows: int
    num_left_out: int
    """Rows of the file that match no measured row, or cannot be used."""
    metric: Literal["mae", "disagreement"]
    """`mae` of scores; else the fraction of rows with other classes or labels."""
    oracle: MetricValue
    """Of the second labels against the first ones."""
    parts: dict[str, MetricValue]
    """Dimension or label -> the same metric for it; empty for classes."""
    variants: dict[str, MetricValue]
    """Variant -> the same metric of its predictions against the first labels, on the same rows."""


class ComparisonResult(EvaluationBase, ResultFile, HasTable):
    """Variants, pairs of them, and a verdict."""

    schema_version: Literal[12] = 12
    suite: str
    """Its file; `suite` if it was made in Python."""
    data: Manifest
    """Of the prepared data."""
    reference: str
    """The variant to beat."""
    margin: float
    """Gain that a challenger has to exceed."""
    min_difference: float
    """Smaller differences in a dimension, class or label are ties."""
    treatment: list[str]
    """Keys of the recipe in which variants may differ."""
    waivers: list[WaiverConfig]

    verdict: VerdictName
    winner: str | None
    why: str
    decision: Decision
    reasons: list[str]
    """Why the decision is not better; for DEPLOY, the reasons of every gate."""
    scope: Scope
    """What the verdict is about. models: the trained models that represent the variants, since a
    variant has fewer than three seeds; recipes: also what other seeds of them would give."""
    left_out: dict[str, list[str]] = Field(default={})
    """Variant -> folders of its runs that do not represent it; empty unless scope is models."""
    look: int = 1
    """Which look at these variants this is: a rerun with other rows or seeds is the next one."""
    level: float = 0.05
    """Error rate of the verdict at this look; those of all looks together are at most 5 %."""
    unseen: UnseenRows | None = None
    """What so many rows cannot exclude; null if the comparison is invalid."""
    gaps: dict[str, Gap] = Field(default={})
    """Variant -> by how much it is behind the best one, the best first; empty on too few rows."""
    recommended: str | None = None
    """The variant or ensemble to use: an ensemble that beats the best variant, else the cheapest of
    the winner and of the variants within the margin of the best, whose gates do not fail."""

    variants: dict[str, VariantResult]
    # Only of a valid comparison.
    pairs: list[Pair] = Field(default=[])
    """Each challenger against the reference."""
    ensembles: dict[str, EnsembleResult] = Field(default={})
    slices: list[SliceTable] = Field(default=[])
    rare: RareEvents | None = None
    """Null where nothing is rare."""
    noise: list[NoiseResult] = Field(default=[])

    # Copies at the top level, where users look for them; the reports read `variants`.

    @computed_field  # type: ignore[prop-decorator]
    @property
    def per_dimension(self) -> dict[str, dict[str, Metrics]]:
        """Dimension -> variant or baseline -> its metrics, of scores."""
        return self._list_parts("per_dimension")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def per_class(self) -> dict[str, dict[str, Metrics]]:
        """Class or label -> variant or baseline -> its metrics."""
        return self._list_parts("per_class")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def edge_cases(self) -> dict[str, EdgeCases]:
        """Variant -> its edge cases."""
        return {name: v.edge_cases for name, v in self.variants.items() if v.edge_cases}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def latency(self) -> dict[str, Latency]:
        """Variant -> its latency."""
        return {name: v.latency for name, v in self.variants.items() if v.latency}

    def describe(self) -> str:
        """Return one line with verdict and decision."""
        winner = f" {self.winner}" if self.winner else ""
        return f"{self.verdict}{winner}: {self.why}; decision {self.decision}"

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per variant, ensemble and baseline, the best first.

        Its columns: the leading metric, `low` and `high` of its 95 % interval, the gain over the
        reference with `gain_low` and `gain_high`, the decision, and all other metrics.
        """
        import pandas as pd

        gains = {pair.challenger: pair for pair in self.pairs}
        measured: dict[str, VariantResult | EnsembleResult | Measurement] = {
            **self.variants, **self.ensembles, **self.baselines,
        }  # fmt: skip
        rows = {}
        for name, found in measured.items():
            interval = getattr(found, "intervals", {}).get(self.metric) or (None, None)
            pair = gains.get(name)
            rows[name] = {
                self.metric: found.metrics.get(self.metric),
                "low": interval[0],
                "high": interval[1],
                "gain": pair.gain if pair else None,
                "gain_low": pair.interval.low if pair else None,
                "gain_high": pair.interval.high if pair else None,
                "decision": getattr(found, "decision", None),
                **{key: value for key, value in found.metrics.items() if key != self.metric},
            }
        frame = pd.DataFrame.from_dict(rows, orient="index")
        numbers = [name for name in frame.columns if name != "decision"]
        frame[numbers] = frame[numbers].astype("float64")
        higher = METRICS[self.metric].higher_is_better
        return frame.sort_values(self.metric, ascending=not higher, kind="stable")

    def _list_parts(
        self, key: Literal["per_dimension", "per_class"]
    ) -> dict[str, dict[str, Metrics]]:
        measured = {**self.variants, **self.baselines}
        parts = {name: getattr(found, key) for name, found in measured.items()}
        return {
            part: {name: found[part] for name, found in parts.items() if part in found}
            for part in dict.fromkeys(part for found in parts.values() for part in found)
        }
