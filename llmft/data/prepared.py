"""Open prepared data, and check that it was prepared from the same task."""

import json
from pathlib import Path
from typing import NamedTuple

from llmft.config.metrics import list_metrics
from llmft.config.task import Split, Task
from llmft.data.fields import Row
from llmft.errors import UserError
from llmft.files import hash_file
from llmft.results.files import read_result
from llmft.results.manifest import Manifest

_NAME = "manifest.json"


class PreparedData(NamedTuple):
    """The prepared data of a task."""

    task: Task
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
        """Raise if a metric is not defined for these labels, such as top_3_accuracy for 3 classes.

        Raises:
            UserError: With the metrics that are defined.
        """
        labels = self.task.labels
        allowed = list_metrics(labels.type, labels, num_outputs=len(self.label_names))
        if metric not in allowed:
            raise UserError(
                f"{key}: {metric} is not defined for the {len(self.label_names)} labels of "
                f"{self.task.output}; allowed: {', '.join(allowed)}"
            )

    def find_changed_sources(self) -> list[str]:
        """Return the sources that changed since they were prepared; absent ones are left out."""
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


def is_prepared(task: Task) -> bool:
    """Return whether the output folder of a task has data prepared from this version of it.

    Raises:
        UserError: If the manifest there is broken or of another version.
    """
    path = Path(task.output) / _NAME
    return path.is_file() and not _list_changes(_read_manifest(path, "prepare again"), task)


def open_prepared(
    task: Task, *, named: str | Task = "TASK", fix: str | None = None
) -> PreparedData:
    """Open the prepared data of a task.

    Args:
        task: The task.
        named: What a recipe or suite says of it: its file, or the task itself.
        fix: How the user can prepare it; None: by `llmft prepare`.

    Raises:
        UserError: If it is not prepared, or from another version of the task.
    """
    path = Path(task.output) / _NAME
    if fix is None:
        in_python = "prepare it with `llmft.prepare(task)`"
        fix = f"run `llmft prepare {named}`" if isinstance(named, str) else in_python
    if not path.is_file():
        raise UserError(f"{path}: does not exist, so the data is not prepared; {fix}")
    manifest = _read_manifest(path, fix)
    changed = _list_changes(manifest, task)
    if changed:
        raise UserError(
            f"{path}: prepared from another version of the task (changed: "
            f"{', '.join(changed)}); {fix}"
        )
    return PreparedData(task, manifest)


def _read_manifest(path: Path, fix: str) -> Manifest:
    return read_result(path, Manifest, fix=fix)


def _list_changes(manifest: Manifest, task: Task) -> list[str]:
    """Return the keys that differ, except those that do not change any row."""
    return [
        key
        for key, wanted in task
        if key != "oracle_sees" and getattr(manifest.task, key) != wanted
    ]
