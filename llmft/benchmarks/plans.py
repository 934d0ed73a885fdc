"""Options of benchmarks on the command line: shapes, sizes, rounds and seeds."""

from typing import NamedTuple

Figures = dict[str, str | int | float | None]
"""Name -> value: an object of the JSON and a line of the table."""
SIZES = {
    "0.5B": (896, 4864, 24, 14, 2),
    "1.5B": (1536, 8960, 28, 12, 2),
    "7B": (3584, 18944, 28, 28, 4),
}
"""Size of Qwen2.5 -> width, width within the MLP, layers, heads, heads for keys and values.

Source: `config.json` of Qwen/Qwen2.5-0.5B, -1.5B and -7B on the Hugging Face Hub.
"""


class Plan(NamedTuple):
    """Batch size, length, rounds and seed of a benchmark."""

    batch_size: int = 16
    max_length: int = 512
    num_rounds: int = 3
    seed: int = 0


SHORT_TEXTS = Plan(batch_size=32, max_length=64)


class Shape(NamedTuple):
    """Size of a batch."""

    prompt_tokens: int
    article_tokens: int
    batch_size: int


SHAPES = (
    Shape(3400, 400, 8),
    Shape(1024, 256, 8),
    Shape(200, 256, 8),
    Shape(50, 256, 8),
    Shape(0, 256, 8),
)
