"""Predictions on disk, with the hash of their model and the fingerprint of their data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import gather_object
from numpy.typing import NDArray

from llmft.data.fields import Row, RowFaultError
from llmft.errors import UserError
from llmft.files import hash_text, replace_file
from llmft.models.saved import hash_model, load_saved, read_spec
from llmft.prediction.inference import Predictor
from llmft.prediction.tables import name_columns
from llmft.processes import get_rank, get_world_size, is_any, is_main


class ChangedModelError(UserError):
    """The model on disk is not the one that the run recorded."""


class StoredPredictions(NamedTuple):
    """Predictions for N rows; joined to labels by id, never by position (D11)."""

    ids: list[str]
    outputs: NDArray[np.float32]
    """Of the model itself, without calibrators and thresholds, which may change; shape [N, C]."""
    article_tokens: NDArray[np.int64]
    """Length of each article before truncation, shape [N]."""
    kept_tokens: NDArray[np.int64]
    """Its length after truncation, shape [N]."""
    input_hashes: list[str]
    """Hash of each row's input ids."""

    def align(self, ids: list[str]) -> "StoredPredictions":
        """Return the same predictions in the order of `ids`.

        Raises:
            UserError: If the ids are not the same set, each once, or an output is not finite.
        """
        place = {row_id: i for i, row_id in enumerate(self.ids)}
        if len(place) < len(self.ids) or set(ids) != set(place):
            missing, extra = len(set(ids) - set(place)), len(set(place) - set(ids))
            raise UserError(
                f"predictions and labels are of different rows: {missing} rows have no prediction, "
                f"{extra} predictions have no row, {len(self.ids) - len(place)} are repeated; "
                "remove the file of the predictions, and evaluate again"
            )
        is_broken_N = ~np.isfinite(self.outputs).all(axis=1)
        if is_broken_N.any():
            first = self.ids[int(is_broken_N.argmax())]
            raise UserError(
                f"the model predicts NaN or infinity for {is_broken_N.sum()} of {len(self.ids)} "
                f"rows, the first: {first}; train it again, with train.precision: float32 if it "
                "was bfloat16"
            )
        return self.take([place[row_id] for row_id in ids])

    def take(self, positions: list[int]) -> "StoredPredictions":
        """Return the predictions at these positions."""
        return StoredPredictions(
            [self.ids[i] for i in positions],
            self.outputs[positions],
            self.article_tokens[positions],
            self.kept_tokens[positions],
            [self.input_hashes[i] for i in positions],
        )


def name_source(model_hash: str, data: str, *, limit_rows: int | None = None) -> dict[str, str]:
    """Return what stored predictions come from; those from another source are predicted again.

    Args:
        model_hash: Hash of the model.
        data: Fingerprint of the prepared data, or hash of a file.
        limit_rows: The recipe's limit on rows of train and val, if the rows are of these.
    """
    limit = {} if limit_rows is None else {"limit_rows": str(limit_rows)}
    return {"model": model_hash, "data": data, **limit}


def load_or_predict(
    run: Path,
    rows: list[Row],
    *,
    path: Path,
    source: dict[str, str],
    across_processes: bool = False,
    open_predictor: Callable[[], Predictor] | None = None,
) -> StoredPredictions:
    """Read stored predictions if they are from `source`, else predict and store them.

    Args:
        run: Run folder.
        rows: Prepared rows with `id`.
        path: Parquet file.
        source: Hash of the model and fingerprint of the data.
        across_processes: Whether to distribute the prediction over all processes of the launch,
            which all have to call this.
        open_predictor: Returns the model of the run, which may be open already.

    Raises:
        UserError: If the model on disk is not the one that `source` names, or a row cannot be
            predicted.
    """
    refuse_changed_model(run, model_hash=source["model"])
    columns = name_columns(read_spec(run / "model"))
    stored = read_stored(path, columns=columns, source=source)
    is_missing = stored is None
    if across_processes:  # the file may be on the disk of another node only
        is_missing = is_any(is_missing)
    if stored is not None and not is_missing:
        return stored
    # Without the fit, which is not stored and may be about to be fitted again.
    predictor = open_predictor() if open_predictor else Predictor(load_saved(run / "model"))
    try:
        return predict_and_store(
            predictor, rows, path=path, source=source, across_processes=across_processes
        )
    except RowFaultError as error:
        raise UserError(
            f"{run}: a row cannot be predicted: {error}; fix this row in the data"
        ) from error


