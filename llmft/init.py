"""`llmft init DIR`: write a small sample; with `--from FILE` a task, recipes and a suite for it."""

import argparse
import json
import logging
import os
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmft.errors import UserError
from llmft.files import write_jsonl, write_text
from llmft.sample.articles import make_articles
from llmft.wording import count

if TYPE_CHECKING:  # `llmft init DIR` imports nothing that takes time
    from llmft.config.task import SourceConfig
    from llmft.data.columns import GuessedTask
    from llmft.data.fields import Row

logger = logging.getLogger(__name__)

SUITE = "eval/market_news.yaml"
SCHEMAS = Path(".schemas")
"""Folder of the JSON Schemas, which the YAML files name for editors."""
_MOST_BROKEN = 0.05
_TRAIN_TOKENS = 800_000
"""That a MiniLM is trained on in about five minutes on two cores."""
_TOKENS_PER_ROW = 16
"""That take as long as what a row costs beside its tokens."""
_LENGTHS = (64, 128, 256)
"""Of inputs in tokens; the first that nearly all texts fit into is taken, or the last."""
_MOST_EPOCHS, _FEWEST_EPOCHS = 8, 3
_TOKENS_PER_WORD = 1.4
_CHARS_PER_TOKEN = 4
_PLAIN = re.compile(r"[^\W\d][\w./ -]*(?<! )")
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"}


