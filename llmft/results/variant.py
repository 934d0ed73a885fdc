"""What is measured of a variant, whether it stands alone or is compared with others."""

from typing import Literal, NamedTuple

from pydantic import Field

from llmft.config.audit import Check
from llmft.config.fits import FitMethod
from llmft.results.files import Result
from llmft.results.run import LearningCurve, RunRecord

Status = Literal["ok", "note", "warning", "confounded", "invalid"]
"""Of a finding: confounded, the comparison is not fair; invalid, the variant does not count."""
Decision = Literal["DEPLOY", "REVIEW", "FAIL"]
DECISIONS: tuple[Decision, ...] = ("FAIL", "REVIEW", "DEPLOY")
"""From the worst to the best."""
LabelType = Literal["scores", "class", "multilabel"]
Labels = dict[str, float] | str | list[str]
"""Scores by dimension, a class, or the labels that apply: what a row holds."""
Metrics = dict[str, float | None]
"""Metric -> value; null where it is not defined, such as the rank correlation of a constant."""
Parts = dict[str, Metrics]
"""Dimension, class or label -> its metrics."""
Matrix = list[list[int]]
"""Counts: rows are true, columns predicted."""


def meets(decision: Decision, required: str | None) -> bool:
    """Return whether a decision is what `--require` asks for, in any case of letters, or better."""
    order = [str(step) for step in DECISIONS]
    return required is None or order.index(decision) >= order.index(required.upper())


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class MetricValue(Result):
    """A metric with its 95 % interval over rows; null where it is undefined."""

    value: float | None
    interval: Interval | None


class Finding(Result):
    """One answer of the audit."""

    check: Check
    """What was asked."""
    status: Status
    variants: list[str]
    """Whom it concerns; empty if all."""
    message: str
    waived: str | None = None
    """Why somebody said that it does not count; it is a warning then."""


class Measurement(Result):
    """Metrics of predictions, overall and by part; of several runs their mean."""

    metrics: Metrics = Field(default={})
    per_dimension: Parts = Field(default={})
    """Of scores."""
    per_class: Parts = Field(default={})
    """Of classes and of several labels."""

    @property
    def parts(self) -> Parts:
        """The metrics by dimension, class or label, whichever there are."""
        return self.per_dimension or self.per_class


class PartIntervals(Result):
    """95 % intervals of one metric by dimension, class or label."""

    metric: str
    intervals: dict[str, Interval | None]


class TierConfusion(Result):
    """Which tiers were taken for which."""

    names: list[str]
    confusion_matrix: Matrix


class Stratum(Result):
    """Rows with similar true scores."""

    low: float
    high: float
    num_rows: int
    mean_true: float
    mean_predicted: float


class ScoreCalibration(Result):
    """How the predicted scores of a dimension follow the true ones (D12)."""

    slope: float | None
    """Of the line through predicted over true; below 1 the range is compressed. Null if all true
    scores are equal."""
    intercept: float | None
    """Of the same line."""
    bias: float
    """Mean of predicted minus true."""
    strata: list[Stratum]
    """Of equal width in the true score; empty ones are left out."""


class ReliabilityBin(Result):
    """Predictions of similar probability."""

    low: float
    high: float
    num_rows: int
    mean_predicted: float
    share_true: float


class Reliability(Result):
    """Whether probabilities come true."""

    ece: float
    """Expected calibration error, a fraction."""
    ece_by_chance: float
    """What it would stay below in 95 % of draws if every probability were right."""
    bins: list[ReliabilityBin]
    """Of equal width; empty ones are left out."""
    brier: float
    """Mean squared error of the probabilities."""
    brier_interval: Interval | None
    """95 %, over rows."""


class FitEffect(Result):
    """What a post-hoc fit did to a variant."""

    method: FitMethod
    split: str
    """That it was fitted on."""
    num_rows: int
    """Of that split."""
    metrics_before: Metrics
    """Of the model's own outputs, on the rows that are judged."""


class Latency(Result):
    """Measured times of one model, tokenisation included, model already loaded."""

    single_p50_ms: float
    """Median time for one article alone, the prompt kept from earlier ones, as in production."""
    single_p95_ms: float
    single_p95_bound_ms: float | None
    """The 95th percentile is not above this, with 95 % certainty; null: too few measures."""
    batch_p50_ms: float | None
    """Median time for a batch of the production's size; null if one alone takes too long."""
    batch_p95_ms: float | None
    batch_size: int
    articles_per_second: float
    """In batches, or one by one where no batch was timed."""
    peak_memory_gib: float
    """Weights and what a batch needs beside them."""
    num_singles: int
    num_batches: int
    device: str
    uncached_p50_ms: float | None
    """Median time for one article alone where the prompt is computed again; null without one."""
    uncached_p95_ms: float | None
    cost_per_million: float | None
    """Of a million articles in batches, in the price's currency; null without a price."""


