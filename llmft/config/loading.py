"""Turn YAML files, or sections made in Python, into validated sections, with all faults at once.

The scalars follow the YAML 1.2 core schema: `1e-4` is a number, and `no`, `on` and
`2024-01-31` are text, which is what people who write class names and dates mean.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from llmft.errors import UserError
from llmft.files import StrPath
from llmft.wording import count

KeyPath = tuple[str | int, ...]
Overrides = Mapping[str, Any]
"""Dotted key, such as `train.epochs` -> the value that replaces that of the file."""
_MAX_VALUES = 20_000
_MOST_HINTS = 3
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
READING_RESULT: dict[str, str] = {"reads": "a results file"}
"""Context for validators: the values come from a file that llmft wrote, with every key in it."""
MISSING = "missing"
"""Message for a key that a file lacks."""
Loaded = TypeVar("Loaded")


class Origin(NamedTuple):
    """File and line in which a value was set."""

    file: str
    """A path, an override, or a section made in Python."""
    line: int
    """Counted from 1; 0 if it is not in a file."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class LocatedValues(NamedTuple):
    """Plain YAML data, or sections made in Python, and the origin of each key."""

    data: dict[str, Any]
    origins: dict[KeyPath, Origin]

    def find_origin(self, path: KeyPath) -> Origin:
        """Return the origin of `path`, or of the nearest parent that was written."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]


class Yaml12Loader(yaml.SafeLoader):
    """Reads the scalars of the YAML 1.2 core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    Yaml12Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value)  # YAML 1.1 would read 010 as octal


Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_yaml(path: Path) -> LocatedValues:
    """Read one YAML file whose top level is a mapping.

    Raises:
        UserError: If the file is missing, is not valid YAML or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; fix the path or its permissions"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{path}: holds NUL bytes, so it is not a YAML text file; name another file"
        )
    return _locate(text, str(path))


def parse_overrides(assignments: Sequence[str] | None) -> Overrides:
    """Parse the `a.b=value` of repeated `--set`; the values are YAML.

    Raises:
        UserError: If there is no `=` or a value is not valid YAML.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments or ():
        dotted, equals, value = assignment.partition("=")
        name = dotted.strip()
        if not equals or not all(name.split(".")):
            raise UserError(f"--set {assignment!r}: expected KEY=VALUE, for example train.epochs=1")
        overrides.pop(name, None)  # the last one counts, also in their order
        overrides[name] = _locate(f"value: {value}", f"--set {assignment}").data["value"]
    return overrides


def _locate_override(dotted: str, value: Any) -> LocatedValues:
    keys, value = dotted.split("."), _to_yaml(value)
    if not all(keys):
        raise UserError(f"override {dotted!r}: expected a dotted key, for example train.epochs")
    for key in reversed(keys):
        value = {key: value}
    origin = Origin(f"override {dotted}", 0)
    return LocatedValues(value, {tuple(keys[:i]): origin for i in range(len(keys) + 1)})


def merge(base: LocatedValues, top: LocatedValues) -> LocatedValues:
    """Override `base` by `top`: mappings merge key by key, everything else is replaced."""
    data, origins = dict(base.data), dict(base.origins)

    def lay(target: dict[str, Any], source: dict[str, Any], path: KeyPath) -> None:
        for key, value in source.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(target.get(key), dict | ConfigSection):
                target[key] = _list_values(target[key])
                lay(target[key], value, here)
                continue
            target[key] = value
            for known in [p for p in origins if p[: len(here)] == here]:
                del origins[known]
            origins.update({p: o for p, o in top.origins.items() if p[: len(here)] == here})

    lay(data, top.data, ())
    return LocatedValues(data, origins)


def _locate(text: str, file: str) -> LocatedValues:
    origins: dict[KeyPath, Origin] = {(): Origin(file, 1)}
    loader = None
    try:
        loader = Yaml12Loader(text)
        root = loader.get_single_node()
        if root is None:
            return LocatedValues({}, origins)
        if not isinstance(root, yaml.MappingNode):
            found = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
            raise UserError(
                f"{file}:1: expected keys and values at the top, found {found}; write `key: value`"
            )
        _walk(root, (), origins, file)
        return LocatedValues(loader.construct_document(root), origins)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        raise UserError(
            f"{where}: not valid YAML: {error.problem}; fix this line, or put the value in quotes"
        ) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{file}:{line}: not valid YAML: the control character {chr(error.character)!r}; "
            "remove it"
        ) from error
    except RecursionError as error:
        raise UserError(f"{file}: not valid YAML: nested too deeply; use fewer levels") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # what PyYAML raises for a value that does not fit its tag, such as `!!bool 3`
        raise UserError(
            f"{file}: not valid YAML: a value cannot be read: {error}; fix or quote it"
        ) from error
    finally:
        if loader is not None:
            loader.dispose()


