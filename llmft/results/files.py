"""How results are written to files, once, and checked when they are read."""

from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails

from llmft import __version__
from llmft.config.loading import READING_RESULT, Section
from llmft.errors import UserError
from llmft.files import read_json, write_text

_MAX_SHOWN = 80


class Result(Section):
    """A part of a results file, as strict as a section of a YAML file, with every key in it."""

    model_config = ConfigDict(defer_build=True, json_schema_serialization_defaults_required=True)

    def replace(self, **changes: Any) -> Self:
        """Return a copy in which some fields have other values, checked like the first ones."""
        return type(self)(**{**dict(self), **changes})


def hold_all(*keys: str) -> AfterValidator:
    """Return the annotation of a dictionary that has these keys in every file."""

    def refuse_missing(found: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        missing = [key for key in keys if key not in found]
        if missing and info.context is READING_RESULT:
            raise ValueError(f"the key {missing[0]} is missing")
        return found

    return AfterValidator(refuse_missing)


class ResultFile(Result):
    """What every results file says of itself.

    A class of files narrows `schema_version` to the version that it reads; a change after which
    older files can no longer be read raises it.
    """

    schema_version: int
    """Of this kind of file."""
    llmft_version: str = __version__
    """Which llmft wrote it."""

    @model_validator(mode="before")
    @classmethod
    def _drop_computed(cls, values: Any) -> Any:
        """Leave out what was written for readers of the JSON and follows from the rest."""
        computed = cls.model_computed_fields
        return {k: v for k, v in values.items() if k not in computed} if computed else values


FileT = TypeVar("FileT", bound=ResultFile)


def write_result(path: Path, result: ResultFile) -> None:
    """Write a result as JSON in one go."""
    write_text(path, result.model_dump_json(indent=2, by_alias=True) + "\n")


def read_result(path: Path, schema: type[FileT], *, mend: str) -> FileT:
    """Read a results file.

    Args:
        path: The file.
        schema: What it has to hold.
        mend: What the user can do where it does not, as an imperative.

    Raises:
        UserError: If the file is missing, broken, or of another version: with the key, what was
            found, what was expected, and how to mend it.
    """
    data = read_json(path, mend=mend)
    version, known = data.get("schema_version"), schema.model_fields["schema_version"].default
    if type(version) is int and version != known:
        writer = data.get("llmft_version", "of an unknown version")
        raise UserError(
            f"{path}: schema_version: found {version!r}, written by llmft {writer}, but this llmft "
            f"{__version__} reads {known}; use an llmft that reads it, or {mend}"
        )
    try:
        return schema.model_validate(data, context=READING_RESULT)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
    more = f" (and {len(others)} more faults)" if others else ""
    raise UserError(f"{path}: {_describe(first)}{more}; {mend}")


def _describe(fault: ErrorDetails) -> str:
    """Return the key of a fault, what was found there and what was expected."""
    key = ".".join(map(str, fault["loc"])) or "(top level)"
    match fault["type"]:
        case "missing":
            return f"{key}: missing"
        case "extra_forbidden":
            return f"{key}: unknown key"
        case "value_error":
            said = fault["msg"].removeprefix("Value error, ")
            return f"{key}: {said}" if fault["loc"] else said
    found = repr(fault["input"])
    shown = found if len(found) <= _MAX_SHOWN else f"{found[:_MAX_SHOWN]}..."
    expected = fault["msg"].removeprefix("Input should be ")
    return f"{key}: found {shown}, expected {expected}"
