"""Part files: what many processes predict, each its share, and what a killed one leaves behind.

A part holds `ROWS_PER_PART` rows of one input, and is named after the input and its first row. It
is there whole or not at all, so what is there is done. The processes never talk to one another:
which parts there are follows from the inputs, part k belongs to process k modulo their number, and
the one that finds all parts in place writes the manifest.
"""

from collections.abc import Callable, Container, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

from llmft.data.columnar import Skips
from llmft.data.fields import Row
from llmft.errors import UserError
from llmft.models.saved import ModelCard
from llmft.prediction.columns import make_schema
from llmft.prediction.surveys import STATE_NAME, ChangedError, Survey, read_state
from llmft.prediction.tables import Layout, read_input, write_table
from llmft.processes import get_rank, get_world_size
from llmft.results.files import write_result
from llmft.results.prediction import PartsOwner, PredictionManifest

# Readers of a folder of tables pass over names that begin with an underscore.
MANIFEST_NAME = "_manifest.json"
ROWS_PER_PART = 4_096


class Part(NamedTuple):
    """Some rows of an input, and the file that they go into."""

    source: Path
    start: int
    """Position of the first row in the input, counted from 0."""
    num_rows: int
    path: Path
    survey: Survey


def claim_folder(
    folder: Path, *, model_hash: str, inputs: Sequence[Path], fit_hash: str | None = None
) -> None:
    """Make a folder that belongs to this model, its fit and these inputs, or find it made.

    Raises:
        ChangedError: If it belongs to others.
    """
    path = folder / STATE_NAME / "run.json"
    names = [source.name for source in inputs]
    owner = PartsOwner(
        model_hash=model_hash, fit_hash=fit_hash, inputs=names, rows_per_part=ROWS_PER_PART
    )
    if not path.is_file():
        if folder.is_dir() and any(found.name[0] not in "._" for found in folder.iterdir()):
            raise ChangedError(
                f"{folder}: holds files that `llmft predict` did not leave",
                mend="name a new folder",
            )
        write_result(path, owner)
        return
    mend = f"restore it, or remove {folder} to predict all anew"
    found = read_state(path, PartsOwner, mend=mend)
    others = sorted(set(names) ^ set(found.inputs))
    details = {
        "llmft_version": f"llmft was of version {found.llmft_version}",
        "model_hash": "the model was another one",
        "fit_hash": "the model's post-hoc fit (fit.json) was another one",
        "inputs": f"the inputs were others ({', '.join(others[:5])} in one of both only)"
        if others
        else "the inputs were in another order",
        "rows_per_part": "its parts are of another size",
    }
    changed = [
        said for name, said in details.items() if getattr(found, name) != getattr(owner, name)
    ]
    if changed:
        raise ChangedError(
            f"{folder}: left by another prediction: {'; '.join(changed)}",
            mend="name a new folder, or predict the same as then",
        )


def plan_parts(
    folder: Path, inputs: Sequence[Path], surveys: Sequence[Survey], *, ending: str | None
) -> list[Part]:
    """Return the parts of all inputs, in their order; an input without rows has an empty one."""
    return [
        Part(
            path,
            start,
            min(ROWS_PER_PART, survey.num_rows - start),
            folder / f"{path.stem}-{start:012d}{ending or path.suffix}",
            survey,
        )
        for path, survey in zip(inputs, surveys, strict=True)
        for start in range(0, max(1, survey.num_rows), ROWS_PER_PART)
    ]


def list_missing(parts: Sequence[Part]) -> list[Part]:
    """Return those parts of this process's share that are not there yet."""
    mine = parts[get_rank() :: get_world_size()]
    return [part for part in mine if not part.path.is_file()]


def predict_parts(
    parts: Sequence[Part],
    *,
    predict: Callable[[list[Row]], list[Row]],
    card: ModelCard,
    report: Callable[[str], None],
) -> None:
    """Predict parts and write them.

    Args:
        parts: Parts of this process, in order.
        predict: From some rows to their prediction columns.
        card: The model.
        report: Called with lines of text.

    Raises:
        UserError: If an input changes meanwhile, or the disk is full.
    """
    num_done, num_rows = 0, sum(part.num_rows for part in parts)
    share = f" of process {get_rank()}" if get_world_size() > 1 else ""
    for source, group in groupby(parts, key=lambda part: part.source):
        wanted = {part.start: part for part in group}
        rows = read_input(source, skips=_skip_others(wanted))
        for part in wanted.values():
            chunk = list(islice(rows, part.num_rows))
            added = predict(chunk)
            if not part.survey.is_of(source):
                raise UserError(f"{source}: changed while it was read; run the same command again")
            layout = Layout(part.survey.fields, part.survey.read_types(), make_schema(card))
            write_table(part.path, chunk, added, layout=layout)
            num_done += part.num_rows
            report(f"predicted {num_done} of {num_rows} rows{share}")


def _skip_others(starts: Container[int]) -> Skips:
    return lambda position: position - position % ROWS_PER_PART not in starts


def write_manifest(
    folder: Path, parts: Sequence[Part], *, model_hash: str, fit_hash: str | None = None
) -> bool:
    """Write the manifest if all parts are there; return whether they are."""
    found = {path.name for path in folder.iterdir()}
    if not all(part.path.name in found for part in parts):
        return False
    surveys = {part.source: part.survey for part in parts}
    manifest = PredictionManifest(
        model_hash=model_hash,
        fit_hash=fit_hash,
        num_rows=sum(survey.num_rows for survey in surveys.values()),
        num_empty=sum(survey.num_empty for survey in surveys.values()),
        inputs={survey.name: survey.sha256 for survey in surveys.values()},
        parts={part.path.name: part.num_rows for part in parts},
    )
    write_result(folder / MANIFEST_NAME, manifest)
    _remove_torn(folder, found, {part.path.name for part in parts})
    return True


def _remove_torn(folder: Path, found: set[str], parts: set[str]) -> None:
    """Remove what killed processes had begun to write."""
    for name in found:
        if name.startswith(".") and name[1:].rpartition(".")[0] in parts:
            (folder / name).unlink(missing_ok=True)
