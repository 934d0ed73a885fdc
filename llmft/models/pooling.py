"""A base, a pooling of its tokens' states into one vector, and a linear head on it."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from llmft.config.recipe import BaseConfig
from llmft.errors import UserError
from llmft.models.bases import locate_base
from llmft.results.run import Pooling, PoolingName

logger = logging.getLogger("llmft.train")

_FINAL_NORMS = ("norm", "final_norm", "final_layer_norm", "ln_f")


class PooledModel(nn.Module):
    """A base with a linear head that reads one or several vectors, each pooled from its tokens.

    Shapes: B rows, T tokens, N tokens of all rows that are pooled, E width of the base.
    """

    def __init__(
        self, base: Any, poolings: Sequence[Pooling], head: nn.Module, *, num_prompt: int
    ) -> None:
        """Combine a base and a head.

        Args:
            base: A model without a head, in as many layers as the last pooling reads.
            poolings: What the head reads, one after another.
            head: Takes [B, V * E] for V poolings.
            num_prompt: Leading tokens of every input that are not pooled: those of the prompt.
        """
        super().__init__()
        self.model = base
        self.score = head
        self.config = base.config
        self.config.use_cache = False
        self._poolings = list(poolings)
        self._num_prompt = num_prompt
        self._num_layers = len(find_layers(base))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Return the head's outputs as `logits`."""
        with self._collect() as states:
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        states[self._num_layers] = output.last_hidden_state
        mask_BT = attention_mask.bool()
        vectors = [
            _scale(_pool_padded(states[p.num_layers], mask_BT, p.how, self._num_prompt), p)
            for p in self._poolings
        ]
        return SequenceClassifierOutput(logits=self.score(torch.cat(vectors, dim=1)))

    def pool_packed(self, run: Callable[[], Tensor], lengths_B: Tensor) -> Tensor:
        """Return the head's outputs for rows whose tokens are computed one after another.

        Args:
            run: Computes the base; returns the final states of the rows' own tokens [N, E].
            lengths_B: Number of each row's tokens.
        """
        with self._collect() as states:
            states[self._num_layers] = run()
        vectors = [
            _scale(_pool_packed(states[p.num_layers].flatten(end_dim=-2), lengths_B, p.how), p)
            for p in self._poolings
        ]
        logits: Tensor = self.score(torch.cat(vectors, dim=1))
        return logits

    @contextmanager
    def _collect(self) -> Iterator[dict[int, Tensor]]:
        """Collect the states below the last layer that the poolings read, within the context.

        They are what the base would return if its other layers were removed.
        """
        states: dict[int, Tensor] = {}
        norm = find_final_norm(self.model)

        def keep(num_layers: int, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            states[num_layers] = norm(hidden)

        layers = find_layers(self.model)
        below = {p.num_layers for p in self._poolings} - {self._num_layers}
        hooks = [
            layers[n - 1].register_forward_hook(lambda *args, n=n: keep(n, args[2])) for n in below
        ]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()


def make_pooled_model(
    base: Any, pooling: Pooling, *, num_outputs: int, num_prompt: int
) -> PooledModel:
    """Return a base, cut to the layers of a pooling, under a new linear head."""
    cut_layers(base, pooling.num_layers)
    device = next(base.parameters()).device
    head = nn.Linear(base.config.hidden_size, num_outputs, device=device)
    return PooledModel(base, [pooling], head, num_prompt=num_prompt)


def find_layers(base: Any) -> nn.ModuleList:
    """Return the layers of a base.

    Raises:
        UserError: If it has no list of them.
    """
    wanted = base.config.num_hidden_layers
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise UserError(
        f"base.model: a {type(base).__name__} has no list of {wanted} layers, so it cannot be used "
        "with tuning: frozen"
    )


@torch.inference_mode()
def can_be_cut(base: Any, num_layers: int) -> bool:
    """Return whether the states that are collected at a layer are those of the base cut there."""
    pooling = Pooling(how="mean", num_layers=num_layers, normalises=False)
    device = next(base.parameters()).device
    ids_BT = torch.arange(1, 9, device=device)[None]
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    base.eval()
    whole = PooledModel(base, [pooling], nn.Identity(), num_prompt=0)(**inputs).logits
    layers = find_layers(base)
    above = list(layers[num_layers:])
    del layers[num_layers:]
    try:
        cut = base(**inputs).last_hidden_state.float().mean(dim=1)
    finally:
        layers.extend(above)
    return bool(torch.allclose(whole, cut, rtol=1e-3, atol=1e-4))


def cut_layers(base: Any, num_layers: int) -> None:
    """Remove all layers above the first `num_layers`, in place."""
    layers = find_layers(base)
    del layers[num_layers:]
    base.config.num_hidden_layers = num_layers
    if getattr(base.config, "layer_types", None):
        base.config.layer_types = base.config.layer_types[:num_layers]


def find_final_norm(base: nn.Module) -> nn.Module:
    """Return what the states of the last layer pass through; the identity if there is nothing."""
    found = (getattr(base, name, None) for name in _FINAL_NORMS)
    return next((module for module in found if isinstance(module, nn.Module)), nn.Identity())


def is_causal(model_config: Any) -> bool:
    """Return whether the tokens of a base see only those before them."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = model_config.model_type
    generates = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    fills_gaps = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return generates and not fills_gaps and getattr(model_config, "is_causal", True)


def read_declared_pooling(config: BaseConfig) -> tuple[PoolingName, bool] | None:
    """Return the pooling of a sentence-transformers folder, and whether it scales to length 1.

    None if the base declares none, or another one than those of recipes.
    """
    from transformers.utils.hub import cached_file

    def read(name: str) -> Any:
        path = cached_file(
            locate_base(config), name,
            revision=config.revision, _raise_exceptions_for_missing_entries=False,
        )  # fmt: skip
        return json.loads(Path(path).read_text(encoding="utf-8")) if path is not None else []

    try:
        kinds = {m["type"].rpartition(".")[2]: m["path"] for m in read("modules.json")}
        if not {"Pooling"} <= kinds.keys() <= {"Transformer", "Pooling", "Normalize"}:
            return None
        declared = read(f"{kinds['Pooling']}/config.json")
    except OSError as error:
        first_line = str(error).strip().splitlines()[0]
        logger.warning("whether %s declares a pooling is not known: %s", config.model, first_line)
        return None
    except (ValueError, KeyError, TypeError):
        return None
    # Older versions write a flag for each pooling, newer ones a name.
    keys: dict[PoolingName, tuple[str, str]] = {
        "mean": ("pooling_mode_mean_tokens", "mean"),
        "cls": ("pooling_mode_cls_token", "cls"),
        "last": ("pooling_mode_lasttoken", "lasttoken"),
    }
    chosen = [
        how
        for how, (flag, name) in keys.items()
        if declared.get(flag) or declared.get("pooling_mode") == name
    ]
    num_flags = sum(bool(v) for key, v in declared.items() if key.startswith("pooling_mode_"))
    is_one = len(chosen) == 1 and num_flags <= 1
    return (chosen[0], "Normalize" in kinds) if is_one else None


def _pool_padded(hidden_BTE: Tensor, mask_BT: Tensor, how: PoolingName, num_prompt: int) -> Tensor:
    """Pool rows that are padded on the right, [B, E] float32."""
    hidden_BTE = hidden_BTE.float()
    match how:
        case "cls":
            return hidden_BTE[:, 0]
        case "last":
            return hidden_BTE[torch.arange(len(mask_BT)), mask_BT.sum(dim=1) - 1]
        case "mean":
            own_BT1 = mask_BT[:, :, None].float()
            own_BT1[:, :num_prompt] = 0
            return (hidden_BTE * own_BT1).sum(dim=1) / own_BT1.sum(dim=1)


def _pool_packed(hidden_NE: Tensor, lengths_B: Tensor, how: PoolingName) -> Tensor:
    """Pool rows that follow one another, without the prompt, [B, E] float32."""
    hidden_NE, ends_B = hidden_NE.float(), lengths_B.cumsum(dim=0)
    match how:
        case "cls":
            return hidden_NE[ends_B - lengths_B]
        case "last":
            return hidden_NE[ends_B - 1]
        case "mean":
            row_N = torch.repeat_interleave(lengths_B)
            sums_BE = hidden_NE.new_zeros(len(lengths_B), hidden_NE.shape[1])
            return sums_BE.index_add_(0, row_N, hidden_NE) / lengths_B[:, None]


def _scale(vectors_BE: Tensor, pooling: Pooling) -> Tensor:
    return nn.functional.normalize(vectors_BE) if pooling.normalises else vectors_BE


def list_poolings(config: BaseConfig, model_config: Any) -> list[Pooling]:
    """Return the poolings that a recipe lets choose from.

    Args:
        config: The base, with `pooling` and `layer`.
        model_config: The base's own configuration.

    Raises:
        UserError: If the first token of a base is to be read that sees nothing but itself.
    """
    num_layers = model_config.num_hidden_layers
    declared = read_declared_pooling(config)
    normalises = False
    if config.pooling != "auto":
        names: list[PoolingName] = [config.pooling]
        normalises = declared is not None and declared == (config.pooling, True)
    elif declared is not None:
        names, normalises = [declared[0]], declared[1]
    else:
        names = ["mean", "last" if is_causal(model_config) else "cls"]
    if "cls" in names and is_causal(model_config):
        raise UserError(
            f"base.pooling: cls reads the first token, but those of {config.model} see only what "
            "is before them; use mean or last"
        )
    depths = {num_layers}
    if config.layer == "auto":
        depths |= {max(1, round(num_layers * part)) for part in (0.5, 0.75)}
    return [
        Pooling(how=how, num_layers=depth, normalises=normalises and depth == num_layers)
        for depth in sorted(depths, reverse=True)
        for how in names
    ]
