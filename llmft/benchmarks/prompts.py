"""Training and prediction with a prompt: shared, unshared, and the stock Trainer."""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmft.benchmarks.articles import (
    LABELS,
    TrainingSetup,
    build_small_qwen2,
    load_ours,
    train_ours,
    train_with_stock_trainer,
)
from llmft.benchmarks.plans import Figures, Shape
from llmft.benchmarks.timing import (
    MatrixProducts,
    TimedCall,
    count_cached_work,
    count_shared_work,
    count_unshared_work,
    find_flop_rates,
    read_clock,
    time_call,
    time_interleaved,
)
from llmft.config.head import HeadConfig
from llmft.config.recipe import BaseConfig, Precision
from llmft.data.encoding import EncodedRow
from llmft.errors import UserError
from llmft.models.acceleration.dropout import fast_dropout
from llmft.models.acceleration.precision import cast_frozen_weights
from llmft.models.acceleration.private_apis import require_tested_versions
from llmft.models.acceleration.shared_prompt import SharedPrompt, explain_unshared
from llmft.models.bases import read_config
from llmft.models.device import autocast, choose_device, list_precisions
from llmft.models.forward import prepare_for_prediction
from llmft.models.memory.peak import measure_peak_memory, reset_peak_memory
from llmft.training.losses import Loss

_MIN_FRACTION = 0.01
_LOSS = Loss(HeadConfig(type="regression"))
_ARTICLE_TOKENS = 256
_PROMPT_TOKENS, _BATCH_SIZE = 2048, 8  # constant while the other one grows
GROWING: dict[str, list[Shape]] = {
    "prompt_tokens": [
        Shape(num_prompt, _ARTICLE_TOKENS, _BATCH_SIZE)
        for num_prompt in (0, 500, 1000, 2000, 4000, 8000)
    ],
    "batch_size": [
        Shape(_PROMPT_TOKENS, _ARTICLE_TOKENS, num_rows) for num_rows in (1, 2, 4, 8, 16, 32)
    ],
}
"""Quantity that grows -> batch shapes to measure."""


