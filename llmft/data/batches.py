"""Batches: which rows form one, and its tensors, padded to the longest row."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from llmft.config.recipe import TrainConfig
from llmft.data.encoding import EncodedRow
from llmft.data.fields import Row
from llmft.data.token_cache import TokenisedRows
from llmft.errors import UserError

_SHORTEST = 0.8
"""Without shuffling, rows of a batch differ in length by up to 20 %, unless the batch is small."""
_SMALL_BATCH = 1_024
"""Tokens below which a batch is small: padding costs less than one more batch."""
_BIN_WIDTH = 1.1
"""Lengths in a bin differ by up to 10 %, so at most that much of a batch is padding."""


class Example(NamedTuple):
    """One row to train on, or to validate with."""

    row_index: int
    """Its position among the rows of its split."""
    encoded: EncodedRow
    target: Tensor
    """Shape [D] float32 for scores, [L] bool for labels, [] int64 for a class (H4)."""
    weight: float | None
    """Weight of the row in the loss; None if the recipe has no row weights."""


class Examples(Dataset[Example]):
    """Map-style dataset of encoded rows with their targets, ids and row weights."""

    def __init__(
        self,
        encoded: Sequence[EncodedRow],
        targets: Tensor,
        *,
        ids: list[str],
        weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        self._encoded = TokenisedRows.of(encoded)
        self._targets = targets
        self.weights = None if weights is None else torch.as_tensor(weights)
        """Weight of each row in the loss, shape [N]; None if the recipe has none."""
        self.ids = ids

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> Example:
        weight = None if self.weights is None else float(self.weights[index])
        return Example(index, self._encoded[index], self._targets[index], weight)

    @property
    def encoded(self) -> TokenisedRows:
        """The model's inputs, N of them."""
        return self._encoded

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens that the model computes of each row, shape [N]."""
        return self._encoded.lengths

    @property
    def num_shared(self) -> int:
        """Number of leading tokens that all rows have in common, computed in each of them."""
        return len(self._encoded.shared_ids)

    @property
    def targets(self) -> Tensor:
        """The targets of all rows, shape [N, ...]."""
        return self._targets

    def with_targets(self, targets: Tensor) -> "Examples":
        """Return the same rows with other targets, shape [N, ...]."""
        return Examples(self._encoded, targets, ids=self.ids, weights=self.weights)

    def without_shared(self) -> "Examples":
        """Return the same rows without the leading tokens that all have in common."""
        own = self._encoded.without_shared()
        return Examples(own, self._targets, ids=self.ids, weights=self.weights)


class BatchLimits(NamedTuple):
    """Upper limits of a micro-batch of one device; None: no limit."""

    num_rows: int | None = None
    num_tokens: int | None = None
    """Padding counted. A longer row is a batch by itself."""


class BatchShape(NamedTuple):
    """Size of a padded micro-batch of one device."""

    num_rows: int
    longest: int
    """Tokens of its longest row."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the model computes, padding counted."""
        return self.num_rows * self.longest


