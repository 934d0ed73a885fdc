"""Predictions that are done stay done: chunks on disk beside the output until it is complete."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmft.data.files import read_json, write_json, write_jsonl

Row = dict[str, Any]
_ROWS_PER_CHUNK = 512


def predict_resumably(
    rows: list[Row],
    *,
    predict: Callable[[list[Row]], list[Row]],
    folder: Path,
    identity: dict[str, str],
    report: Callable[[str], None],
) -> list[Row]:
    """Return one result per row, computing only the chunks that are not in the folder yet.

    Args:
        rows: All rows.
        predict: From some rows to their prediction columns.
        folder: Where finished chunks lie; created. To be removed once the output is written.
        identity: Model and input that the chunks belong to; chunks of others are thrown away.
        report: Called with lines of text.
    """
    state = folder / "state.json"
    if folder.exists() and (not state.is_file() or read_json(state) != identity):
        report(f"{folder}: left by another model or input, starting anew")
        shutil.rmtree(folder)
    write_json(state, identity)
    results: list[Row] = []
    for start in range(0, len(rows), _ROWS_PER_CHUNK):
        path = folder / f"{start:012d}.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                results += [json.loads(line) for line in file]
            continue
        chunk = predict(rows[start : start + _ROWS_PER_CHUNK])
        write_jsonl(path, chunk)
        results += chunk
        report(f"predicted {len(results)} of {len(rows)} rows")
    return results
