"""A batch behind a prompt, trained and predicted: shared, or plainly in parts of the batch.

All rows are equally long, so the plain way needs no padding, and its attention no mask.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llmft.benchmarks.article_arms import LABELS, Course, load_ours
from llmft.benchmarks.plans import Shape
from llmft.benchmarks.timing import read_clock
from llmft.config.head import HeadConfig
from llmft.config.recipe import BaseConfig
from llmft.data.encoding import EncodedRow
from llmft.models.device import Precision, autocast, choose_device
from llmft.models.dropout import fast_dropout
from llmft.models.peak_memory import measure_peak_memory, reset_peak_memory
from llmft.models.precision import cast_frozen_weights
from llmft.models.shared_prompt import SharedPrompt
from llmft.prediction.inference import prepare_for_prediction
from llmft.training.losses import Loss

_SMALLEST_SHARE = 0.01
_FIRST_ID, _LAST_ID = 1_000, 30_000  # whole words of MiniLM's vocabulary
_LOSS = Loss(HeadConfig(type="regression"))


class PromptArms:
    """What can be done with one batch in one precision, and how long it takes."""

    def __init__(self, shape: Shape, precision: Precision, *, base_dir: str, seed: int) -> None:
        """Make the batch, and the model for training and for prediction.

        Args:
            shape: Size of the batch.
            precision: Precision of matrix products.
            base_dir: Folder of the base, a decoder that takes LoRA.
            seed: Seed of tokens, targets and new weights.
        """
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randint(_FIRST_ID, _LAST_ID, size, generator=generator)

        device, articles = choose_device(), draw(shape.batch_size, shape.article_tokens)
        self._precision = precision
        self._prompt_ids: list[int] = draw(shape.prompt_tokens).tolist()
        rows = [EncodedRow(self._prompt_ids, a, len(a), len(a)) for a in articles.tolist()]
        targets_BD = torch.randn(shape.batch_size, len(LABELS.names), generator=generator)
        self.course = Course(
            base=BaseConfig(model=base_dir, tuning="lora"),
            rows=rows,
            targets_ND=targets_BD,
            batch_size=shape.batch_size,
            max_length=shape.prompt_tokens + shape.article_tokens,
            seed=seed,
        )
        self._own_BA = articles.to(device)
        self._whole_BT = torch.tensor([row.input_ids for row in rows], device=device)
        self._targets_BD = targets_BD.to(device)
        self.model: Any = load_ours(self.course)[0].to(device).train()
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:  # at 0, where it starts, A would have no gradient to compare
                nn.init.normal_(parameter, std=0.02)
        if precision == "bfloat16":
            cast_frozen_weights(self.model)
        self._final: Any = prepare_for_prediction(load_ours(self.course)[0].to(device), precision)

    def train_shared(self) -> float:
        """Compute the gradient of the batch with one computation of the prompt; return seconds."""
        sharing = SharedPrompt(self.model, self._prompt_ids)
        seconds = self._train(self._own_BA, rows_at_once=len(self._own_BA))
        sharing.detach()
        return seconds

    def train_plainly(self, rows_at_once: int) -> float:
        """Compute the gradient of the batch from whole inputs, in parts; return seconds."""
        return self._train(self._whole_BT, rows_at_once=rows_at_once)

    def predict_shared(self) -> float:
        """Predict the batch behind a prompt that is kept from before; return seconds."""
        sharing = SharedPrompt(self._final, self._prompt_ids)
        self._predict(self._own_BA[:1, :1], rows_at_once=1)
        seconds = self._predict(self._own_BA, rows_at_once=len(self._own_BA))
        sharing.detach()
        return seconds

    def predict_plainly(self, rows_at_once: int) -> float:
        """Predict the batch from whole inputs, in parts; return seconds."""
        return self._predict(self._whole_BT, rows_at_once=rows_at_once)

    def measure_gradient_error(self) -> float:
        """Return how far the gradient of a tensor is from the plain one at most, relatively."""
        self.model.eval()  # without dropout
        self.train_plainly(1)
        expected = self._read_gradients()
        self.train_shared()
        found = self._read_gradients()
        self.model.train()
        errors = [(a - b).norm() / a.norm() for a, b in zip(expected, found, strict=True)]
        return float(max(errors))

    def measure_memory_ratio(self, rows_at_once: int) -> float:
        """Return the peak memory of the shared way over that of the plain one."""
        peaks = []
        for train in (self.train_shared, lambda: self.train_plainly(rows_at_once)):
            self.model.zero_grad()
            reset_peak_memory()
            train()
            peaks.append(measure_peak_memory())
        return peaks[0] / peaks[1]

    def profile_training(self) -> dict[str, float]:
        """Return the operations that take most of a shared step, with their share of its time."""
        with torch.profiler.profile(acc_events=True) as profile:
            self.train_shared()
        seconds = {e.key: e.self_cpu_time_total + e.self_device_time_total
                   for e in profile.key_averages()}  # fmt: skip
        total = sum(seconds.values())
        shares = {name.removeprefix("aten::"): took / total for name, took in seconds.items()}
        return {
            name: round(share, 3)
            for name, share in sorted(shares.items(), key=lambda item: -item[1])
            if share >= _SMALLEST_SHARE
        }

    def _read_gradients(self) -> list[Tensor]:
        return [p.grad.clone() for p in self.model.parameters() if p.grad is not None]

    def _train(self, ids_BT: Tensor, *, rows_at_once: int) -> float:
        self.model.zero_grad()
        num_items = self._targets_BD.numel()
        with fast_dropout(self.model):
            started = read_clock()
            for part in range(0, len(ids_BT), rows_at_once):
                rows = slice(part, part + rows_at_once)
                logits_BC = self._compute(self.model, ids_BT[rows])
                loss = _LOSS(logits_BC, self._targets_BD[rows], num_items=num_items)
                torch.autograd.backward(loss)
            return read_clock() - started

    @torch.no_grad()
    def _predict(self, ids_BT: Tensor, *, rows_at_once: int) -> float:
        started = read_clock()
        for part in range(0, len(ids_BT), rows_at_once):
            self._compute(self._final, ids_BT[part : part + rows_at_once])
        return read_clock() - started

    def _compute(self, model: Any, ids_BT: Tensor) -> Tensor:
        with autocast(ids_BT.device, self._precision):
            output = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
        logits_BC: Tensor = output.logits
        return logits_BC
