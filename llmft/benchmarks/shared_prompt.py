"""Training and prediction with a prompt: shared, against the fastest plain way and the Trainer."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llmft.benchmarks.article_arms import train_ours, train_with_stock_trainer
from llmft.benchmarks.flops import (
    count_cached_work,
    count_plain_work,
    count_shared_work,
    find_flop_rates,
)
from llmft.benchmarks.plans import Figures, Shape
from llmft.benchmarks.prompt_arms import PromptArms
from llmft.benchmarks.small_qwen2 import build_small_qwen2
from llmft.benchmarks.timing import Arm, MatrixProducts, measure_arms, time_call
from llmft.models.device import Precision, choose_device, list_precisions


class Ceilings(NamedTuple):
    """How many times fewer FLOPs the shared way needs than whole inputs."""

    training: float
    prediction: float


def measure_shared_prompt(
    shapes: Sequence[Shape], *, num_rounds: int, seed: int
) -> Iterator[Figures]:
    """Measure a small Qwen2 with LoRA, at every shape and in every precision there is.

    Args:
        shapes: Sizes of a batch.
        num_rounds: Times that every arm runs.
        seed: Seed of tokens and weights.

    Yields:
        One object per shape and precision.

    Raises:
        UserError: If MiniLM, whose tokenizer is used, is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        build_small_qwen2(Path(folder))
        for shape in shapes:
            for precision in list_precisions():
                yield measure_shape(
                    shape, precision, base_dir=folder, num_rounds=num_rounds, seed=seed
                )


def measure_shape(
    shape: Shape, precision: Precision, *, base_dir: str, num_rounds: int, seed: int
) -> Figures:
    """Measure one size of a batch in one precision, on a base in a folder."""
    prompt = PromptArms(shape, precision, base_dir=base_dir, seed=seed)
    rates = find_flop_rates(prompt.model)
    lengths, num_prompt = [shape.article_tokens] * shape.batch_size, shape.prompt_tokens
    shared = count_shared_work(lengths, num_prompt_tokens=num_prompt)
    products = MatrixProducts(
        rates.shapes,
        num_tokens=shared.num_tokens,
        dtype=getattr(torch, precision),
        device=choose_device(),
    )
    ceilings = count_ceilings(prompt.model, shape)
    parts = sorted({1, 2, 4, shape.batch_size} & set(range(1, shape.batch_size + 1)))
    train_parts = find_fastest(parts, prompt.train_plainly)
    predict_parts = find_fastest(parts, prompt.predict_plainly)
    arms: dict[str, Arm] = {
        "shared training": prompt.train_shared,
        "plain training": partial(prompt.train_plainly, train_parts),
        "shared prediction": prompt.predict_shared,
        "plain prediction": partial(prompt.predict_plainly, predict_parts),
        "products": time_call(products),
        "our update": partial(train_ours, prompt.course, precision),
        "stock update": partial(train_with_stock_trainer, prompt.course, precision),
    }
    times = measure_arms(arms, num_rounds=num_rounds)
    return {
        **shape._asdict(),
        "dtype": precision,
        "training_speedup": times.compare("shared training", to="plain training"),
        "training_ceiling": ceilings.training,
        "prediction_speedup": times.compare("shared prediction", to="plain prediction"),
        "prediction_ceiling": ceilings.prediction,
        "training_speedup_vs_trainer": times.compare("our update", to="stock update"),
        "peak_memory_ratio": prompt.measure_memory_ratio(shape.batch_size),
        "peak_memory_ratio_to_fastest": prompt.measure_memory_ratio(train_parts),
        "gradient_error": prompt.measure_gradient_error(),
        "flop_utilisation": rates.count_training(shared)
        / products.num_flops
        * times.compare("shared training", to="products"),
        "seconds_shared": times.take_median("shared training"),
        "seconds_plain": times.take_median("plain training"),
        "plain_rows_at_once": train_parts,
        "profile": prompt.profile_training(),
        "num_rounds": num_rounds,
        "num_threads": torch.get_num_threads(),
    }


def find_fastest(sizes: Sequence[int], run: Callable[[int], float]) -> int:
    """Return the size with which something takes the fewest seconds, as two trials tell."""
    run(sizes[0])
    return min(sizes, key=lambda size: min(run(size), run(size)))


def count_ceilings(model: Any, shape: Shape) -> Ceilings:
    """Return what the speed-ups would be if every FLOP took the same time."""
    rates = find_flop_rates(model)
    lengths, num_prompt = [shape.article_tokens] * shape.batch_size, shape.prompt_tokens
    plain = count_plain_work([num_prompt + length for length in lengths], is_causal=True)
    shared = count_shared_work(lengths, num_prompt_tokens=num_prompt)
    cached = count_cached_work(lengths, num_prompt_tokens=num_prompt)
    return Ceilings(
        training=rates.count_training(plain) / rates.count_training(shared),
        prediction=rates.count_forward(plain) / rates.count_forward(cached),
    )
