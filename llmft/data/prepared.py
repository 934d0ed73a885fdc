"""Open what `prepare` left, and make sure that it is what the task asks for."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from llmft.config.metrics import list_metrics
from llmft.config.task import TaskConfig
from llmft.errors import UserError
from llmft.files import hash_file, read_json

Row = dict[str, Any]
_MANIFEST_KEYS = {"fingerprint", "files", "counts", "label_names"}


class PreparedData(NamedTuple):
    """The prepared data of a task."""

    task: TaskConfig
    manifest: dict[str, Any]
    label_names: list[str]
    """Dimensions, classes or labels, in the order of the model's outputs."""

    @property
    def fingerprint(self) -> str:
        """Hash of all rows of all splits."""
        return str(self.manifest["fingerprint"])

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
            for source, expected in self.manifest["sources"].items()
            if Path(source).is_file() and hash_file(Path(source)) != expected
        ]

    def read_split(self, name: str) -> list[Row]:
        """Return the rows of a split.

        Raises:
            UserError: If the file was changed since it was prepared.
        """
        path = Path(self.task.output) / f"{name}.jsonl"
        if hash_file(path) != self.manifest["files"][name]:
            raise UserError(f"{path}: changed since `llmft prepare` wrote it; prepare again")
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def is_prepared(task: TaskConfig) -> bool:
    """Return whether prepared data for just this task lies in its output folder."""
    path = Path(task.output) / "manifest.json"
    return path.is_file() and _leave_out_remarks(read_json(path).get("task")) == _dump(task)


def open_prepared(
    task: TaskConfig, *, task_file: str = "TASK", mend: str | None = None
) -> PreparedData:
    """Open the prepared data of a task.

    Raises:
        UserError: If it was not prepared, or from another version of the task.
    """
    path = Path(task.output) / "manifest.json"
    mend = mend or f"run `llmft prepare {task_file}`"
    if not path.is_file():
        raise UserError(f"{path}: not there, so the data is not prepared; {mend}")
    manifest = read_json(path)
    found, wanted = _leave_out_remarks(manifest.get("task")), _dump(task)
    if not isinstance(found, dict) or _MANIFEST_KEYS - manifest.keys():
        raise UserError(f"{path}: is no manifest of this version; {mend}")
    if found != wanted:
        changed = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
        raise UserError(
            f"{path}: prepared from another version of the task (changed: "
            f"{', '.join(changed)}); {mend}"
        )
    return PreparedData(task, manifest, list(manifest["label_names"]))


def _dump(task: TaskConfig) -> Any:
    return _leave_out_remarks(task.model_dump(mode="json", by_alias=True))


def _leave_out_remarks(task: Any) -> Any:
    """Return a task without what changes no row: it may be added when the data is there."""
    return {k: v for k, v in task.items() if k != "oracle_sees"} if isinstance(task, dict) else task
