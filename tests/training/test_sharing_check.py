"""The shared prompt is compared with the unshared forward when a training begins."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmft.config.head import HeadConfig
from llmft.config.recipe import BaseConfig, LoraConfig, Precision
from llmft.data.batches import Collator, Example, Examples
from llmft.data.encoding import EncodedRow
from llmft.errors import UserError
from llmft.models.acceleration import shared_prompt as packed_attention
from llmft.models.acceleration.precision import cast_frozen_weights
from llmft.models.acceleration.shared_prompt import PACKED_ATTENTION, SharedPrompt, attend_packed
from llmft.models.device import autocast
from llmft.models.heads import LabelSpace, compute_head_in_float32
from llmft.models.loading import load_model
from llmft.training import sharing_check as sharing_module
from llmft.training.losses import Loss
from llmft.training.sharing_check import SharingCheck, choose_rows
from tests.models.acceleration.test_shared_prompt import CONFIGS, PAD, make_model

PROMPT_IDS = [*range(20, 55), *range(10, 15)]
MODES = ("float32", "bfloat16 cast up", "bfloat16")
"""The precision of the training, and in bfloat16 what its check computes in."""


def make_row(
    own_ids: Sequence[int],
    *,
    prompt: list[int] = PROMPT_IDS,
    target: Sequence[float] = (1, -1, 0),
) -> Example:
    encoded = EncodedRow(prompt, list(own_ids), len(own_ids), len(own_ids))
    return Example(0, encoded, torch.tensor(target, dtype=torch.float32), None)


ROWS = [make_row([3, 4, 5, 6, 7]), make_row([9, 8], target=(0, 2, 1))]


def load(*, tuning: str = "lora", **changes: Any) -> nn.Module:
    """Return a tiny model as it is trained in bfloat16."""
    model: nn.Module = make_model(lora=tuning == "lora", **changes)
    compute_head_in_float32(model)
    return model


@contextmanager
def as_trained(model: nn.Module, mode: str) -> Iterator[None]:
    """Put around a model what the trainer puts around it."""
    forward = model.forward
    if mode != "float32":
        cast_frozen_weights(model)

    def compute(*args: Any, **kwargs: Any) -> Any:
        with autocast(torch.device("cpu"), "float32" if mode == "float32" else "bfloat16"):
            return forward(*args, **kwargs)

    model.forward = compute
    yield
    model.forward = forward


def make_check(
    sharing: SharedPrompt,
    *,
    mode: str,
    rows: Sequence[Example] = ROWS,
    collator: Callable[..., Any] | None = None,
    has_replicated_weights: bool = True,
) -> SharingCheck:
    return SharingCheck(
        sharing,
        rows,
        collator=collator or Collator(pad_token_id=PAD, targets=torch.zeros(1, 3)),
        loss=Loss(HeadConfig(type="regression")),
        precision="float32" if mode == "float32" else "bfloat16",
        has_replicated_weights=has_replicated_weights,
    )


def check(model: nn.Module, sharing: SharedPrompt, *, mode: str, **settings: Any) -> None:
    with pytest.MonkeyPatch.context() as patch, as_trained(model, mode):
        if mode == "bfloat16":
            patch.setattr(sharing_module, "measure_free_memory", lambda _: 0)
        make_check(sharing, mode=mode, **settings).on_train_begin(model=model)


Plant = Callable[[Any, pytest.MonkeyPatch], SharedPrompt]
"""Attaches a shared prompt with a fault to a model."""


def patch_attention(patch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Let attention find other rows than the packed ones."""

    def attend(module: Any, *tensors: Any, packed_rows: Any, **kwargs: Any) -> Any:
        return attend_packed(module, *tensors, packed_rows=change(packed_rows), **kwargs)

    patch.setitem(ALL_ATTENTION_FUNCTIONS, PACKED_ATTENTION, attend)


def with_other_prompt(ids: list[int]) -> Plant:
    return lambda model, _: SharedPrompt(model, ids)


def with_swapped_outputs(model: Any, patch: pytest.MonkeyPatch) -> SharedPrompt:
    head = get_inner(model).score
    head.register_forward_hook(
        lambda _, inputs, output: output.flip(0) if output.dim() == 2 else output
    )
    return SharedPrompt(model, PROMPT_IDS)


def with_other_ends(change: Callable[[Tensor], Tensor]) -> Plant:
    def plant(model: Any, patch: pytest.MonkeyPatch) -> SharedPrompt:
        run = SharedPrompt._run

        def run_changed(*args: Any, places: Tensor) -> Any:
            return run(*args, places=change(places))

        patch.setattr(SharedPrompt, "_run", run_changed)
        return SharedPrompt(model, PROMPT_IDS)

    return plant


