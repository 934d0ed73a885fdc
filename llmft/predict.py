"""`llmft predict RUN --input FILE... --output FILE|DIR`: predict new articles."""

import argparse
import glob
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from llmft.config.frames import is_frame
from llmft.console import read_count, run_verb
from llmft.data.sources import check_ending
from llmft.errors import UserError
from llmft.files import StrPath
from llmft.models.saved import ModelSpec, hash_model, read_spec
from llmft.prediction.model import Model
from llmft.prediction.post_hoc_fit import FIT_NAME, read_fit
from llmft.prediction.shards import (
    MANIFEST_NAME,
    STATE_NAME,
    ChangedError,
    Shard,
    claim_folder,
    list_missing_shards,
    plan_shards,
    read_shards,
    survey_inputs,
    write_manifest,
    write_shard,
)
from llmft.prediction.tables import check_output, find_output_ending, join_tables
from llmft.processes import get_rank, get_world_size
from llmft.results.run import PostHocFit
from llmft.wording import count

logger = logging.getLogger("llmft.predict")  # `python -m` calls this module __main__


def main(arguments: list[str]) -> int:
    """Predict into one file, or into a folder of shards if `--output` has no ending; return 0."""
    parser = argparse.ArgumentParser(prog="llmft predict", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="FILE",
        help=".jsonl, .json, .csv, .tsv or .parquet, all but the last also .gz or .zst; or globs",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE|DIR",
        help="one file, .jsonl, .csv or .parquet; or a folder for shards",
    )  # fmt: skip
    parser.add_argument(
        "--max-tokens-per-batch", type=read_count, metavar="N",
        help="tokens of a batch, padding counted; default: what memory allows",
    )  # fmt: skip
    parser.add_argument(
        "--csv-safe", action="store_true",
        help="in CSV, put ' in front of text that a spreadsheet would take for a formula, as =SUM(",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    predict(
        args.run, input=args.input, output=args.output,
        max_tokens_per_batch=args.max_tokens_per_batch, csv_safe=args.csv_safe,
    )  # fmt: skip
    return 0


def predict(
    model: StrPath,
    *,
    input: StrPath | Sequence[StrPath],
    output: StrPath,
    max_tokens_per_batch: int | None = None,
    csv_safe: bool = False,
) -> Path:
    """Write the rows of files with their predictions; a killed call is resumed by the same call.

    To predict rows that are in memory, use `llmft.load(model).predict(rows)`.

    Args:
        model: Run folder, or the run that `llmft.train` returned.
        input: Files (.jsonl, .json, .csv, .tsv, .parquet; all but the last also .gz or .zst) or
            globs.
        output: One file, or a folder for shards if it has no ending.
        max_tokens_per_batch: Tokens of a batch, padding counted; None: as memory allows.
        csv_safe: Whether text in CSV that a spreadsheet would take for a formula, such as
            `=HYPERLINK(...)`, gets a `'` in front.

    Returns:
        The output. Of each row it has the fields of the input, followed by `prediction` and scores
        or probabilities; a row without a text gets empty predictions.

    Raises:
        UserError: If the run, the input or the output cannot be used.
    """
    if is_frame(input):
        raise UserError("input: found a DataFrame; predict it with `llmft.load(model).predict`")
    run, path = Path(model), Path(output)
    inputs = _find_inputs([input] if isinstance(input, str | os.PathLike) else input)
    if path.suffix and not path.is_dir():
        if len(inputs) > 1:
            raise UserError(
                f"--output: {path}: {count(len(inputs), 'input')} need a folder; name one without "
                "an ending"
            )
        predict_file(
            run, input_path=inputs[0], output_path=path, csv_safe=csv_safe,
            max_tokens_per_batch=max_tokens_per_batch,
        )  # fmt: skip
    else:
        predict_folder(
            run, inputs=inputs, output=path, csv_safe=csv_safe,
            max_tokens_per_batch=max_tokens_per_batch,
        )  # fmt: skip
    return path


def predict_file(
    run: Path, *, input_path: Path, output_path: Path, csv_safe: bool = False,
    max_tokens_per_batch: int | None = None,
) -> None:  # fmt: skip
    """Write the input's rows followed by `prediction` and scores or probabilities.

    A row without text keeps its position and gets empty predictions. A killed command is resumed
    when it is run again.

    Raises:
        UserError: If the run, the input or the output cannot be used.
    """
    check_ending(input_path, where="--input")
    check_output(output_path, option="--output")
    if input_path.resolve() == output_path.resolve():
        raise UserError(f"--output: {output_path} is the input; name another file")
    if get_world_size() > 1:
        raise UserError(f"--output: {output_path}: several processes write shards; name a folder")
    folder = output_path.with_name(f".{output_path.name}.partial")
    job = _PredictionJob.open(run, folder=folder, inputs=[input_path], csv_safe=csv_safe)
    ending = output_path.suffix
    with _state_removed_on_error(folder):
        try:
            shards = _prepare(job, ending=ending)
        except ChangedError as error:
            logger.info("%s; starting again", error.reason)
            shutil.rmtree(folder)
            shards = _prepare(job, ending=ending)
    _predict_missing(job, shards, max_tokens_per_batch=max_tokens_per_batch)
    join_tables([shard.path for shard in shards], output_path)
    shutil.rmtree(folder)
    _log_summary(shards, output_path)


@contextmanager
def _state_removed_on_error(folder: Path) -> Iterator[None]:
    """On an error before any shard was written, remove the state, and the folder if it is empty."""
    try:
        yield
    except UserError:
        has_shards = any(folder.glob(f"*-{'[0-9]' * 12}.*"))
        if not has_shards and get_world_size() == 1:
            shutil.rmtree(folder / STATE_NAME, ignore_errors=True)
            with suppress(OSError):
                folder.rmdir()
        raise


def predict_folder(
    run: Path, *, inputs: Sequence[Path], output: Path, csv_safe: bool = False,
    max_tokens_per_batch: int | None = None,
) -> None:  # fmt: skip
    """Write the inputs' rows and their predictions as shards into a folder.

    To be called by one process or by all of a launch, over which the shards are distributed. After
    a kill the same call predicts the missing shards, with any number of processes.

    Raises:
        UserError: If the run, an input or the folder cannot be used.
    """
    for path in inputs:
        check_ending(path, where="--input")
        if path.resolve().parent == output.resolve():
            raise UserError(
                f"--output: {output} is the folder of the input {path}; name another one"
            )
    names = [f"{path.stem}{find_output_ending(path)}" for path in inputs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(
            f"--input: the shards of several files would be named as {repeated[0]}; rename one"
        )
    job = _PredictionJob.open(run, folder=output, inputs=inputs, csv_safe=csv_safe)
    with _state_removed_on_error(output):
        shards = _prepare(job, ending=None)
    _predict_missing(job, shards, max_tokens_per_batch=max_tokens_per_batch)
    if write_manifest(output, shards, model_hash=job.model_hash, fit_hash=job.fit_hash):
        _log_summary(shards, output)
    else:
        logger.info("%s: this process is done; the last one writes the manifest", output)


class _PredictionJob(NamedTuple):
    """Model, inputs and folder of the shards."""

    run: Path
    spec: ModelSpec
    model_hash: str
    fit: PostHocFit | None
    folder: Path
    inputs: Sequence[Path]
    csv_safe: bool

    @classmethod
    def open(
        cls, run: Path, *, folder: Path, inputs: Sequence[Path], csv_safe: bool
    ) -> "_PredictionJob":
        spec, model_hash = read_spec(run / "model"), hash_model(run / "model")
        fit = read_fit(run, model_hash=model_hash)
        return cls(run, spec, model_hash, fit, folder, inputs, csv_safe)

    @property
    def fit_hash(self) -> str | None:
        return None if self.fit is None else self.fit.identity


def _prepare(job: _PredictionJob, *, ending: str | None) -> list[Shard]:
    """Check run, folder and inputs, and return the shards."""
    if job.fit is not None:
        logger.info("applying %s (%s)", job.run / FIT_NAME, job.fit.method)
    claim_folder(
        job.folder, model_hash=job.model_hash, fit_hash=job.fit_hash, inputs=job.inputs,
        csv_safe=job.csv_safe,
    )  # fmt: skip
    surveys = survey_inputs(job.folder, job.inputs, spec=job.spec, ending=ending)
    num_rows = sum(survey.num_rows for survey in surveys)
    if num_rows and num_rows == sum(survey.num_empty for survey in surveys):
        first = next(i for i, survey in enumerate(surveys) if survey.first_fault is not None)
        raise UserError(
            f"{job.inputs[first]}: no row can be predicted; {surveys[first].first_fault}"
        )
    return plan_shards(job.folder, job.inputs, surveys, ending=ending)


def _predict_missing(
    job: _PredictionJob, shards: Sequence[Shard], *, max_tokens_per_batch: int | None
) -> None:
    missing = list_missing_shards(shards)
    if not missing:
        return
    (job.folder / MANIFEST_NAME).unlink(missing_ok=True)  # of shards that were removed since
    # Imported late, since torch takes seconds: errors in run and inputs are reported before that.
    from llmft.isolation import isolated
    from llmft.models.saved import load_saved
    from llmft.prediction.inference import Predictor

    with isolated():
        predictor = Predictor(
            load_saved(job.run / "model"), fit=job.fit, max_tokens_per_batch=max_tokens_per_batch
        )
    model = Model(predictor)
    num_done, num_rows = 0, sum(shard.num_rows for shard in missing)
    process = f" of process {get_rank()}" if get_world_size() > 1 else ""
    for shard, rows in read_shards(missing):
        predicted = model.predict_rows(rows)
        write_shard(shard, rows, predicted, spec=job.spec, csv_safe=job.csv_safe)
        num_done += shard.num_rows
        logger.info("predicted %s of %s%s", f"{num_done:,}", count(num_rows, "row"), process)


def _find_inputs(patterns: Sequence[StrPath]) -> list[Path]:
    found: set[Path] = set()
    if not patterns:
        raise UserError("--input: names no file; name one or several")
    for pattern in [os.fspath(found) for found in patterns]:
        # Brackets in the name of an existing file are not a glob.
        matches = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)  # noqa: PTH207
        if Path(pattern).is_dir():
            raise UserError(
                f"--input: {pattern} is a folder; name its files, as '{pattern}/*.jsonl'"
            )
        if not matches:
            raise UserError(
                f"--input: {pattern!r} matches no file below {Path.cwd()}; fix the path"
            )
        found.update(map(Path, matches))
    return sorted(found)


def _log_summary(shards: Sequence[Shard], output: Path) -> None:
    surveys = {shard.survey.name: shard.survey for shard in shards}.values()
    num_rows = sum(survey.num_rows for survey in surveys)
    num_empty = sum(survey.num_empty for survey in surveys)
    extra = {"any_process": True}  # any process may be the last one
    if num_empty:
        first = next(survey.first_fault for survey in surveys if survey.num_empty)
        logger.warning(
            "no prediction for %s of %s; the first: %s",
            f"{num_empty:,}", count(num_rows, "row"), first, extra=extra,
        )  # fmt: skip
    logger.info("wrote %s to %s", count(num_rows, "row"), output, extra=extra)


if __name__ == "__main__":
    sys.exit(run_verb(main, sys.argv[1:]))
