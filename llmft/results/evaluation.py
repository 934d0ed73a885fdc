"""`evaluation/SPLIT.json`: metrics and gates of one run, and whether it may be deployed."""

from typing import Literal

from pydantic import Field

from llmft.results.files import Result, ResultFile
from llmft.results.variant import Decision, Finding, Labels, LabelType, Measurement, VariantResult


class RowResult(Result):
    """A measured row with its predictions."""

    id: str
    labels: Labels
    outputs: dict[str, list[float]]
    """Variant -> scores or probabilities in the order of `label_names`, the mean over its runs."""
    errors: dict[str, float]
    """Variant -> mean absolute error, or 1 minus the true class's probability, the mean over its
    runs."""
    text: str
    """The text, or the beginning of a long one."""
    slices: dict[str, str] = Field(default={})
    """Name of a slicing -> the slice of the row."""


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
    num_test_rows: int
    """All rows."""
    num_dropped: int
    """Rows excluded as near-duplicates of training rows."""
    audit: list[Finding]
    baselines: dict[str, Measurement]
    """`constant`, `tfidf`."""
    rows: list[RowResult] = Field(repr=False)
    worst_rows: list[RowResult] = Field(repr=False)
    """Those with the largest mean error over the variants."""


class EvaluationResult(VariantResult, EvaluationBase, ResultFile):
    """Metrics and gates of one run, and whether it may be deployed."""

    schema_version: Literal[4] = 4
    name: str
    """Of the run's recipe."""
    data: str
    """The split, or `data-STEM` for the rows of a file."""
    num_rejected: int
    """Rows of the file that could not be used."""
    decision: Decision
