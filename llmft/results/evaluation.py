"""Results of one variant, which `evaluate` and `compare` share, and `evaluation/SPLIT.json`."""

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from llmft.config.head import FitMethod
from llmft.config.recipe import TokensConfig
from llmft.config.suite import WARNING_CHECKS, Check
from llmft.results.files import HasTable, Result, ResultFile
from llmft.results.run import HeadFit, Run, RunRecord
from llmft.wording import count

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["ok", "note", "warning", "confounded", "invalid"]
"""Of a finding: confounded, the comparison is not fair; invalid, the variant is excluded."""
Decision = Literal["DEPLOY", "REVIEW", "FAIL"]
DECISIONS: tuple[Decision, ...] = ("FAIL", "REVIEW", "DEPLOY")
"""From the worst to the best."""
LabelType = Literal["scores", "class", "multilabel"]
Labels = dict[str, float] | str | list[str]
"""Labels of a row: scores by dimension, a class, or the labels that apply."""
Metrics = dict[str, float | None]
"""Metric -> value; null where it is not defined, such as the rank correlation of a constant."""
Parts = dict[str, Metrics]
"""Dimension, class or label -> its metrics."""
Matrix = list[list[int]]
"""Confusion matrix: rows are true, columns predicted."""


def meets(decision: Decision, required: str | None) -> bool:
    """Return whether a decision is at least as good as the required one, case-insensitively."""
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
    """A finding of the audit."""

    check: Check
    """The check that found it."""
    status: Status
    variants: list[str]
    """Variants that it is about; empty: all."""
    message: str
    waived: str | None = None
    """Reason of the waiver, which makes it a warning; null if it is not waived."""

    @model_validator(mode="after")
    def _refuse_severity(self) -> Self:
        if self.check in WARNING_CHECKS and self.status in ("confounded", "invalid"):
            raise ValueError(f"{self.check} only warns, but its status is {self.status}")
        return self


class Measurement(Result):
    """Metrics, overall and per dimension, class or label; the mean over several runs."""

    metrics: Metrics = Field(default={})
    per_dimension: Parts = Field(default={})
    """For labels of type scores."""
    per_class: Parts = Field(default={})
    """For labels of type class and multilabel."""

    @property
    def parts(self) -> Parts:
        """The metrics per dimension, class or label."""
        return self.per_dimension or self.per_class


class PartIntervals(Result):
    """95 % intervals of one metric by dimension, class or label."""

    metric: str
    intervals: dict[str, Interval | None]


class TierConfusion(Result):
    """Confusion matrix of the tiers."""

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
    """Calibration of the predicted scores of a dimension against the true ones (D12)."""

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
    fraction_true: float


class Reliability(Result):
    """Calibration of probabilities."""

    ece: float
    """Expected calibration error, a fraction."""
    ece_by_chance: float
    """95th percentile of the ece if all probabilities were perfectly calibrated."""
    bins: list[ReliabilityBin]
    """Of equal width; empty ones are left out."""
    brier: float
    """Mean squared error of the probabilities."""
    brier_interval: Interval | None
    """95 %, over rows."""


class FitEffect(Result):
    """Metrics of a variant without its calibrators or thresholds."""

    method: FitMethod
    split: str
    """The split that it was fitted on."""
    num_rows: int
    """Of that split."""
    metrics_before: Metrics
    """Of the model's outputs without the fit, on the measured rows."""


class Latency(Result):
    """Latency of one model, tokenisation included, model already loaded."""

    single_p50_ms: float
    """Median time for a single article with the prompt in the cache, as in production."""
    single_p95_ms: float
    single_p95_bound_ms: float | None
    """Upper 95 % confidence bound of the 95th percentile; null: too few measurements."""
    batch_p50_ms: float | None
    """Median time for a batch of the production's size; null if that takes too long."""
    batch_p95_ms: float | None
    batch_size: int
    articles_per_second: float
    """In batches, or one by one if no batch was timed."""
    peak_memory_gib: float
    """Weights, and what a batch needs in addition."""
    num_singles: int
    num_batches: int
    device: str
    uncached_p50_ms: float | None
    """Median time for a single article without the cached prompt; null without a prompt."""
    uncached_p95_ms: float | None
    cost_per_million: float | None
    """Cost of a million articles in batches, in the currency of the price; null without a price."""
    waited: float | None
    """Fraction of their time in which threads waited for a CPU, which other work or other threads
    had; null where the system does not say."""


class PassCount(Result):
    """Number of edge cases passed."""

    num_passed: int
    num_cases: int
    interval: Interval
    """95 %, exact, of the pass rate."""


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
    """Ids of the must-pass cases that failed."""
    by_category: dict[str, PassCount]
    cases: list[EdgeCaseResult]


class GateResult(Result):
    """Value, thresholds and result of one gate."""

    name: str
    value: float | None
    """Null if it is undefined for these rows, or not known."""
    interval: Interval | None
    """95 %, over rows."""
    bound: float | None
    """Compared with `deploy`: the worse end of the interval, if the gate has one."""
    deploy: float
    review: float | None
    """A worse value fails; null: none does."""
    result: Decision
    reason: str
    """One sentence with value, bound and threshold."""


