"""A base, a pooling of its tokens' states into one vector, and a linear head on it."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from llmft.config.recipe import BaseConfig
from llmft.errors import UserError
from llmft.models.device import autocast
from llmft.models.module_folder import read_declared_pooling
from llmft.models.quantisation import is_quantised
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
        self.name_or_path = base.name_or_path  # PEFT notes it next to an adapter
        self.is_gradient_checkpointing = False
        self.is_loaded_in_4bit = is_quantised(base)  # PEFT asks for it
        self._poolings = list(poolings)
        self.num_prompt = num_prompt
        self._num_layers = int(base.config.num_hidden_layers)

    @property
    def pooling(self) -> Pooling:
        """The only pooling of a head that reads one vector."""
        [pooling] = self._poolings
        return pooling

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Return the head's outputs as `logits`; without a mask no token is padding."""
        with self._collect() as states:
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        states[self._num_layers] = output.last_hidden_state
        mask_BT = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
        vectors = [
            _scale(_pool_padded(states[p.num_layers], mask_BT, p.how, self.num_prompt), p)
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

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute the base's activations in the backward pass, as in transformers' classes."""
        self.model.gradient_checkpointing_enable(*args, **kwargs)

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

        below = {p.num_layers for p in self._poolings} - {self._num_layers}
        layers: Any = find_layers(self.model) if below else None
        hooks = [
            layers[n - 1].register_forward_hook(lambda *args, n=n: keep(n, args[2])) for n in below
        ]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()


def take_base(model: Any) -> Any:
    """Return the base of a sequence classification model, without a pooler."""
    base = drop_pooler(model.base_model)
    if is_quantised(model):
        base.is_loaded_in_4bit = True  # transformers notes it in the outermost model only
    return base


def drop_pooler(base: Any) -> Any:
    """Return a base after removing its pooler, which nothing reads, in place."""
    if getattr(base, "pooler", None) is not None:
        base.pooler = None
    return base


def find_pooled(model: Any) -> PooledModel | None:
    """Return the `PooledModel` that a model is, or that has its adapters; None if it is another."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner if isinstance(inner, PooledModel) else None


def make_pooled_model(
    base: Any, pooling: Pooling, *, num_outputs: int, num_prompt: int
) -> PooledModel:
    """Return a base, cut to the layers of a pooling, under a new linear head."""
    cut_layers(base, pooling.num_layers)
    device = next(base.parameters()).device
    width = getattr(base.config, "word_embed_proj_dim", base.config.hidden_size)  # of OPT
    head = nn.Linear(width, num_outputs, device=device)
    return PooledModel(base, [pooling], head, num_prompt=num_prompt)


def find_layers(base: Any) -> nn.ModuleList | None:
    """Return the layers of a base; None if it has no list of them, such as ALBERT."""
    wanted = base.config.num_hidden_layers
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    return None


@torch.inference_mode()
def can_be_cut(base: Any, num_layers: int) -> bool:
    """Return whether the states that are collected at a layer are those of the base cut there."""
    layers = find_layers(base)
    if layers is None:
        return False
    pooling = Pooling(how="mean", num_layers=num_layers, normalises=False)
    device = next(base.parameters()).device
    ids_BT = torch.arange(1, 9, device=device)[None]
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    is_rounded = any(p.dtype == torch.bfloat16 for p in base.parameters())
    base.eval()
    with autocast(device, "bfloat16" if is_rounded else "float32"):
        whole = PooledModel(base, [pooling], nn.Identity(), num_prompt=0)(**inputs).logits
        above = list(layers[num_layers:])
        del layers[num_layers:]
        try:
            cut = base(**inputs).last_hidden_state.float().mean(dim=1)
        finally:
            layers.extend(above)
    return bool(torch.allclose(whole, cut, rtol=1e-3, atol=1e-4))


def cut_layers(base: Any, num_layers: int) -> None:
    """Remove all layers above the first `num_layers`, in place."""
    if num_layers == base.config.num_hidden_layers:
        return
    layers = find_layers(base)
    assert layers is not None, "such a base is not cut"
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


def find_stock_pooling(model_config: Any) -> PoolingName | None:
    """Return how the sequence classification class of transformers pools the tokens of a base.

    None if it does otherwise, such as EuroBERT, which averages the logits of the tokens.
    """
    if is_causal(model_config):
        return "last"
    names: dict[str, PoolingName] = {"cls": "cls", "bos": "cls", "mean": "mean"}
    return names.get(getattr(model_config, "classifier_pooling", "cls"))


def choose_pooling(config: BaseConfig, model_config: Any) -> Pooling | None:
    """Return the pooling of a base that is trained; None if its class in transformers is taken.

    The vectors are scaled to length 1 if the base declares this pooling with it.

    Raises:
        UserError: If the first token of a base is to be read that sees nothing but itself.
    """
    if config.pooling == "transformers":
        return None
    declared = read_declared_pooling(config)
    if config.pooling != "auto":
        how = config.pooling
    elif declared is not None:
        how = declared[0]
    elif is_causal(model_config):
        how = "mean"  # their last token alone is worse (docs/results.md)
    else:
        return None
    normalises = declared == (how, True)
    # Other classes of encoders have a pooler or a dense layer in between.
    is_plain = is_causal(model_config) or hasattr(model_config, "classifier_pooling")
    if is_plain and how == find_stock_pooling(model_config) and not normalises:
        return None
    _refuse_blind_token(config, model_config, [how])
    return Pooling(how=how, num_layers=model_config.num_hidden_layers, normalises=normalises)


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
    assert config.pooling != "transformers", "the recipe of a frozen base has another one"
    if config.pooling != "auto":
        names: list[PoolingName] = [config.pooling]
        normalises = declared is not None and declared == (config.pooling, True)
    elif declared is not None:
        names, normalises = [declared[0]], declared[1]
    else:
        names = ["mean", "last" if is_causal(model_config) else "cls"]
    _refuse_blind_token(config, model_config, names)
    depths = {num_layers}
    if config.layer == "auto":
        depths |= {max(1, round(num_layers * part)) for part in (0.5, 0.75)}
    return [
        Pooling(how=how, num_layers=depth, normalises=normalises and depth == num_layers)
        for depth in sorted(depths, reverse=True)
        for how in names
    ]


def _refuse_blind_token(
    config: BaseConfig, model_config: Any, names: Sequence[PoolingName]
) -> None:
    if "cls" in names and is_causal(model_config):
        raise UserError(
            f"base.pooling: cls reads the first token, but those of {config.model} see only what "
            "is before them; use mean or last"
        )
