"""`llmft bench WHAT`: measure llmft against plain ways to do the same, as JSON and a table."""

import argparse
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmft.benchmarks.article_only import Plan, measure_article_only
from llmft.benchmarks.gpu import SIZES, measure_gpu
from llmft.benchmarks.prompt_arms import Shape
from llmft.benchmarks.prompt_growth import measure_growth
from llmft.benchmarks.shared_prompt import SHAPES, measure_shared_prompt
from llmft.config.task import FieldsConfig
from llmft.data.fields import RowFaultError, assemble_text, list_fields, refuse_absent_fields
from llmft.errors import UserError
from llmft.files import replace_file, write_json
from llmft.prediction.tables import check_ending, read_input
from llmft.reports.plots.figures import use_style
from llmft.reports.plots.growth import draw_growth
from llmft.sample.articles import make_articles

logger = logging.getLogger(__name__)

_SHARED_PROMPT = "train and predict behind a prompt: shared, plain, and the stock Trainer"
_ARTICLE_ONLY = "train on articles alone: llmft, the stock Trainer, and a loop that pads all rows"
_PROMPT_GROWTH = "how a training step grows with the prompt and with the batch"
_GPU = "training steps of Qwen2.5 with LoRA and QLoRA on a GPU, from random weights"


def main(arguments: list[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="llmft bench", description=__doc__, allow_abbrev=False)
    what = parser.add_subparsers(required=True, metavar="WHAT")
    for name, purpose, add_options in (
        ("shared-prompt", _SHARED_PROMPT, _add_shared_prompt),
        ("article-only", _ARTICLE_ONLY, _add_article_only),
        ("prompt-growth", _PROMPT_GROWTH, _add_prompt_growth),
        ("gpu", _GPU, _add_gpu),
    ):
        subparser = what.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        subparser.add_argument(
            "--json", type=Path, metavar="FILE", help="where to write the figures"
        )
        add_options(subparser)
    args = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    for entry in args.measure(args):
        found.append(entry)
        if args.json is not None:  # each at once, since all of them take long
            write_json(args.json, found)
    for line in format_table(found) if found else ["nothing was measured"]:
        logger.info("%s", line)
    return 0


def _add_shared_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape", type=_read_shape, action="append", metavar="PROMPT,ARTICLE,BATCH",
        help="tokens of the prompt and of each article, and articles of a batch; may be repeated; "
        f"default: {' '.join(','.join(map(str, shape)) for shape in SHAPES)}",
    )  # fmt: skip
    _add_rounds_and_seed(parser)
    parser.set_defaults(
        measure=lambda args: measure_shared_prompt(
            args.shape or SHAPES, num_rounds=args.num_rounds, seed=args.seed
        )
    )


def _read_shape(text: str) -> Shape:
    parts = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if len(parts) != 3 or min(parts[1:]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no PROMPT,ARTICLE,BATCH, such as 1024,256,8")
    return Shape(*parts)


def _add_prompt_growth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw it, as PNG")
    _add_rounds_and_seed(parser)
    parser.set_defaults(measure=_measure_prompt_growth)


def _measure_prompt_growth(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = measure_growth(num_rounds=args.num_rounds, seed=args.seed)
    if args.plot is not None:
        with use_style(), replace_file(args.plot) as file:
            draw_growth(found).figure.savefig(file, format="png", dpi=144)
    return found


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--size", choices=SIZES, action="append", help="a size to measure; may be repeated; "
        f"default: {' '.join(SIZES)}")  # fmt: skip
    add("--num-steps", type=_read_count, default=5, help="steps that are timed; default 5")
    add("--seed", type=_read_seed, default=0, help="seed of tokens and weights; default 0")
    parser.set_defaults(
        measure=lambda args: measure_gpu(
            args.size or list(SIZES), num_steps=args.num_steps, seed=args.seed
        )
    )


def _add_rounds_and_seed(parser: argparse.ArgumentParser) -> None:
    plan = Plan()
    parser.add_argument(
        "--num-rounds", type=_read_count, default=plan.num_rounds,
        help=f"times that all is measured; default {plan.num_rounds}",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=_read_seed, default=plan.seed,
        help=f"seed of rows and weights; default {plan.seed}",
    )  # fmt: skip


def _add_article_only(parser: argparse.ArgumentParser) -> None:
    plan = Plan()
    add = parser.add_argument
    add(
        "--data", type=Path, nargs="+", default=[], metavar="FILE",
        help=".jsonl, .csv or .parquet with the articles; default: invented ones",
    )  # fmt: skip
    add(
        "--text", nargs="+", default=["title", "content"], metavar="FIELD",
        help="fields that make up an article; default: title content",
    )  # fmt: skip
    add("--num-rows", type=_read_count, default=256, help="rows that are trained; default 256")
    for name, default, purpose in (
        ("--batch-size", plan.batch_size, "rows of an update"),
        ("--max-length", plan.max_length, "longest input in tokens"),
    ):
        add(name, type=_read_count, default=default, help=f"{purpose}; default {default}")
    _add_rounds_and_seed(parser)
    parser.set_defaults(measure=_measure_article_only)


def _read_count(text: str) -> int:
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return count


def _read_seed(text: str) -> int:
    seed = int(text) if text.isdecimal() else -1
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {2**32 - 1}")
    return seed


def _measure_article_only(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    fields = FieldsConfig(text=args.text)
    rows = read_articles(args.data, fields=fields)
    if len(rows) > args.num_rows:
        rows = random.Random(args.seed).sample(rows, args.num_rows)
    if len(rows) < args.batch_size:
        raise UserError(
            f"--batch-size: {args.batch_size}, but there are {len(rows)} articles; take a smaller "
            "batch or more data"
        )
    plan = Plan(args.batch_size, args.max_length, args.num_rounds, args.seed)
    return measure_article_only(rows, fields=fields, plan=plan)


def read_articles(paths: Sequence[Path], *, fields: FieldsConfig) -> list[dict[str, Any]]:
    """Return the rows of files that have a text; without files, invented articles.

    Raises:
        UserError: If a file cannot be read, or a field is in no row.
    """
    rows: list[dict[str, Any]] = [] if paths else make_articles()
    for path in paths:
        check_ending(path, option="--data")
        rows += read_input(path)
    where = f"--text: {', '.join(map(str, paths)) or 'the sample'}"
    refuse_absent_fields(fields.text, list_fields(rows), where=where)
    return [row for row in rows if _has_text(row, fields)]


def _has_text(row: dict[str, Any], fields: FieldsConfig) -> bool:
    try:
        return bool(assemble_text(row, fields))
    except RowFaultError:
        return False


def format_table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines of a table, one object a line, a column for every key but nested ones."""
    names = [name for name, value in found[0].items() if not isinstance(value, dict)]
    cells = [names, *[[_format(entry[name]) for name in names] for entry in found]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _format(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
