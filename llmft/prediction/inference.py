"""Predict rows with a saved model, in batches of similar length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.console import Progress
from llmft.data.encoding import EncodedRow, Encoder
from llmft.data.fields import Row, assemble_text
from llmft.errors import UserError
from llmft.models.acceleration.shared_prompt import explain_unshared
from llmft.models.bases import has_segments
from llmft.models.forward import BatchForward
from llmft.models.heads import to_outputs
from llmft.models.saved import ModelSpec, SavedModel, load_saved
from llmft.prediction.post_hoc_fit import FinalOutputs, apply_fit, read_fit
from llmft.results.run import PostHocFit


class Predictions(NamedTuple):
    """Predictions of a model for N rows, in the order of the rows."""

    final: FinalOutputs
    """After calibrators or thresholds, if the run has any."""
    raw_outputs: NDArray[np.float32]
    """Without them, as the folder of the model gives them to other tools: scores in the labels'
    units, or probabilities of classes or labels; shape [N, C]."""
    encoded: list[EncodedRow]
    """The model's inputs."""

    @property
    def outputs(self) -> NDArray[np.floating[Any]]:
        """Calibrated scores, or probabilities, which thresholds do not change; shape [N, C]."""
        return self.final.probabilities_NC


class Predictor:
    """A saved model that predicts rows, with its calibrators or thresholds.

    A row's output does not depend on the other rows of its batch, except for rounding. If the base
    supports it, the prompt is computed with the first batch and cached.
    """

    def __init__(
        self,
        saved: SavedModel,
        *,
        fit: PostHocFit | None = None,
        max_tokens_per_batch: int | None = None,
    ) -> None:
        """Move a model to its device, merge or cast its weights, and attach the shared prompt.

        Args:
            saved: The model.
            fit: Its calibrators or thresholds; None if it has none.
            max_tokens_per_batch: Tokens of a batch, padding counted; None: as the memory of the
                device allows.
        """
        self.spec: ModelSpec = saved.spec
        self.fit = fit
        self.encoder = Encoder(
            saved.tokenizer,
            prompt=saved.spec.make_prompt(),
            fields=saved.spec.fields,
            tokens=saved.spec.tokens,
            has_segments=has_segments(saved.model.config),
        )
        can_share = self.spec.share_prompt and explain_unshared(saved.model.config) is None
        self.forward = BatchForward(
            saved.model,
            precision=self.spec.precision,
            pad_token_id=saved.tokenizer.pad_token_id,
            shared_ids=self.encoder.shared_ids if can_share else None,
            max_tokens_per_batch=max_tokens_per_batch,
        )

    @classmethod
    def open(cls, run: Path, *, max_tokens_per_batch: int | None = None) -> "Predictor":
        """Open a run folder.

        Raises:
            UserError: If it holds no finished run, or one of its files is broken.
        """
        fit = read_fit(run)
        return cls(load_saved(run / "model"), fit=fit, max_tokens_per_batch=max_tokens_per_batch)

    @property
    def keeps_prompt(self) -> bool:
        """Whether the prompt is cached, so that it is computed with the first batch only."""
        shared = self.forward.shared
        return shared is not None and shared.keeps_prompt

    def forget_prompt(self) -> None:
        """Clear the cached prompt, so that the next batch computes it again."""
        if self.forward.shared is not None:
            self.forward.shared.forget()

    def measure_weights(self) -> float:
        """Return the size of the weights in GiB, each counted once."""
        tensors = [*self.forward.model.parameters(), *self.forward.model.buffers()]
        sizes = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
        return float(sum(sizes.values())) / 2**30

    def predict(self, rows: Sequence[Row], *, show_progress: bool = True) -> Predictions:
        """Predict rows, in batches of similar length; a batch that runs out of memory is halved.

        Raises:
            RowFaultError: If a row has no text or lacks a field that the prompt names.
            UserError: If the memory of a GPU is too small for a single row, or the model answers a
                row with no number.
        """
        encoded = self.encoder.encode(rows)
        outputs_NC = np.empty((len(rows), len(self.spec.label_names)), dtype=np.float32)
        lengths_N = self.forward.count_tokens(encoded)
        total = int(lengths_N.sum())
        with Progress("predicting", total, unit="token", is_shown=show_progress) as progress:
            for batch, logits_BC in self.forward.compute(encoded):
                outputs_NC[batch] = to_outputs(logits_BC, self.spec.head).cpu().numpy()
                progress.update(int(lengths_N[batch].sum()))
        broken = np.flatnonzero(~np.isfinite(outputs_NC).all(axis=1))
        if len(broken):
            first, fields = rows[broken[0]], self.spec.fields
            row_id = first.get(fields.id or "id", first.get("id"))
            text = assemble_text(first, fields)
            named = f"that begins {text[:40]!r}" if row_id is None else f"with the id {row_id!r}"
            is_narrow = self.spec.precision != "float32"
            reason = f", or {self.spec.precision} is too narrow for them" if is_narrow else ""
            mend = " or with train.precision: float32" if is_narrow else ""
            raise UserError(
                f"the model answers {len(broken)} of {len(rows)} rows with NaN, first the row "
                f"{named}; no prediction of these rows is written. Its weights have "
                f"diverged{reason}: train it again with a lower train.learning_rate{mend}"
            )
        return Predictions(apply_fit(outputs_NC, self.fit), outputs_NC, encoded)
