"""Rows as tensors, padded to the longest of their batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llmft.data.encoding import EncodedRow


class Example(NamedTuple):
    """One training row."""

    input_ids: list[int]
    target: Tensor
    """Shape [D] float32 for scores, [] int64 for a class (H4)."""


class Examples(Dataset[Example]):
    """Training rows by position."""

    def __init__(self, encoded: Sequence[EncodedRow], targets: Tensor, *, ids: list[str]) -> None:
        self._encoded = encoded
        self._targets = targets
        self.ids = ids

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> Example:
        return Example(self._encoded[index].input_ids, self._targets[index])

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
        """Return input_ids [B, T], attention_mask [B, T] and labels [B] or [B, D]."""
        inputs = pad_inputs([e.input_ids for e in examples], pad_token_id=self._pad_token_id)
        return {**inputs, "labels": torch.stack([e.target for e in examples])}


def pad_inputs(input_ids: Sequence[list[int]], *, pad_token_id: int) -> dict[str, Tensor]:
    """Pad on the right; return input_ids and attention_mask, both [B, T] int64."""
    longest = max(len(ids) for ids in input_ids)
    ids_BT = torch.full((len(input_ids), longest), pad_token_id, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(input_ids):
        ids_BT[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        mask_BT[row, : len(ids)] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def make_targets(rows: Sequence[dict[str, Any]], *, label_names: list[str]) -> Tensor:
    """Return labels as float32 scores [N, D] or int64 classes [N]."""
    labels = [row["labels"] for row in rows]
    if isinstance(labels[0], dict):
        scores = [[label[name] for name in label_names] for label in labels]
        return torch.tensor(scores, dtype=torch.float32)
    index = {name: i for i, name in enumerate(label_names)}
    return torch.tensor([index[label] for label in labels], dtype=torch.long)
