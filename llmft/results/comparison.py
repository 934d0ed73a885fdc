"""`comparison.json`: variants, pairs of them, and a verdict."""

from typing import Literal

from pydantic import Field, computed_field

from llmft.config.audit import WaiverConfig
from llmft.config.suite import NoiseKind
from llmft.results.files import Result, ResultFile
from llmft.results.manifest import Manifest
from llmft.results.variant import (
    Decision,
    EdgeCases,
    Interval,
    Judgement,
    Latency,
    Metrics,
    MetricValue,
    VariantResult,
)

VerdictName = Literal["INVALID", "CONFOUNDED", "WINNER", "REFERENCE_HOLDS", "UNRESOLVED"]


class Power(Result):
    """Chance to find a gain."""

    effect: float
    """By which it exceeds the margin."""
    power: float


class Needed(Result):
    """What would settle a pair, if the gain stays what it is; both null: no number would."""

    rows: int | None
    seeds: int | None
    """For each variant."""


class McNemar(Result):
    """Two variants on the same rows, by who is right."""

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
    """By Holm over the parts."""
    finding: Literal["challenger", "reference", "tie"]
    """Who is ahead."""


class Pair(Result):
    """By how much a challenger is better than the variant that it is held against."""

    challenger: str
    reference: str
    gain: float
    """Negative if it is worse."""
    interval: Interval
    """95 %, two-sided."""
    lower: float
    """95 %, one-sided."""
    upper: float
    """95 %, one-sided."""
    p_value: float
    """Two-sided, of no difference at all, by permutation; of several seeds it is Student's, which
    knows of their luck, where that is larger."""
    p_margin: float
    """One-sided, of a gain that is not above the margin: below 0.05 if, and only if, `lower` is
    above it."""
    p_margin_adjusted: float
    """By Holm over the challengers."""
    finding: Literal["better", "not better", "unresolved"]
    """Better: the adjusted p is below 0.05. Not better: `upper` is not above the margin."""
    power: Power | None
    needed: Needed | None
    """Where unresolved."""
    is_small: bool
    """Whether there are too few rows or clusters to find anything."""
    mcnemar: McNemar | None = None
    """Of classes."""
    parts: dict[str, PartGain] = Field(default={})
    """Dimension, class or label -> the gain in it; without classes that never occur."""


class Cost(Result):
    """What one prediction takes; null where that is not known of a member."""

    single_p50_ms: float | None
    peak_memory_gib: float | None
    num_parameters: int | None


class EnsembleResult(Result):
    """Variants put together: the mean of all, or for each part the variant that is best at it."""

    kind: Literal["ensemble", "routing"]
    made_of: list[str]
    """The variants that have to run for it."""
    routes: dict[str, str] | None
    """Dimension or label -> the variant whose output is taken."""
    fitted_on: Literal["val"] | None
    """Split that chose the routes (D7)."""
    metrics: Metrics
    intervals: dict[str, Interval | None]
    pair: Pair | None
    """Its gain over the best variant; null where the metric is not defined."""
    recommended: bool
    cost: Cost
    """Of its members together."""


class SliceValue(Result):
    """One slice of the rows."""

    value: str
    num_rows: int
    metrics: dict[str, MetricValue]
    """Variant -> the metric on these rows."""


class SliceTable(Result):
    """A metric by the slices that the rows are parted into."""

    name: str
    """The kept field, or `length`, `true tier`, `true class`."""
    metric: str
    values: list[SliceValue]


class ListQuality(Result):
    """How many of the rare rows are in a list, and how many of the list are rare."""

    precision: float | None
    """Null for an empty list."""
    precision_interval: Interval | None
    """95 %, exact."""
    recall: float | None
    """Null where no row is rare."""
    recall_interval: Interval | None
    """95 %, exact."""


class TopListQuality(ListQuality):
    """The same of the k rows that a variant puts highest."""

    k: int


class RareFindings(ListQuality):
    """How a variant finds the rare rows: by its decision, and by its order of the rows."""

    at_k: list[TopListQuality]


class RareEvents(Result):
    """How the variants find the rows that are rare."""

    what: str
    """What is rare."""
    num_rows: int
    num_high: int
    """Rows that are rare."""
    variants: dict[str, RareFindings]


class NoiseResult(Result):
    """How far second labels are from the first ones, and the variants on the same rows (D13)."""

    kind: NoiseKind
    """Who gave them."""
    file: str
    num_rows: int
    num_left_out: int
    """Rows of the file that are none of the rows, or cannot be used."""
    metric: Literal["mae", "disagreement"]
    """`mae` of scores; else the share of rows with other classes or labels."""
    oracle: MetricValue
    """Of the second labels against the first ones."""
    parts: dict[str, MetricValue]
    """Dimension or label -> the same of it; empty for classes."""
    variants: dict[str, MetricValue]
    """Variant -> the same of its outputs against the first labels, on the very same rows."""


class ComparisonResult(Judgement, ResultFile):
    """Variants, pairs of them, and a verdict."""

    schema_version: Literal[4] = 4
    suite: str
    """Its file."""
    data: Manifest
    """Of the prepared data."""
    reference: str
    """The variant to beat."""
    margin: float
    """What has to be gained."""
    min_difference: float
    """Smaller differences in a part are ties."""
    treatment: list[str]
    """Keys of the recipe in which variants are meant to differ."""
    waivers: list[WaiverConfig]

    verdict: VerdictName
    winner: str | None
    why: str
    decision: Decision
    reasons: list[str]
    """Why it is no better."""
    provisional: bool
    """Whether the verdict rests on variants with too few seeds."""
    recommended: str | None
    """The variant or ensemble to use."""
    num_groups: int | None
    """Clusters of rows; null where rows are independent."""

    variants: dict[str, VariantResult]
    pairs: list[Pair]
    """Each challenger against the reference."""
    ensembles: dict[str, EnsembleResult]
    slices: list[SliceTable]
    rare: RareEvents | None
    """Null where nothing is rare."""
    noise: list[NoiseResult]

    # What users look for at the top, written there for them; the reports read the variants.

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
        """Variant -> its times."""
        return {name: v.latency for name, v in self.variants.items() if v.latency}

    def _list_parts(
        self, key: Literal["per_dimension", "per_class"]
    ) -> dict[str, dict[str, Metrics]]:
        measured = {**self.variants, **self.baselines}
        parts = {name: getattr(found, key) for name, found in measured.items()}
        return {
            part: {name: found[part] for name, found in parts.items() if part in found}
            for part in dict.fromkeys(part for found in parts.values() for part in found)
        }
