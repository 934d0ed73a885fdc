"""`llmft bench WHAT`: measure llmft against baselines, as JSON and a table."""

import argparse
import importlib.util
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmft.benchmarks.plans import SHAPES, SHORT_TEXTS, SIZES, Figures, Plan, Shape
from llmft.config.task import FieldsConfig
from llmft.console import read_count
from llmft.data.fields import Row, RowFaultError, assemble_text, list_fields, require_fields
from llmft.errors import UserError
from llmft.files import replace_file, write_json
from llmft.sample.articles import make_articles

logger = logging.getLogger(__name__)
_SHARED_PROMPT = "train and predict with a prompt: shared, unshared, and the stock Trainer"
_ARTICLE_ONLY = "train without a prompt: llmft, the stock Trainer, and a loop that pads all rows"
_SHORT_TEXTS = "train on texts of a dozen words: llmft and the stock Trainer"
_PROMPT_GROWTH = "time of a training step by length of the prompt and by batch size"
_COLD_START = "CPU and wall seconds of commands, each in a process of its own"
_VERDICT = "how often verdicts are false, and true gains are found, on simulated test rows"
_GPU = "training steps of Qwen2.5 with LoRA and QLoRA on a GPU, from random weights"


def main(arguments: list[str]) -> int:
    """Run one benchmark, print its table and write the figures to `--json`; return 0."""
    parser = argparse.ArgumentParser(prog="llmft bench", description=__doc__, allow_abbrev=False)
    what = parser.add_subparsers(required=True, metavar="WHAT")
    for name, purpose, add_options in (
        ("shared-prompt", _SHARED_PROMPT, _add_shared_prompt),
        ("article-only", _ARTICLE_ONLY, _add_article_only),
        ("short-texts", _SHORT_TEXTS, _add_short_texts),
        ("prompt-growth", _PROMPT_GROWTH, _add_prompt_growth),
        ("cold-start", _COLD_START, _add_cold_start),
        ("verdict", _VERDICT, _add_verdict),
        ("gpu", _GPU, _add_gpu),
    ):
        subparser = what.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        subparser.add_argument(
            "--json", type=Path, metavar="FILE", help="where to write the figures"
        )
        add_options(subparser)
    args = parser.parse_args(arguments)
    found: list[Figures] = []
    for entry in args.measure(args):
        found.append(entry)
        if args.json is not None:  # after each, since all of them take long
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
    parser.add_argument(
        "--base", metavar="MODEL",
        help="a decoder: its name on the Hub or its folder; default: a small Qwen2 with random "
        "weights",
    )  # fmt: skip
    _add_rounds_and_seed(parser)
    parser.set_defaults(measure=_measure_shared_prompt)


def _measure_shared_prompt(args: argparse.Namespace) -> Iterator[Figures]:
    # Imported late, here and below, since torch takes seconds: wrong options are reported first.
    from llmft.benchmarks.prompts import measure_shared_prompt
    from llmft.isolation import isolated

    shapes = args.shape or SHAPES
    with isolated():
        yield from measure_shared_prompt(
            shapes, base=args.base, num_rounds=args.num_rounds, seed=args.seed
        )


def _read_shape(text: str) -> Shape:
    parts = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if len(parts) != 3 or min(parts[1:]) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not PROMPT,ARTICLE,BATCH, such as 1024,256,8"
        )
    return Shape(*parts)


def _add_prompt_growth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw it, as PNG")
    _add_rounds_and_seed(parser)
    parser.set_defaults(measure=_measure_prompt_growth)


def _measure_prompt_growth(args: argparse.Namespace) -> list[Figures]:
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "--plot: needs matplotlib, which is not installed; run `pip install 'llmft[report]'`, "
            "or remove --plot"
        )
    from llmft.benchmarks.prompts import measure_growth
    from llmft.isolation import isolated

    with isolated():
        found = measure_growth(num_rounds=args.num_rounds, seed=args.seed)
    if args.plot is not None:
        from llmft.reports.plots import draw_growth, use_style

        with use_style(), replace_file(args.plot) as file:
            draw_growth(found).figure.savefig(file, format="png", dpi=144)
    return found


def _add_cold_start(parser: argparse.ArgumentParser) -> None:
    _add_rounds(parser)
    parser.set_defaults(measure=_measure_cold_start)


def _measure_cold_start(args: argparse.Namespace) -> list[Figures]:
    from llmft.benchmarks.cold_start import measure_cold_start

    return measure_cold_start(num_rounds=args.num_rounds)


def _add_verdict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="200 draws instead of 10,000, of small test sets"
    )
    parser.add_argument("--seed", type=_read_seed, default=0, help="seed of the rows; default 0")
    parser.set_defaults(measure=_measure_verdict)


