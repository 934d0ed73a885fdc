"""The rows that a run is measured on: a split of its data, or a file from elsewhere."""

from pathlib import Path
from typing import Any, NamedTuple

from llmft.config.labels import LabelsConfig
from llmft.config.task import SourceConfig, Split
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData
from llmft.data.reading import read_labelled
from llmft.errors import UserError
from llmft.evaluation.fitting import open_trained_data
from llmft.files import hash_file
from llmft.results.run import RunRecord


class Subject(NamedTuple):
    """The rows to be measured."""

    name: str
    """Of the split, or `data-` and the name of the file."""
    rows: list[Row]
    data: PreparedData
    """What the run was trained on."""
    train_rows: list[Row]
    fingerprint: str
    """Of the prepared data, or the hash of the file."""
    num_rejected: int = 0
    num_strange: int = 0
    """Rows left out since the model does not know their class or labels."""

    @property
    def label_names(self) -> list[str]:
        """Names of the dimensions, classes or labels."""
        return self.data.label_names

    @property
    def labels(self) -> LabelsConfig:
        """What the task says of its labels."""
        return self.data.task.labels


def open_subject(record: RunRecord, *, split: Split, data_file: Path | None) -> Subject:
    """Return the rows of a split, or of a file in the format of the task's sources.

    Args:
        record: That of the run.
        split: Name of the split.
        data_file: Labelled rows that take the place of the split.

    Raises:
        UserError: If the data was prepared anew since, or no row of the file can be used.
    """
    data = open_trained_data(record)
    train_rows = data.read_split("train")
    subject = Subject(
        name=split,
        rows=data.read_split(split),
        data=data,
        train_rows=train_rows,
        fingerprint=data.fingerprint,
    )
    return subject if data_file is None else _take_file(subject, data_file)


def _take_file(subject: Subject, path: Path) -> Subject:
    task = subject.data.task
    changes = {"name": str(path), "sources": [SourceConfig(path=str(path))]}
    rows, rejected = read_labelled(task.model_copy(update=changes))  # faults are told of the file
    known = [row for row in rows if not is_strange(row["labels"], subject.label_names)]
    if not known:
        first = f"; the first: line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
        raise UserError(f"{path}: none of its rows has a label that {task.name} knows{first}")
    return subject._replace(
        name=f"data-{path.stem}",
        rows=known,
        fingerprint=hash_file(path),
        num_rejected=len(rejected),
        num_strange=len(rows) - len(known),
    )


def is_strange(labels: Any, label_names: list[str]) -> bool:
    """Return whether a row has a class or label that the model does not know."""
    named = {labels} if isinstance(labels, str) else set(labels)
    return not named <= set(label_names)
