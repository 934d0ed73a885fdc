"""Training on texts of a dozen words: ours against the stock Trainer, and where our time goes."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from llmft.benchmarks.article_arms import PARTS, StepClock, train_ours, train_with_stock_trainer
from llmft.benchmarks.article_only import MINILM, encode_rows, make_course
from llmft.benchmarks.plans import Figures, Plan
from llmft.benchmarks.timing import Arm, measure_arms
from llmft.config.task import FieldsConfig
from llmft.data.fields import Row
from llmft.models.device import Precision, list_precisions


def measure_short_texts(
    rows: Sequence[Row], *, fields: FieldsConfig, plan: Plan
) -> Iterator[Figures]:
    """Measure MiniLM with full tuning, in every precision there is.

    Args:
        rows: What to train on; those that do not fill a batch are left out. Labels are drawn at
            random, since the time does not depend on them.
        fields: Which fields of a row make up the text.
        plan: How to measure.

    Yields:
        One object per precision; the one that `llmft train` takes by itself first.

    Raises:
        UserError: If MiniLM is not installed.
    """
    course = make_course(MINILM, encode_rows(rows, fields=fields, plan=plan), plan)
    clocks: dict[Precision, list[StepClock]] = {}
    arms: dict[str, Arm] = {}
    for precision in list_precisions():
        clocks[precision] = []
        arms[f"ours {precision}"] = partial(train_ours, course, precision, clocks[precision])
        arms[f"trainer {precision}"] = partial(train_with_stock_trainer, course, precision)
    logging.getLogger("llmft.training").setLevel(logging.WARNING)  # a line per epoch is too many
    times = measure_arms(arms, num_rounds=plan.num_rounds)
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
                f"share_{part}": sum(clock.seconds_by_part[part] for clock in counted) / total
                for part in PARTS
            },
        }
