"""Plant faults into the files of a trained workspace, as a careless person would leave them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmft.cli import main
from llmft.config.suite import load_suite
from llmft.evaluation.comparison import (
    compare_variants,
    open_comparison,
    plan_runs,
    record_test_reads,
)
from llmft.files import hash_file, hash_text
from tests.conftest import WORDS


def load(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def load_rows(split: str) -> list[dict[str, Any]]:
    """Return the rows of a prepared split."""
    return [json.loads(line) for line in Path(f"prepared/{split}.jsonl").read_text().splitlines()]


def find_runs() -> list[Path]:
    return sorted(Path("runs").glob("*/seed-*"))


def rewrite_metadata(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = run / "training_metadata.json"
    metadata = load(path)
    change(metadata)
    path.write_text(json.dumps(metadata))


def rewrite_predictions(run: Path, **columns: Any) -> None:
    """Put other columns into the test predictions, which still say what they come from."""
    path = run / "predictions/test.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


def rewrite_splits(**rows_by_split: list[dict[str, Any]]) -> None:
    """Change prepared rows as if they had come from `prepare`, and all runs from them."""
    manifest = load("prepared/manifest.json")
    for split, rows in rows_by_split.items():
        path = Path(f"prepared/{split}.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        manifest["files"][split] = hash_file(path)
        manifest["counts"][split] = len(rows)
    names = [*manifest["files"].values(), *manifest["label_names"]]
    manifest["fingerprint"] = hash_text("\n".join(names))
    Path("prepared/manifest.json").write_text(json.dumps(manifest))
    for run in find_runs():
        rewrite_metadata(run, lambda m: m.update(data_fingerprint=manifest["fingerprint"]))


_OTHERS = "bert: runs/bert/seed-1, prompted: runs/prompted/seed-1"


def write_suite(*, extra: str = "", others: str = _OTHERS) -> str:
    """Write a suite that names run folders, so that only the audit stands before a fault."""
    Path("folders.yaml").write_text(
        f"task: task.yaml\nvariants: {{{others}, "
        "plain: [runs/plain/seed-1, runs/plain/seed-2]}\n"
        f"reference: plain\nmetric: mae\nmargin: 0.1\noutput_dir: reports/risk\n{extra}"
    )
    return "folders.yaml"


def compare_folders(*, extra: str = "", others: str = _OTHERS) -> dict[str, Any]:
    """Compare runs by their folders up to the verdict, as the command does first; write no report.

    The reports of an earlier comparison are removed, so that no test reads them instead.
    """
    shutil.rmtree("reports/risk", ignore_errors=True)
    suite = load_suite(write_suite(extra=extra, others=others))
    comparison = open_comparison(suite, plan_runs(suite))
    result = compare_variants(comparison)
    record_test_reads(comparison, report=Path("reports/risk/comparison.json"))
    return json.loads(result.model_dump_json(by_alias=True))


def compare_by_command(*, extra: str = "", others: str = _OTHERS) -> dict[str, Any]:
    """Compare runs by their folders, with gates, latency and reports."""
    assert main(["compare", write_suite(extra=extra, others=others)]) == 0
    return load("reports/risk/comparison.json")


def find(results: dict[str, Any], check: str, variant: str | None = None) -> dict[str, Any]:
    """Return the only finding of a check, of a variant if one is named."""
    found = [
        f
        for f in results["audit"]
        if f["check"] == check and (variant is None or variant in f["variants"])
    ]
    assert len(found) == 1, found
    return found[0]


def add_test_rows(num_rows: int) -> list[dict[str, Any]]:
    """Return the test rows and so many new ones, none like another."""
    rows = load_rows("test")
    for number in range(num_rows):
        words = " ".join(WORDS[(number * 7 + i * (1 + number % 13)) % len(WORDS)] for i in range(9))
        row = {**rows[number % len(rows)], "id": f"new{number}", "title": words, "content": "bank"}
        rows.append({**row, "text": f"{words} number{number} of{number * 3}"})
    return rows
