"""Whether a training fits into the memory that is free, and in which micro-batches."""

import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch

from llmft.config.recipe import BaseConfig, ResolvedRecipe
from llmft.data.batches import BatchPlan, BatchShape
from llmft.errors import UserError
from llmft.models.bases import measure_weights, read_config
from llmft.models.device import choose_device, choose_precision
from llmft.models.heads import LabelSpace
from llmft.models.memory.estimates import (
    ESTIMATE_ERROR,
    Footprint,
    FrozenMemory,
    Layout,
    MemoryEstimate,
    Step,
    can_recompute,
    estimate_frozen,
    estimate_memory,
    measure_footprint,
)
from llmft.models.memory.peak import KEPT_BLOCKS, measure_free_memory
from llmft.models.pooling import list_poolings
from llmft.results.run import Parallelism
from llmft.training.inputs import Inputs, plan_batches
from llmft.training.launch import Launch
from llmft.wording import count

logger = logging.getLogger("llmft.train")

_COST_OF_CHECKPOINTING = 4 / 3  # one more forward pass
_COST_OF_RETURNING = 1.2  # of memory, block by block (`limit_fragmentation`): at least
_LAYOUTS: dict[Parallelism, Layout] = {
    "none": "one device", "ddp": "DDP", "zero": "ZeRO-2", "zero3": "ZeRO-3", "fsdp": "FSDP2",
}  # fmt: skip
_SMALLER = {"full": ("lora", "qlora"), "lora": ("qlora",), "qlora": ()}


class MicroBatches(NamedTuple):
    """One way to compute the micro-batches of a recipe, and the memory that it takes."""

    divisor: int
    """Into how many each one is split."""
    cost: float
    """Tokens that are computed, once more where activations are recomputed."""
    gradient_checkpointing: bool
    largest: BatchShape
    """After the split, without a shared prompt."""
    num_shared: int
    """Tokens of a shared prompt."""
    footprint: Footprint
    estimate: MemoryEstimate
    free_gib: float
    """Memory that is free now."""

    @property
    def fits(self) -> bool:
        """Whether the free memory suffices, even if the estimate is somewhat too low."""
        return _fits(self.estimate, self.free_gib)

    @property
    def is_roomy(self) -> bool:
        """Whether what glibc keeps of freed memory fits as well."""
        return self.footprint.on_gpu or leaves_room(self.estimate.peak_gib, self.free_gib)

    def describe(self) -> str:
        """Return the settings in words."""
        rows = count(self.largest.num_rows, "row")
        how = " with gradient checkpointing" if self.gradient_checkpointing else ""
        shared = f" behind {self.num_shared} shared ones" if self.num_shared else ""
        return f"{rows} of up to {self.largest.longest} tokens{shared} at once{how}"


def _fits(estimate: MemoryEstimate, free_gib: float) -> bool:
    return estimate.peak_gib * (1 + ESTIMATE_ERROR) <= free_gib


def leaves_room(peak_gib: float, free_gib: float) -> bool:
    """Return whether a peak on a CPU fits with what glibc keeps of freed memory."""
    return peak_gib * (1 + ESTIMATE_ERROR) * KEPT_BLOCKS <= free_gib


def trace(recipe: ResolvedRecipe, inputs: Inputs, step: Step) -> Footprint | None:
    """Return what a step of a training takes; None if the base cannot be traced."""
    base = recipe.config.base
    space = LabelSpace(recipe.config.head.type, inputs.data.label_names)
    try:
        return measure_footprint(read_config(base), base, labels=space, step=step)
    except RuntimeError as error:
        logger.debug("%s: %s", base.model, error)
        return None


def make_step(
    recipe: ResolvedRecipe, inputs: Inputs, largest: BatchShape, *,
    gradient_checkpointing: bool, accumulates: bool,
) -> Step:  # fmt: skip
    """Return the largest step of a training on this machine."""
    return Step(
        batch=largest,
        num_shared=len(inputs.encoder.shared_ids) if inputs.unshared_reason is None else None,
        precision=choose_precision(recipe.config.train.precision),
        gradient_checkpointing=gradient_checkpointing,
        accumulates=accumulates,
        on_gpu=torch.cuda.is_available(),
    )


def refuse_checkpointing(recipe: ResolvedRecipe) -> None:
    """Stop if a recipe asks for gradient checkpointing of a base that has none.

    Raises:
        UserError: With the family of the base.
    """
    model_config = read_config(recipe.config.base)
    if recipe.config.train.gradient_checkpointing and not can_recompute(model_config):
        raise UserError(
            f"train.gradient_checkpointing: a {model_config.model_type} base has no gradient "
            "checkpointing in transformers; set it to false, and lower train.batch_size if memory "
            "does not suffice"
        )


