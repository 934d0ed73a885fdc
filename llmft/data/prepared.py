"""Open what `prepare` left, and make sure that it is what the task asks for."""

import json
from pathlib import Path
from typing import NamedTuple

from llmft.config.metrics import list_metrics
from llmft.config.task import Split, TaskConfig
from llmft.data.fields import Row
from llmft.errors import UserError
from llmft.files import hash_file
from llmft.results.files import read_result
from llmft.results.manifest import Manifest

_NAME = "manifest.json"


class PreparedData(NamedTuple):
    """The prepared data of a task."""

    task: TaskConfig
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        """Hash of all rows of all splits."""
        return self.manifest.fingerprint

    @property
    def label_names(self) -> list[str]:
        """Dimensions, classes or labels, in the order of the model's outputs."""
        return self.manifest.label_names

    def refuse_metric(self, metric: str, *, key: str) -> None:
        """Stop if a metric has no meaning for these labels, such as the top 3 of 3 classes.

        Raises:
            UserError: With the metrics that have one.
        """
        labels = self.task.labels
        allowed = list_metrics(labels.type, labels, num_outputs=len(self.label_names))
        if metric not in allowed:
            raise UserError(
                f"{key}: {metric} has no meaning for the {len(self.label_names)} labels of "
                f"{self.task.output}; allowed: {', '.join(allowed)}"
            )

    def find_changed_sources(self) -> list[str]:
        """Return the sources that are no longer what was prepared; absent ones do not count."""
        return [
            source
            for source, expected in self.manifest.sources.items()
            if Path(source).is_file() and hash_file(Path(source)) != expected
        ]

    def read_split(self, name: Split) -> list[Row]:
        """Return the rows of a split.

        Raises:
            UserError: If the file was changed since it was prepared.
        """
        path = Path(self.task.output) / f"{name}.jsonl"
        if hash_file(path) != self.manifest.files[name]:
            raise UserError(f"{path}: changed since `llmft prepare` wrote it; prepare again")
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def is_prepared(task: TaskConfig) -> bool:
    """Return whether prepared data for just this task lies in its output folder.

    Raises:
        UserError: If the manifest there is broken or of another version.
    """
    path = Path(task.output) / _NAME
    return path.is_file() and not _list_changes(_read_manifest(path, "prepare again"), task)


def open_prepared(
    task: TaskConfig, *, task_file: str = "TASK", mend: str | None = None
) -> PreparedData:
    """Open the prepared data of a task.

    Raises:
        UserError: If it was not prepared, or from another version of the task.
    """
    path = Path(task.output) / _NAME
    mend = mend or f"run `llmft prepare {task_file}`"
    if not path.is_file():
        raise UserError(f"{path}: not there, so the data is not prepared; {mend}")
    manifest = _read_manifest(path, mend)
    changed = _list_changes(manifest, task)
    if changed:
        raise UserError(
            f"{path}: prepared from another version of the task (changed: "
            f"{', '.join(changed)}); {mend}"
        )
    return PreparedData(task, manifest)


def _read_manifest(path: Path, mend: str) -> Manifest:
    return read_result(path, Manifest, mend=mend)


def _list_changes(manifest: Manifest, task: TaskConfig) -> list[str]:
    """Return the keys that differ; a remark such as what the oracle saw changes no row."""
    return [
        key
        for key, wanted in task
        if key != "oracle_sees" and getattr(manifest.task, key) != wanted
    ]
