"""`llmft predict RUN --input FILE --output FILE`: score new articles with a trained run."""

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

from llmft.data.fields import RowFaultError, list_fields, refuse_absent_fields
from llmft.data.files import hash_file
from llmft.errors import UserError
from llmft.models.saved import ModelCard, hash_model, read_card
from llmft.prediction.columns import make_columns, name_columns, name_decisions
from llmft.prediction.inference import Predictor
from llmft.prediction.resume import predict_resumably
from llmft.prediction.tables import check_ending, read_table, refuse_unwritable, write_table

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="llmft predict", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--input", type=Path, required=True, help=".jsonl, .csv or .parquet")
    parser.add_argument("--output", type=Path, required=True, help=".jsonl, .csv or .parquet")
    args = parser.parse_args(arguments)
    predict_file(args.run, input_path=args.input, output_path=args.output)
    return 0


def predict_file(run: Path, *, input_path: Path, output_path: Path) -> None:
    """Write the input's rows with `prediction` and scores or probabilities behind them.

    A row without text keeps its place and gets empty predictions. A run of this command that was
    killed is picked up where it ended.

    Raises:
        UserError: If the run, the input or the output cannot be used.
    """
    check_ending(input_path, option="--input")
    check_ending(output_path, option="--output")
    if input_path.resolve() == output_path.resolve():
        raise UserError(f"--output: {output_path} is the input; name another file")
    card = read_card(run / "model")
    added_names = [*name_decisions(card), *name_columns(card)]
    rows, schema = read_table(input_path)
    taken = sorted({name for row in rows for name in row} & set(added_names))
    if taken:
        raise UserError(f"{input_path}: has a column {taken[0]!r} already; rename or remove it")

    found = list_fields(rows)
    refuse_absent_fields(_list_wanted(card, found), found, where=str(input_path))
    refuse_unwritable(output_path, rows, schema=schema)
    predictor = Predictor.open(run)
    faults: list[str] = []

    def predict(chunk: list[Row]) -> list[Row]:
        results = [dict.fromkeys(added_names)] * len(chunk)
        usable = []
        for position, row in enumerate(chunk):
            try:
                predictor.encoder.fill(row)
                usable.append(position)
            except RowFaultError as fault:
                faults.append(str(fault))
        if usable:
            outputs = predictor.predict([chunk[i] for i in usable]).outputs
            for position, columns in zip(usable, make_columns(outputs, card), strict=True):
                results[position] = columns
        return results

    partial = output_path.with_name(f".{output_path.name}.partial")
    results = predict_resumably(
        rows,
        predict=predict,
        folder=partial,
        identity={"model": hash_model(run / "model"), "input": hash_file(input_path)},
        report=logger.info,
    )
    if rows and all(row["prediction"] is None for row in results):
        shutil.rmtree(partial)
        raise UserError(f"{input_path}: no row can be predicted; {faults[0] if faults else ''}")
    write_table(output_path, rows, results, schema=schema)
    shutil.rmtree(partial)
    num_empty = sum(row["prediction"] is None for row in results)
    if num_empty:
        first = f"; the first: {faults[0]}" if faults else ""
        logger.info("warning: no prediction for %d of %d rows%s", num_empty, len(rows), first)
    logger.info("wrote %d rows to %s", len(rows), output_path)


def _list_wanted(card: ModelCard, found: list[str]) -> list[str]:
    """Return the fields that the model needs; prepared rows hold `text` for the first ones."""
    wanted = [] if "text" in found else list(card.fields.text)
    return wanted + ([card.fields.text_pair] if card.fields.text_pair else [])
