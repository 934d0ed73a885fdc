"""`evaluation/SPLIT.json`: what one run came to, and whether it may be deployed."""

from typing import Literal

from llmft.results.files import ResultFile
from llmft.results.variant import Decision, Judgement, VariantResult


class EvaluationResult(VariantResult, Judgement, ResultFile):
    """What one run came to, and whether it may be deployed: a variant that stands alone."""

    schema_version: Literal[4] = 4
    name: str
    """Of the run's recipe."""
    data: str
    """The split, or `data-STEM` for the rows of a file."""
    num_rejected: int
    """Rows of the file that could not be used."""
    decision: Decision