def main(arguments: list[str]) -> int:
    """Write the files and log the command to run next; return 0."""
    parser = argparse.ArgumentParser(prog="llmft init", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", nargs="?", metavar="DIR", help="folder to write to")
    own = parser.add_argument_group("for your own table")
    # fmt: off
    columns: Any = {"nargs": "+", "metavar": "COLUMN", "default": [], "action": "extend"}
    own.add_argument("--from", dest="file", metavar="FILE",
                     help="texts and labels: .csv, .jsonl, .parquet and others, or a glob")
    own.add_argument("--label", **columns,
                     help="column of the labels, or several of scores or 0 and 1; else guessed")
    own.add_argument("--text", **columns, help="columns of the text, in order; else guessed")
    own.add_argument("--base", metavar="MODEL", help="a base of your own as a third variant")
    # fmt: on
    args = parser.parse_args(arguments)
    last = arguments[-1:]
    may_be_column = args.folder is None
    for named in (args.label, args.text):  # `--text title body DIR` takes DIR for a column
        if args.folder is None and len(named) > 1 and named[-1:] == last:
            args.folder = named.pop()
    if args.folder is None:
        parser.error("name the folder to write to, DIR, as the first argument or the last")
    folder = Path(args.folder)
    if args.file is None:
        if args.label or args.text or args.base:
            parser.error("--label, --text and --base are for a table of your own: add --from FILE")
        write_sample(folder)
        suite = SUITE
    else:
        suite = write_project(
            folder, args.file, label=args.label, text=args.text, base=args.base,
            may_be_column=may_be_column,
        )  # fmt: skip
    logger.info(
        "wrote %s to %s; next:\n  cd %s && llmft compare %s --train",
        "the sample" if args.file is None else "task, recipes and suite",
        folder, shlex.quote(str(folder)), suite,
    )  # fmt: skip
    return 0


def write_sample(folder: Path) -> None:
    """Write data, prompt, task, recipes, suite, edge cases and schemas.

    Raises:
        UserError: If a file of the sample exists already and was changed.
    """
    _write_files(folder, _read_files(files("llmft.sample") / "files", Path()))
    write_jsonl(folder / "datasets" / "scored" / "market_news.jsonl", make_articles())


def write_project(
    folder: Path, file: str, *, label: Sequence[str], text: Sequence[str], base: str | None,
    may_be_column: bool = False,
) -> str:  # fmt: skip
    """Write a task, recipes and a suite for a table, and log what its columns were taken for.

    The limits on rows, tokens and epochs make the suite end in about ten minutes on two cores.

    Args:
        folder: Folder to write to.
        file: The table, or a glob.
        label: Columns of the labels; none to guess.
        text: Columns of the text; none to guess.
        base: Name or folder of a base to train too.
        may_be_column: Whether the folder stood behind names of columns, so that it may be one.

    Returns:
        Path of the suite in the folder.

    Raises:
        UserError: If the table cannot be read, its columns leave several choices, or a file exists
            already with other contents.
    """
    from llmft.data.columns import guess_task
    from llmft.data.sources import find_sources, guess_source, read_rows

    if not file:
        raise UserError("--from: is empty; name a file")
    if base == "":
        raise UserError("--base: is empty; name a base, or leave it out")
    source = guess_source(file)
    read = [row for found in find_sources([source]) for row in read_rows(found)]
    broken = [row for row in read if row.fault is not None]
    if len(broken) > _MOST_BROKEN * len(read):
        raise UserError(
            f"{broken[0].source.name}:{broken[0].line}: {broken[0].fault}; {len(broken):,} of "
            f"{count(len(read), 'row')} cannot be read; fix the file"
        )
    rows = [row.values for row in read if row.fault is None]
    if may_be_column and any(str(folder) in row for row in rows[:1]):
        raise UserError(
            f"DIR: {folder} is a column of {file}; name the folder to write to behind the columns"
        )
    guessed = guess_task(rows, label=label, text=text, where=file)
    _log_guesses(guessed, rows, source)
    if broken:
        logger.warning("%s cannot be read, the first in line %d: %s",
                       count(len(broken), "row"), broken[0].line, broken[0].fault)  # fmt: skip
    if base is not None and Path(base).is_dir():
        base = _relate(base, folder)
    name = re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_") or "task"
    seen_from_folder = source.model_copy(update={"path": _relate(file, folder)})
    limits = _plan_limits(guessed, rows)
    _write_files(folder, _render(name, seen_from_folder, guessed, limits, base))
    return f"eval/{name}.yaml"


class _Limits(NamedTuple):
    """What makes a first run quick."""

    max_length: int
    epochs: int
    limit_rows: int | None


def _render(
    name: str, source: "SourceConfig", guessed: "GuessedTask", limits: _Limits, base: str | None
) -> dict[Path, str]:
    """Return path -> text of task, recipes and suite."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("llmft.sample", "own"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    templates.filters["yaml"] = _write_yaml
    labels = guessed.labels
    head = {"scores": "regression", "multilabel": "multilabel"}.get(
        labels["type"], "binary" if guessed.num_classes == 2 else "multiclass"
    )
    variants = {
        "frozen": (
            "builtin:minilm",
            "frozen",
            "A linear head on MiniLM as it is: done in a minute.",
        ),
        "minilm": ("builtin:minilm", "full", "The same MiniLM, all of its weights trained."),
    }
    if base is not None:
        variants["own"] = (base, "lora", "Your own base.")
    found = {
        Path(f"recipes/{name}_{variant}.yaml"): templates.get_template("recipe.yaml.j2").render(
            name=f"{name}_{variant}", task=name, model=model, tuning=tuning, title=title,
            head=head, limits=limits,
        )
        for variant, (model, tuning, title) in variants.items()
    }  # fmt: skip
    unused = [name for name, (role, _) in guessed.roles.items() if role in ("unused", "date")]
    found[Path(f"recipes/tasks/{name}.yaml")] = templates.get_template("task.yaml.j2").render(
        name=name, source=source.model_dump(exclude_defaults=True), guessed=guessed, unused=unused
    )
    is_scores = labels["type"] == "scores"
    span = labels["range"][1] - labels["range"][0] if is_scores else 1
    found[Path(f"eval/{name}.yaml")] = templates.get_template("suite.yaml.j2").render(
        name=name, variants=variants, metric="mae" if is_scores else "f1_macro",
        margin=f"{0.01 * span:.2g}",
    )  # fmt: skip
    return found


def _log_guesses(guessed: "GuessedTask", rows: "Sequence[Row]", source: "SourceConfig") -> None:
    how = [f"{key} {value!r}" for key in ("encoding", "delimiter")
           if (value := getattr(source, key)) not in (None, "utf-8")]  # fmt: skip
    how += ["which has no header"] if source.columns is not None else []
    logger.info("read %s of %s", count(len(rows), "row"), ", ".join([source.path, *how]))
    width = max(map(len, ["column", *guessed.roles]))
    logger.info("  %s  taken as  why", "column".ljust(width))
    for name, (role, why) in guessed.roles.items():
        logger.info("  %s  %s  %s", name.ljust(width), role.ljust(8), why)
    for warning in guessed.warnings:
        logger.warning(warning)


def _plan_limits(guessed: "GuessedTask", rows: "Sequence[Row]") -> _Limits:
    """Return limits under which a MiniLM is trained in a few minutes."""
    texts = ["\n\n".join(str(row.get(n) or "") for n in guessed.text) for row in rows]
    lengths = sorted(
        max(_TOKENS_PER_WORD * len(text.split()), len(text) / _CHARS_PER_TOKEN) for text in texts
    )
    longest = lengths[int(0.98 * (len(lengths) - 1))]
    max_length = next((n for n in _LENGTHS if n >= longest), _LENGTHS[-1])
    per_row = sum(min(length + 2, max_length) for length in lengths) / len(lengths)
    num_train, per_row = 0.8 * len(rows), per_row + _TOKENS_PER_ROW
    epochs = int(_TRAIN_TOKENS / (per_row * num_train))
    epochs = min(max(epochs, _FEWEST_EPOCHS), _MOST_EPOCHS)
    limit = int(_TRAIN_TOKENS / (per_row * epochs))
    return _Limits(max_length, epochs, limit // 100 * 100 if limit < num_train else None)


def _relate(file: str, folder: Path) -> str:
    """Return a path as seen from a folder, where it is near, else in full."""
    absolute = os.path.abspath(file)  # noqa: PTH100 - of a glob
    related = os.path.relpath(absolute, folder.resolve())
    return absolute if related.count("..") > 2 else related


def _write_yaml(value: Any) -> str:
    """Return a value in YAML's flow style; text in quotes where it needs some."""
    match value:
        case list():
            return f"[{', '.join(map(_write_yaml, value))}]"
        case str() if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
            return value
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return json.dumps(value, ensure_ascii=False)


def _write_files(folder: Path, texts: dict[Path, str]) -> None:
    """Write files, and the schemas that they name.

    Raises:
        UserError: If one exists already with other contents: nothing is written.
    """
    texts = texts | _read_files(files("llmft.config") / "schemas", SCHEMAS)
    changed = [path for path, text in texts.items() if _differs(folder / path, text)]
    if changed:
        raise UserError(
            f"{folder / changed[0]}: exists already with other contents; choose another folder"
        )
    for path, text in texts.items():
        write_text(folder / path, text)


def _differs(path: Path, text: str) -> bool:
    return path.exists() and (path.is_dir() or path.read_bytes() != text.encode("utf-8"))


def _read_files(folder: Traversable, path: Path) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            found |= _read_files(entry, path / entry.name)
        else:
            found[path / entry.name] = entry.read_text(encoding="utf-8")
    return found
