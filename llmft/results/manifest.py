"""Manifests: of prepared data, and of the predictions for a file."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llmft.config.task import SPLITS, Split, SplitConfig, Task
from llmft.results.files import HasTable, Result, ResultFile, require_keys
from llmft.wording import count

if TYPE_CHECKING:
    import pandas as pd


class ScoreStats(Result):
    """Distribution of the scores of one dimension."""

    mean: float
    sd: float
    median: float
    min: float
    max: float


def _name_stats(found: Any) -> str:
    if not isinstance(found, dict):
        return "of scores" if isinstance(found, ScoreStats) else "rows"
    num_known = len(ScoreStats.model_fields.keys() & found.keys())
    return "of scores" if 2 * num_known > len(ScoreStats.model_fields) else "of tiers"


LabelStats = dict[
    str,
    Annotated[
        Annotated[int, Tag("rows")]
        | Annotated[ScoreStats, Tag("of scores")]
        | Annotated[dict[str, int], Tag("of tiers")],
        Discriminator(_name_stats),
    ],
]
"""Class or label -> number of rows; or dimension -> score statistics, and `tiers` -> rows."""


class NearDuplicates(Result):
    """Texts that share most of their words."""

    threshold: float
    """Jaccard similarity from which on texts are near-duplicates."""
    num_clusters: int
    num_rows: int
    """In all clusters together."""
    num_dropped: int
    num_leaks: int
    """Rows rejected since they repeat rows of a split that a source fixes."""


class SplitSummary(SplitConfig):
    """How the rows were assigned to splits."""

    group: str | None
    """Field whose rows stay together."""
    strata: str
    """What is equally frequent in every split."""
    ranges: dict[Split, list[str] | None]
    """First and last date of each split; null unless rows are split by date."""


class Manifest(ResultFile, HasTable):
    """The sources of prepared data, and a count of every row by outcome."""

    schema_version: Literal[3] = 3
    fingerprint: str
    """Hash of all rows of all splits and of the labels' names."""
    files: Annotated[dict[Split, str], require_keys("train", "val", "test")]
    """Split -> hash of its file."""
    task: Task
    """What it was prepared from."""
    sources: dict[str, str]
    """Source -> hash of its rows."""
    counts: Annotated[
        dict[str, int], require_keys("input", "repeated", "train", "val", "test", "rejected")
    ]
    """Rows: `input`, `repeated`, those of each split, `rejected`."""
    rejected: dict[str, int]
    """Kind of reason -> rows."""
    label_names: list[str]
    """Dimensions, classes or labels, in the order of a model's outputs."""
    label_stats: Annotated[dict[Split, LabelStats], require_keys("train", "val", "test")]
    """Distribution of the labels of each split."""
    split: SplitSummary
    """How the rows were assigned to splits."""
    near_duplicates: NearDuplicates
    """Texts that share most of their words."""
    warnings: list[str]
    """Problems of the data that a person should look at."""

    def describe(self) -> str:
        """Return one line on the rows."""
        used = sum(self.counts[split] for split in SPLITS)
        return f"{self.task.name}: {count(used, 'row')}, {self.counts['rejected']} rejected"

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per split: number of rows, and rows per class or mean of each score."""
        import pandas as pd

        return pd.DataFrame.from_dict(
            {
                split: {
                    "rows": self.counts[split],
                    **{
                        name: found.mean if isinstance(found, ScoreStats) else found
                        for name, found in self.label_stats[split].items()
                        if not isinstance(found, dict)
                    },
                }
                for split in SPLITS
            },
            orient="index",
        )


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
    csv_safe: bool = False
    """Whether `--csv-safe` was given."""


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
