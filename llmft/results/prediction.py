"""What `llmft predict` leaves in a folder: whose parts it holds, and what they are made of."""

from typing import Literal

from pydantic import Field

from llmft.results.files import ResultFile


class PartsOwner(ResultFile):
    """`_state/run.json`: what the parts in a folder are predicted with and from.

    Only the same llmft, model, fit and inputs go on with them.
    """

    schema_version: Literal[1] = 1
    model_hash: str
    fit_hash: str | None
    """Null where the model's own outputs are written."""
    inputs: list[str]
    """Names of the files, without their folders."""
    rows_per_part: int


class PredictionManifest(ResultFile):
    """`_manifest.json`: written when all parts of all inputs are there."""

    schema_version: Literal[1] = 1
    model_hash: str
    fit_hash: str | None
    """Null where the model's own outputs were written."""
    num_rows: int
    num_empty: int
    """Rows that lack a text and got empty predictions."""
    inputs: dict[str, str]
    """File -> its SHA-256."""
    parts: dict[str, int] = Field(min_length=1)
    """File with predictions -> its rows."""
