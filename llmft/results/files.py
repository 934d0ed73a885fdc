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

from llmft import __version__
from llmft.config.loading import MISSING, READING_RESULT, Section, describe_fault, refuse_values
from llmft.errors import UserError
from llmft.files import read_json, write_text


class Result(Section):
    """A part of a results file, as strict as a section of a YAML file, with every key in it."""

    model_config = ConfigDict(defer_build=True, json_schema_serialization_defaults_required=True)

    def replace(self, **changes: Any) -> Self:
        """Return a copy in which some fields have other values, checked like the first ones."""
        return type(self)(**{**dict(self), **changes})


def hold_all(*keys: str) -> AfterValidator:
    """Return the annotation of a dictionary that has these keys in every file."""

    def refuse_missing(found: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if info.context is READING_RESULT:
            refuse_values(((key,), MISSING) for key in keys if key not in found)
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
    if isinstance(version, int) and repr(version) != repr(known):  # true equals 1
        writer = data.get("llmft_version", "of an unknown version")
        raise UserError(
            f"{path}: schema_version: found {version!r}, written by llmft {writer}, but this llmft "
            f"{__version__} reads {known}; use an llmft that reads it, or {mend}"
        )
    try:
        return schema.model_validate(data, context=READING_RESULT)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
    key, what = describe_fault(first, data, schema=schema)
    more = f" (and {len(others)} more faults)" if others else ""
    raise UserError(f"{path}: {'.'.join(map(str, key)) or '(top level)'}: {what}{more}; {mend}")
