"""A model's outputs for encoded rows, without gradients, in batches of similar length."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmft.config.recipe import Precision
from llmft.data.batches import BatchLimits, pad_inputs, sort_into_batches
from llmft.data.encoding import EncodedRow
from llmft.errors import UserError
from llmft.models.acceleration.precision import cast_frozen_weights
from llmft.models.acceleration.shared_prompt import SharedPrompt
from llmft.models.device import autocast, choose_device, choose_max_tokens
from llmft.models.heads import compute_head_in_float32
from llmft.models.quantisation import is_quantised
from llmft.wording import count

logger = logging.getLogger(__name__)


class BatchForward:
    """A model on its device that computes encoded rows in batches, without gradients.

    A row's output does not depend on the other rows of its batch, except for rounding. The shared
    prompt is computed with the first batch and cached.
    """

    def __init__(
        self,
        model: Any,
        *,
        precision: Precision,
        pad_token_id: int,
        shared_ids: Sequence[int] | None,
        max_tokens_per_batch: int | None = None,
    ) -> None:
        """Move a model to its device, merge or cast its weights, and attach the shared prompt.

        Args:
            model: A base with a head; its outputs have `logits` [B, C].
            precision: Dtype of the matrix products.
            pad_token_id: Fills rows up to the longest.
            shared_ids: Leading tokens that all rows have in common, to compute them once; None if
                the base cannot share them.
            max_tokens_per_batch: Tokens of a batch, padding counted; None: as the memory of the
                device allows.
        """
        self._device = choose_device()
        self._precision = precision
        self.model = prepare_for_prediction(model.to(self._device), precision)
        self._pad_token_id = pad_token_id
        self.shared = None if shared_ids is None else SharedPrompt(self.model, shared_ids)
        self.max_tokens_per_batch = max_tokens_per_batch or choose_max_tokens(
            model.config, self._device
        )

    def compute(self, rows: Sequence[EncodedRow]) -> Iterator[tuple[list[int], Tensor]]:
        """Compute all rows, the longest first; a batch that runs out of memory is halved.

        Yields:
            Positions of B rows, and their logits, float32 [B, C] on the device.

        Raises:
            UserError: If the memory of a GPU is too small for a single row.
        """
        own = rows
        if self.shared is not None:
            own = [row._replace(shared_ids=[]) for row in rows]
        limits = BatchLimits(num_tokens=self.max_tokens_per_batch)
        for batch in sort_into_batches(self.count_tokens(rows), limits):
            yield batch, self._compute([own[i] for i in batch])

    def count_tokens(self, rows: Sequence[EncodedRow]) -> NDArray[np.int64]:
        """Return how many tokens of each row are computed, [N]: with a shared prompt its own."""
        lengths = (row.num_tokens if self.shared is None else len(row.own_ids) for row in rows)
        return np.fromiter(lengths, dtype=np.int64, count=len(rows))

    def _compute(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the logits of a batch [B, C]; after running out of memory of smaller parts."""
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
            logger.info(
                "out of memory for %s at once; continuing with half", count(len(rows), "row")
            )
        return torch.cat([self._compute(rows[:half]), self._compute(rows[half:])])

    @torch.inference_mode()
    def _compute_at_once(self, rows: Sequence[EncodedRow]) -> Tensor:
        inputs = pad_inputs(rows, pad_token_id=self._pad_token_id)
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        with autocast(self._device, self._precision):
            logits_BC: Tensor = self.model(**inputs).logits
        return logits_BC.float()


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