def _walk(node: yaml.Node, path: KeyPath, origins: dict[KeyPath, Origin], file: str) -> None:
    if len(origins) > _MAX_VALUES:  # aliases of aliases grow exponentially
        raise UserError(f"{file}: holds more than {_MAX_VALUES:,} values; remove aliases (`*name`)")
    if isinstance(node, yaml.ScalarNode) and _NO_TEXT.search(node.value):
        line = node.start_mark.line + 1
        raise UserError(f"{file}:{line}: a NUL byte or a lone surrogate is not text; remove it")
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{file}:{line}: a key must be plain text; write `name: value`")
            _walk(key_node, path, origins, file)
            key_node.tag = "tag:yaml.org,2002:str"  # keys such as 010 and `true` are text
            here = (*path, key_node.value)
            if here in origins:
                raise UserError(
                    f"{file}:{line}: the key `{key_node.value}` is repeated "
                    f"(first on line {origins[here].line}); remove one"
                )
            origins[here] = Origin(file, line)
            _walk(value_node, here, origins, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            origins[(*path, index)] = Origin(file, item.start_mark.line + 1)
            _walk(item, (*path, index), origins, file)


class ConfigSection(BaseModel):
    """A section of a YAML file: unknown keys are errors, values are never coerced or changed."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="after")
    def _refuse_missing(self, info: ValidationInfo) -> Self:
        """Raise if a results file lacks a key, rather than fill in today's default."""
        if info.context is READING_RESULT:
            refuse_values(
                ((field.alias or name,), MISSING)
                for name, field in type(self).model_fields.items()
                if name not in self.model_fields_set
            )
        return self


ConfigSectionT = TypeVar("ConfigSectionT", bound=ConfigSection)


class ConfigFile(ConfigSection):
    """The contents of a YAML file; in Python made from keywords, with sections or dicts."""

    def __init__(self, **values: Any) -> None:
        """Validate the keys of the file.

        Raises:
            UserError: Naming every fault.
        """
        values = _to_yaml(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            located = LocatedValues(values, {(): _locate_section(type(self), values)})
            raise _describe_faults(error, located, schema=type(self)) from error

    # pydantic does so for its own __init__: values that come from a file do not pass through this
    # one, so that their faults are reported with lines.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def _locate_section(schema: type[ConfigFile], values: Mapping[str, Any]) -> Origin:
    kind, name = schema.__name__.lower(), values.get("name")
    return Origin(f"{kind} {name}" if isinstance(name, str) else kind, 0)


def _list_values(section: dict[str, Any] | ConfigSection) -> dict[str, Any]:
    """Return the keys that were given, with their values."""
    if isinstance(section, dict):
        return dict(section)
    return {
        field.alias or name: getattr(section, name)
        for name, field in type(section).model_fields.items()
        if name in section.model_fields_set
    }


def _to_yaml(value: Any) -> Any:
    """Return values as YAML would hold them: tuples as lists, numpy's scalars as Python's."""
    match value:
        case dict():
            return {key: _to_yaml(item) for key, item in value.items()}
        case list() | tuple():
            return [_to_yaml(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _write_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


TAKES_PATHS = BeforeValidator(_write_path, json_schema_input_type=str)
"""Annotation of a string that names a file or folder; in Python it may be a `Path` or a `Run`."""


def takes_file_or(schema: type[ConfigFile]) -> BeforeValidator:
    """Return the annotation of a key that names a YAML file, or has its contents."""

    def read(value: Any, info: ValidationInfo) -> Any:
        match _write_path(value):
            case dict() as values:
                return schema.model_validate(values, context=info.context)
            case str() | ConfigFile() as found:
                return found
        kind = schema.__name__.lower()
        raise ValueError(f"found {_shorten_repr(value)}, but expected a {kind} file, or its keys")

    return BeforeValidator(read, json_schema_input_type=str | schema)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type, such as "1e5" and "010"."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *Yaml12Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {
            *yaml.SafeDumper.yaml_implicit_resolvers,
            *Yaml12Loader.yaml_implicit_resolvers,
        }
    }


class FaultList:
    """Gathers faults of files that belong together, so that all are reported at once."""

    def __init__(self) -> None:
        self._faults: list[str] = []

    def catch(self, load: Callable[[], Loaded]) -> Loaded | None:
        """Return what `load` returns, or add its fault to the list and return None."""
        try:
            return load()
        except UserError as error:
            self.add(str(error))
            return None

    def add(self, fault: str) -> None:
        """Add a fault, unless it is in the list already."""
        if fault not in self._faults:
            self._faults.append(fault)

    def raise_all(self) -> None:
        """Raise all faults as one error.

        Raises:
            UserError: If there is any fault.
        """
        if self._faults:
            raise UserError("\n".join(self._faults))


def load_values(
    source: StrPath | ConfigFile,
    *,
    schema: type[ConfigFile],
    overrides: Overrides | None = None,
) -> LocatedValues:
    """Read a YAML file with the files that it `extends`, then apply the overrides.

    Args:
        source: The file, or its contents, made in Python.
        schema: What kind of file it is.
        overrides: Values that replace those of the file.

    Raises:
        UserError: If a file is missing or malformed, or `extends` is circular.
    """
    if isinstance(source, schema):
        data = _list_values(source)
        values = LocatedValues(data, {(): _locate_section(type(source), data)})
    elif isinstance(source, str | os.PathLike):
        values = _load_extended(Path(source), chain=())
    else:
        kind = schema.__name__
        raise UserError(
            f"found {_shorten_repr(source)}; give a {kind.lower()} file or a llmft.{kind}"
        )
    if not isinstance(overrides or {}, Mapping):
        raise UserError(f'overrides: found {_shorten_repr(overrides)}; write {{"train.epochs": 1}}')
    for dotted, value in (overrides or {}).items():
        values = merge(values, _locate_override(dotted, value))
    return values


def validate(values: LocatedValues, *, schema: type[ConfigSectionT]) -> ConfigSectionT:
    """Return the values as a validated section.

    Raises:
        UserError: Naming every fault with file, line, key, what was found and what is allowed.
    """
    try:
        return schema.model_validate(values.data)
    except ValidationError as error:
        raise _describe_faults(error, values, schema=schema) from error


def _describe_faults(
    error: ValidationError, values: LocatedValues, *, schema: type[ConfigSection]
) -> UserError:
    origin, faults = values.origins[()], []
    for fault in error.errors():
        key, what = describe_fault(
            fault, values.data, schema=schema, allowed=["extends"] if origin.line else []
        )
        name = ".".join(map(str, key)) or "(top level)"
        faults.append(f"{values.find_origin(key)}: {name}: {what}")
    found = count(len(faults), "error")
    return UserError("\n  ".join([f"{origin.file}: {found}", *faults]))


def refuse_values(faults: Iterable[tuple[KeyPath, str]]) -> None:
    """Raise the faults of nested values in a validator, each reported at its own line.

    Args:
        faults: Keys from the validated section down to the value, and what is wrong with it.

    Raises:
        ValidationError: If there is any; pydantic puts the outer keys in front of these.
    """
    details = [
        InitErrorDetails(
            type=PydanticCustomError("value_error", "{message}", {"message": message}),
            loc=key,
            input=None,
        )
        for key, message in faults
    ]
    if details:
        raise ValidationError.from_exception_data("values", details)


def find_named_file(value: str, *, key: KeyPath, values: LocatedValues) -> Path:
    """Find a file that a YAML names: in the folder of that YAML first, then in the working folder.

    Raises:
        UserError: If it is in neither place.
    """
    origin = values.find_origin(key)
    sibling = Path(origin.file).parent / value
    name = ".".join(map(str, key))
    for candidate in (sibling, Path(value)):
        try:
            if candidate.is_file():
                return candidate
        except OSError as error:
            raise UserError(
                f"{origin}: {name}: {_shorten_repr(value)} cannot be opened: {error.strerror}; "
                "fix the path"
            ) from error
    raise UserError(
        f"{origin}: {name}: no such file: {value!r}. Looked for {sibling} and "
        f"{Path(value).resolve()}; fix the path or create the file"
    )


def dump_yaml(section: ConfigSection) -> str:
    """Return a section as YAML text with all defaults."""
    data = section.model_dump(mode="json", by_alias=True)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def suggest(word: str, *, allowed: list[str]) -> str:
    """Return " Did you mean `x`?" for the words that begin so, or the nearest one, or nothing."""
    near = [name for name in allowed if word and name.startswith(f"{word}_")][:_MOST_HINTS]
    near = near or difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f" Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else ""


def one_of(names: Iterable[str]) -> AfterValidator:
    """Return the annotation of a string that has to be one of these names."""
    allowed = list(names)

    def check(name: str) -> str:
        if name not in allowed:
            hint = suggest(name, allowed=allowed)
            raise ValueError(f"found {name!r}, allowed: {', '.join(allowed)}.{hint}")
        return name

    return AfterValidator(check)


def list_dotted_keys(schema: type[BaseModel], *, prefix: str = "") -> list[str]:
    """Return the keys of a schema in dotted form: every section, and what is below it."""
    keys = []
    for name, field in schema.model_fields.items():
        keys.append(f"{prefix}{field.alias or name}")
        for model in _find_models(field.annotation):
            keys += list_dotted_keys(model, prefix=f"{keys[-1]}.")
    return keys


def _load_extended(path: Path, *, chain: tuple[Path, ...]) -> LocatedValues:
    if path.resolve() in chain:
        circle = " -> ".join(p.name for p in (*chain, path))
        raise UserError(f"{path}: `extends` is circular: {circle}; remove one of them")
    values = read_yaml(path)
    parent = values.data.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UserError(f"{values.find_origin(('extends',))}: extends: expected a file name")
    base = find_named_file(parent, key=("extends",), values=values)
    merged = merge(_load_extended(base, chain=(*chain, path.resolve())), values)
    return LocatedValues(merged.data, {**merged.origins, (): values.origins[()]})


def describe_fault(
    fault: ErrorDetails, data: Any, *, schema: type[BaseModel], allowed: Sequence[str] = ()
) -> tuple[KeyPath, str]:
    """Return the key of a fault, as it was written in the file, and what is wrong there.

    Args:
        fault: The error of pydantic.
        data: The values that were validated.
        schema: The schema that they were validated against.
        allowed: Keys that are allowed at the top level in addition to those of the schema.
    """
    key = _drop_union_tags(fault["loc"], data)
    found = fault["input"]
    match fault["type"]:
        case "extra_forbidden":
            known = [*_list_keys(schema, key[:-1], data), *(allowed if len(key) == 1 else ())]
            hint = suggest(str(key[-1]), allowed=known)
            what = f"unknown key.{hint} Allowed: {', '.join(known)}"
        case "missing":
            what = MISSING
        case "union_tag_not_found":
            key, what = (*key, "type"), MISSING
        case "union_tag_invalid":
            key = (*key, "type")
            what = _refuse_word(found["type"], str(fault["ctx"]["expected_tags"]))
        case "literal_error":
            what = _refuse_word(found, str(fault["ctx"]["expected"]))
        case "model_type" | "model_attributes_type" | "dict_type":
            what = f"found {_shorten_repr(found)}, but expected keys and values"
        case "list_type" if isinstance(found, str | int | float):
            what = f"found {_shorten_repr(found)}, but expected a list; write [{found}]"
        case "value_error":
            what = fault["msg"].removeprefix("Value error, ")
        case _:
            expected = fault["msg"].replace("Input should be", "expected")
            what = f"found {_shorten_repr(found)}, but {expected[0].lower()}{expected[1:]}"
    return key, what


def _refuse_word(found: Any, expected: str) -> str:
    """Return the message for a value that is not among the expected ones that pydantic lists."""
    words = expected.replace("'", "").replace(" or ", ", ").split(", ")
    hint = suggest(str(found), allowed=words)
    return f"found {_shorten_repr(found)}, allowed: {', '.join(words)}{hint and '.' + hint}"


def _shorten_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _drop_union_tags(loc: tuple[int | str, ...], data: Any) -> KeyPath:
    """Remove from a pydantic location what is not in the file: names of union members, `[key]`."""
    path: list[int | str] = []
    loc = loc[:-1] if loc[-1:] == ("[key]",) else loc
    for position, step in enumerate(loc):
        is_last = position == len(loc) - 1
        match data:
            case dict():
                is_tag = step == data.get("type") and not (is_last and step in data)
                if not is_tag and (is_last or step in data):
                    path.append(step)
                    data = data.get(step)
            case list() if isinstance(step, int):
                path.append(step)
                data = data[step]
    return tuple(path)


def _list_keys(schema: type[BaseModel], path: KeyPath, data: Any) -> list[str]:
    """Return the keys that a schema allows at a path, following the union by its `type`."""
    candidates: list[Any] = [schema]
    for step in path:
        data = data[step]
        fields = [
            field.annotation
            for model in candidates
            for name, field in model.model_fields.items()
            if step in (name, field.alias)
        ]
        if fields:
            candidates = [m for annotation in fields for m in _find_models(annotation)]
    if isinstance(data, dict) and len(candidates) > 1:
        tagged = [m for m in candidates if data.get("type") in _get_tags(m)]
        candidates = tagged or candidates
    return [f.alias or name for model in candidates for name, f in model.model_fields.items()]


def _find_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _find_models(part)]


def _get_tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return getattr(model.model_fields["type"].annotation, "__args__", ())
