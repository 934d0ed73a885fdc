"""Fast dropout: the same function as PyTorch's, in its statistics, gradients and names."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSequenceClassification, BertConfig

from llmft.config.recipe import BaseConfig, LoraConfig
from llmft.models.acceleration.dropout import (
    FastDropout,
    attend_with_dropout,
    draw_mask,
    fast_dropout,
)
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_model
from tests.families import CONFIGS

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_layer(share: float) -> FastDropout:
    return FastDropout(share).train()


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.9])
def test_mean_variance_and_kept_share_are_those_of_dropout(share: float) -> None:
    dropped = make_layer(share)(torch.ones(1000, 1001))
    num = dropped.numel()
    kept = (dropped != 0).float().mean().item()
    assert kept == pytest.approx(1 - share, abs=5 * (share * (1 - share) / num) ** 0.5 + 2**-15)
    assert dropped.mean().item() == pytest.approx(1, abs=5 * (share / (1 - share) / num) ** 0.5)
    assert dropped.var().item() == pytest.approx(share / (1 - share), rel=0.02)


def test_elements_are_independent_of_their_neighbours_and_of_other_rows() -> None:
    # Four neighbours share one random number, of which the last has a sign bit that is always 0.
    kept = (draw_mask((2000, 512), probability=0.5).kept != 0).double()
    centred = kept - kept.mean()
    bound = 5 / kept.numel() ** 0.5
    for distance in (1, 2, 3, 4, 5):
        assert abs((centred[:, distance:] * centred[:, :-distance]).mean() / 0.25) < bound
        assert abs((centred[distance:] * centred[:-distance]).mean() / 0.25) < bound
    lanes = kept.view(-1, 4).mean(dim=0)
    assert (lanes - 0.5).abs().max() < 5 * 0.5 / len(kept.view(-1, 4)) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_mask_times_gradient_over_kept_share(dtype: torch.dtype) -> None:
    inputs = torch.randn(33, 7, dtype=dtype).requires_grad_()
    dropped = make_layer(0.25)(inputs)
    scale = (dropped.detach() != 0) / 0.75
    assert torch.allclose(dropped, inputs * scale.to(dtype), rtol=1e-2)
    gradient = torch.randn_like(dropped)
    dropped.backward(gradient)
    assert torch.allclose(inputs.grad, gradient * scale.to(dtype), rtol=1e-2)
    assert torch.equal(inputs.grad != 0, dropped != 0)


def test_evaluation_and_the_shares_0_and_1_are_as_ever() -> None:
    inputs = torch.randn(5, 6)
    assert FastDropout(0.5).eval()(inputs) is inputs
    assert torch.equal(make_layer(0.0)(inputs), inputs)
    assert torch.equal(make_layer(1.0)(inputs), torch.zeros_like(inputs))
    assert make_layer(0.5)(torch.randn(0, 6)).shape == (0, 6)


def test_inputs_that_lie_crosswise_in_memory_are_dropped_too() -> None:
    inputs = torch.randn(8, 9).t().requires_grad_()
    dropped = make_layer(0.5)(inputs)
    kept = dropped.detach() != 0
    assert torch.allclose(dropped, inputs * kept * 2)


def test_r5_the_generators_state_decides_and_recomputation_draws_the_same_mask() -> None:
    inputs = torch.randn(64, 64).requires_grad_()
    state = torch.get_rng_state()
    first = make_layer(0.3)(inputs)
    assert not torch.equal(first, make_layer(0.3)(inputs))
    torch.set_rng_state(state)
    assert torch.equal(first, make_layer(0.3)(inputs))
    layer = nn.Sequential(nn.Linear(64, 64), make_layer(0.3))
    torch.set_rng_state(state)
    layer(inputs).sum().backward()
    expected, inputs.grad = inputs.grad, None
    torch.set_rng_state(state)
    checkpoint(layer, inputs, use_reentrant=False).sum().backward()
    assert torch.equal(inputs.grad, expected)


def test_h1_h5_modules_keep_their_names_and_classes_behind_it(tiny_qwen) -> None:
    base = BaseConfig(model=str(tiny_qwen), tuning="lora", lora=LoraConfig(rank=4, dropout=0.1))
    labels = LabelSpace("regression", ["risk"])
    model = load_model(base, labels=labels, pad_token_id=0, seed=0).model
    names, weights = [n for n, _ in model.named_modules()], list(model.state_dict())
    with fast_dropout(model):
        found = [m for n, m in model.named_modules() if "lora_dropout" in n and "default" in n]
        assert found
        assert all(isinstance(m, FastDropout) for m in found)
        assert [n for n, _ in model.named_modules()] == names
        assert list(model.state_dict()) == weights
    assert not any(isinstance(m, FastDropout) for m in model.modules())


def attend_seen(inputs, lengths, share):
    """Attend as an encoder does to rows that are padded on the right."""
    seen = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = seen[:, None, None].expand(-1, 1, len(seen[0]), -1)
    return attend_with_dropout(nn.Module(), *inputs, mask, dropout=share)[0]


def read_masks(lengths, num_heads, share):
    """Return which weights the next call keeps, [B, H, T, T]: the output for one-hot values."""
    longest = max(lengths)
    zeros = torch.zeros(len(lengths), num_heads, longest, longest, dtype=torch.float64)
    values = torch.eye(longest, dtype=torch.float64).expand_as(zeros)
    with torch.random.fork_rng():
        return attend_seen((zeros, zeros, values), lengths, share).transpose(1, 2) > 0


def attend_plainly(query, key, value, lengths, kept, share):
    """Attention with given masks over whole matrices, by the book."""
    out = torch.zeros_like(query)
    for row, n in enumerate(lengths):
        q, k, v = (t[row, :, :n] for t in (query, key, value))
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1)
        out[row, :, :n] = (weights * kept[row, :, :n, :n]) @ v
    return out.transpose(1, 2) / (1 - round(share * 2**15) / 2**15)


@pytest.mark.parametrize(
    "lengths",
    [[5, 9, 1], [7] * 6, [3, 12, 12, 3, 8, 8, 1, 2], [40, 3, 41], [300, 20, 19, 300, 1, 18]],
    ids=["mixed", "even", "twins", "two", "a long one beside short ones"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_attention_gives_the_outputs_and_gradients_of_its_masks(dtype, tolerance, lengths) -> None:
    num_heads, width = 3, 4
    shape = (len(lengths), max(lengths), num_heads, width)
    inputs = [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    kept = read_masks(lengths, num_heads, 0.2)
    found = attend_seen(inputs, lengths, 0.2)
    expected = attend_plainly(*exact, lengths, kept, 0.2)
    gradient = torch.randn_like(expected)  # on padding too, where it counts for nothing
    found.backward(gradient.to(dtype))
    expected.backward(gradient)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    for own, other in zip(inputs, exact, strict=True):
        assert (own.grad - other.grad).abs().max() <= tolerance * other.grad.abs().max()


@pytest.mark.parametrize("lengths", [[12] * 32, [12, 11, 10, 9] * 8, [30, 3] * 16])
def test_attention_drops_each_weight_of_a_text_by_itself(lengths) -> None:
    share, num_heads = 0.25, 4
    first = read_masks(lengths, num_heads, share)
    torch.manual_seed(1)
    draws = torch.stack([first, read_masks(lengths, num_heads, share)])
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    pairs = (inside[:, None, :, None] & inside[:, None, None, :]).expand_as(draws[0])
    assert not draws[:, ~pairs].any(), "padding gets no weight and has no output"
    kept = draws[:, pairs].double()
    bound = 5 * (share * (1 - share) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - (1 - share)) < bound
    one, other = kept - (1 - share)
    assert abs((one * other).mean().item()) < bound, "other masks with another state"
    for axis in range(4):  # rows of the batch, heads, queries and keys
        near = pairs.roll(1, axis) & pairs
        both = (draws[0].double() - (1 - share)) * (draws[0].roll(1, axis).double() - (1 - share))
        assert abs(both[near].mean().item()) < 5 * share * (1 - share) / near.sum() ** 0.5


def test_r5_attention_draws_the_same_masks_in_the_same_state() -> None:
    lengths = [4, 30, 30, 5]
    first = read_masks(lengths, 2, 0.3)
    assert torch.equal(first, read_masks(lengths, 2, 0.3))


@pytest.mark.parametrize("longest", [6, 400], ids=["beside others", "in a group of its own"])
def test_a_row_without_a_token_has_no_output_and_no_gradient(longest: int) -> None:
    inputs = [torch.randn(3, 2, longest, 4).requires_grad_() for _ in range(3)]
    found = attend_seen(inputs, [longest, 0, 2 if longest == 6 else 0], 0.2)
    found.sum().backward()
    assert not found[1].any()
    for tensor in inputs:
        assert tensor.grad.isfinite().all()
        assert not tensor.grad[1].any()


def measure_errors(found, exact, gradient):
    """Return the relative errors of outputs and of the gradients of q, k and v."""
    outputs = [found[0], exact[0]]
    for out in outputs:
        out.backward(gradient.to(out.dtype))
    pairs = [
        [out.detach() for out in outputs],
        *((a.grad, b.grad) for a, b in zip(found[1], exact[1], strict=True)),
    ]
    return torch.tensor([(a.double() - b).norm() / b.norm() for a, b in pairs])


@pytest.mark.parametrize("is_autocast", [False, True])
def test_attention_in_bfloat16_is_as_exact_as_that_of_sdpa(is_autocast: bool) -> None:
    num_rows, num_heads, num_tokens, width = 3, 4, 60, 32
    given = torch.randn(3, num_rows, num_heads, num_tokens, width)
    given[:2] *= 2
    gradient = torch.randn(num_rows, num_tokens, num_heads, width).bfloat16()

    def copy_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
        return [t.to(dtype).requires_grad_() for t in given.bfloat16()]

    inputs, exact = copy_inputs(torch.bfloat16), copy_inputs(torch.float64)
    lengths = [num_tokens] * num_rows
    kept = read_masks(lengths, num_heads, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        found, _ = attend_with_dropout(nn.Module(), *inputs, None, dropout=0.1)
    expected = attend_plainly(*exact, lengths, kept, 0.1)
    assert found.dtype == torch.bfloat16
    errors = measure_errors((found, inputs), (expected, exact), gradient)

    inputs, exact = copy_inputs(torch.bfloat16), copy_inputs(torch.float64)
    stock = F.scaled_dot_product_attention(*inputs, dropout_p=1e-9).transpose(1, 2)
    expected = F.scaled_dot_product_attention(*exact).transpose(1, 2)
    assert (errors <= 1.2 * measure_errors((stock, inputs), (expected, exact), gradient)).all()


def make_bert(share: float) -> nn.Module:
    config = BertConfig(**{**CONFIGS["bert"].to_dict(), "attention_probs_dropout_prob": share})
    config.hidden_dropout_prob = 0.0
    return AutoModelForSequenceClassification.from_config(config)


def test_an_encoder_averages_to_what_it_is_without_dropout_and_ignores_padding() -> None:
    model = make_bert(0.1).train()
    ids = torch.randint(5, 40, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad(), fast_dropout(model):
        states = [torch.get_rng_state()]
        found = model(input_ids=ids, attention_mask=mask).logits
        torch.set_rng_state(states[0])
        other = model(input_ids=ids.masked_fill(mask == 0, 1), attention_mask=mask).logits
        assert torch.equal(found, other)
        many = torch.stack([model(input_ids=ids, attention_mask=mask).logits for _ in range(400)])
        plain = model.eval()(input_ids=ids, attention_mask=mask).logits
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.allclose(plain, model(input_ids=ids, attention_mask=mask).logits)
        model.train()
        stock = torch.stack([model(input_ids=ids, attention_mask=mask).logits for _ in range(400)])
    error = (many.var(dim=0) + stock.var(dim=0)).sqrt() / 20
    assert ((many.mean(dim=0) - stock.mean(dim=0)).abs() < 5 * error).all()
    assert torch.allclose(many.std(dim=0), stock.std(dim=0), rtol=0.3)


def test_without_dropout_attention_is_that_of_sdpa() -> None:
    query = torch.randn(2, 3, 5, 4)
    found, _ = attend_with_dropout(nn.Module(), query, query, query, None, is_causal=False)
    expected = F.scaled_dot_product_attention(query, query, query).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-6)
