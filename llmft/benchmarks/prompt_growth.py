"""How the time of a training step grows with the prompt and with the batch."""

import statistics
import tempfile
from pathlib import Path

import torch

from llmft.benchmarks.flops import count_plain_work, count_shared_work, find_flop_rates
from llmft.benchmarks.plans import Figures, Shape
from llmft.benchmarks.prompt_arms import PromptArms
from llmft.benchmarks.small_qwen2 import build_small_qwen2
from llmft.benchmarks.timing import measure_arms

_ARTICLE_TOKENS = 256
_PROMPT_TOKENS, _BATCH_SIZE = 2048, 8  # those that stay while the other grows
GROWING: dict[str, list[Shape]] = {
    "prompt_tokens": [
        Shape(num_prompt, _ARTICLE_TOKENS, _BATCH_SIZE)
        for num_prompt in (0, 500, 1000, 2000, 4000, 8000)
    ],
    "batch_size": [
        Shape(_PROMPT_TOKENS, _ARTICLE_TOKENS, num_rows) for num_rows in (1, 2, 4, 8, 16, 32)
    ],
}
"""What grows -> sizes of a batch."""


def measure_growth(*, num_rounds: int, seed: int) -> list[Figures]:
    """Time the gradient of a batch, shared and plain, over growing prompts and batches.

    Args:
        num_rounds: Times that every arm runs.
        seed: Seed of tokens and weights.

    Returns:
        One object per size, with the median seconds of both ways, and what the FLOP count
        says: the FLOPs over one rate, the median of all that was measured.

    Raises:
        UserError: If MiniLM, whose tokenizer is used, is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        build_small_qwen2(Path(folder))
        found = [
            (growing, _measure_shape(shape, base_dir=folder, num_rounds=num_rounds, seed=seed))
            for growing, shapes in GROWING.items()
            for shape in shapes
        ]
    ways = ("shared", "plain")
    rate = statistics.median(
        entry[f"flops_{way}"] / entry[f"seconds_{way}"] for _, entry in found for way in ways
    )
    return [
        {
            "growing": growing,
            "dtype": "float32",
            **entry,
            **{f"model_seconds_{way}": entry[f"flops_{way}"] / rate for way in ways},
        }
        for growing, entry in found
    ]


def _measure_shape(shape: Shape, *, base_dir: str, num_rounds: int, seed: int) -> dict[str, float]:
    prompt = PromptArms(shape, "float32", base_dir=base_dir, seed=seed)
    rates = find_flop_rates(prompt.model)
    lengths, num_prompt = [shape.article_tokens] * shape.batch_size, shape.prompt_tokens
    times = measure_arms(
        {"shared": prompt.train_shared, "plain": lambda: prompt.train_plainly(1)},
        num_rounds=num_rounds,
    )
    plain = count_plain_work([num_prompt + length for length in lengths], is_causal=True)
    shared = count_shared_work(lengths, num_prompt_tokens=num_prompt)
    return {
        **shape._asdict(),
        "seconds_shared": times.take_median("shared"),
        "seconds_plain": times.take_median("plain"),
        "flops_shared": rates.count_training(shared),
        "flops_plain": rates.count_training(plain),
        "num_threads": torch.get_num_threads(),
    }