def _measure_verdict(args: argparse.Namespace) -> Iterator[Figures]:
    from llmft.benchmarks.verdicts import measure_verdicts

    # The cells in --json are kept: with 10,000 draws all of them take an hour.
    yield from measure_verdicts(seed=args.seed, quick=args.quick, resume=args.json)


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--size", choices=SIZES, action="append", help="a size to measure; may be repeated; "
        f"default: {' '.join(SIZES)}")  # fmt: skip
    add("--num-steps", type=read_count, default=5, help="steps that are timed; default 5")
    add("--seed", type=_read_seed, default=0, help="seed of tokens and weights; default 0")
    parser.set_defaults(measure=_measure_gpu)


def _measure_gpu(args: argparse.Namespace) -> Iterator[Figures]:
    from llmft.benchmarks.gpu import measure_gpu
    from llmft.isolation import isolated

    with isolated():
        yield from measure_gpu(args.size or list(SIZES), num_steps=args.num_steps, seed=args.seed)


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    plan = Plan()
    parser.add_argument(
        "--num-rounds", type=read_count, default=plan.num_rounds,
        help=f"number of rounds; default {plan.num_rounds}",
    )  # fmt: skip


def _add_rounds_and_seed(parser: argparse.ArgumentParser) -> None:
    plan = Plan()
    _add_rounds(parser)
    parser.add_argument(
        "--seed", type=_read_seed, default=plan.seed,
        help=f"seed of rows and weights; default {plan.seed}",
    )  # fmt: skip


def _add_article_only(parser: argparse.ArgumentParser) -> None:
    _add_rows(parser, ["title", "content"], plan=Plan(), num_rows=256)
    parser.set_defaults(measure=_measure_article_only)


def _add_short_texts(parser: argparse.ArgumentParser) -> None:
    _add_rows(parser, ["title"], plan=SHORT_TEXTS, num_rows=640)
    parser.set_defaults(measure=_measure_short_texts)


def _add_rows(
    parser: argparse.ArgumentParser, fields: list[str], *, plan: Plan, num_rows: int
) -> None:
    add = parser.add_argument
    add(
        "--data", type=Path, nargs="+", default=[], metavar="FILE",
        help="file with the texts, as `llmft predict` takes it; default: invented articles",
    )  # fmt: skip
    add(
        "--text", nargs="+", default=fields, metavar="FIELD",
        help=f"fields that make up a text; default: {' '.join(fields)}",
    )  # fmt: skip
    for name, default, purpose in (
        ("--num-rows", num_rows, "rows that are trained"),
        ("--batch-size", plan.batch_size, "rows of an optimizer step"),
        ("--max-length", plan.max_length, "longest input in tokens"),
    ):
        add(name, type=read_count, default=default, help=f"{purpose}; default {default}")
    _add_rounds_and_seed(parser)


def _read_seed(text: str) -> int:
    seed = int(text) if text.isdecimal() else -1
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to {2**32 - 1}")
    return seed


def _measure_article_only(args: argparse.Namespace) -> Iterator[Figures]:
    rows = _read_rows(args)
    from llmft.benchmarks.articles import encode_rows, measure_article_only
    from llmft.isolation import isolated

    plan = _make_plan(args)
    with isolated():
        yield from measure_article_only(encode_rows(rows, text=args.text, plan=plan), plan)


def _measure_short_texts(args: argparse.Namespace) -> Iterator[Figures]:
    rows = _read_rows(args)
    from llmft.benchmarks.articles import encode_rows, measure_short_texts
    from llmft.isolation import isolated

    plan = _make_plan(args)
    with isolated():
        yield from measure_short_texts(encode_rows(rows, text=args.text, plan=plan), plan)


def _make_plan(args: argparse.Namespace) -> Plan:
    return Plan(args.batch_size, args.max_length, args.num_rounds, args.seed)


def _read_rows(args: argparse.Namespace) -> list[Row]:
    rows = read_articles(args.data, fields=FieldsConfig(text=args.text))
    if len(rows) > args.num_rows:
        rows = random.Random(args.seed).sample(rows, args.num_rows)
    if len(rows) < args.batch_size:
        raise UserError(
            f"--batch-size: {args.batch_size}, but there are {len(rows)} articles; use a smaller "
            "batch or more data"
        )
    return rows


def read_articles(paths: Sequence[Path], *, fields: FieldsConfig) -> list[Row]:
    """Return the rows of files that have a text; without files, invented articles.

    Raises:
        UserError: If a file cannot be read, or a field is in no row.
    """
    from llmft.data.sources import check_ending
    from llmft.prediction.tables import read_input

    rows: list[Row] = [] if paths else make_articles()
    for path in paths:
        check_ending(path, where="--data")
        rows += read_input(path)
    where = f"--text: {', '.join(map(str, paths)) or 'the sample'}"
    require_fields(fields.text, list_fields(rows), where=where)
    return [row for row in rows if _has_text(row, fields)]


def _has_text(row: Row, fields: FieldsConfig) -> bool:
    try:
        return bool(assemble_text(row, fields))
    except RowFaultError:
        return False


def format_table(found: Sequence[Figures]) -> list[str]:
    """Return lines of a table, one per object, with a column for every key but nested ones."""
    names = [name for name, value in found[0].items() if not isinstance(value, dict)]
    cells = [names, *[[_format(entry[name]) for name in names] for entry in found]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _format(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
