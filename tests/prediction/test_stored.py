"""Stored predictions are tied to their model and data, and joined by id (D11)."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmft.errors import UserError
from llmft.prediction.stored import StoredPredictions, read_stored


def store(ids: list[str]) -> StoredPredictions:
    n = len(ids)
    return StoredPredictions(
        ids, np.arange(2.0 * n).reshape(n, 2), np.arange(n), np.arange(n), [f"h{i}" for i in ids]
    )


def test_d11_rows_are_joined_by_id() -> None:
    aligned = store(["a", "b", "c"]).align(["c", "a", "b"])
    assert aligned.outputs.tolist() == [[4, 5], [0, 1], [2, 3]]
    assert aligned.input_hashes == ["hc", "ha", "hb"]
    assert aligned.kept_tokens.tolist() == [2, 0, 1]


@pytest.mark.parametrize("ids", [["a", "b"], ["a", "b", "d"], ["a", "b", "b"]])
def test_d11_other_rows_are_refused(ids: list[str]) -> None:
    with pytest.raises(UserError, match="different rows"):
        store(ids).align(["a", "b", "c"])


def test_predictions_of_another_model_or_data_count_as_none(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    table = pa.table(
        {"id": ["a"], "score_y": [2.0], "score_x": [1.0], "article_tokens": [1], "kept_tokens": [1],
         "input_hash": ["h"]}
    )  # fmt: skip
    pq.write_table(table.replace_schema_metadata({"llmft": '{"model": "m", "data": "d"}'}), path)
    columns, source = ["score_x", "score_y"], {"model": "m", "data": "d"}
    found = read_stored(path, columns=columns, source=source)
    assert found is not None
    assert found.outputs.tolist() == [[1.0, 2.0]]  # by name, not by position
    other = {"model": "other", "data": "d"}
    assert read_stored(path, columns=columns, source=other) is None
    assert read_stored(tmp_path / "none.parquet", columns=columns, source=source) is None
    with pytest.raises(UserError, match="no column 'score_z'"):
        read_stored(path, columns=["score_z"], source=source)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"test\.parquet: cannot be read"):
        read_stored(path, columns=[], source={})
