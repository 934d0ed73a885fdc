"""`llmft init DIR`: write a small sample to learn with."""

import argparse
import logging
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from llmft.errors import UserError
from llmft.files import write_jsonl, write_text
from llmft.sample.articles import make_articles

logger = logging.getLogger(__name__)

SUITE = "eval/market_news.yaml"
SCHEMAS = Path(".schemas")
"""Folder of the JSON Schemas, which the YAML files of the sample name for editors."""


def main(arguments: list[str]) -> int:
    """Write the sample and log the command to run next; return 0."""
    parser = argparse.ArgumentParser(prog="llmft init", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to write to")
    args = parser.parse_args(arguments)
    write_sample(args.folder)
    logger.info(
        "wrote the sample to %s; next:\n  cd %s && llmft compare %s --train",
        args.folder, args.folder, SUITE,
    )  # fmt: skip
    return 0


def write_sample(folder: Path) -> None:
    """Write data, prompt, task, recipes, suite, edge cases and schemas.

    Raises:
        UserError: If a file of the sample exists already and was changed.
    """
    texts = _read_files(files("llmft.sample") / "files", Path())
    texts |= _read_files(files("llmft.config") / "schemas", SCHEMAS)
    changed = [
        path
        for path, text in texts.items()
        if (folder / path).exists() and (folder / path).read_text(encoding="utf-8") != text
    ]
    if changed:
        raise UserError(
            f"{folder / changed[0]}: exists already and differs from the sample; choose another "
            "folder"
        )
    for path, text in texts.items():
        write_text(folder / path, text)
    write_jsonl(folder / "datasets" / "scored" / "market_news.jsonl", make_articles())


def _read_files(folder: Traversable, path: Path) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            found |= _read_files(entry, path / entry.name)
        else:
            found[path / entry.name] = entry.read_text(encoding="utf-8")
    return found