def surely_fits(recipe: ResolvedRecipe, inputs: Inputs, plan: BatchPlan) -> bool:
    """Return whether a training needs far less memory than is free, without tracing it.

    A bound by the size of the weights' files and of the largest batch is compared with half of the
    free memory: tracing takes seconds, most trainings on a laptop are smaller than that.
    """
    weights = measure_weights(recipe.config.base)
    if weights is None:
        return False
    config = read_config(recipe.config.base)
    width = config.hidden_size
    longest = plan.largest.longest + len(inputs.encoder.shared_ids)
    # Several times what a layer keeps, scores of eager attention included.
    per_layer = 32 * width + 8 * getattr(config, "intermediate_size", 4 * width)
    per_layer += 4 * config.num_attention_heads * longest
    per_token = 4 * config.num_hidden_layers * per_layer
    num_tokens = len(inputs.encoder.shared_ids) + plan.largest.num_tokens
    # From bfloat16 on disk: weights, gradients and two moments in float32.
    most_gib: float = (8 * weights + num_tokens * per_token) / 2**30
    return most_gib <= measure_free_memory(choose_device()) / 2


def choose_micro_batches(
    recipe: ResolvedRecipe, inputs: Inputs, launch: Launch, *,
    divisor: int = 1, gradient_checkpointing: bool = False, is_elsewhere: bool = False,
) -> MicroBatches | None:  # fmt: skip
    """Return the fastest way to compute the micro-batches of a recipe that fits into free memory.

    Args:
        recipe: The recipe; without `train.auto_batch_size` only its own way is taken.
        inputs: Its rows.
        launch: How the processes share the work.
        divisor: The least number that each one is split into, as an attempt before found.
        gradient_checkpointing: Whether an attempt before turned it on.
        is_elsewhere: Whether it is to run on another machine, whose free memory is not known.

    Returns:
        None if the memory is unknown, since the base cannot be traced.

    Raises:
        UserError: If it does not fit, with what would fit.
    """
    config = recipe.config
    is_on = config.train.gradient_checkpointing or gradient_checkpointing
    estimate = partial(_estimate, recipe, inputs, launch)
    wanted = estimate(divisor, gradient_checkpointing=is_on)
    if wanted is None or not launch.has_replicated_weights:  # never compared with measured peaks
        return wanted
    if is_elsewhere:
        return wanted
    _refuse_loading(wanted.footprint)
    if wanted.fits:
        return _leave_room(wanted, estimate) if config.train.auto_batch_size else wanted
    found, least = None, wanted
    for checkpoints in dict.fromkeys([is_on, can_recompute(read_config(config.base))]):
        first = wanted if checkpoints is is_on else estimate(divisor, gradient_checkpointing=True)
        last = estimate(divisor * wanted.largest.num_rows, gradient_checkpointing=checkpoints)
        if first is None or last is None:
            return None
        least = min(least, last, key=lambda ways: ways.estimate.peak_gib)
        if not last.fits or (found is not None and found.cost <= first.cost):
            continue
        ways = _halve_until_it_fits(first, last, estimate)
        if found is None or ways.cost < found.cost:
            found = ways
    if found is None:
        raise UserError(_explain(least, _list_smaller(recipe, inputs, launch, least)))
    if not config.train.auto_batch_size:
        fits = f"{found.describe()}, {found.estimate.peak_gib:.1f} GiB"
        raise UserError(_explain(wanted, [f"train.auto_batch_size: true ({fits})"]))
    return _leave_room(found, estimate)


def _leave_room(wanted: MicroBatches, estimate: Callable[..., MicroBatches | None]) -> MicroBatches:
    """Return smaller micro-batches if those wanted fit barely, unless they cost a fifth more."""
    found: MicroBatches | None = wanted
    while found is not None and not found.is_roomy and found.largest.num_rows > 1:
        found = estimate(2 * found.divisor, gradient_checkpointing=wanted.gradient_checkpointing)
        if found is not None and found.cost > _COST_OF_RETURNING * wanted.cost:
            return wanted
    return found if found is not None and found.is_roomy else wanted


def _refuse_loading(footprint: Footprint) -> None:
    """Stop if the weights do not fit into the machine's memory on their way to a GPU."""
    need_gib = footprint.loading_bytes / 2**30
    free_gib = measure_free_memory(torch.device("cpu"))
    if footprint.on_gpu and need_gib > free_gib:
        raise UserError(
            f"memory: {free_gib:.1f} GiB of the machine are free, but the weights take about "
            f"{need_gib:.1f} GiB there before they are on the GPU; free some, or set "
            "base.tuning: qlora, which loads them onto the GPU layer by layer"
        )


