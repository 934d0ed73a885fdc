"""`evaluation/SPLIT.json`: metrics and gates of one run, and whether it may be deployed."""

from typing import Literal

from llmft.results.files import ResultFile
from llmft.results.variant import Decision, EvaluationBase, VariantResult


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
