"""What `llmft predict` writes to a folder next to the shards: their origin, and a manifest."""

from typing import Literal

from pydantic import Field

from llmft.results.files import ResultFile


class ShardOrigin(ResultFile):
    """`_state/run.json`: the model, fit and inputs that the shards in a folder come from.

    A prediction is resumed only with the same llmft, model, fit and inputs.
    """

    schema_version: Literal[1] = 1
    model_hash: str
    fit_hash: str | None
    """Hash of `fit.json`; null if the model has none."""
    inputs: list[str]
    """Names of the files, without their folders."""
    rows_per_shard: int


class PredictionManifest(ResultFile):
    """`_manifest.json`: written when all shards of all inputs are complete."""

    schema_version: Literal[1] = 1
    model_hash: str
    fit_hash: str | None
    """Hash of `fit.json`; null if the model had none."""
    num_rows: int
    num_empty: int
    """Rows without a text, which got empty predictions."""
    inputs: dict[str, str]
    """File -> its SHA-256."""
    shards: dict[str, int] = Field(min_length=1)
    """File with predictions -> number of rows."""
