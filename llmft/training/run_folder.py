"""The folder of a run: whose it is, and how far it got."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llmft.config.recipe import Recipe
from llmft.data.files import hash_text, read_json, write_json
from llmft.data.prepared import PreparedData
from llmft.data.prompts import Prompt
from llmft.errors import UserError

METADATA_NAME = "training_metadata.json"
HISTORY_NAME = "training_history.json"

# Names and paths: the contents behind them are compared.
_SPELLINGS = ("recipe.name", "recipe.task", "recipe.output_dir", "recipe.prompt.file")

State = Literal["new", "unfinished", "finished"]


class RunIdentity(NamedTuple):
    """What a run was asked to learn: recipe, task, rows and prompt."""

    recipe: dict[str, Any]
    task: dict[str, Any]
    data_fingerprint: str
    prompt_sha256: str | None

    @classmethod
    def of(cls, recipe: Recipe, data: PreparedData, prompt: Prompt) -> "RunIdentity":
        """Return the identity of what a recipe would train now."""
        return cls(
            recipe.config.model_dump(mode="json", by_alias=True),
            recipe.task.model_dump(mode="json", by_alias=True),
            data.fingerprint,
            hash_text("\0".join(prompt)) if recipe.prompt_path else None,
        )


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append all that is logged meanwhile to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger("llmft").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("llmft").removeHandler(handler)
        handler.close()


def claim_run_folder(run_dir: Path, identity: RunIdentity) -> State:
    """Say whether the folder is free, or holds this very run, unfinished or finished.

    Raises:
        UserError: If another run lies there, with what differs.
    """
    path = run_dir / METADATA_NAME
    if not path.is_file():
        if run_dir.is_dir() and any(not p.name.startswith(".") for p in run_dir.iterdir()):
            raise UserError(
                f"{run_dir}: holds files that are no run of llmft; choose another output_dir"
            )
        write_json(path, {"status": "unfinished", **identity._asdict()})
        return "new"
    found = read_json(path)
    differing = list_differences(found, identity)
    if (
        differing
        and found.get("status") == "unfinished"
        and not any((run_dir / "checkpoints").glob("checkpoint-*"))
    ):
        write_json(path, {"status": "unfinished", **identity._asdict()})  # nothing was learned yet
        return "new"
    if differing:
        raise UserError(
            f"{run_dir}: holds another run, which differs in {', '.join(differing)}; choose "
            "another output_dir (--set output_dir=...) or remove the folder"
        )
    return "finished" if found["status"] == "finished" else "unfinished"


def list_differences(metadata: dict[str, Any], identity: RunIdentity) -> list[str]:
    """Return the dotted names in which a recorded run differs from what would be trained now."""
    return [
        name
        for key, wanted in identity._asdict().items()
        for name in _list_differences(metadata.get(key), wanted, key)
    ]


def is_finished(run_dir: Path) -> bool:
    """Return whether a finished run lies in the folder."""
    path = run_dir / METADATA_NAME
    return path.is_file() and read_json(path).get("status") == "finished"


def read_metadata(run_dir: Path) -> dict[str, Any]:
    """Return the record of a finished run.

    Raises:
        UserError: If there is none.
    """
    if not is_finished(run_dir):
        raise UserError(f"{run_dir}: holds no finished run; train it with `llmft train RECIPE`")
    return read_json(run_dir / METADATA_NAME)


def read_history(run_dir: Path) -> dict[str, Any]:
    """Return the learning curve: `metric`, and `epochs` with one entry each."""
    return read_json(run_dir / HISTORY_NAME)


def _list_differences(found: Any, wanted: Any, name: str) -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [k for k in dict.fromkeys([*wanted, *found]) if f"{name}.{k}" not in _SPELLINGS]
        return [
            d for k in keys for d in _list_differences(found.get(k), wanted.get(k), f"{name}.{k}")
        ]
    return [] if found == wanted else [name.removeprefix("recipe.")]