class PromptBenchmark:
    """Training and prediction of one batch in one precision, with and without a shared prompt."""

    def __init__(self, shape: Shape, precision: Precision, *, base_dir: str, seed: int) -> None:
        """Make the batch, and the model for training and for prediction.

        Args:
            shape: Size of the batch.
            precision: Precision of matrix products.
            base_dir: Folder of the base, a decoder that takes LoRA.
            seed: Seed of tokens, targets and new weights.
        """
        generator = torch.Generator().manual_seed(seed)
        num_ids: int = read_config(BaseConfig(model=base_dir)).vocab_size

        def draw(*size: int) -> Tensor:  # special tokens have the first or the last ids
            return torch.randint(num_ids // 4, num_ids // 2, size, generator=generator)

        device, articles = choose_device(), draw(shape.batch_size, shape.article_tokens)
        self._precision = precision
        self._prompt_ids: list[int] = draw(shape.prompt_tokens).tolist()
        rows = [EncodedRow(self._prompt_ids, a, len(a), len(a)) for a in articles.tolist()]
        targets_BD = torch.randn(shape.batch_size, len(LABELS.names), generator=generator)
        self.setup = TrainingSetup(
            base=BaseConfig(model=base_dir, tuning="lora"),
            rows=rows,
            targets_ND=targets_BD,
            batch_size=shape.batch_size,
            max_length=shape.prompt_tokens + shape.article_tokens,
            seed=seed,
        )
        self._own_BA = articles.to(device)
        self._inputs_BT = torch.tensor([row.input_ids for row in rows], device=device)
        self._targets_BD = targets_BD.to(device)
        self.model: Any = load_ours(self.setup)[0].to(device).train()
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:  # at its initial 0, A would have no gradient to compare
                nn.init.normal_(parameter, std=0.02)
        if precision == "bfloat16":
            cast_frozen_weights(self.model)
        self._final: Any = prepare_for_prediction(load_ours(self.setup)[0].to(device), precision)

    def train_shared(self) -> float:
        """Compute the gradient of the batch with the shared forward; return seconds."""
        sharing = SharedPrompt(self.model, self._prompt_ids)
        seconds = self._train(self._own_BA, rows_at_once=len(self._own_BA))
        sharing.detach()
        return seconds

    def train_unshared(self, rows_at_once: int) -> float:
        """Compute the gradient of the batch with the unshared forward; return seconds."""
        return self._train(self._inputs_BT, rows_at_once=rows_at_once)

    def predict_shared(self) -> float:
        """Predict the batch with a cached prompt; return seconds."""
        sharing = SharedPrompt(self._final, self._prompt_ids)
        self._predict(self._own_BA[:1, :1], rows_at_once=1)
        seconds = self._predict(self._own_BA, rows_at_once=len(self._own_BA))
        sharing.detach()
        return seconds

    def predict_unshared(self, rows_at_once: int) -> float:
        """Predict the batch with the unshared forward; return seconds."""
        return self._predict(self._inputs_BT, rows_at_once=rows_at_once)

    def measure_gradient_error(self) -> float:
        """Return the largest relative error of a tensor's gradient against the unshared forward."""
        self.model.eval()  # without dropout
        self.train_unshared(1)
        expected = self._read_gradients()
        self.train_shared()
        found = self._read_gradients()
        self.model.train()
        errors = [(a - b).norm() / a.norm() for a, b in zip(expected, found, strict=True)]
        return float(max(errors))

    def measure_memory_ratio(self, rows_at_once: int) -> float:
        """Return the peak memory of the shared forward over that of the unshared one."""
        peaks = []
        for train in (self.train_shared, lambda: self.train_unshared(rows_at_once)):
            self.model.zero_grad()
            reset_peak_memory()
            train()
            peaks.append(measure_peak_memory())
        return peaks[0] / peaks[1]

    def profile_training(self) -> dict[str, float]:
        """Return the slowest operations of a shared step, with their fraction of its time."""
        with torch.profiler.profile(acc_events=True) as profile:
            self.train_shared()
        seconds = {e.key: e.self_cpu_time_total + e.self_device_time_total
                   for e in profile.key_averages()}  # fmt: skip
        total = sum(seconds.values())
        fractions = {name.removeprefix("aten::"): took / total for name, took in seconds.items()}
        return {
            name: round(fraction, 3)
            for name, fraction in sorted(fractions.items(), key=lambda item: -item[1])
            if fraction >= _MIN_FRACTION
        }

    def _read_gradients(self) -> list[Tensor]:
        return [p.grad.clone() for p in self.model.parameters() if p.grad is not None]

    def _train(self, ids_BT: Tensor, *, rows_at_once: int) -> float:
        self.model.zero_grad()
        num_items = self._targets_BD.numel()
        with fast_dropout(self.model):
            started = read_clock()
            for start in range(0, len(ids_BT), rows_at_once):
                rows = slice(start, start + rows_at_once)
                logits_BC = self._compute(self.model, ids_BT[rows])
                loss = _LOSS(logits_BC, self._targets_BD[rows], num_items=num_items)
                torch.autograd.backward(loss)
            return read_clock() - started

    @torch.no_grad()
    def _predict(self, ids_BT: Tensor, *, rows_at_once: int) -> float:
        started = read_clock()
        for start in range(0, len(ids_BT), rows_at_once):
            self._compute(self._final, ids_BT[start : start + rows_at_once])
        return read_clock() - started

    def _compute(self, model: Any, ids_BT: Tensor) -> Tensor:
        with autocast(ids_BT.device, self._precision):
            output = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
        logits_BC: Tensor = output.logits
        return logits_BC


class Ceilings(NamedTuple):
    """FLOPs of the unshared forward over those of the shared one."""

    training: float
    prediction: float


def measure_shared_prompt(
    shapes: Sequence[Shape], *, base: str | None = None, num_rounds: int, seed: int
) -> Iterator[Figures]:
    """Measure a decoder with LoRA, at every shape and in every supported precision.

    Args:
        shapes: Sizes of a batch.
        base: Its name or folder; None: a small Qwen2 with random weights.
        num_rounds: Number of runs of every way.
        seed: Seed of tokens and weights.

    Yields:
        One object per shape and precision.

    Raises:
        UserError: If the base cannot be loaded or shares no prompt, if MiniLM is not installed,
            whose tokenizer the small Qwen2 has, or a library is of an untested version.
    """
    require_tested_versions("bench")
    reason = None if base is None else explain_unshared(read_config(BaseConfig(model=base)))
    if reason is not None:
        raise UserError(f"base: {base} cannot share a prompt: {reason}; name another base")
    with tempfile.TemporaryDirectory() as folder:
        if base is None:
            build_small_qwen2(Path(folder))
        for shape in shapes:
            for precision in list_precisions():
                yield measure_shape(
                    shape, precision, base_dir=base or folder, num_rounds=num_rounds, seed=seed
                )


def measure_shape(
    shape: Shape, precision: Precision, *, base_dir: str, num_rounds: int, seed: int
) -> Figures:
    """Measure one size of a batch in one precision, on a base in a folder."""
    prompt = PromptBenchmark(shape, precision, base_dir=base_dir, seed=seed)
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
    sizes = sorted({1, 2, 4, shape.batch_size} & set(range(1, shape.batch_size + 1)))
    train_rows = find_fastest(sizes, prompt.train_unshared)
    predict_rows = find_fastest(sizes, prompt.predict_unshared)
    ways: dict[str, TimedCall] = {
        "shared training": prompt.train_shared,
        "unshared training": partial(prompt.train_unshared, train_rows),
        "shared prediction": prompt.predict_shared,
        "unshared prediction": partial(prompt.predict_unshared, predict_rows),
        "products": time_call(products),
        "our update": partial(train_ours, prompt.setup, precision),
        "stock update": partial(train_with_stock_trainer, prompt.setup, precision),
    }
    times = time_interleaved(ways, num_rounds=num_rounds)
    return {
        **shape._asdict(),
        "dtype": precision,
        "training_speedup": times.compare("shared training", to="unshared training"),
        "training_ceiling": ceilings.training,
        "prediction_speedup": times.compare("shared prediction", to="unshared prediction"),
        "prediction_ceiling": ceilings.prediction,
        "training_speedup_vs_trainer": times.compare("our update", to="stock update"),
        "peak_memory_ratio": prompt.measure_memory_ratio(shape.batch_size),
        "peak_memory_ratio_to_fastest": prompt.measure_memory_ratio(train_rows),
        "gradient_error": prompt.measure_gradient_error(),
        "flop_utilisation": rates.count_training(shared)
        / products.num_flops
        * times.compare("shared training", to="products"),
        "seconds_shared": times.take_median("shared training"),
        "seconds_unshared": times.take_median("unshared training"),
        "unshared_rows_at_once": train_rows,
        "profile": prompt.profile_training(),
        "num_rounds": num_rounds,
        "num_threads": torch.get_num_threads(),
    }


def find_fastest(sizes: Sequence[int], run: Callable[[int], float]) -> int:
    """Return the size with the fewest seconds, the minimum of two runs each."""
    run(sizes[0])
    return min(sizes, key=lambda size: min(run(size), run(size)))


def count_ceilings(model: Any, shape: Shape) -> Ceilings:
    """Return what the speed-ups would be if every FLOP took the same time."""
    rates = find_flop_rates(model)
    lengths, num_prompt = [shape.article_tokens] * shape.batch_size, shape.prompt_tokens
    unshared = count_unshared_work([num_prompt + length for length in lengths], is_causal=True)
    shared = count_shared_work(lengths, num_prompt_tokens=num_prompt)
    cached = count_cached_work(lengths, num_prompt_tokens=num_prompt)
    return Ceilings(
        training=rates.count_training(unshared) / rates.count_training(shared),
        prediction=rates.count_forward(unshared) / rates.count_forward(cached),
    )


def measure_growth(*, num_rounds: int, seed: int) -> list[Figures]:
    """Time the gradient of a batch, shared and unshared, over growing prompts and batches.

    Args:
        num_rounds: Number of runs of every way.
        seed: Seed of tokens and weights.

    Returns:
        One object per size, with the median seconds of the shared and the unshared forward, and the
        seconds expected from the FLOPs at one rate, the median over all measurements.

    Raises:
        UserError: If MiniLM, whose tokenizer is used, is not installed, or a library is of an
            untested version.
    """
    require_tested_versions("bench")
    with tempfile.TemporaryDirectory() as folder:
        build_small_qwen2(Path(folder))
        found = [
            (growing, _time_gradients(shape, base_dir=folder, num_rounds=num_rounds, seed=seed))
            for growing, shapes in GROWING.items()
            for shape in shapes
        ]
    ways = ("shared", "unshared")
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


def _time_gradients(shape: Shape, *, base_dir: str, num_rounds: int, seed: int) -> dict[str, float]:
    prompt = PromptBenchmark(shape, "float32", base_dir=base_dir, seed=seed)
    rates = find_flop_rates(prompt.model)
    lengths, num_prompt = [shape.article_tokens] * shape.batch_size, shape.prompt_tokens
    times = time_interleaved(
        {"shared": prompt.train_shared, "unshared": lambda: prompt.train_unshared(1)},
        num_rounds=num_rounds,
    )
    unshared = count_unshared_work([num_prompt + length for length in lengths], is_causal=True)
    shared = count_shared_work(lengths, num_prompt_tokens=num_prompt)
    return {
        **shape._asdict(),
        "seconds_shared": times.take_median("shared"),
        "seconds_unshared": times.take_median("unshared"),
        "flops_shared": rates.count_training(shared),
        "flops_unshared": rates.count_training(unshared),
        "num_threads": torch.get_num_threads(),
    }