def _halve_until_it_fits(
    first: MicroBatches, last: MicroBatches, estimate: Callable[..., MicroBatches | None]
) -> MicroBatches:
    """Return the largest micro-batches between two that fit; `last` does."""
    found: MicroBatches | None = first
    while found is not None and not found.fits and 2 * found.divisor < last.divisor:
        found = estimate(2 * found.divisor, gradient_checkpointing=first.gradient_checkpointing)
    return found if found is not None and found.fits else last


def _estimate(
    recipe: ResolvedRecipe, inputs: Inputs, launch: Launch, divisor: int, *,
    gradient_checkpointing: bool,
) -> MicroBatches | None:  # fmt: skip
    plan = plan_batches(recipe, inputs, world_size=launch.world_size, micro_batch_divisor=divisor)
    step = make_step(
        recipe, inputs, plan.largest,
        gradient_checkpointing=gradient_checkpointing, accumulates=plan.num_accumulated > 1,
    )  # fmt: skip
    footprint = trace(recipe, inputs, step)
    if footprint is None:
        return None
    estimate = estimate_memory(
        footprint, layout=_LAYOUTS[launch.parallelism], num_devices=launch.world_size
    )
    free_gib = measure_free_memory(choose_device())
    num_tokens = divisor * (step.num_shared or 0) + divisor * plan.largest.num_tokens
    cost = num_tokens * (_COST_OF_CHECKPOINTING if gradient_checkpointing else 1)
    return MicroBatches(
        divisor, cost, gradient_checkpointing, plan.largest, step.num_shared or 0,
        footprint, estimate, free_gib,
    )  # fmt: skip


def measure_frozen(
    recipe: ResolvedRecipe, inputs: Inputs, *, is_elsewhere: bool = False
) -> FrozenMemory:
    """Return the memory that a frozen base and its head take, the batches aside.

    Args:
        recipe: The recipe.
        inputs: Its rows.
        is_elsewhere: Whether it is to run on another machine, whose free memory is not known.

    Raises:
        UserError: If it does not fit into the memory that is free.
    """
    base = recipe.config.base
    space = LabelSpace(recipe.config.head.type, inputs.data.label_names)
    num_poolings = len(list_poolings(base, read_config(base)))
    found = estimate_frozen(
        read_config(base), base, labels=space, rows=inputs.rows, num_poolings=num_poolings,
        precision=choose_precision(recipe.config.train.precision),
    )  # fmt: skip
    free_gib = measure_free_memory(torch.device("cpu"))
    if found.peak_gib - found.rows_gib > free_gib and not is_elsewhere:  # the rows are there now
        raise UserError(
            f"memory: {free_gib:.1f} GiB are free, but a frozen base with its states needs about "
            f"{found.peak_gib:.1f} GiB (weights {found.weights_gib:.1f}, vectors "
            f"{found.vectors_gib:.1f}, fitting {found.fitting_gib:.1f}, rows "
            f"{found.rows_gib:.1f}); set train.limit_rows, or take a smaller base"
        )
    return found


def _explain(wanted: MicroBatches, fits: list[str]) -> str:
    found = wanted.estimate
    return (
        f"memory: {wanted.free_gib:.1f} GiB are free, but training with {wanted.describe()} needs "
        f"about {found.peak_gib:.1f} GiB ({found.describe()}). "
        + (f"What would fit: {'; or '.join(fits)}" if fits else "Take a smaller base")
    )


def _list_smaller(
    recipe: ResolvedRecipe, inputs: Inputs, launch: Launch, least: MicroBatches
) -> list[str]:
    """Return changes with which one row at a time fits, since no micro-batches are small enough."""
    step = make_step(
        recipe, inputs, least.largest,
        gradient_checkpointing=least.gradient_checkpointing, accumulates=True,
    )  # fmt: skip
    half, base = least.largest.longest // 2, recipe.config.base
    ways: list[tuple[str, BaseConfig, Step]] = []
    if half >= recipe.config.tokens.min_article:
        shorter = step._replace(batch=BatchShape(1, half))
        ways.append((f"tokens.max_length: {least.num_shared + half}", base, shorter))
    for tuning in _SMALLER[recipe.config.base.tuning]:
        if tuning == "qlora" and find_spec("bitsandbytes") is None:
            continue
        base = recipe.config.base.model_copy(update={"tuning": tuning})
        ways.append((f"base.tuning: {tuning}", base, step))
    found, layout = [], _LAYOUTS[launch.parallelism]
    for name, base, smaller in ways:
        changed = recipe._replace(config=recipe.config.model_copy(update={"base": base}))
        footprint = trace(changed, inputs, smaller)
        if footprint is None:
            continue
        estimate = estimate_memory(footprint, layout=layout, num_devices=launch.world_size)
        need = estimate.peak_gib
        if _fits(estimate, least.free_gib):
            found.append(f"{name} ({need:.1f} GiB)")
    return found
