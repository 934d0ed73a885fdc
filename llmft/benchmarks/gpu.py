"""Training steps of Qwen2.5 on a GPU: tokens per second, FLOP utilisation and peak memory.

The bases have the published sizes and random weights, so nothing is downloaded.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from llmft.benchmarks.plans import SIZES, Figures
from llmft.benchmarks.timing import (
    MatrixProducts,
    count_unshared_work,
    find_flop_rates,
    read_clock,
    time_call,
)
from llmft.config.head import HeadConfig
from llmft.config.recipe import BaseConfig, Precision
from llmft.data.batches import BatchShape
from llmft.errors import UserError
from llmft.models.acceleration.dropout import fast_dropout
from llmft.models.acceleration.precision import cast_frozen_weights
from llmft.models.acceleration.private_apis import require_tested_versions
from llmft.models.acceleration.shared_prompt import SharedPrompt
from llmft.models.bases import read_config
from llmft.models.device import autocast, choose_device
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_model
from llmft.models.memory.estimates import (
    GPU_LIBRARIES_GIB,
    Step,
    estimate_memory,
    measure_footprint,
)
from llmft.models.memory.peak import measure_peak_memory, reset_peak_memory
from llmft.training.losses import Loss

logger = logging.getLogger(__name__)

_VOCABULARY = {"0.5B": 151_936, "1.5B": 151_936, "7B": 152_064}
_TOKENS_PER_STEP = 8_192
_ROW_LENGTHS = (512, 4_096)
_LABELS = LabelSpace("regression", [f"score{i}" for i in range(8)])
_LOSS = Loss(HeadConfig(type="regression"))


class Trial(NamedTuple):
    """One measurement: tuning, batch and precision."""

    tuning: Literal["lora", "qlora"]
    batch: BatchShape
    precision: Precision = "bfloat16"
    num_steps: int = 5
    seed: int = 0


def measure_gpu(sizes: Sequence[str], *, num_steps: int, seed: int) -> Iterator[Figures]:
    """Measure LoRA and QLoRA training of bases of these sizes, on short and on long rows.

    Args:
        sizes: Keys of `SIZES`.
        num_steps: Timed steps, after one that warms up.
        seed: Seed of tokens and weights.

    Yields:
        One object per base, tuning and length of the rows, except where memory runs out.

    Raises:
        UserError: If there is no GPU, or a library is of an untested version.
    """
    require_tested_versions("bench gpu")
    if not torch.cuda.is_available():
        raise UserError("bench gpu: PyTorch finds no GPU; run it on a machine with one")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            build_base(make_qwen_config(size), Path(folder), seed=seed)
            for tuning in ("lora", "qlora"):
                for longest in _ROW_LENGTHS:
                    batch = BatchShape(_TOKENS_PER_STEP // longest, longest)
                    trial = Trial(tuning, batch, num_steps=num_steps, seed=seed)
                    try:
                        found = measure_trial(folder, trial)
                    except torch.OutOfMemoryError:
                        logger.info(
                            "Qwen2.5-%s, %s, %d x %d tokens: out of memory", size, tuning, *batch
                        )
                        continue
                    yield {"base": f"Qwen2.5-{size}", **found}


def make_qwen_config(size: str) -> Qwen2Config:
    """Return the configuration of a Qwen2.5."""
    hidden, inner, num_layers, num_heads, num_key_value_heads = SIZES[size]
    return Qwen2Config(
        vocab_size=_VOCABULARY[size],
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=0,
    )


def build_base(config: Qwen2Config, folder: Path, *, seed: int) -> None:
    """Write a base with random weights."""
    with torch.random.fork_rng(), choose_device():
        torch.manual_seed(seed)
        model = Qwen2Model(config).to(torch.bfloat16)
    model.save_pretrained(folder)


def measure_trial(folder: str, trial: Trial) -> Figures:
    """Measure the training of a base in a folder, on the GPU if there is one."""
    device, base = choose_device(), BaseConfig(model=folder, tuning=trial.tuning)
    step = Step(
        trial.batch, 0, trial.precision, gradient_checkpointing=False, accumulates=False,
        on_gpu=device.type == "cuda",
    )  # fmt: skip
    estimate_gib = _estimate(base, step)
    if device.type == "cuda" and estimate_gib > 0.9 * torch.cuda.mem_get_info()[0] / 2**30:
        step = step._replace(gradient_checkpointing=True)
        estimate_gib = _estimate(base, step)
    model: Any = load_model(
        base, labels=_LABELS, pad_token_id=0, seed=trial.seed, precision=trial.precision
    ).model
    rates = find_flop_rates(model)
    products = MatrixProducts(
        rates.shapes,
        num_tokens=trial.batch.num_tokens,
        dtype=getattr(torch, trial.precision),
        device=device,
    )
    time_products = time_call(products)
    time_products()
    products_seconds = statistics.median(time_products() for _ in range(trial.num_steps))
    product_rate = products.num_flops / products_seconds
    del products, time_products
    seconds, peak_memory_gib = _time_steps(model, step, trial, device)
    work = count_unshared_work([trial.batch.longest] * trial.batch.num_rows, is_causal=True)
    return {
        "tuning": trial.tuning,
        "rows": trial.batch.num_rows,
        "tokens_per_row": trial.batch.longest,
        "gradient_checkpointing": step.gradient_checkpointing,
        "tokens_per_second": trial.batch.num_tokens / seconds,
        "flop_utilisation": rates.count_training(work) / seconds / product_rate,
        "product_teraflops": product_rate / 1e12,
        "peak_memory_gib": peak_memory_gib,
        "estimated_memory_gib": estimate_gib,
        "seconds_per_step": seconds,
        "dtype": trial.precision,
        "num_steps": trial.num_steps,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "date": time.strftime("%Y-%m-%d"),
    }


def _estimate(base: BaseConfig, step: Step) -> float:
    """Return the estimate of `llmft check`, in GiB."""
    footprint = measure_footprint(read_config(base), base, labels=_LABELS, step=step)
    return estimate_memory(footprint).peak_gib + GPU_LIBRARIES_GIB * step.on_gpu


class _StepCost(NamedTuple):
    seconds: float
    """Median of a step."""
    peak_memory_gib: float


def _time_steps(model: Any, step: Step, trial: Trial, device: torch.device) -> _StepCost:
    """Train repeatedly on one batch, as `llmft train` does."""
    model.train()
    if trial.precision == "bfloat16":
        cast_frozen_weights(model)
    if trial.tuning != "qlora":  # 4-bit weights are on the device already
        model.to(device)
    if step.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    sharing = SharedPrompt(model, [])
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(trial.seed)
    ids_BT = torch.randint(1, model.config.vocab_size, trial.batch, generator=generator).to(device)
    targets_BD = torch.randn(len(ids_BT), len(_LABELS.names), generator=generator).to(device)
    reset_peak_memory()
    seconds = []
    with fast_dropout(model):
        for _ in range(1 + trial.num_steps):
            started = read_clock()
            _take_step(model, optimizer, ids_BT, targets_BD, trial.precision)
            seconds.append(read_clock() - started)
    sharing.detach()
    return _StepCost(statistics.median(seconds[1:]), measure_peak_memory())


def _take_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    ids_BT: Tensor,
    targets_BD: Tensor,
    precision: Precision,
) -> None:
    with autocast(ids_BT.device, precision):
        logits_BD = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits
    torch.autograd.backward(_LOSS(logits_BD, targets_BD, num_items=targets_BD.numel()))
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
