"""Read YAML so that every value knows the file and line that it came from.

The scalars follow the YAML 1.2 core schema: `1e-4` is a number, and `no`, `on` and
`2024-01-31` are text, which is what people who write class names and dates mean.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llmft.errors import UserError

KeyPath = tuple[str | int, ...]

_MAX_VALUES = 20_000
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class Origin(NamedTuple):
    """Where a value was written."""

    file: str
    """A path, or `--set`."""
    line: int
    """Counted from 1; 0 for the command line."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class LocatedValues(NamedTuple):
    """Plain YAML data, and where each key of it was written."""

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
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if "\0" in text:
        raise UserError(f"{path}: holds NUL bytes, so it is not a YAML text file")
    return _locate(text, str(path))


def read_override(assignment: str) -> LocatedValues:
    """Read one `a.b=value` of the command line; the value is YAML.

    Raises:
        UserError: If there is no `=` or the value is not valid YAML.
    """
    dotted, equals, value = assignment.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {assignment!r}: expected KEY=VALUE, for example train.epochs=1")
    loaded = _locate(f"value: {value}", f"--set {assignment}")
    data: Any = loaded.data["value"]
    for key in reversed(keys):
        data = {key: data}
    origin = Origin(f"--set {dotted.strip()}", 0)
    origins: dict[KeyPath, Origin] = {tuple(keys[:i]): origin for i in range(len(keys) + 1)}
    return LocatedValues(data, origins)


def merge(base: LocatedValues, top: LocatedValues) -> LocatedValues:
    """Override `base` by `top`: mappings merge key by key, everything else is replaced."""
    data, origins = dict(base.data), dict(base.origins)

    def lay(target: dict[str, Any], source: dict[str, Any], path: KeyPath) -> None:
        for key, value in source.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                target[key] = dict(target[key])
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
            raise UserError(f"{file}:1: expected keys and values at the top, found {found}")
        _walk(root, (), origins, file)
        return LocatedValues(loader.construct_document(root), origins)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        raise UserError(f"{where}: not valid YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{file}:{line}: not valid YAML: the control character {chr(error.character)!r}"
        ) from error
    except RecursionError as error:
        raise UserError(f"{file}: not valid YAML: nested too deeply") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # what PyYAML raises for a value that does not fit its tag, such as `!!bool 3`
        raise UserError(f"{file}: not valid YAML: a value cannot be read: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _walk(node: yaml.Node, path: KeyPath, origins: dict[KeyPath, Origin], file: str) -> None:
    if len(origins) > _MAX_VALUES:  # aliases of aliases grow without end
        raise UserError(f"{file}: holds more than {_MAX_VALUES:,} values; look at its aliases")
    if isinstance(node, yaml.ScalarNode) and _NO_TEXT.search(node.value):
        line = node.start_mark.line + 1
        raise UserError(f"{file}:{line}: a NUL byte or a lone surrogate is not text; remove it")
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{file}:{line}: a key must be plain text")
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
