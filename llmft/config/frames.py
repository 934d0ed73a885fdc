"""DataFrames, without importing pandas: their rows, as a JSON file would hold them."""

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self, TypeGuard

if TYPE_CHECKING:
    import pandas as pd

FRAME = "dataframe:"


def is_frame(value: object) -> "TypeGuard[pd.DataFrame]":
    """Return whether a value is a pandas DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def list_frame_rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return the rows of a DataFrame, without its index, as plain values.

    Raises:
        ValueError: If a column is repeated.
    """
    names = [str(name) for name in frame.columns]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"the column {repeated[0]!r} is repeated; rename one")
    columns = [[to_plain(value) for value in frame.iloc[:, i]] for i in range(len(names))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def to_plain(value: Any) -> Any:
    """Return a value with numpy's and pandas' types replaced by Python's; None if it is missing.

    Arrays, tuples and sets become lists.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    match value:
        case Mapping():
            value = {str(key): to_plain(item) for key, item in value.items()}
        case list() | tuple():
            value = [to_plain(item) for item in value]
        case set() | frozenset():
            value = sorted(map(to_plain, value), key=str)
        case Decimal():
            value = float(value)
        case float() if math.isnan(value):
            value = None
        case _ if type(value).__name__ in ("NAType", "NaTType"):
            value = None
    return value


@dataclass(frozen=True)
class Frame:
    """A DataFrame as the source of a task; two are equal if their rows and columns are."""

    path: str
    """`dataframe:` and a hash of the rows."""
    rows: list[dict[str, Any]] = field(compare=False, repr=False)
    """As they were when the task was made."""

    @classmethod
    def make(cls, data: "pd.DataFrame") -> Self:
        """Read a DataFrame.

        Raises:
            ValueError: If a column is repeated.
        """
        rows = list_frame_rows(data)
        digest = hashlib.sha256()
        for row in rows:
            digest.update(json.dumps(row, default=str).encode())
        return cls(f"{FRAME}{digest.hexdigest()[:16]}", rows)
