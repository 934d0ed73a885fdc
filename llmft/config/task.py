"""The schema of a task: what is predicted, from which data."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llmft.config.loading import Section, load_values, validate


class SourceConfig(Section):
    """One input file or glob."""

    path: str
    """File or glob; `.jsonl` and `.csv` are read, by ending."""


PREPARED_NAMES = {
    "id": "the id",
    "text": "the joined text",
    "labels": "the labels",
    "group": "the group",
}
"""Field of a prepared row -> what it holds, whatever the sources call it."""


class FieldsConfig(Section):
    """Which fields of an input row are used."""

    id: str | None = None
    """Field with the row's id; without it the id is a hash of the text, with -2, -3 for repeats."""
    text: Annotated[
        list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
    ] = Field(default=["text"], min_length=1)
    """Field or fields that make up the article, joined by a blank line."""
    group: str | None = None
    """Field whose rows must stay in one split, such as the act that passages are quoted from."""
    keep: list[str] = Field(default=[])
    """Further fields to carry along, for prompts, slices and reports."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        kept_apart = {"id": self.id, "group": self.group}
        for name in (*self.text, *self.keep):
            is_same = self.text == ["text"] if name == "text" else kept_apart.get(name) == name
            if name in PREPARED_NAMES and (not is_same or (name in self.text and name != "text")):
                raise ValueError(
                    f"{name!r} cannot be among them, since prepared rows hold "
                    f"{PREPARED_NAMES[name]} under this name; rename the field in the data"
                )
        return self


class ScoresConfig(Section):
    """Labels that are numbers: one score per dimension."""

    type: Literal["scores"]
    """Scores on one or more dimensions."""
    from_: str = Field(alias="from")
    """Field that holds {dim: 7}, {dim: {score: 7}} or {dimensions: {dim: 7}}."""
    dimensions: list[str] = Field(min_length=1)
    """Dimensions to learn, in this order."""
    range: list[Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(
        default=[0.0, 10.0], min_length=2, max_length=2
    )
    """Lowest and highest score; a row with a score outside is rejected."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.dimensions)) < len(self.dimensions):
            raise ValueError("dimensions: a name stands twice")
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range: the first must be below the second, found {self.range}")
        return self


def _write_numbers_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): str(v) if type(v) in (int, float) else v for k, v in value.items()}
    return value


class ClassConfig(Section):
    """Labels that are one class per row."""

    type: Literal["class"]
    """One class per row."""
    from_: str = Field(alias="from")
    """Field that holds the class."""
    map: Annotated[dict[str, str], BeforeValidator(_write_numbers_as_text)] | None = None
    """Value in the data -> name of the class; a value that is not listed rejects its row.
    Without a map the values are the names, in sorted order."""


class CleanConfig(Section):
    """What happens to repeated texts."""

    drop: Literal["none", "exact", "near"] = "exact"
    """Keep repeats, drop rows of equal text, or drop near-duplicates too (the first row stays)."""
    near_duplicates: float = Field(default=0.9, gt=0.0, le=1.0)
    """Texts that share at least this part of their words count as near-duplicates and stay in
    one split (Jaccard similarity of their bags of words)."""


class SplitConfig(Section):
    """How rows are shared out."""

    train: float = Field(default=0.8, gt=0.0, lt=1.0)
    """Share of the rows to learn from."""
    val: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share that chooses the checkpoint."""
    test: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share that is looked at last."""
    stratify: bool = True
    """Keep classes, or quantiles of the mean score, equally frequent in every split."""
    seed: int = 42
    """Seed of the shuffle."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(self.train + self.val + self.test - 1.0) > 1e-6:
            raise ValueError(
                f"train + val + test must be 1, found {self.train + self.val + self.test:g}"
            )
        return self


class TaskConfig(Section):
    """What is predicted, from which data; shared by the variants that are compared."""

    name: str
    """Name of the task, used in reports."""
    sources: list[SourceConfig] = Field(min_length=1)
    """Where the rows come from."""
    fields: FieldsConfig = FieldsConfig()
    """Which fields of a row are used."""
    labels: ScoresConfig | ClassConfig = Field(discriminator="type")
    """What is to be learned."""
    clean: CleanConfig = CleanConfig()
    """What happens to repeated texts."""
    split: SplitConfig = SplitConfig()
    """How rows are shared out."""
    output: str
    """Folder for the prepared splits and their manifest."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_name(name)


def check_name(name: str) -> str:
    """Return a name that can stand in a file name.

    Raises:
        ValueError: If it holds anything but letters, digits, `.`, `_` and `-`.
    """
    if not name or not all(c.isalnum() or c in "._-" for c in name):
        raise ValueError(f"found {name!r}, allowed: letters, digits, '.', '_' and '-'")
    return name


def load_task(path: Path, *, overrides: list[str] | None = None) -> TaskConfig:
    """Load a task file.

    Raises:
        UserError: Naming every fault of the file.
    """
    return validate(load_values(path, overrides=overrides), schema=TaskConfig)
