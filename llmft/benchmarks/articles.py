"""Training on articles alone, against plain `transformers`: long ones and short texts."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import DataLoader
from transformers import Qwen2Config, Qwen2ForCausalLM

from llmft.benchmarks.plans import Figures, Plan
from llmft.benchmarks.timing import (
    MatrixProducts,
    TimedCall,
    count_unshared_work,
    find_flop_rates,
    read_clock,
    time_call,
    time_interleaved,
)
from llmft.config.head import HeadConfig
from llmft.config.recipe import BaseConfig, LoraConfig, Precision, TokensConfig, TrainConfig
from llmft.config.task import FieldsConfig
from llmft.data.batches import BatchPlan, Collator, Examples
from llmft.data.encoding import EncodedRow, Encoder
from llmft.data.fields import Row
from llmft.data.prompts import NO_PROMPT
from llmft.models.acceleration.precision import cast_frozen_weights
from llmft.models.acceleration.shared_prompt import SharedPrompt, explain_unshared
from llmft.models.bases import load_tokenizer, locate_base
from llmft.models.device import choose_device, list_precisions
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_model
from llmft.training.losses import Loss
from llmft.training.trainer import make_arguments, run_trainer

_MAX_POSITIONS = 16_384
LABELS = LabelSpace("regression", [f"score{i}" for i in range(8)])
PHASES = ("forward", "loss_and_backward", "optimizer", "else")
"""Phases of an optimizer step: clipping counts as backward; else is data loading and the loop."""
MINILM = BaseConfig(model="builtin:minilm")


def make_small_qwen2_config() -> Qwen2Config:
    """Return the configuration of a six-layer Qwen2 with MiniLM's vocabulary."""
    return Qwen2Config(
        vocab_size=30_522,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=_MAX_POSITIONS,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=102,
    )