class BatchPlan:
    """Assignment of rows to batches, in every epoch, on every device.

    Rows are put into bins of similar length, shuffled within them, and cut into global batches, one
    per optimizer step, from the longest bin to the shortest; then the batches are shuffled. The
    cuts depend on the bins only, so all epochs have the same number of batches. Their rows and
    their order are a function of seed and epoch (R8).

    A global batch is then distributed over devices and accumulation steps. So an optimizer step has
    the same rows for any number of devices.
    """

    def __init__(
        self,
        lengths_N: NDArray[np.int64],
        config: TrainConfig,
        *,
        num_shared: int = 0,
        world_size: int = 1,
        micro_batch_divisor: int = 1,
    ) -> None:
        """Cut N rows into batches.

        Args:
            lengths_N: Tokens that the model computes of each row, shape [N], N > 0.
            config: The bounds of a micro-batch, the accumulation, and the seed.
            num_shared: Number of these tokens that all rows have in common. They count towards the
                limits only, so a shared prompt gives the same batches as a repeated one.
            world_size: Number of devices.
            micro_batch_divisor: Into how many each micro-batch is divided, to save memory.

        Raises:
            UserError: If a row is longer than `max_tokens_per_batch`.
        """
        longest, budget = int(lengths_N.max()), config.max_tokens_per_batch
        if budget is not None and longest > budget:
            raise UserError(
                f"train.max_tokens_per_batch: found {budget}, but the longest row has {longest} "
                "tokens; raise it, or lower tokens.max_length"
            )
        self._seed = config.seed
        self._world_size = world_size
        self.num_accumulated = config.gradient_accumulation_steps * micro_batch_divisor
        """Micro-batches of a device in one optimizer step."""
        self._bins_N = np.floor(np.log(lengths_N - num_shared) / np.log(_BIN_WIDTH))
        order_N = np.argsort(-lengths_N)
        _, first, bin_N = np.unique(-self._bins_N[order_N], return_index=True, return_inverse=True)
        # A row counts as the longest of its bin, since any of them may be at its position.
        counted_N = lengths_N[order_N][first][bin_N]
        num_micro = world_size * config.gradient_accumulation_steps
        limits = BatchLimits(config.batch_size, budget)
        self._starts = _cut_batches(counted_N, limits, num_micro=num_micro)
        self.global_sizes = np.diff([*self._starts, len(lengths_N)]).tolist()
        """Rows of each global batch."""
        num_micro = self._world_size * self.num_accumulated
        self.shapes = [
            BatchShape(-(-size // num_micro), int(counted_N[start]))
            for start, size in zip(self._starts, self.global_sizes, strict=True)
        ]
        """Size of the largest micro-batch of each global batch."""

    def __len__(self) -> int:
        """Return the number of optimizer steps in an epoch."""
        return len(self._starts)

    @property
    def largest(self) -> BatchShape:
        """The micro-batch with the most tokens."""
        return max(self.shapes, key=lambda shape: shape.num_tokens)

    def arrange(self, epoch: int, *, rank: int = 0) -> list[list[int]]:
        """Return the positions of the rows of each micro-batch of a device, in an epoch's order.

        All devices have the same number. A micro-batch is empty if a global batch has fewer rows
        than micro-batches.
        """
        generator = np.random.default_rng([self._seed, epoch])
        order_N = np.lexsort((generator.random(len(self._bins_N)), -self._bins_N))
        batches = np.split(order_N, self._starts[1:])
        num_micro = self._world_size * self.num_accumulated
        return [
            batches[i][micro::num_micro].tolist()
            for i in generator.permutation(len(batches))
            for micro in range(rank, num_micro, self._world_size)
        ]


def sort_into_batches(
    lengths_N: NDArray[np.int64], limits: BatchLimits, *, world_size: int = 1, rank: int = 0
) -> list[list[int]]:
    """Return the batches of a device for rows that are computed once, without gradients.

    The longest rows come first, so that a batch that does not fit fails at once and not after an
    hour. All devices have the same number of batches, of the same number of rows: some rows are
    computed twice for that, so results have to be joined by row (R3).

    Args:
        lengths_N: Tokens that the model computes of each row, shape [N].
        limits: The limits of a batch.
        world_size: Number of devices.
        rank: Rank of this device.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    starts = _cut_batches(lengths_N[order_N], limits, num_micro=world_size, shortest=_SHORTEST)
    batches = [batch.tolist() for batch in np.split(order_N, starts[1:])] if starts else []
    for batch in batches:
        batch += [batch[-1]] * (-len(batch) % world_size)
    return [batch[rank::world_size] for batch in batches]


def _cut_batches(
    lengths_N: NDArray[np.int64], limits: BatchLimits, *, num_micro: int, shortest: float = 0.0
) -> list[int]:
    """Return the start of each batch of `num_micro` micro-batches, in rows sorted by length.

    Unless it is small, a batch ends before rows shorter than the fraction `shortest` of its
    longest row.
    """
    starts, end = [], 0
    while end < len(lengths_N):
        starts.append(end)
        num_rows = len(lengths_N) if limits.num_rows is None else limits.num_rows
        if limits.num_tokens is not None:
            num_rows = min(num_rows, max(1, limits.num_tokens // int(lengths_N[end])))
        if shortest > 0:
            next_start = np.searchsorted(-lengths_N, -shortest * lengths_N[end], side="right")
            num_similar = -(-(int(next_start) - end) // num_micro)
            num_rows = min(num_rows, max(num_similar, _SMALL_BATCH // int(lengths_N[end])))
        end += num_rows * num_micro
    # An optimizer step on a few remaining rows would have the same weight as any other.
    if len(starts) > 1 and len(lengths_N) - starts[-1] < starts[-1] - starts[-2]:
        starts[-1] = (starts[-2] + len(lengths_N) + 1) // 2
    return starts


class Collator:
    """Pads examples to a micro-batch: the `data_collator` of the trainer."""

    def __init__(self, *, pad_token_id: int, targets: Tensor) -> None:
        """Store the padding token, and the shape and dtype of the targets.

        Args:
            pad_token_id: Fills rows up to the longest.
            targets: Targets of any number of rows, for their shape and type.
        """
        self._pad_token_id = pad_token_id
        self._no_targets = targets[:0]

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the inputs as `pad_inputs` does, with labels, row_index and row_weights.

        These are labels [B, ...], row_index [B], the position of each row in its split, and
        row_weights [B] if there are any.

        Without examples it is one token and no label: a device without rows in a step still has to
        take part in the collective operations, with a gradient of 0.
        """
        if not examples:
            row = EncodedRow([], [self._pad_token_id], 1, 1)
            batch = pad_inputs([row], pad_token_id=self._pad_token_id)
            return {
                **batch,
                "labels": self._no_targets,
                "row_index": torch.zeros(0, dtype=torch.long),
            }
        batch = pad_inputs([e.encoded for e in examples], pad_token_id=self._pad_token_id)
        batch["labels"] = torch.stack([e.target for e in examples])
        batch["row_index"] = torch.tensor([e.row_index for e in examples])
        if examples[0].weight is not None:
            batch["row_weights"] = torch.tensor([e.weight for e in examples])
        return batch


def pad_inputs(rows: Sequence[EncodedRow], *, pad_token_id: int) -> dict[str, Tensor]:
    """Pad on the right; return input_ids and attention_mask, both [B, T] int64.

    For rows with a second segment there are token_type_ids [B, T] too.
    """
    longest = max(row.num_tokens for row in rows)
    ids_BT = torch.full((len(rows), longest), pad_token_id, dtype=torch.long)
    mask_BT, segments_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
    for i, row in enumerate(rows):
        length = row.num_tokens
        ids_BT[i, :length] = torch.tensor(row.input_ids, dtype=torch.long)
        mask_BT[i, :length] = 1
        if row.pair_start is not None:
            segments_BT[i, row.pair_start : length] = 1
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if rows[0].pair_start is not None:
        inputs["token_type_ids"] = segments_BT
    return inputs


def make_targets(rows: Sequence[Row], *, label_names: list[str]) -> Tensor:
    """Return labels as float32 scores [N, D], int64 classes [N] or bool labels [N, L]."""
    labels = [row["labels"] for row in rows]
    if isinstance(labels[0], list):
        return torch.tensor([[name in label for name in label_names] for label in labels])
    if isinstance(labels[0], dict):
        scores = [[label[name] for name in label_names] for label in labels]
        return torch.tensor(scores, dtype=torch.float32)
    index = {name: i for i, name in enumerate(label_names)}
    return torch.tensor([index[label] for label in labels], dtype=torch.long)