class BaselineGain(Result):
    """By how much a variant is better than a baseline in the leading metric."""

    gain: float
    """Negative if it is worse. After calibrators and thresholds, which the constant and TF-IDF get
    by the same method; over `probe` after those that both have by the same method, else without."""
    interval: Interval
    """95 %, two-sided, over the same rows and the variant's seeds."""
    finding: Literal["better", "worse", "not told apart"]
    """better: the interval is above 0, and p after Holm's correction below 0.05; worse: the
    interval is below 0; not told apart: all else, and always below 20 rows or 10 clusters."""


class RunResult(Run):
    """One run of a variant: its folder and how it was trained."""

    num_test_reads: int
    """How many reports have read its test predictions (D8)."""


class VariantResult(Measurement):
    """Results of a variant: its runs, metrics, gates and decision."""

    valid: bool = True
    """False if the audit excluded it; then it has no metrics."""
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
    """Null without calibrators or thresholds."""
    edge_cases: EdgeCases | None = None
    """Of the first run; null without edge cases."""
    latency: Latency | None = None
    """Of the first run; null if it was not timed."""
    gates: list[GateResult] = Field(default=[])
    gains: dict[str, BaselineGain] = Field(default={})
    """Baseline -> by how much the variant is better; without those where the metric is undefined,
    and of a frozen base without `probe`, which it is itself."""
    decision: Decision | None = None
    """Null if the comparison is invalid, so that no gate was applied."""
    reasons: list[str] = Field(default=[])
    """Why the decision is not better, most severe first; for DEPLOY, the reason of every gate."""

    @property
    def record(self) -> RunRecord:
        """The record of the first run; the others differ in the seed and its consequences."""
        return self.runs[0].record


class RowResult(Result):
    """A measured row with its predictions."""

    id: str
    labels: Labels
    outputs: dict[str, list[float]]
    """Variant -> scores or probabilities in the order of `label_names`, the mean over its runs."""
    errors: dict[str, float]
    """Variant -> mean absolute error, or 1 minus the true class's probability, the mean over its
    runs."""
    predicted: dict[str, str | list[str]]
    """Variant -> the predicted class or labels, by thresholds if it has any; none for scores."""
    text: str
    """The text, or the beginning of a long one."""
    slices: dict[str, str] = Field(default={})
    """Name of a slicing -> the slice of the row."""


class ProbeBaseline(Result):
    """The baseline `probe`: a linear head on the frozen base of the run, or of the reference."""

    base: str
    run: str
    """Its folder."""
    prompt_sha256: str | None
    """Of the text of its prompt; null without one."""
    tokens: TokensConfig
    head_fit: HeadFit
    """How the head was fitted, and what it took."""


class EvaluationBase(Result):
    """Fields that an evaluation and a comparison share: task, metric, rows, audit, baselines."""

    created: str
    """Time, in UTC."""
    task: str
    """Name of the task."""
    metric: str
    """The leading metric."""
    label_type: LabelType
    label_names: list[str]
    """Dimensions, classes or labels, in the order of the outputs."""
    num_rows: int
    """Measured rows."""
    num_clusters: int
    """Their clusters, a row by itself counted as one: `num_rows` if all are independent."""
    num_test_rows: int
    """All rows."""
    num_dropped: int
    """Rows excluded as near-duplicates of training rows."""
    audit: list[Finding]
    baselines: dict[str, Measurement]
    """`constant`, `tfidf`, and `probe` unless it was left out."""
    probe: ProbeBaseline | None = None
    """The baseline `probe`; null without it."""
    rows: list[RowResult] = Field(repr=False)
    worst_rows: list[RowResult] = Field(repr=False)
    """Those with the largest mean error over the variants."""

    def describe_rows(self, kind: str = "") -> str:
        """Return the number of measured rows, of a kind such as `test`, and of their clusters."""
        rows = count(self.num_rows, f"{kind} row".strip())
        is_clustered = self.num_clusters < self.num_rows
        return f"{rows} in {count(self.num_clusters, 'cluster')}" if is_clustered else rows


class EvaluationResult(VariantResult, EvaluationBase, ResultFile, HasTable):
    """Metrics and gates of one run, and whether it may be deployed."""

    schema_version: Literal[11] = 11
    name: str
    """Of the run's recipe."""
    data: str
    """The split, or `data-STEM` for the rows of a file; a second file of this stem has a number."""
    file: str | None = None
    """The file as the user named it."""
    left_out: dict[str, int] = Field(default={})
    """Why rows of the file are not measured -> how many."""
    coverage: float = 1.0
    """Fraction of the rows that could be used, of those that the task asks for."""
    decision: Decision

    def describe(self) -> str:
        """Return one line with the decision."""
        measured = f"{self.describe_rows()} of {self.file or self.data}"
        return f"{self.name} on {measured}, decision {self.decision}"

    def describe_left_out(self) -> str:
        """Return how many rows were left out for each reason; nothing if there are none."""
        counted = ", ".join(f"{count} {why}" for why, count in self.left_out.items())
        return f"{count(sum(self.left_out.values()), 'row')} left out: {counted}" if counted else ""

    def to_frame(self) -> "pd.DataFrame":
        """Return the metrics: one row per metric, with its value, 95 % interval and baselines."""
        import pandas as pd

        none = Interval(math.nan, math.nan)
        rows = {
            metric: {
                "value": value,
                **(self.intervals.get(metric) or none)._asdict(),
                **{name: found.metrics.get(metric) for name, found in self.baselines.items()},
            }
            for metric, value in self.metrics.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index", dtype="float64")
