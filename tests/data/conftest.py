"""Prepare rows through the command line, as a user does, and look at what was left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llmft.cli import main
from llmft.config.task import SPLITS

Row = dict[str, Any]
CLASS_LABELS = "{type: class, from: mood}"
SCORES_LABELS = "{type: scores, from: scores, dimensions: [risk, calm]}"


class Outcome(NamedTuple):
    """What `llmft prepare` left and said."""

    status: int
    message: str
    """What went to standard error."""
    folder: Path

    def read(self, name: str) -> list[Row]:
        """Return the rows of a split or of the rejections."""
        with (self.folder / f"{name}.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]  # a text may hold line ends of Unicode

    @property
    def splits(self) -> dict[str, list[Row]]:
        return {name: self.read(name) for name in SPLITS}

    @property
    def rows(self) -> dict[str, Row]:
        """All rows of all splits, by id."""
        return {row["id"]: row for name in SPLITS for row in self.read(name)}

    @property
    def split_of(self) -> dict[str, str]:
        """Split of each row, by id."""
        return {row["id"]: name for name, rows in self.splits.items() for row in rows}

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """Line and reason of each rejected row."""
        return [(row["line"], row["reason"]) for row in self.read("rejected")]

    @property
    def manifest(self) -> Row:
        manifest: Row = json.loads((self.folder / "manifest.json").read_text())
        return manifest

    @property
    def bytes(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


def write_rows(path: Path, rows: list[Row | str]) -> None:
    """Write rows; a text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def number_rows(num_rows: int, **fields: Any) -> list[Row]:
    """Return good rows whose texts share no word."""
    return [
        {
            "id": f"r{i}",
            "text": " ".join(f"w{i}x{k}" for k in range(10)),
            "mood": "calm" if i % 2 else "tense",
            "scores": {"risk": i % 11, "calm": 10 - i % 11},
            **fields,
        }
        for i in range(num_rows)
    ]


@pytest.fixture
def prepare(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Write rows and a task, run `llmft prepare` and return its outcome."""

    def run(
        rows: list[Row | str] | None = None, *overrides: str, labels: str = CLASS_LABELS,
        fields: str = "{id: id, text: text}", source: str = "rows.jsonl", output: str = "out",
        sources: str | None = None,
    ) -> Outcome:  # fmt: skip
        if rows is not None:
            write_rows(Path("rows.jsonl"), rows)
        sources = sources or f"[{{path: '{source}'}}]"
        Path("task.yaml").write_text(
            f"name: news\nsources: {sources}\nfields: {fields}\nlabels: {labels}\n"
            f"output: '{output}'\n",
            encoding="utf-8",
        )
        options = [part for override in overrides for part in ("--set", override)]
        status = main(["prepare", "task.yaml", *options])
        return Outcome(status, capsys.readouterr().err, Path(output))

    return run