def refuse_changed_model(run: Path, *, model_hash: str) -> None:
    """Check that the model on disk is the one that the run recorded.

    Raises:
        ChangedModelError: If it is not.
    """
    if hash_model(run / "model") != model_hash:
        raise ChangedModelError(
            f"{run / 'model'}: changed since it was trained, so the record of the run does not "
            "describe it; train it again"
        )


def predict_and_store(
    predictor: Predictor,
    rows: list[Row],
    *,
    path: Path,
    source: dict[str, str],
    across_processes: bool = False,
) -> StoredPredictions:
    """Predict rows and write the predictions as Parquet, in the main process.

    Args:
        predictor: The model.
        rows: Prepared rows with `id`.
        path: Parquet file to write.
        source: Hash of the model and fingerprint of the data.
        across_processes: Whether to distribute the prediction over all processes of the launch,
            which all have to call this and all get all predictions.

    Raises:
        RowFaultError: If a row cannot be predicted.
    """
    stored = _predict_across(predictor, rows) if across_processes else _predict(predictor, rows)
    if not is_main():
        return stored
    columns: dict[str, Any] = {
        "id": stored.ids,
        **dict(zip(name_columns(predictor.spec), stored.outputs.T, strict=True)),
        "article_tokens": stored.article_tokens,
        "kept_tokens": stored.kept_tokens,
        "input_hash": stored.input_hashes,
    }
    table = pa.table(columns).replace_schema_metadata({"llmft": json.dumps(source)})
    with replace_file(path) as file:
        pq.write_table(table, file)
    return stored


def read_stored(
    path: Path, *, columns: list[str], source: dict[str, str]
) -> StoredPredictions | None:
    """Read predictions; None if there are none, or they are from another model or other data.

    Args:
        path: Parquet file.
        columns: Names of the output columns, in the order of the labels.
        source: Hash of the model and fingerprint of the data that they have to be from.

    Raises:
        UserError: If the file is broken.
    """
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read: {error}; remove it") from error
    if json.loads((table.schema.metadata or {}).get(b"llmft", b"{}")) != source:
        return None
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: has no column {missing[0]!r}; remove the file")
    return StoredPredictions(
        ids=table["id"].to_pylist(),
        outputs=np.stack([table[c].to_numpy() for c in columns], axis=1),
        article_tokens=table["article_tokens"].to_numpy(),
        kept_tokens=table["kept_tokens"].to_numpy(),
        input_hashes=table["input_hash"].to_pylist(),
    )


def _predict(predictor: Predictor, rows: list[Row]) -> StoredPredictions:
    found = predictor.predict(rows, show_progress=is_main())
    encoded = found.encoded
    return StoredPredictions(
        ids=[row["id"] for row in rows],
        outputs=found.raw_outputs,
        article_tokens=np.array([e.num_article_tokens for e in encoded], dtype=np.int64),
        kept_tokens=np.array([e.num_kept_tokens for e in encoded], dtype=np.int64),
        input_hashes=[hash_text(str(e.input_ids))[:16] for e in encoded],
    )


def _predict_across(predictor: Predictor, rows: list[Row]) -> StoredPredictions:
    """Predict every n-th row in each of n processes, and gather all rows in all of them (R3)."""
    for row in rows:  # a faulty row has to stop all processes, so that none waits for another
        predictor.encoder.fill(row)
    positions = range(get_rank(), len(rows), get_world_size())
    own = _predict(predictor, [rows[i] for i in positions])
    gathered = gather_object([(positions, own)])
    places = np.concatenate([positions for positions, _ in gathered])
    assert sorted(places) == list(range(len(rows))), "a row is missing or repeated"
    order, stored = np.argsort(places), [found for _, found in gathered]
    ids = [row_id for found in stored for row_id in found.ids]
    hashes = [input_hash for found in stored for input_hash in found.input_hashes]
    return StoredPredictions(
        ids=[ids[i] for i in order],
        outputs=np.concatenate([found.outputs for found in stored])[order],
        article_tokens=np.concatenate([found.article_tokens for found in stored])[order],
        kept_tokens=np.concatenate([found.kept_tokens for found in stored])[order],
        input_hashes=[hashes[i] for i in order],
    )
