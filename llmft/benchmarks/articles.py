"""Training without a prompt, on long and short texts: llmft, the stock Trainer, classic loops."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from llmft.benchmarks.article_ways import (
    LABELS,
    PHASES,
    Course,
    StepClock,
    load_ours,
    train_in_classic_loop,
    train_ours,
    train_with_stock_trainer,
)
from llmft.benchmarks.flops import count_unshared_work, find_flop_rates
from llmft.benchmarks.plans import Figures, Plan
from llmft.benchmarks.small_qwen2 import build_small_qwen2
from llmft.benchmarks.timing import MatrixProducts, Way, measure_ways, time_call
from llmft.config.recipe import BaseConfig, TokensConfig
from llmft.config.task import FieldsConfig
from llmft.data.encoding import EncodedRow, Encoder
from llmft.data.fields import Row
from llmft.data.prompts import NO_PROMPT
from llmft.models.bases import load_tokenizer
from llmft.models.device import Precision, choose_device, list_precisions

MINILM = BaseConfig(model="builtin:minilm")


def measure_article_only(
    rows: Sequence[Row], *, fields: FieldsConfig, plan: Plan
) -> Iterator[Figures]:
    """Measure MiniLM with full tuning and a small Qwen2 with LoRA, in every supported precision.

    Args:
        rows: Training rows; those that do not fill a batch are left out. Labels are drawn at
            random, since the time does not depend on them.
        fields: Which fields of a row make up the article.
        plan: How to measure.

    Yields:
        One object per base and precision; the default of `llmft train` first.

    Raises:
        UserError: If MiniLM is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        build_small_qwen2(Path(folder))
        # Its vocabulary is MiniLM's, so the rows are encoded once.
        encoded = encode_rows(rows, fields=fields, plan=plan)
        bases = {
            "MiniLM, full": MINILM,
            "Qwen2 6 x 384, LoRA": BaseConfig(model=folder, tuning="lora"),
        }
        for name, base in bases.items():
            yield from measure_base(name, make_course(base, encoded, plan), plan)


def encode_rows(rows: Sequence[Row], *, fields: FieldsConfig, plan: Plan) -> list[EncodedRow]:
    """Return rows encoded for MiniLM, without those that do not fill a batch."""
    encoder = Encoder(
        load_tokenizer(MINILM),
        prompt=NO_PROMPT,
        fields=fields,
        tokens=TokensConfig(max_length=plan.max_length),
    )
    return encoder.encode(rows[: len(rows) - len(rows) % plan.batch_size])


def make_course(base: BaseConfig, encoded: list[EncodedRow], plan: Plan) -> Course:
    """Return the training that all ways run, with random targets."""
    generator = torch.Generator().manual_seed(plan.seed)
    return Course(
        base=base,
        rows=encoded,
        targets_ND=torch.randn(len(encoded), len(LABELS.names), generator=generator),
        batch_size=plan.batch_size,
        max_length=plan.max_length,
        seed=plan.seed,
    )


def measure_base(name: str, course: Course, plan: Plan) -> list[Figures]:
    """Measure one base; return one object per precision."""
    model, _ = load_ours(course)
    rates = find_flop_rates(model)
    lengths = [row.num_tokens for row in course.rows]
    work = count_unshared_work(lengths, is_causal=course.base.tuning == "lora")
    num_flops = rates.count_training(work)
    precisions = list_precisions()
    products = {
        precision: MatrixProducts(
            rates.shapes,
            num_tokens=sum(lengths) // course.num_updates,
            dtype=getattr(torch, precision),
            device=choose_device(),
        )
        for precision in precisions
    }
    ways: dict[str, Way] = {"classic loop": partial(train_in_classic_loop, course)}
    for precision in precisions:
        ways[f"trainer {precision}"] = partial(train_with_stock_trainer, course, precision)
        ways[f"ours {precision}"] = partial(train_ours, course, precision)
        ways[f"products {precision}"] = time_call(products[precision])
    logging.getLogger("llmft.training").setLevel(logging.WARNING)  # a line per epoch is too many
    times = measure_ways(ways, num_rounds=plan.num_rounds)
    return [
        {
            "base": name,
            "dtype": precision,
            "num_rows": len(course.rows),
            "num_tokens": sum(lengths),
            "num_updates": course.num_updates,
            "batch_size": course.batch_size,
            "max_length": course.max_length,
            "num_rounds": plan.num_rounds,
            "num_threads": torch.get_num_threads(),
            "seconds_ours": times.take_median(f"ours {precision}"),
            "seconds_trainer": times.take_median(f"trainer {precision}"),
            "seconds_classic_loop": times.take_median("classic loop"),
            "speedup_vs_classic_loop": times.compare(f"ours {precision}", to="classic loop"),
            "speedup_vs_trainer": times.compare(f"ours {precision}", to=f"trainer {precision}"),
            "flop_utilisation": num_flops
            / products[precision].num_flops
            * times.compare(f"ours {precision}", to=f"products {precision}"),
            "products_gflop_per_s": products[precision].num_flops
            / times.take_median(f"products {precision}")
            / 1e9,
        }
        for precision in precisions
    ]


def measure_short_texts(
    rows: Sequence[Row], *, fields: FieldsConfig, plan: Plan
) -> Iterator[Figures]:
    """Measure MiniLM with full tuning, in every supported precision.

    Args:
        rows: Training rows; those that do not fill a batch are left out. Labels are drawn at
            random, since the time does not depend on them.
        fields: Which fields of a row make up the text.
        plan: How to measure.

    Yields:
        One object per precision; the default of `llmft train` first.

    Raises:
        UserError: If MiniLM is not installed.
    """
    course = make_course(MINILM, encode_rows(rows, fields=fields, plan=plan), plan)
    clocks: dict[Precision, list[StepClock]] = {}
    ways: dict[str, Way] = {}
    for precision in list_precisions():
        clocks[precision] = []
        ways[f"ours {precision}"] = partial(train_ours, course, precision, clocks[precision])
        ways[f"trainer {precision}"] = partial(train_with_stock_trainer, course, precision)
    logging.getLogger("llmft.training").setLevel(logging.WARNING)  # a line per epoch is too many
    times = measure_ways(ways, num_rounds=plan.num_rounds)
    for precision in list_precisions():
        ours = f"ours {precision}"
        counted = clocks[precision][1:]  # the first round warms up
        total = sum(clock.seconds for clock in counted)
        yield {
            "dtype": precision,
            "num_rows": len(course.rows),
            "num_tokens": sum(row.num_tokens for row in course.rows),
            "num_updates": course.num_updates,
            "batch_size": course.batch_size,
            "num_rounds": plan.num_rounds,
            "num_threads": torch.get_num_threads(),
            "seconds_per_step": times.take_median(ours) / course.num_updates,
            **{
                f"speedup_vs_trainer_{other}": times.compare(ours, to=f"trainer {other}")
                for other in list_precisions()
            },
            **{
                f"fraction_{phase}": sum(clock.seconds_by_phase[phase] for clock in counted) / total
                for phase in PHASES
            },
        }
