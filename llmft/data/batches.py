"""Rows as tensors, padded to the longest of their batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llmft.data.encoding import EncodedRow


class Example(NamedTuple):
    """One training row."""

    encoded: EncodedRow
    target: Tensor
    """Shape [D] float32 for scores, [L] bool for labels, [] int64 for a class (H4)."""
    weight: float | None
    """Weight of the row in the loss; None if the recipe has no row weights."""


class Examples(Dataset[Example]):
    """Training rows by position."""

    def __init__(
        self,
        encoded: Sequence[EncodedRow],
        targets: Tensor,
        *,
        ids: list[str],
        weights: Sequence[float] | None = None,
    ) -> None:
        self._encoded = encoded
        self._targets = targets
        self._weights = weights
        self.ids = ids

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> Example:
        weight = self._weights[index] if self._weights is not None else None
        return Example(self._encoded[index], self._targets[index], weight)

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs, padding not counted."""
        return sum(len(e.input_ids) for e in self._encoded)

    def find_ids(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> list[str]:
        """Return the ids of the rows that a batch was made from."""
        wanted = {
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(input_ids_BT.cpu(), attention_mask_BT.cpu(), strict=True)
        }
        pairs = zip(self.ids, self._encoded, strict=True)
        return [row_id for row_id, e in pairs if tuple(e.input_ids) in wanted]


class Collator:
    """Makes a batch of examples."""

    def __init__(self, *, pad_token_id: int) -> None:
        self._pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the inputs as `pad_inputs` does, labels [B, ...], and row_weights [B] if any."""
        batch = pad_inputs([e.encoded for e in examples], pad_token_id=self._pad_token_id)
        batch["labels"] = torch.stack([e.target for e in examples])
        if examples[0].weight is not None:
            batch["row_weights"] = torch.tensor([e.weight for e in examples])
        return batch


def pad_inputs(rows: Sequence[EncodedRow], *, pad_token_id: int) -> dict[str, Tensor]:
    """Pad on the right; return input_ids and attention_mask, both [B, T] int64.

    Rows with a second segment give token_type_ids [B, T] as well.
    """
    longest = max(len(row.input_ids) for row in rows)
    ids_BT = torch.full((len(rows), longest), pad_token_id, dtype=torch.long)
    mask_BT, segments_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        ids_BT[i, :length] = torch.tensor(row.input_ids, dtype=torch.long)
        mask_BT[i, :length] = 1
        if row.pair_start is not None:
            segments_BT[i, row.pair_start : length] = 1
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if rows[0].pair_start is not None:
        inputs["token_type_ids"] = segments_BT
    return inputs


def make_targets(rows: Sequence[dict[str, Any]], *, label_names: list[str]) -> Tensor:
    """Return labels as float32 scores [N, D], int64 classes [N] or bool labels [N, L]."""
    labels = [row["labels"] for row in rows]
    if isinstance(labels[0], list):
        return torch.tensor([[name in label for name in label_names] for label in labels])
    if isinstance(labels[0], dict):
        scores = [[label[name] for name in label_names] for label in labels]
        return torch.tensor(scores, dtype=torch.float32)
    index = {name: i for i, name in enumerate(label_names)}
    return torch.tensor([index[label] for label in labels], dtype=torch.long)