class PassCount(Result):
    """How many edge cases were passed."""

    num_passed: int
    num_cases: int
    interval: Interval
    """95 %, exact, of the share."""


class EdgeCaseResult(Result):
    """The outcome of one edge case."""

    id: str
    category: str
    must_pass: bool
    passed: bool
    failures: list[str]
    """What was expected and what was found, per failed expectation."""


class EdgeCases(Result):
    """The outcome of all edge cases."""

    num_passed: int
    num_cases: int
    pass_rate_interval: Interval
    """95 %, exact."""
    must_pass_failed: list[str]
    """Ids of the cases that have to pass and do not."""
    by_category: dict[str, PassCount]
    cases: list[EdgeCaseResult]


class GateResult(Result):
    """What one gate says."""

    name: str
    value: float | None
    """Null if it is undefined for these rows, or cannot be told."""
    interval: Interval | None
    """95 %, over rows."""
    bound: float | None
    """What has to pass `deploy`: the worse end of the interval, where the gate has one."""
    deploy: float
    review: float | None
    """A value beyond it fails; null: nothing does."""
    result: Decision
    reason: str
    """One sentence with value, bound and threshold."""


class RunResult(Result):
    """One run of a variant: where it lies and how it was trained."""

    path: str
    record: RunRecord
    curve: LearningCurve
    num_test_reads: int
    """How many reports have read its test predictions (D8)."""


class VariantResult(Measurement):
    """What a variant's runs come to: how they were trained, what was measured, what is decided."""

    valid: bool = True
    """Whether the audit left it in; else nothing of it was measured."""
    runs: list[RunResult]
    """One for each seed."""
    train_seconds: float
    """Mean over the runs."""
    peak_memory_gib: float
    """In training, of the run that needed most."""
    num_test_reads: int
    """Of the run that was read most often."""
    metrics_per_run: list[Metrics] = Field(default=[])
    intervals: dict[str, Interval | None] = Field(default={})
    """Metric -> its 95 % interval over rows and, of several runs, over seeds."""
    part_intervals: PartIntervals | None = None
    """Of one metric by dimension, class or label."""
    confusion_matrix: Matrix | None = None
    """Of classes, summed over the runs."""
    label_confusions: dict[str, Matrix] = Field(default={})
    """Label -> whether it applies, against whether it was predicted, summed over the runs."""
    tiers: TierConfusion | None = None
    """Of scores whose task has tiers, summed over the runs."""
    calibration: dict[str, ScoreCalibration] = Field(default={})
    """Of scores: dimension -> its calibration; of the first run."""
    reliability: Reliability | None = None
    """Of classes and labels; of the first run."""
    fit: FitEffect | None = None
    """Null where the model's own outputs are judged."""
    edge_cases: EdgeCases | None = None
    """Of the first run; null where there are none."""
    latency: Latency | None = None
    """Of the first run; null where it was not timed."""
    gates: list[GateResult] = Field(default=[])
    decision: Decision | None = None
    """Null where the comparison is invalid, so that no gate was applied."""
    reasons: list[str] = Field(default=[])
    """Why it is no better, the gravest first; where it is DEPLOY, what every gate says."""

    @property
    def record(self) -> RunRecord:
        """That of the first run; those of the others differ in the seed and its consequences."""
        return self.runs[0].record


class RowResult(Result):
    """A row that counts, with what was predicted of it."""

    id: str
    labels: Labels
    outputs: dict[str, list[float]]
    """Variant -> its outputs in the order of the labels' names, the mean over its runs."""
    errors: dict[str, float]
    """Variant -> mean absolute error, or 1 minus the true class's probability, the mean over its
    runs."""
    text: str
    """The beginning of it."""
    slices: dict[str, str] = Field(default={})
    """Name of a slicing -> the slice that the row is in."""


class Judgement(Result):
    """What an evaluation and a comparison share: the rows that count, and what is true of them."""

    created: str
    """When, in UTC."""
    task: str
    """Its name."""
    metric: str
    """The one that decides."""
    label_type: LabelType
    label_names: list[str]
    """Dimensions, classes or labels, in the order of the outputs."""
    num_rows: int
    """Rows that count."""
    num_test_rows: int
    """Rows that there were."""
    num_dropped: int
    """Rows left out, since they are too like rows of the training."""
    audit: list[Finding]
    baselines: dict[str, Measurement]
    """`constant`, `tfidf`."""
    rows: list[RowResult] = Field(repr=False)
    worst_rows: list[RowResult] = Field(repr=False)
    """Those with the largest mean error over the variants."""
