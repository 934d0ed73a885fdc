"""A trained model in Python: from rows to a DataFrame of predictions."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llmft.config.frames import is_frame, list_frame_rows, to_plain
from llmft.data.fields import Row, RowFaultError, is_missing, list_fields, require_fields
from llmft.errors import UserError
from llmft.files import StrPath
from llmft.models.saved import ModelSpec, read_spec
from llmft.prediction.tables import list_needed_fields, make_columns, make_schema

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    from llmft.prediction.inference import Predictor

    Rows: TypeAlias = (
        pd.DataFrame | pd.Series[str] | datasets.Dataset | Sequence[Row] | Sequence[str]
    )

_ROWS_AT_ONCE = 10_000


class Model:
    """A trained model, with its calibrators or thresholds; several threads may use it at once."""

    def __init__(self, predictor: "Predictor") -> None:
        """Wrap a loaded model."""
        self._predictor = predictor

    @classmethod
    def open(cls, run: Path, *, max_tokens_per_batch: int | None = None) -> "Model":
        """Load the model of a run folder.

        Raises:
            UserError: If it holds no finished run, or one of its files is broken.
        """
        from llmft.prediction.inference import Predictor

        return cls(Predictor.open(run, max_tokens_per_batch=max_tokens_per_batch))

    @property
    def spec(self) -> ModelSpec:
        """What the model predicts, from which fields and with which prompt."""
        return self._predictor.spec

    def predict(
        self,
        rows: "Rows",
        *,
        errors: Literal["missing", "raise"] = "missing",
        show_progress: bool = True,
    ) -> "pd.DataFrame":
        """Predict rows.

        Args:
            rows: A DataFrame or a `datasets.Dataset` with the fields of the task, a list of
                dictionaries with them, or a list or Series of texts. N rows.
            errors: What to do with rows that cannot be predicted, such as those without a text:
                missing values and the column `reason`, or an error.
            show_progress: Whether to show a bar, on a terminal or in a notebook.

        Returns:
            The prediction columns of `llmft predict`, with N rows in the same order and, of a
            DataFrame or Series, with its index: `prediction` (the overall score, the class, or the
            list of labels), `tier` if the task has tiers, and `score_NAME` or `prob_NAME` of each
            dimension, class or label. If a row cannot be predicted, its values are missing, and
            another column, `reason`, says why.

        Raises:
            UserError: If `rows` is something else, lacks a field, with `errors="raise"` a row
                cannot be predicted, or the model answers a row with no number.
        """
        import pandas as pd

        found = _list_rows(rows)
        if errors not in ("missing", "raise"):
            raise UserError(f"errors: found {errors!r}, allowed: missing, raise")
        names = list_fields(found)
        if found:
            require_fields(list_needed_fields(self.spec, names), names, where="rows")
        index: Any = None if isinstance(rows, list | tuple) else getattr(rows, "index", None)
        faults = [self._find_fault(row) for row in found]
        first = next((i for i, fault in enumerate(faults) if fault), None)
        if errors == "raise" and first is not None:
            where = first if index is None else index[first]
            raise UserError(f"row {where}: {faults[first]}; fix it, or use errors='missing'")
        columns: list[Row] = []
        for start in range(0, len(found), _ROWS_AT_ONCE):
            some = found[start : start + _ROWS_AT_ONCE]
            columns += self.predict_rows(some, show_progress=show_progress)
        schema = make_schema(self.spec)
        frame = pd.DataFrame(columns, index=index, columns=schema.names)
        floats = [field.name for field in schema if str(field.type) == "double"]
        frame[floats] = frame[floats].astype("float64")
        if first is not None:
            frame["reason"] = pd.Series(faults, index=frame.index, dtype="object")
        return frame

    def predict_rows(self, rows: Sequence[Row], *, show_progress: bool = True) -> list[Row]:
        """Predict rows that have the fields that the model needs.

        Returns:
            The prediction columns of each row, as `make_schema` names them; None in each if the row
            cannot be predicted.

        Raises:
            UserError: If the memory of a GPU is too small for a single row.
        """
        columns: list[Row] = [dict.fromkeys(make_schema(self.spec).names)] * len(rows)
        usable = [position for position, row in enumerate(rows) if self._find_fault(row) is None]
        if usable:
            found = self._predictor.predict(
                [rows[i] for i in usable], show_progress=show_progress
            ).final
            made = make_columns(found, self.spec)
            for position, predicted in zip(usable, made, strict=True):
                columns[position] = predicted
        return columns

    def _find_fault(self, row: Row) -> str | None:
        try:
            self._predictor.encoder.fill(row)
        except RowFaultError as fault:
            return str(fault)
        return None


def load(model: StrPath, *, max_tokens_per_batch: int | None = None) -> Model:
    """Load a trained model.

    Args:
        model: Run folder, or the run that `llmft.train` returned.
        max_tokens_per_batch: Tokens of a batch, padding counted; None: as memory allows.

    Raises:
        UserError: If it holds no finished run, or one of its files is broken.
    """
    if max_tokens_per_batch is not None and max_tokens_per_batch < 1:
        raise UserError(f"max_tokens_per_batch: found {max_tokens_per_batch}; give 1 or more")
    folder = Path(model)
    read_spec(folder / "model")  # a wrong path is reported before torch is loaded
    from llmft.isolation import isolated

    with isolated():
        return Model.open(folder, max_tokens_per_batch=max_tokens_per_batch)


def _list_rows(rows: Any) -> list[Row]:
    if is_frame(rows):
        try:
            return list_frame_rows(rows)
        except ValueError as error:
            raise UserError(f"rows: {error}") from error
    if _is_a(rows, "datasets", "Dataset"):
        return list(rows.with_format(None).to_list())
    if _is_a(rows, "pandas", "Series"):
        rows = list_frame_rows(rows.to_frame("text"))
    if isinstance(rows, list | tuple):
        plain = [to_plain(row) for row in rows]
        if all(isinstance(row, str) or is_missing(row) for row in plain):
            return [{"text": row} for row in plain]
        if all(isinstance(row, dict) or is_missing(row) for row in plain):
            return [row or {} for row in plain]
    raise UserError(
        f"rows: found {_describe(rows)}; give a DataFrame, a datasets.Dataset, a list of "
        "dictionaries, or a list of strings"
    )


def _is_a(value: object, module: str, kind: str) -> bool:
    """Return whether a value is of a class of a package, without importing the package."""
    found = sys.modules.get(module)
    return found is not None and isinstance(value, getattr(found, kind))


def _describe(rows: Any) -> str:
    kind = type(rows).__name__
    if isinstance(rows, list | tuple):
        kinds = sorted({type(row).__name__ for row in rows})
        return f"a {kind} of {', '.join(kinds)}"
    return f"a {kind}"