def build_small_qwen2(folder: Path) -> None:
    """Write a randomly initialised Qwen2 as a Hugging Face folder, with MiniLM's tokenizer.

    A vocabulary learned from real text gives inputs of real lengths.

    Raises:
        UserError: If MiniLM is not installed.
    """
    tokenizer = load_tokenizer(BaseConfig(model="builtin:minilm"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(make_small_qwen2_config())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class TrainingSetup(NamedTuple):
    """Base, rows and settings of the training that all implementations run."""

    base: BaseConfig
    rows: list[EncodedRow]
    """A multiple of the batch size, so that all implementations take equally many steps."""
    targets_ND: Tensor
    batch_size: int
    max_length: int
    """Length that the classic loop pads to."""
    seed: int = 0
    learning_rate: float = 5e-5

    @property
    def num_steps(self) -> int:
        """Optimizer steps of one epoch."""
        return len(self.rows) // self.batch_size


class StepClock:
    """Wall time from the first forward pass of a model to the end of the last optimizer step."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.seconds_by_phase = dict.fromkeys(PHASES, 0.0)
        self._last: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of all phases together."""
        return sum(self.seconds_by_phase.values())

    def note(self, phase: str) -> None:
        """Add the time since the last call to a phase; the first call starts the clock."""
        now = read_clock()
        if self._last is not None:
            self.seconds_by_phase[phase] += now - self._last
        self._last = now
        self.num_steps += phase == "optimizer"


@contextmanager
def watch_steps(model: nn.Module) -> Iterator[StepClock]:
    """Time the optimizer steps of a model, in any training loop."""
    clock = StepClock()

    def note_forward(phase: str) -> None:
        if model.training:  # the validation after the last optimizer step is not timed
            clock.note(phase)

    hooks = [
        model.register_forward_pre_hook(lambda *_: note_forward("else")),
        model.register_forward_hook(lambda *_: note_forward("forward")),
        register_optimizer_step_pre_hook(lambda *_: clock.note("loss_and_backward")),
        register_optimizer_step_post_hook(lambda *_: clock.note("optimizer")),
    ]
    try:
        yield clock
    finally:
        for hook in hooks:
            hook.remove()


def train_ours(
    setup: TrainingSetup, precision: Precision, clocks: list[StepClock] | None = None
) -> float:
    """Train as `llmft train` does; return the seconds, and append the clock to `clocks`."""
    model, pad_token_id = load_ours(setup)
    if precision == "bfloat16":
        cast_frozen_weights(model)
    examples = Examples(setup.rows, setup.targets_ND, ids=[str(i) for i in range(len(setup.rows))])
    if explain_unshared(model.config) is None:
        SharedPrompt(model, setup.rows[0].shared_ids)
        examples = examples.without_shared()
    config = TrainConfig(
        epochs=1,
        batch_size=setup.batch_size,
        learning_rate=setup.learning_rate,
        precision=precision,
        seed=setup.seed,
    )
    with tempfile.TemporaryDirectory() as folder, watch_steps(model) as clock:
        plan = BatchPlan(examples.lengths, config)
        run_trainer(  # without the check of the shared prompt, which must not be timed
            model,
            examples,
            _take_one(examples),
            collator=Collator(pad_token_id=pad_token_id, targets=examples.targets),
            loss=Loss(HeadConfig(type="regression")),
            measure=lambda outputs_NC: {"mae": float(abs(outputs_NC).mean())},
            config=config,
            plan=plan,
            arguments=make_arguments(config, plan=plan, metric="mae", run_dir=Path(folder)),
        )
    if clocks is not None:
        clocks.append(clock)
    return _get_seconds(clock, setup)


def _take_one(examples: Examples) -> Examples:
    """Return one row, since only training is timed."""
    return Examples([examples[0].encoded], examples.targets[:1], ids=examples.ids[:1])


def load_ours(setup: TrainingSetup) -> tuple[Any, int]:
    """Return the model that `llmft train` would train, and the id of the padding token."""
    pad_token_id: int = load_tokenizer(setup.base).pad_token_id
    loaded = load_model(setup.base, labels=LABELS, pad_token_id=pad_token_id, seed=setup.seed)
    return loaded.model, pad_token_id


def train_with_stock_trainer(setup: TrainingSetup, precision: Precision) -> float:
    """Train with `transformers.Trainer` and PEFT, dynamic padding; return the seconds."""
    from transformers import (
        DataCollatorWithPadding,
        PrinterCallback,
        Trainer,
        TrainingArguments,
    )

    model = _load_stock(setup)
    rows = [
        {"input_ids": row.input_ids, "attention_mask": [1] * row.num_tokens, "labels": target_D}
        for row, target_D in zip(setup.rows, setup.targets_ND.tolist(), strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder, watch_steps(model) as clock:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=setup.batch_size,
            learning_rate=setup.learning_rate,
            warmup_steps=0.1,
            weight_decay=0.01,
            bf16=precision == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            seed=setup.seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(load_tokenizer(setup.base)),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return _get_seconds(clock, setup)


def train_in_classic_loop(setup: TrainingSetup) -> float:
    """Train in a PyTorch loop over rows padded to `max_length`, in float32; return the seconds."""
    model, device = _load_stock(setup).to(choose_device()).train(), choose_device()
    padded = load_tokenizer(setup.base).pad(
        {"input_ids": [row.input_ids for row in setup.rows]},
        padding="max_length",
        max_length=setup.max_length,
        return_tensors="pt",
    )
    rows = list(zip(padded["input_ids"], padded["attention_mask"], setup.targets_ND, strict=True))
    torch.manual_seed(setup.seed)
    loader: DataLoader[Any] = DataLoader(rows, batch_size=setup.batch_size, shuffle=True)  # type: ignore[arg-type]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=setup.learning_rate)
    with watch_steps(model) as clock:
        for ids_BT, mask_BT, targets_BD in loader:
            outputs = model(
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                labels=targets_BD.to(device),
            )
            outputs.loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return _get_seconds(clock, setup)


def _load_stock(setup: TrainingSetup) -> Any:
    """Load a base with transformers and PEFT only."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(setup.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        locate_base(setup.base),
        num_labels=len(LABELS.names),
        problem_type=LABELS.problem_type,
        dtype=torch.float32,
        pad_token_id=load_tokenizer(setup.base).pad_token_id,
    )
    if setup.base.tuning == "lora":
        import peft

        lora = setup.base.lora or LoraConfig()
        model = peft.get_peft_model(
            model,
            peft.LoraConfig(
                task_type=peft.TaskType.SEQ_CLS,
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
            ),
        )
    return model


def _get_seconds(clock: StepClock, setup: TrainingSetup) -> float:
    assert clock.num_steps == setup.num_steps, (clock.num_steps, setup.num_steps)
    return clock.seconds


def encode_rows(rows: Sequence[Row], *, text: list[str], plan: Plan) -> list[EncodedRow]:
    """Return rows encoded for MiniLM, without those that do not fill a batch.

    Args:
        rows: Training rows.
        text: Fields of a row that make up the article.
        plan: Batch size and length.

    Raises:
        UserError: If MiniLM is not installed.
    """
    encoder = Encoder(
        load_tokenizer(MINILM),
        prompt=NO_PROMPT,
        fields=FieldsConfig(text=text),
        tokens=TokensConfig(max_length=plan.max_length),
    )
    return encoder.encode(rows[: len(rows) - len(rows) % plan.batch_size])


def measure_article_only(encoded: list[EncodedRow], plan: Plan) -> Iterator[Figures]:
    """Measure MiniLM with full tuning and a small Qwen2 with LoRA, in every supported precision.

    Labels are drawn at random, since the time does not depend on them.

    Args:
        encoded: Training rows, as `encode_rows` returns them.
        plan: How to measure.

    Yields:
        One object per base and precision; the default of `llmft train` first.
    """
    with tempfile.TemporaryDirectory() as folder:
        build_small_qwen2(Path(folder))  # its vocabulary is MiniLM's, so that it takes these rows
        bases = {
            "MiniLM, full": MINILM,
            "Qwen2 6 x 384, LoRA": BaseConfig(model=folder, tuning="lora"),
        }
        for name, base in bases.items():
            yield from measure_base(name, make_setup(base, encoded, plan), plan)


def make_setup(base: BaseConfig, encoded: list[EncodedRow], plan: Plan) -> TrainingSetup:
    """Return the training that all implementations run, with random targets."""
    generator = torch.Generator().manual_seed(plan.seed)
    return TrainingSetup(
        base=base,
        rows=encoded,
        targets_ND=torch.randn(len(encoded), len(LABELS.names), generator=generator),
        batch_size=plan.batch_size,
        max_length=plan.max_length,
        seed=plan.seed,
    )


def measure_base(name: str, setup: TrainingSetup, plan: Plan) -> list[Figures]:
    """Measure one base; return one object per precision."""
    model, _ = load_ours(setup)
    rates = find_flop_rates(model)
    lengths = [row.num_tokens for row in setup.rows]
    work = count_unshared_work(lengths, is_causal=setup.base.tuning == "lora")
    num_flops = rates.count_training(work)
    precisions = list_precisions()
    products = {
        precision: MatrixProducts(
            rates.shapes,
            num_tokens=sum(lengths) // setup.num_steps,
            dtype=getattr(torch, precision),
            device=choose_device(),
        )
        for precision in precisions
    }
    ways: dict[str, TimedCall] = {"classic loop": partial(train_in_classic_loop, setup)}
    for precision in precisions:
        ways[f"trainer {precision}"] = partial(train_with_stock_trainer, setup, precision)
        ways[f"ours {precision}"] = partial(train_ours, setup, precision)
        ways[f"products {precision}"] = time_call(products[precision])
    logging.getLogger("llmft.training").setLevel(logging.WARNING)  # a line per epoch is too many
    times = time_interleaved(ways, num_rounds=plan.num_rounds)
    return [
        {
            "base": name,
            "dtype": precision,
            "num_rows": len(setup.rows),
            "num_tokens": sum(lengths),
            "num_steps": setup.num_steps,
            "batch_size": setup.batch_size,
            "max_length": setup.max_length,
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


def measure_short_texts(encoded: list[EncodedRow], plan: Plan) -> Iterator[Figures]:
    """Measure MiniLM with full tuning on short texts, in every supported precision.

    Args:
        encoded: Training rows, as `encode_rows` returns them; labels are drawn at random.
        plan: How to measure.

    Yields:
        One object per precision; the default of `llmft train` first.
    """
    setup = make_setup(MINILM, encoded, plan)
    clocks: dict[Precision, list[StepClock]] = {}
    ways: dict[str, TimedCall] = {}
    for precision in list_precisions():
        clocks[precision] = []
        ways[f"ours {precision}"] = partial(train_ours, setup, precision, clocks[precision])
        ways[f"trainer {precision}"] = partial(train_with_stock_trainer, setup, precision)
    logging.getLogger("llmft.training").setLevel(logging.WARNING)  # a line per epoch is too many
    times = time_interleaved(ways, num_rounds=plan.num_rounds)
    for precision in list_precisions():
        ours = f"ours {precision}"
        counted = clocks[precision][1:]  # the first round warms up
        total = sum(clock.seconds for clock in counted)
        yield {
            "dtype": precision,
            "num_rows": len(setup.rows),
            "num_tokens": sum(row.num_tokens for row in setup.rows),
            "num_steps": setup.num_steps,
            "batch_size": setup.batch_size,
            "num_rounds": plan.num_rounds,
            "num_threads": torch.get_num_threads(),
            "seconds_per_step": times.take_median(ours) / setup.num_steps,
            **{
                f"speedup_vs_trainer_{other}": times.compare(ours, to=f"trainer {other}")
                for other in list_precisions()
            },
            **{
                f"fraction_{phase}": sum(clock.seconds_by_phase[phase] for clock in counted) / total
                for phase in PHASES
            },
        }