def with_other_positions(change: Callable[[Tensor], Tensor]) -> Plant:
    """Positions are changed where the backbone takes them."""

    def plant(model: Any, patch: pytest.MonkeyPatch) -> SharedPrompt:
        def shift(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            if "packed_rows" in kwargs:
                kwargs["position_ids"] = change(kwargs["position_ids"])
            return args, kwargs

        get_inner(model).model.register_forward_pre_hook(shift, with_kwargs=True)
        return SharedPrompt(model, PROMPT_IDS)

    return plant


def with_rows_that_see_all_before(model: Any, patch: pytest.MonkeyPatch) -> SharedPrompt:
    """The library's own causal attention over the packed row (L3), in training."""

    def attend(module: Any, *tensors: Any, packed_rows: Any, **kwargs: Any) -> Any:
        if packed_rows.cache is not None:
            return attend_packed(module, *tensors, packed_rows=packed_rows, **kwargs)
        return sdpa_attention_forward(module, *tensors, is_causal=True, **kwargs)

    patch.setitem(ALL_ATTENTION_FUNCTIONS, PACKED_ATTENTION, attend)
    return SharedPrompt(model, PROMPT_IDS)


def with_rows_that_see_all_before_in_prediction(
    model: Any, patch: pytest.MonkeyPatch
) -> SharedPrompt:
    """One row instead of several, behind the kept prompt."""

    def join(rows: Any) -> Any:
        if rows.cache is None or not len(rows.grid_N):
            return rows
        num_tokens = len(rows.grid_N)
        grid_N = torch.arange(num_tokens)
        return rows._replace(grid_N=grid_N, num_rows=1, longest=num_tokens)

    patch_attention(patch, join)
    return SharedPrompt(model, PROMPT_IDS)


def with_a_token_of_the_next_row(model: Any, patch: pytest.MonkeyPatch) -> SharedPrompt:
    """The last token of the first row counts as the first of the second one, or the reverse."""

    def move(rows: Any) -> Any:
        if not len(rows.grid_N):
            return rows
        grid_N = rows.grid_N.clone()
        lengths = (grid_N // rows.longest).bincount(minlength=2) + torch.tensor([-1, 1])
        grid_N = torch.cat([torch.arange(lengths[0]), rows.longest + torch.arange(lengths[1])])
        return rows._replace(grid_N=grid_N)

    patch_attention(patch, move)
    return SharedPrompt(model, PROMPT_IDS)


def with_a_hidden_token_of_the_prompt(at: slice) -> Plant:
    """No row sees it, but all else is as it should be."""

    def plant(model: Any, patch: pytest.MonkeyPatch) -> SharedPrompt:
        attend = packed_attention._FlashRows.apply

        def attend_to_fewer(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
            return attend(query, key[:, :, at], value[:, :, at], *rest)

        patch.setattr(packed_attention._FlashRows, "apply", attend_to_fewer)
        return SharedPrompt(model, PROMPT_IDS)

    return plant


def with_a_kept_prompt_that_is_short(model: Any, patch: pytest.MonkeyPatch) -> SharedPrompt:
    def shorten(rows: Any) -> Any:
        if rows.num_prompt or rows.cache is None:
            return rows
        return rows._replace(cache=[(k[:, :, 1:], v[:, :, 1:]) for k, v in rows.cache])

    patch_attention(patch, shorten)
    return SharedPrompt(model, PROMPT_IDS)


def get_inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def shift_own(positions_1T: Tensor) -> Tensor:
    is_prompt_1T = positions_1T < len(PROMPT_IDS)
    return torch.where(is_prompt_1T, positions_1T, positions_1T + 1)


def shift_prompt(positions_1T: Tensor) -> Tensor:
    is_prompt_1T = positions_1T < len(PROMPT_IDS)
    return torch.where(is_prompt_1T, positions_1T + 1, positions_1T)


def shift_first_row(positions_1T: Tensor) -> Tensor:
    """Of the row alone, whose positions end one earlier."""
    positions_1T = positions_1T.clone()
    first_own = (positions_1T[0] == len(PROMPT_IDS)).nonzero()
    if len(first_own):
        positions_1T[0, first_own[0]] += 1
    return positions_1T


PLANTS: dict[str, tuple[Plant, str]] = {
    "swapped outputs": (with_swapped_outputs, "other tokens take part"),
    "swapped ends": (with_other_ends(lambda ends_B: ends_B.flip(0)), "other tokens take part"),
    "early ends": (with_other_ends(lambda ends_B: ends_B - 1), "other tokens take part"),
    "own positions + 1": (with_other_positions(shift_own), "other positions"),
    "prompt positions + 1": (with_other_positions(shift_prompt), "other positions"),
    "all positions + 1": (with_other_positions(lambda x_1T: x_1T + 1), "other positions"),
    "one position + 1": (with_other_positions(shift_first_row), "other positions"),
    "rows see rows before": (with_rows_that_see_all_before, "training: other tokens take part"),
    "rows see rows before in prediction": (
        with_rows_that_see_all_before_in_prediction, "prediction: other tokens take part",
    ),
    "a row takes a token": (with_a_token_of_the_next_row, "other tokens take part"),
    "prompt without its last token": (with_other_prompt(PROMPT_IDS[:-1]), "other tokens"),
    "prompt without its first token": (with_other_prompt(PROMPT_IDS[1:]), "other tokens"),
    "prompt with one token more": (with_other_prompt([*PROMPT_IDS, 7]), "other tokens"),
    "prompt with another token": (with_other_prompt([*PROMPT_IDS[:-1], 7]), "other tokens"),
    "no prompt": (with_other_prompt([]), "other tokens"),
    "last token of the prompt hidden": (
        with_a_hidden_token_of_the_prompt(slice(None, -1)), "other tokens take part",
    ),
    "first token of the prompt hidden": (
        with_a_hidden_token_of_the_prompt(slice(1, None)), "other tokens take part",
    ),
    "kept prompt is short": (
        with_a_kept_prompt_that_is_short, "prediction: other tokens take part",
    ),
}  # fmt: skip
CORE = (
    "swapped outputs", "own positions + 1", "rows see rows before", "prompt without its last token",
)  # fmt: skip
MESSAGE = r"^prompt.share: .*{}.*set prompt.share: false, .* versions$"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("family", "num_layers"), [("qwen2", 1), ("llama", 3)])
@pytest.mark.parametrize("name", PLANTS)
def test_l1_to_l5_a_planted_fault_stops_the_run(
    name: str, family: str, num_layers: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, cause = PLANTS[name]
    # Weights as small as in a new model: attention is nearly even, and positions hardly count.
    model = load(family=family, num_hidden_layers=num_layers, initializer_range=0.02)
    sharing = plant(model, monkeypatch)
    with pytest.raises(UserError, match=MESSAGE.format(cause)):
        check(model, sharing, mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["mistral", "qwen3"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("name", CORE)
def test_l1_to_l5_a_planted_fault_stops_the_run_of_every_family(
    name: str, tuning: str, family: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, cause = PLANTS[name]
    model = load(family=family, tuning=tuning, num_hidden_layers=2)
    if tuning == "lora":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    sharing = plant(model, monkeypatch)
    with pytest.raises(UserError, match=MESSAGE.format(cause)):
        check(model, sharing, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_swapped_labels_stop_the_run(mode: str) -> None:
    model = load()
    collate = Collator(pad_token_id=PAD, targets=torch.zeros(1, 3))

    def swap(rows: Sequence[Example]) -> dict[str, Tensor]:
        batch = collate(rows)
        return {**batch, "labels": batch["labels"].flip(0)}

    with pytest.raises(UserError, match=MESSAGE.format("other labels")):
        check(model, SharedPrompt(model, PROMPT_IDS), mode=mode, collator=swap)


class TestRightPrompt:
    """Nothing but rounding: no false alarm, and no trace."""

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("family", CONFIGS)
    @pytest.mark.parametrize("tuning", ["full", "lora"])
    def test_it_passes_and_leaves_no_trace(self, tuning: str, family: str, mode: str) -> None:
        model = load(family=family, tuning=tuning)
        if mode != "float32":
            cast_frozen_weights(model)
        sharing = SharedPrompt(model, PROMPT_IDS)
        training = {name: module.training for name, module in model.train().named_modules()}
        members = {name: set(vars(module)) for name, module in model.named_modules()}
        state = torch.get_rng_state()
        tensors = [(p, p.data_ptr(), p.dtype, p._version) for p in model.parameters()]
        check(model, sharing, mode=mode)
        assert {name: module.training for name, module in model.named_modules()} == training
        assert torch.equal(torch.get_rng_state(), state)
        found = [(p, p.data_ptr(), p.dtype, p._version) for p in model.parameters()]
        assert all(
            a is b and before == after
            for (a, *before), (b, *after) in zip(tensors, found, strict=True)
        )
        assert all(p.grad is None for p in model.parameters())
        for name, module in model.named_modules():
            assert set(vars(module)) - {"forward"} == members[name] - {"forward"}
            assert not module._forward_pre_hooks or name.endswith("norm")

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("seed", range(6))
    def test_it_passes_whatever_the_rows_are(self, seed: int, mode: str) -> None:
        """Prompts from none on, H3: rows that end in the pad token, a batch of one."""
        draw = random.Random(seed)
        prompt = [draw.randrange(1, 60) for _ in range(draw.choice([0, 1, 7, 60]))]
        rows = [
            make_row(
                [draw.randrange(1, 60) for _ in range(length)] + [PAD] * draw.randrange(2),
                prompt=prompt,
                target=[draw.gauss(0, 1) for _ in range(3)],
            )
            for length in draw.sample([1, 2, 3, 30], k=draw.choice([1, 2]))
        ]
        model = load(
            family=draw.choice(list(CONFIGS)),
            tuning=draw.choice(["full", "lora"]),
            num_hidden_layers=draw.choice([1, 4]),
            initializer_range=draw.choice([0.02, 0.3]),
        )
        if draw.random() < 0.5:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        check(model, SharedPrompt(model, prompt), mode=mode, rows=rows)

    @pytest.mark.parametrize("mode", MODES)
    def test_l2_it_passes_with_checkpointing_and_uses_it(self, mode: str) -> None:
        """Else whole inputs would take more memory than the training itself."""
        calls = []
        for is_checkpointed in (False, True):
            model = load()
            if is_checkpointed:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            sharing = SharedPrompt(model, PROMPT_IDS)
            counted: list[int] = []
            layer = sharing.layers[1].mlp
            layer.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
            check(model, sharing, mode=mode)
            calls.append(len(counted))
        assert calls[1] > 1.5 * calls[0], "computed again in the backward pass"

    @pytest.mark.parametrize("mode", MODES)
    def test_weights_that_are_broken_already_are_left_to_the_first_step(self, mode: str) -> None:
        model = load()
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
        check(model, SharedPrompt(model, PROMPT_IDS), mode=mode)

    @pytest.mark.parametrize("mode", MODES)
    def test_a_head_that_is_0_passes(self, mode: str) -> None:
        model = load(tuning="full")
        with torch.no_grad():
            model.score.weight.zero_()
        check(model, SharedPrompt(model, PROMPT_IDS), mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_what_the_rounding_of_a_model_explains_is_no_fault(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pretrained base of 28 layers rounds more than small random ones."""
    for name in ("_FLOAT32_TOLERANCE", "_BFLOAT16_TOLERANCE"):
        monkeypatch.setattr(sharing_module, name, 1e-12)
    model = load()
    sharing = SharedPrompt(model, PROMPT_IDS)
    check(model, sharing, mode=mode)
    sharing.detach()
    measure = SharingCheck._measure_rounding
    monkeypatch.setattr(SharingCheck, "_measure_rounding", lambda *given: measure(*given) / 1e6)
    with pytest.raises(UserError, match=MESSAGE.format(r".*tolerance 0\.000%")):
        check(model, SharedPrompt(model, PROMPT_IDS), mode=mode)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
class TestBaseIn4Bit:
    """It has no float32 to be cast up from (L8)."""

    @pytest.fixture
    def model(self, tiny_qwen: Path, precision: Precision) -> nn.Module:
        base = BaseConfig(model=str(tiny_qwen), tuning="qlora", lora=LoraConfig(rank=4))
        space = LabelSpace("regression", ["risk", "calm", "news"])
        return load_model(base, labels=space, pad_token_id=PAD, seed=0, precision=precision).model

    def test_a_right_prompt_passes(self, model: nn.Module, precision: Precision) -> None:
        check(model, SharedPrompt(model, PROMPT_IDS), mode=precision)

    @pytest.mark.parametrize("name", CORE)
    def test_a_planted_fault_stops_the_run(
        self, name: str, model: nn.Module, precision: Precision, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plant, cause = PLANTS[name]
        sharing = plant(model, monkeypatch)
        with pytest.raises(UserError, match=MESSAGE.format(cause)):
            check(model, sharing, mode=precision)


class TestPrecision:
    """In float32 where the weights have it and memory suffices."""

    @pytest.fixture
    def tolerances(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """What checks were made with."""
        found: list[float] = []
        monkeypatch.setattr(
            SharingCheck, "_find_fault", lambda _, __, tolerance: found.append(tolerance)
        )
        return found

    @pytest.mark.parametrize("mode", MODES)
    def test_memory_decides(self, mode: str, tolerances: list[float]) -> None:
        model = load()
        check(model, SharedPrompt(model, PROMPT_IDS), mode=mode)
        assert tolerances == [0.02 if mode == "bfloat16" else 1e-4]

    def test_sharded_parameters_are_left_as_they_are(self, tolerances: list[float]) -> None:
        model = load()
        sharing = SharedPrompt(model, PROMPT_IDS)
        check(model, sharing, mode="bfloat16 cast up", has_replicated_weights=False)
        assert tolerances == [0.02]

    @pytest.mark.parametrize("is_checkpointed", [False, True])
    @pytest.mark.parametrize("tuning", ["full", "lora"])
    def test_the_estimate_is_an_upper_bound(self, tuning: str, is_checkpointed: bool) -> None:
        """Of what autograd keeps of a packed row, as far as it is no weight."""
        prompt = PROMPT_IDS * 10
        row = make_row([3, 4, 5], prompt=prompt)
        model = load(tuning=tuning, num_hidden_layers=6, intermediate_size=128)
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        sharing = SharedPrompt(model, prompt)
        check_of_one = make_check(sharing, rows=[row], mode="float32")
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with (
            sharing.shortened(sharing_module._MOST_SHARED),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            model.train()(input_ids=torch.tensor([[3, 4, 5]]), attention_mask=torch.ones(1, 3))
        num_bytes = sum(
            tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights
        )
        estimate = check_of_one._estimate_float32_gib(model, torch.device("cpu")) * 2**30
        assert num_bytes < estimate
        assert is_checkpointed or estimate < 2 * num_bytes


def test_of_a_long_prompt_and_long_rows_a_part_is_compared() -> None:
    """It costs no more than with a short prompt, and all else is as before."""
    prompt, lengths = [*PROMPT_IDS] * 20, []
    model = load(num_hidden_layers=2)
    sharing = SharedPrompt(model, prompt)
    whole = [make_row([3, 4, 5] * 40, prompt=prompt), make_row([9, 8] * 60, prompt=prompt)]
    examples = Examples(
        [r.encoded for r in whole], torch.stack([r.target for r in whole]), ids=["a", "b"]
    )
    get_inner(model).model.embed_tokens.register_forward_pre_hook(
        lambda _, args: lengths.append(args[0].shape[1])
    )
    check(model, sharing, mode="float32", rows=choose_rows(examples))
    assert max(lengths) <= 64 + 2 * 32
    assert sharing.shared_ids == prompt


def test_a_prompt_that_differs_at_its_end_stops_the_run() -> None:
    prompt = [*PROMPT_IDS] * 20
    model = load(num_hidden_layers=2)
    rows = [make_row([3, 4], prompt=prompt), make_row([9], prompt=prompt)]
    with pytest.raises(UserError, match=MESSAGE.format("other tokens")):
        check(model, SharedPrompt(model, [*prompt[:-1], 7]), mode="float32", rows=rows)


class TestChooseRows:
    """Rows that are alike would hide that they are swapped."""

    @staticmethod
    def choose(rows: list[tuple[list[int], float]]) -> list[tuple[list[int], float]]:
        encoded = [EncodedRow(PROMPT_IDS, ids, len(ids), len(ids)) for ids, _ in rows]
        targets = torch.tensor([[target] for _, target in rows])
        train = Examples(encoded, targets, ids=[str(i) for i in range(len(rows))])
        return [(e.encoded.own_ids, e.target.item()) for e in choose_rows(train)]

    def test_the_first_with_another_target_is_taken(self) -> None:
        rows = [([3, 4], 1.0), ([5], 1.0), ([6, 7, 8], 2.0), ([9], 3.0)]
        assert self.choose(rows) == [rows[0], rows[2]]

    def test_equal_lengths_are_made_unequal(self) -> None:
        assert self.choose([([3, 4], 1.0), ([5, 6], 2.0)]) == [([3, 4], 1.0), ([5], 2.0)]

    def test_a_single_row_is_compared_with_a_part_of_itself(self) -> None:
        assert self.choose([([3, 4], 1.0)]) == [([3, 4], 1.0), ([3], 1.0)]

    def test_a_single_token_is_compared_alone(self) -> None:
        assert self.choose([([3], 1.0), ([4], 1.0)]) == [([3], 1.0)]
