"""Writing results files, and validating them when they are read."""

from abc import ABC, abstractmethod
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from llmft import __version__
from llmft.config.loading import (
    MISSING,
    READING_RESULT,
    ConfigSection,
    describe_fault,
    refuse_values,
)
from llmft.errors import UserError
from llmft.files import read_json, write_text

if TYPE_CHECKING:
    import pandas as pd


class Result(ConfigSection):
    """A section of a results file: as strict as one of a YAML file, and every key is required."""

    model_config = ConfigDict(defer_build=True, json_schema_serialization_defaults_required=True)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated again."""
        return type(self)(**{**dict(self), **changes})


class HasTable(ABC):
    """A result that is a table in a notebook."""

    @abstractmethod
    def describe(self) -> str:
        """Return one line on the result."""

    @abstractmethod
    def to_frame(self) -> "pd.DataFrame":
        """Return the result as a DataFrame."""

    def _repr_html_(self) -> str:
        """Show line and table in a notebook."""
        return f"<p>{escape(self.describe())}</p>{self.to_frame().to_html()}"


def require_keys(*keys: str) -> AfterValidator:
    """Return the annotation of a dictionary that must have these keys in a results file."""

    def refuse_missing(found: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if info.context is READING_RESULT:
            refuse_values(((key,), MISSING) for key in keys if key not in found)
        return found

    return AfterValidator(refuse_missing)


class ResultFile(Result):
    """The top level of a results file, with the version of its schema.

    A class of files narrows `schema_version` to the version that it reads; a change after which
    older files can no longer be read raises it.
    """

    schema_version: int
    """Of this kind of file."""
    llmft_version: str = __version__
    """Version of llmft that wrote the file."""

    @model_validator(mode="before")
    @classmethod
    def _drop_computed(cls, values: Any) -> Any:
        """Drop computed fields, which are written for readers of the JSON only."""
        computed = cls.model_computed_fields
        return {k: v for k, v in values.items() if k not in computed} if computed else values


FileT = TypeVar("FileT", bound=ResultFile)


def write_result(path: Path, result: ResultFile) -> None:
    """Write a result as JSON, atomically."""
    write_text(path, result.model_dump_json(indent=2, by_alias=True) + "\n")


def read_result(path: Path, schema: type[FileT], *, fix: str) -> FileT:
    """Read a results file.

    Args:
        path: The file.
        schema: Its schema.
        fix: How the user can fix a file that does not match, as an imperative.

    Raises:
        UserError: If the file is missing, broken, or of another version: with the key, what was
            found, what was expected, and how to fix it.
    """
    data = read_json(path, fix=fix)
    version, known = data.get("schema_version"), schema.model_fields["schema_version"].default
    if isinstance(version, int) and repr(version) != repr(known):  # true equals 1
        writer = data.get("llmft_version", "of an unknown version")
        raise UserError(
            f"{path}: schema_version: found {version!r}, written by llmft {writer}, but this llmft "
            f"{__version__} reads {known}; use an llmft that reads it, or {fix}"
        )
    try:
        return schema.model_validate(data, context=READING_RESULT)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
    key, what = describe_fault(first, data, schema=schema)
    more = f" (and {len(others)} more faults)" if others else ""
    raise UserError(f"{path}: {'.'.join(map(str, key)) or '(top level)'}: {what}{more}; {fix}")
