"""Check, before the first step, that the shared prompt gives the unshared forward's results."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from llmft.config.recipe import Precision
from llmft.data.batches import Collator, Example, Examples
from llmft.errors import UserError
from llmft.models.acceleration.shared_prompt import EAGER_ATTENTION, SharedPrompt
from llmft.models.heads import find_output_layer
from llmft.models.memory.peak import measure_free_memory
from llmft.models.quantisation import is_quantised
from llmft.training.losses import Loss
from llmft.wording import count

logger = logging.getLogger(__name__)

_FLOAT32_TOLERANCE = 1e-4
"""Up to this, rounding is not measured: it made 1.4e-5 at most in 105 random models of 1 to 12
layers, but above 1e-4 in a pretrained Qwen2.5 1.5B of 28."""
_BFLOAT16_TOLERANCE = 0.02
"""The same in bfloat16."""
_ROTARY_TOLERANCE = 0.01
"""Neighbouring positions are about 1 apart, or 0.03 where positions are stretched by 32."""
_MOST_SHARED, _MOST_OWN = 64, 32
"""Tokens of the prompt, its first, and of each row, at both ends, that are compared."""
_LEAST_INFLUENCE = 1e-12
"""Relative to the largest gradient; a smaller one may underflow in one of the two forwards."""


class _Batch(NamedTuple):
    """A batch as the model computed it: B rows of T tokens each, or one packed row of T tokens."""

    labels: Tensor
    loss: Tensor
    logits_BC: Tensor
    tokens_BTE: Tensor
    """Embeddings that the first layer was given."""
    positions_TD: Tensor
    """Rotary embeddings that it was given."""
    gradients_BBTLE: Tensor
    """Of each row's logits, summed, with respect to each row's tokens as they enter L layers: the
    first, and the last."""
    trained_gradient: Tensor
    """Of all logits, summed, with respect to a trained tensor; 0 where parameters are sharded."""


class _Computation(NamedTuple):
    """Layer inputs, outputs and gradients of one forward over the rows, shared or unshared.

    B rows; T tokens as they are packed: the prompt, then each row's own; E, the model's width; L,
    the first layer and the last.
    """

    labels: Tensor
    tokens_TE: Tensor
    positions_TD: Tensor
    loss: Tensor
    logits_BC: Tensor
    gradients_BTLE: Tensor
    trained_gradient: Tensor

    def find_mismatch(self, other: "_Computation") -> str | None:
        """Return a difference from another forward over the same rows that rounding cannot cause.

        Which tokens take part in a row's outputs is read from gradients. In every precision they
        are exactly 0 for a token that no attention leads to, and for no other: in the last layer
        those that the pooled token does not see, in the first those that it does not see through
        other tokens either.
        """
        given = ("labels", self.labels, other.labels), ("tokens", self.tokens_TE, other.tokens_TE)
        for name, own, others in given:
            if not torch.equal(own, others):
                return f"other {name}"
        # Vectorised and scalar code may round a cosine differently.
        differences_TD = self.positions_TD - other.positions_TD
        if bool(differences_TD.abs().amax() > _ROTARY_TOLERANCE):
            return "other positions"
        own_BTL, others_BTL = (x.gradients_BTLE.norm(dim=-1) for x in (self, other))
        larger_BTL = torch.maximum(own_BTL, others_BTL)
        counts_BTL = larger_BTL > _LEAST_INFLUENCE * larger_BTL.amax(dim=1, keepdim=True)
        if bool((counts_BTL & ((own_BTL == 0) != (others_BTL == 0))).any()):
            return "other tokens take part in the outputs of a row"
        return None

    def measure_differences(self, other: "_Computation") -> dict[str, float]:
        """Return the error of another forward in each quantity, relative to the norm here."""
        quantities = {
            # Near 0 these are differences of larger numbers, so norms below 1 count as 1.
            "loss": (self.loss, other.loss, 1.0),
            "logits": (self.logits_BC, other.logits_BC, 1.0),
            "gradients of tokens": (
                self.gradients_BTLE[:, :, 0],
                other.gradients_BTLE[:, :, 0],
                1e-6,
            ),
            "gradients of weights": (self.trained_gradient, other.trained_gradient, 1e-6),
        }
        return {
            name: float((found - expected).norm() / expected.norm().clamp(min=least))
            for name, (expected, found, least) in quantities.items()
        }


def choose_rows(train: Examples) -> list[Example]:
    """Return tokens of two rows that differ in target and length, as far as there are such.

    A row as long as the first loses one token more. A single row is compared with a part of itself,
    and one of a single token is compared alone: there is nothing to mistake it for.
    """
    first = _shorten(train[0])
    differs_N = (train.targets != train.targets[0]).reshape(len(train), -1).any(dim=1)
    second = train[int(differs_N.int().argmax())] if bool(differs_N.any()) else train[-1]
    second = _shorten(second)
    own_ids = second.encoded.own_ids
    if len(own_ids) == len(first.encoded.own_ids):
        own_ids = own_ids[:-1]
    if not own_ids:
        return [first]
    return [first, second._replace(encoded=second.encoded._replace(own_ids=own_ids))]


def _shorten(row: Example) -> Example:
    own_ids, half = row.encoded.own_ids, _MOST_OWN // 2
    if len(own_ids) > _MOST_OWN:  # of its article too, where a long part of the prompt follows it
        own_ids = own_ids[:half] + own_ids[-half:]
    return row._replace(encoded=row.encoded._replace(own_ids=own_ids))


class SharingCheck(TrainerCallback):  # type: ignore[misc]
    """Compares the shared prompt with the unshared forward on two rows, before the first step.

    Of prompt and rows a part suffices, since a base whose attention or positions depend on the
    length of the input shares none (`explain_unshared`): on a Qwen 2.5 1.5B the whole would take
    minutes on a CPU, and more memory than a step.

    Layers treat each token alone, but for attention, which takes positions and a mask. So what
    can go wrong with a packed row is compared exactly, in any precision: labels, tokens and
    positions that the layers are given, and which tokens take part in the outputs of each row.

    Loss, logits and gradients are compared in float32 or, where that is impossible since weights
    are in 4 bit or sharded or memory is short, in bfloat16. Differences above a small tolerance may
    be three times as large as what padding or eager attention makes to the unshared forward.

    Both the training step and prediction, where the prompt is cached, are checked.
    """

    def __init__(
        self,
        sharing: SharedPrompt,
        rows: Sequence[Example],
        *,
        collator: Collator,
        loss: Loss,
        precision: Precision,
        has_replicated_weights: bool = True,
    ) -> None:
        """Store the shared prompt, the rows and the loss to compare with.

        Args:
            sharing: The shared prompt, attached to the model that is trained.
            rows: Training rows with their shared tokens, as `choose_rows` returns them.
            collator: Makes batches.
            loss: The loss of the training.
            precision: Precision of the training.
            has_replicated_weights: Whether parameters are replicated and not sharded. The gradients
                of sharded ones cannot be computed outside of a step.
        """
        self._sharing = sharing
        self._whole_ids = rows[0].encoded.shared_ids
        shared_ids = self._whole_ids[:_MOST_SHARED]
        self._rows = [r._replace(encoded=r.encoded._replace(shared_ids=shared_ids)) for r in rows]
        self._num_shared = len(shared_ids)
        self._collator = collator
        self._loss = loss
        self._precision = precision
        self._has_replicated_weights = has_replicated_weights

    def on_train_begin(self, *_: Any, model: nn.Module, **kwargs: Any) -> None:
        """Compare both forwards, in float32 if possible.

        Raises:
            UserError: If anything differs by more than rounding.
        """
        if self._sharing.shared_ids != self._whole_ids:
            raise UserError(self._explain("other tokens"))
        with self._sharing.shortened(_MOST_SHARED):
            self._check(model)

    def _check(self, model: nn.Module) -> None:
        in_float32 = self._can_compute_in_float32(model)
        logger.info(
            "checking the shared prompt on %s: %s tokens with it, %s without, in %s",
            count(len(self._rows), "row"),
            f"{self._num_shared + sum(len(row.encoded.own_ids) for row in self._rows):,}",
            f"{sum(row.encoded.num_tokens for row in self._rows):,}",
            "float32" if in_float32 else "bfloat16",
        )
        with _without_dropout(model):
            if in_float32:
                with self._sharing.in_float32():
                    fault = self._find_fault(model, tolerance=_FLOAT32_TOLERANCE)
            else:
                fault = self._find_fault(model, tolerance=_BFLOAT16_TOLERANCE)
        if fault is not None:
            raise UserError(self._explain(fault))

    def _explain(self, fault: str) -> str:
        return (
            "prompt.share: on the first rows of train the shared prompt does not agree with "
            f"the unshared forward ({fault}), so it cannot be used with this base; set "
            "prompt.share: false, and please report it with the package versions"
        )

    def _can_compute_in_float32(self, model: nn.Module) -> bool:
        if self._precision == "float32":
            return True
        if is_quantised(model) or not self._has_replicated_weights:
            return False
        device = find_output_layer(model).weight.device
        return self._estimate_float32_gib(model, device) < measure_free_memory(device)

    def _estimate_float32_gib(self, model: Any, device: torch.device) -> float:
        """Return the peak memory in float32: activations, and the weights of one layer, cast up."""
        config, layers = model.config, self._sharing.layers
        num_tokens = self._num_shared + sum(len(row.encoded.own_ids) for row in self._rows)
        per_layer = num_tokens * (16 * config.hidden_size + 6 * config.intermediate_size)
        if device.type != "cpu":  # the fast kernels of GPUs do not take float32
            longest = max(row.encoded.num_tokens for row in self._rows)
            per_layer += 3 * config.num_attention_heads * longest**2
        num_kept = 1 if layers[0].gradient_checkpointing else len(layers)
        between_layers = num_tokens * config.hidden_size * len(layers)
        cast_up = max(parameter.numel() for parameter in layers.parameters())
        return float(4 * (num_kept * per_layer + between_layers + cast_up) / 2**30)

    def _find_fault(self, model: nn.Module, *, tolerance: float) -> str | None:
        """Return how the shared prompt is wrong, or None.

        What is above the tolerance is compared with the rounding of this model, which is measured.
        """
        expected, rounding = self._compute_unshared(model), None
        if not all(bool(x.isfinite().all()) for x in expected):
            return None  # the first training step reports a loss that is not finite
        for place, keeps_prompt in (("training", False), ("prediction", True)):
            found = self._compute_shared(model, keeps_prompt=keeps_prompt)
            mismatch = expected.find_mismatch(found)
            if mismatch is not None:
                return f"{place}: {mismatch}"
            for name, difference in expected.measure_differences(found).items():
                if difference <= tolerance:
                    continue
                if rounding is None:
                    rounding = self._measure_rounding(model, expected)
                    tolerance = max(tolerance, 3 * rounding)
                if not difference <= tolerance:
                    return f"{place}: {name} off by {difference:.3%}, tolerance {tolerance:.3%}"
        return None

    def _measure_rounding(self, model: nn.Module, expected: _Computation) -> float:
        """Return the largest difference between unshared forwards that differ in rounding only."""
        others = (
            self._compute_unshared(model, is_padded=True),
            self._compute_unshared(model, attention=EAGER_ATTENTION),
        )
        return max(x for other in others for x in expected.measure_differences(other).values())

    def _compute_unshared(
        self, model: nn.Module, *, is_padded: bool = False, attention: str | None = None
    ) -> _Computation:
        """Compute unshared inputs, one by one or padded, and lay them out like a packed row."""
        rows = self._rows
        with self._sharing.unshared(attention=attention):
            parts = [rows] if is_padded else [[row] for row in rows]
            batches = [self._compute(model, part) for part in parts]
        places = [(batch, i) for batch in batches for i in range(len(batch.logits_BC))]
        lengths = [row.encoded.num_tokens for row in rows]
        gradients = [
            batch.gradients_BBTLE[i, i, :length]
            for (batch, i), length in zip(places, lengths, strict=True)
        ]

        def pack(whole: Sequence[Tensor], *, prompt_of: int = 0) -> Tensor:
            prompt = whole[prompt_of][: self._num_shared]
            return torch.cat([prompt, *(row[self._num_shared :] for row in whole)])

        def pack_alone(row: int) -> Tensor:
            alone = [g if i == row else torch.zeros_like(g) for i, g in enumerate(gradients)]
            return pack(alone, prompt_of=row)

        return _Computation(
            labels=torch.cat([batch.labels for batch in batches]),
            tokens_TE=pack(
                [b.tokens_BTE[i, :n] for (b, i), n in zip(places, lengths, strict=True)]
            ),
            positions_TD=pack(
                [b.positions_TD[:n] for (b, _), n in zip(places, lengths, strict=True)]
            ),
            loss=torch.stack([batch.loss for batch in batches]).sum(),
            logits_BC=torch.cat([batch.logits_BC for batch in batches]),
            gradients_BTLE=torch.stack([pack_alone(row) for row in range(len(rows))]),
            trained_gradient=torch.stack([b.trained_gradient for b in batches]).sum(dim=0),
        )

    def _compute_shared(self, model: nn.Module, *, keeps_prompt: bool) -> _Computation:
        """Compute the rows' own tokens as training does, or as prediction with its kept prompt."""
        own = [row._replace(encoded=row.encoded._replace(shared_ids=[])) for row in self._rows]
        self._sharing.forget()
        batch = self._compute(model, own, keeps_prompt=keeps_prompt)
        self._sharing.forget()
        return _Computation(
            labels=batch.labels,
            tokens_TE=batch.tokens_BTE[0],
            positions_TD=batch.positions_TD,
            loss=batch.loss,
            logits_BC=batch.logits_BC,
            gradients_BTLE=batch.gradients_BBTLE[:, 0],
            trained_gradient=batch.trained_gradient,
        )

    def _compute(
        self, model: nn.Module, rows: Sequence[Example], *, keeps_prompt: bool = False
    ) -> _Batch:
        """Compute a batch.

        Gradients are on from the first layer on, even if the prompt is kept as in prediction.
        """
        device = find_output_layer(model).weight.device
        inputs = {name: x.to(device) for name, x in self._collator(rows).items()}
        labels, _ = inputs.pop("labels"), inputs.pop("row_weights", None)
        num_items = labels.numel() // len(rows) * len(self._rows)
        entered: list[list[Tensor]] = [[], []]  # the first layer and the last, call by call
        positions: list[Tensor] = []

        def note_first(_: nn.Module, tokens: tuple[Tensor], named: dict[str, Any]) -> None:
            torch.set_grad_enabled(True)
            if not tokens[0].requires_grad:
                tokens[0].requires_grad_()
            entered[0].append(tokens[0])
            positions.append(torch.cat(named["position_embeddings"], dim=-1))

        def note_last(_: nn.Module, tokens: tuple[Tensor]) -> None:
            entered[1].append(tokens[0])

        with (
            self._sharing.layers[0].register_forward_pre_hook(note_first, with_kwargs=True),
            self._sharing.layers[-1].register_forward_pre_hook(note_last),
            torch.set_grad_enabled(not keeps_prompt),
        ):
            logits_BC = model(**inputs).logits
        trained = [self._find_trained(model)] if self._has_replicated_weights else []
        gradients, of_trained = [], []
        for row_C in logits_BC:
            wanted = [*entered[0], *entered[1], *trained]
            found = list(torch.autograd.grad(row_C.sum(), wanted, retain_graph=True))
            of_trained.append(found.pop() if trained else row_C.new_zeros(()))
            parts = found[: len(entered[0])], found[len(entered[0]) :]
            gradients.append(torch.stack([torch.cat(part, dim=1) for part in parts], dim=2))
        return _Batch(
            labels=labels,
            loss=self._loss(logits_BC, labels, num_items=num_items).detach(),
            logits_BC=logits_BC.detach(),
            tokens_BTE=torch.cat(entered[0], dim=1).detach(),
            positions_TD=torch.cat(positions, dim=1)[0],
            gradients_BBTLE=torch.stack(gradients),
            trained_gradient=torch.stack(of_trained).sum(dim=0),
        )

    def _find_trained(self, model: nn.Module) -> nn.Parameter:
        """Return the first trained tensor in the layers, which all of them take part in."""
        named = [*self._sharing.layers.named_parameters(), *model.named_parameters()]
        # An adapter's A has no gradient before the first step, since its B is 0.
        return next(p for name, p in named if p.requires_grad and "lora_A" not in name)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Disable dropout in training mode, which gradient checkpointing needs."""
    was_training = model.training
    dropping = [m for m in model.train().modules() if isinstance(m, nn.Dropout)]
    for module in dropping:
        module.eval()
    try:
        yield
    finally:
        for module in dropping:
            module.train()
        model.train(was_training)
