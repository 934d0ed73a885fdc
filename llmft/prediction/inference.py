"""Predict rows with a saved model, in batches of similar length."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmft.config.recipe import Precision
from llmft.console import shows_progress
from llmft.data.batches import BatchLimits, pad_inputs, sort_into_batches
from llmft.data.encoding import EncodedRow, Encoder
from llmft.data.fields import Row
from llmft.errors import UserError
from llmft.models.acceleration.precision import cast_frozen_weights
from llmft.models.acceleration.shared_prompt import SharedPrompt, explain_unshared
from llmft.models.bases import has_segments
from llmft.models.device import autocast, choose_device, choose_max_tokens
from llmft.models.heads import compute_head_in_float32, to_outputs
from llmft.models.quantisation import is_quantised
from llmft.models.saved import ModelSpec, SavedModel, load_saved

logger = logging.getLogger(__name__)


class Predictions(NamedTuple):
    """Predictions of a model for N rows, in the order of the rows."""

    outputs: NDArray[np.float32]
    """Scores in the labels' units, or probabilities of classes or labels; shape [N, C]."""
    encoded: list[EncodedRow]
    """The model's inputs."""


class Predictor:
    """A saved model that predicts rows.

    A row's output does not depend on the other rows of its batch, except for rounding. If the base
    supports it, the prompt is computed with the first batch and cached.
    """

    def __init__(self, saved: SavedModel, *, max_tokens_per_batch: int | None = None) -> None:
        """Move a model to its device, merge or cast its weights, and attach the shared prompt.

        Args:
            saved: The model.
            max_tokens_per_batch: Tokens of a batch, padding counted; None: as the memory of the
                device allows.
        """
        self.spec: ModelSpec = saved.spec
        self._device = choose_device()
        self._model = prepare_for_prediction(saved.model.to(self._device), self.spec.precision)
        self._pad_token_id: int = saved.tokenizer.pad_token_id
        self.encoder = Encoder(
            saved.tokenizer,
            prompt=saved.spec.make_prompt(),
            fields=saved.spec.fields,
            tokens=saved.spec.tokens,
            has_segments=has_segments(saved.model.config),
        )
        self._shared: SharedPrompt | None = None
        if self.spec.share_prompt and explain_unshared(saved.model.config) is None:
            self._shared = SharedPrompt(self._model, self.encoder.shared_ids)
        self.max_tokens_per_batch = max_tokens_per_batch or choose_max_tokens(
            saved.model.config, self._device
        )

    @classmethod
    def open(cls, run: Path, *, max_tokens_per_batch: int | None = None) -> "Predictor":
        """Open a run folder.

        Raises:
            UserError: If it holds no finished run.
        """
        return cls(load_saved(run / "model"), max_tokens_per_batch=max_tokens_per_batch)

    @property
    def keeps_prompt(self) -> bool:
        """Whether the prompt is cached, so that it is computed with the first batch only."""
        return self._shared is not None and self._shared.keeps_prompt

    def forget_prompt(self) -> None:
        """Clear the cached prompt, so that the next batch computes it again."""
        if self._shared is not None:
            self._shared.forget()

    def measure_weights(self) -> float:
        """Return the size of the weights in GiB, each counted once."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        sizes = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
        return float(sum(sizes.values())) / 2**30

    def predict(self, rows: Sequence[Row], *, show_progress: bool = True) -> Predictions:
        """Predict rows, in batches of similar length; a batch that runs out of memory is halved.

        Raises:
            RowFaultError: If a row has no text or lacks a field that the prompt names.
            UserError: If the memory of a GPU is too small for a single row.
        """
        encoded = self.encoder.encode(rows)
        outputs_NC = np.empty((len(rows), len(self.spec.label_names)), dtype=np.float32)
        bar = tqdm(
            total=len(rows),
            unit="row",
            desc="predicting",
            disable=not (show_progress and shows_progress()),
        )
        with bar:
            own = [e._replace(shared_ids=[]) for e in encoded] if self._shared else encoded
            lengths_N = np.array([e.num_tokens for e in own], dtype=np.int64)
            limits = BatchLimits(num_tokens=self.max_tokens_per_batch)
            for batch in sort_into_batches(lengths_N, limits):
                outputs_NC[batch] = self._compute([own[i] for i in batch])
                bar.update(len(batch))
        return Predictions(outputs_NC, encoded)

    def _compute(self, rows: Sequence[EncodedRow]) -> NDArray[np.float32]:
        """Return the outputs of a batch [B, C]; after running out of memory of smaller parts."""
        longest, half = max(row.num_tokens for row in rows), -(-len(rows) // 2)
        # Batches that were planned before memory ran out are larger than what is allowed now.
        if len(rows) == 1 or len(rows) * longest <= self.max_tokens_per_batch:
            with suppress(torch.OutOfMemoryError):
                return self._compute_at_once(rows)
            torch.cuda.empty_cache()
            if len(rows) == 1:
                raise UserError(
                    f"GPU out of memory for a single row of {longest} tokens; free memory, or use "
                    "a larger GPU or the CPU (CUDA_VISIBLE_DEVICES=)"
                )
            self.max_tokens_per_batch = half * longest
            logger.info("out of memory for %d rows at once; continuing with half", len(rows))
        return np.concatenate([self._compute(rows[:half]), self._compute(rows[half:])])

    @torch.inference_mode()
    def _compute_at_once(self, rows: Sequence[EncodedRow]) -> NDArray[np.float32]:
        inputs = pad_inputs(rows, pad_token_id=self._pad_token_id)
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        with autocast(self._device, self.spec.precision):
            logits_BC = self._model(**inputs).logits
        outputs: NDArray[np.float32] = to_outputs(logits_BC, self.spec.head).cpu().numpy()
        return outputs


def prepare_for_prediction(model: Any, precision: Precision) -> Any:
    """Return a loaded model, optimised for inference with the same outputs.

    Adapters are merged in float32; in bfloat16 or in 4 bit the merged weights would be rounded,
    which changes the outputs (H6).
    """
    model = model.requires_grad_(False).eval()
    if precision == "bfloat16":
        cast_frozen_weights(model)
    elif hasattr(model, "merge_and_unload") and not is_quantised(model):
        model = model.merge_and_unload()
        compute_head_in_float32(model)
    return model
