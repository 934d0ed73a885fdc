"""Run a saved model over rows, in batches of similar length."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmft.data.batches import pad_inputs
from llmft.data.encoding import EncodedRow, Encoder
from llmft.data.fields import Row
from llmft.data.prompts import NO_PROMPT
from llmft.models.bases import has_segments
from llmft.models.device import Precision, autocast, choose_device
from llmft.models.heads import compute_head_in_float32, to_outputs
from llmft.models.precision import cast_frozen_weights
from llmft.models.quantised import is_quantised
from llmft.models.saved import ModelCard, SavedModel, load_saved
from llmft.models.shared_prompt import SharedPrompt, find_obstacle

_TOKENS_PER_BATCH = 16_384
_ROWS_PER_BATCH = 64


class Predictions(NamedTuple):
    """What a model says of N rows, in the order of the rows."""

    outputs: NDArray[np.float32]
    """Scores in the labels' units, or probabilities of classes or labels; shape [N, C]."""
    encoded: list[EncodedRow]
    """What the model saw."""


class Predictor:
    """A saved model that predicts rows.

    A row's output does not depend on the rows beside it, but for rounding. Where the base allows
    it, the prompt is computed with the first batch and kept.
    """

    def __init__(self, saved: SavedModel) -> None:
        self.card: ModelCard = saved.card
        self._device = choose_device()
        self._model = prepare_for_prediction(saved.model.to(self._device), self.card.precision)
        self._pad_token_id: int = saved.tokenizer.pad_token_id
        self.encoder = Encoder(
            saved.tokenizer,
            prompt=saved.card.make_prompt(NO_PROMPT),
            fields=saved.card.fields,
            tokens=saved.card.tokens,
            has_segments=has_segments(saved.model.config),
        )
        self._shared: SharedPrompt | None = None
        if self.card.share_prompt and find_obstacle(saved.model.config) is None:
            self._shared = SharedPrompt(self._model, self.encoder.shared_ids)

    @classmethod
    def open(cls, run: Path) -> "Predictor":
        """Open a run folder.

        Raises:
            UserError: If it holds no finished run.
        """
        return cls(load_saved(run / "model"))

    @property
    def keeps_prompt(self) -> bool:
        """Whether the prompt is computed with the first batch only."""
        return self._shared is not None and self._shared.keeps_prompt

    def forget_prompt(self) -> None:
        """Compute the prompt anew with the next batch."""
        if self._shared is not None:
            self._shared.forget()

    def measure_weights(self) -> float:
        """Return the size of the weights in GiB, each counted once."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        sizes = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
        return float(sum(sizes.values())) / 2**30

    def predict(self, rows: Sequence[Row], *, show_progress: bool = True) -> Predictions:
        """Predict rows.

        Raises:
            RowFaultError: If a row has no text or lacks a field that the prompt names.
        """
        encoded = self.encoder.encode(rows)
        outputs_NC = np.empty((len(rows), len(self.card.label_names)), dtype=np.float32)
        bar = tqdm(
            total=len(rows),
            unit="row",
            desc="predicting",
            disable=not (show_progress and sys.stderr.isatty()),
        )
        with bar:
            own = [e._replace(shared_ids=[]) for e in encoded] if self._shared else encoded
            for batch in group_by_length([e.num_tokens for e in own]):
                outputs_NC[batch] = self._compute([own[i] for i in batch])
                bar.update(len(batch))
        return Predictions(outputs_NC, encoded)

    @torch.inference_mode()
    def _compute(self, rows: Sequence[EncodedRow]) -> NDArray[np.float32]:
        inputs = pad_inputs(rows, pad_token_id=self._pad_token_id)
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        with autocast(self._device, self.card.precision):
            logits_BC = self._model(**inputs).logits
        outputs: NDArray[np.float32] = to_outputs(logits_BC, self.card.head).cpu().numpy()
        return outputs


def prepare_for_prediction(model: Any, precision: Precision) -> Any:
    """Return a loaded model in the form that predicts fastest with the same outputs.

    Adapters are merged in float32; in bfloat16 or in 4 bit the merged weights would be rounded,
    which gives another model (H6).
    """
    model = model.requires_grad_(False).eval()
    if precision == "bfloat16":
        cast_frozen_weights(model)
    elif hasattr(model, "merge_and_unload") and not is_quantised(model):
        model = model.merge_and_unload()
        compute_head_in_float32(model)
    return model


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Return batches of row positions, longest rows first, bounded in rows and padded tokens.

    Longest first, so that a batch that does not fit fails at once and not after an hour.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for position in order:
        batch = batches[-1] if batches else None
        if (
            batch is None
            or len(batch) >= _ROWS_PER_BATCH
            or (len(batch) + 1) * lengths[batch[0]] > _TOKENS_PER_BATCH
        ):
            batches.append([position])
        else:
            batch.append(position)
    return batches
