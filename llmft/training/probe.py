"""A frozen base: its states of all rows, once, and the linear head that is fitted to them."""

import json
import logging
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmft import __version__
from llmft.config.metrics import METRICS
from llmft.config.recipe import BaseConfig, Precision, ResolvedRecipe
from llmft.console import Progress
from llmft.data.batches import Examples
from llmft.data.encoding import EncodedRow
from llmft.data.state_cache import STATES_FOLDER, StateCache, find_missing
from llmft.errors import StoppedError, UserError
from llmft.files import hash_text
from llmft.metrics.definitions import compute_metric, measure
from llmft.models.bases import hash_base, pin_base, read_config
from llmft.models.device import choose_device, choose_precision
from llmft.models.forward import BatchForward
from llmft.models.heads import (
    LabelSpace,
    compute_head_in_float32,
    find_output_layer,
    remove_output_layer,
    set_output_layer,
    to_outputs,
)
from llmft.models.loading import load_frozen
from llmft.models.pooling import (
    PooledModel,
    can_be_cut,
    find_stock_pooling,
    list_poolings,
    make_pooled_model,
)
from llmft.models.saved import make_spec
from llmft.processes import ask_main, get_rank, get_world_size, on_sigterm, wait_for_all
from llmft.results.run import CurvePoint, HeadFit, Pooling
from llmft.training.inputs import Inputs
from llmft.training.linear_head import (
    Choice,
    Scale,
    Solution,
    TrainingRows,
    choose_by_logistic,
    choose_by_ridge,
)
from llmft.training.losses import make_loss
from llmft.training.memory import measure_frozen
from llmft.training.train_model import TrainedModel, load_recipe_model
from llmft.training.trainer import TrainingResult
from llmft.wording import count

logger = logging.getLogger("llmft.train")

_SECONDS_PER_FILE = 60
ROWS_PER_FILE = 4_096
"""Rows of a file, and most rows whose states are lost if a pass is killed."""


def train_probe(recipe: ResolvedRecipe, inputs: Inputs) -> tuple[TrainedModel, HeadFit]:
    """Compute the states of train and val, unless they are there, and fit the head of a recipe.

    Returns:
        The model, with outputs in the labels' units, and how its head was fitted.

    Raises:
        UserError: If it does not fit into memory, the base cannot be loaded, its states are not
            finite, or the disk is full.
    """
    started, config = time.perf_counter(), recipe.config
    ask_main(lambda: measure_frozen(recipe, inputs))
    space = LabelSpace(config.head.type, inputs.data.label_names)
    pinned, num_prompt = pin_base(config.base), len(inputs.encoder.shared_ids)
    base = load_frozen(
        pinned,
        labels=space,
        pad_token_id=inputs.encoder.tokenizer.pad_token_id,
        precision=choose_precision(config.train.precision),
    ).to(choose_device())
    poolings = _list_usable(list_poolings(pinned, base.config), base)
    logger.info(
        "%s: %s, frozen; candidates: %s", config.name, pinned.model,
        "; ".join(pooling.describe() for pooling in poolings),
    )  # fmt: skip
    reader = StateReader(
        PooledModel(base, poolings, nn.Identity(), num_prompt=num_prompt), poolings, pinned
    )
    head = _fit_to_states(recipe, inputs, reader)
    model = make_pooled_model(
        base, head.fit.pooling, num_outputs=len(space.logit_names), num_prompt=num_prompt
    )
    compute_head_in_float32(model)
    set_output_layer(model, *head.weights)
    model.requires_grad_(False).score.requires_grad_(True)
    seconds = round(time.perf_counter() - started, 2)
    point = CurvePoint(
        epoch=1.0, step=1, train_loss=head.train_loss, learning_rate=0.0, seconds=seconds,
        val=head.val,
    )  # fmt: skip
    result = TrainingResult(
        history=[point], best=point, best_metric_name=recipe.metric,
        best_metric=point.val[recipe.metric], best_checkpoint=Path(config.output_dir, "model"),
        num_steps=0, num_epochs=1.0, train_seconds=seconds, resumed_from_step=0,
        distributed_type=_name_distribution(),
    )  # fmt: skip
    spec = make_spec(model, pinned, recipe, inputs.data, inputs.encoder.prompt)
    return TrainedModel(model, spec, result), head.fit


def fit_initial_head(
    recipe: ResolvedRecipe, inputs: Inputs, *, pooling: Pooling | None
) -> "LinearHead":
    """Fit the output layer of a recipe's model to what it reads before the training.

    Args:
        recipe: The recipe.
        inputs: Its rows.
        pooling: Of its model; None: as the base's class in transformers does.

    Raises:
        UserError: As `train_probe`.
    """
    base = pin_base(recipe.config.base)
    model: Any = load_recipe_model(recipe, base, inputs, pooling=pooling, adapters=False)
    has_bias = find_output_layer(model).bias is not None
    remove_output_layer(model)
    of_class = Pooling(
        how=find_stock_pooling(model.config) or "mean", num_layers=model.config.num_hidden_layers,
        normalises=False,
    )  # fmt: skip
    # Classes of encoders have layers in between, which may be new.
    is_plain = pooling is not None or of_class.how == "last"
    between = None if is_plain else f"{type(model).__name__} {recipe.config.train.seed}"
    reader = StateReader(model, [pooling or of_class], base, between=between, has_bias=has_bias)
    return _fit_to_states(recipe, inputs, reader)


class StateReader(NamedTuple):
    """A model without its head, whose outputs a head is fitted to."""

    model: nn.Module
    """Returns the vectors of all poolings as logits, one after another [B, V * E]."""
    poolings: Sequence[Pooling]
    """How the vectors are made."""
    base: BaseConfig
    """Pinned to a commit."""
    between: str | None = None
    """What stands between base and head besides the pooling; None if nothing does."""
    has_bias: bool = True
    """Whether the head has a bias."""


class LinearHead(NamedTuple):
    """A head that was fitted, and its metrics."""

    solution: Solution
    fit: HeadFit
    train_loss: float
    val: dict[str, float]

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Weight [C, E] and bias [C] of the output layer."""
        weight_CE, bias_C = map(torch.from_numpy, self.solution)
        return weight_CE, bias_C


def _fit_to_states(recipe: ResolvedRecipe, inputs: Inputs, reader: StateReader) -> LinearHead:
    """Compute the vectors of train and val, unless they are there, and fit a head to them."""
    states = compute_states(
        reader, inputs, precision=choose_precision(recipe.config.train.precision)
    )
    logger.info(
        "states: computed %d of %s in %.1f s, the others were there",
        states.num_computed, count(len(inputs.train) + len(inputs.val), "row"), states.seconds,
    )  # fmt: skip
    head = ask_main(lambda: _fit(recipe, inputs, states, has_bias=reader.has_bias))
    logger.info("%s", head.fit.describe())
    return head


def _list_usable(poolings: list[Pooling], base_model: Any) -> list[Pooling]:
    """Return the poolings at which the base can be cut."""
    num_layers = base_model.config.num_hidden_layers
    below = {pooling.num_layers for pooling in poolings} - {num_layers}
    refused = {depth for depth in below if not can_be_cut(base_model, depth)}
    if refused:
        logger.warning(
            "base.layer: a %s gives other states when it is cut, so only its last layer is used",
            type(base_model).__name__,
        )
    return [pooling for pooling in poolings if pooling.num_layers not in refused]


def _name_distribution() -> str:
    """Return the kind of launch, as accelerate names it."""
    if get_world_size() == 1:
        return "NO"
    return "MULTI_GPU" if torch.cuda.is_available() else "MULTI_CPU"


class States(NamedTuple):
    """The vectors of rows, and what computing them took."""

    caches: dict[Pooling, StateCache]
    num_computed: int
    """Rows that were not there yet."""
    num_tokens: int
    """Of these rows."""
    seconds: float


def compute_states(reader: StateReader, inputs: Inputs, *, precision: Precision) -> States:
    """Compute the vectors of train and val that are not kept yet, each process its part of them."""
    started, base, poolings = time.perf_counter(), reader.base, reader.poolings
    splits = [inputs.train.encoded, inputs.val.encoded]
    identity = [
        base.model, base.revision, hash_base(base), base.tuning == "qlora", precision,
        inputs.encoder.shared_ids, inputs.unshared_reason is None, read_config(base).to_dict(),
        reader.between, __version__, version("torch"), version("transformers"),
    ]  # fmt: skip
    folder = Path(inputs.data.task.output) / STATES_FOLDER
    caches = {
        pooling: StateCache(
            folder / hash_text(json.dumps([*identity, pooling.model_dump()], default=str))[:16]
        )
        for pooling in poolings
    }
    lengths = [rows.lengths for rows in splits]
    # The main process decides, since another run may write states meanwhile.
    missing: list[tuple[int, int]] = ask_main(
        lambda: [
            (i, k) for i, rows in enumerate(splits) for k in find_missing(caches.values(), rows)
        ]
    )
    missing.sort(key=lambda place: -int(lengths[place[0]][place[1]]))
    own = missing[get_rank() :: get_world_size()]
    if own:
        forward = BatchForward(
            reader.model,
            precision=precision,
            pad_token_id=inputs.encoder.tokenizer.pad_token_id,
            shared_ids=inputs.encoder.shared_ids if inputs.unshared_reason is None else None,
        )
        num_shared = 0 if forward.shared is None else len(inputs.encoder.shared_ids)
        total = sum(int(lengths[i][k]) - num_shared for i, k in own)
        with Progress("states", total, unit="token") as progress, on_sigterm(_stop):
            for start in range(0, len(own), ROWS_PER_FILE):
                rows = [splits[i][k] for i, k in own[start : start + ROWS_PER_FILE]]
                _write_states(list(caches.values()), rows, forward, progress)
        if forward.shared is not None:
            forward.shared.detach()
    wait_for_all()
    for cache in caches.values():
        cache.read()
    return States(
        caches, len(missing),
        num_tokens=sum(int(lengths[i][k]) for i, k in missing),
        seconds=time.perf_counter() - started,
    )  # fmt: skip


def _write_states(
    caches: Sequence[StateCache],
    rows: Sequence[EncodedRow],
    forward: BatchForward,
    progress: Progress,
) -> None:
    """Compute rows and write their vectors, at least once in a minute, and when interrupted."""
    done: list[int] = []
    found: list[NDArray[np.float32]] = []

    def write() -> None:
        vectors = np.split(np.concatenate(found), len(caches), axis=1)
        for cache, vectors_NE in zip(caches, vectors, strict=True):
            cache.write([rows[i] for i in done], vectors_NE)
        done.clear()
        found.clear()

    written = time.monotonic()
    lengths_N = forward.count_tokens(rows)
    try:
        for batch, vectors_BW in forward.compute(rows):
            found.append(vectors_BW.cpu().numpy())
            done += batch
            progress.update(int(lengths_N[batch].sum()))
            if time.monotonic() - written > _SECONDS_PER_FILE:
                write()
                written = time.monotonic()
    finally:
        if done:
            write()


def _stop() -> None:
    raise StoppedError(
        "stopped while the states of the base were computed, with those so far saved; run the "
        "same command to go on"
    )


class _Candidate(NamedTuple):
    """The best pooling so far, with its scaled vectors."""

    pooling: Pooling
    train: TrainingRows
    val_NE: NDArray[np.float32]
    scale: Scale
    choice: Choice | None
    """Of ridge regression; None where it decides nothing."""


def _fit(recipe: ResolvedRecipe, inputs: Inputs, states: States, *, has_bias: bool) -> LinearHead:
    """Choose the pooling by ridge regression, and fit the head to its vectors."""
    started, caches = time.perf_counter(), states.caches
    config, labels = recipe.config.head.convex, inputs.data.task.labels
    head, metric, names = config.type, recipe.metric, inputs.data.label_names
    loss = make_loss(config, targets=inputs.train.targets, label_names=names)
    weights_NC = loss.weigh(inputs.train.targets, inputs.train.weights).numpy()
    val_labels = inputs.val.targets.numpy()

    def score(logits_NC: NDArray[np.float32]) -> float:
        logits = torch.from_numpy(logits_NC)
        if metric == "loss":
            return -float(loss(logits, inputs.val.targets, row_weights_B=inputs.val.weights))
        found = compute_metric(metric, val_labels, to_outputs(logits, head).numpy(), config=labels)
        if found is None:
            raise UserError(
                f"train.metric: {metric} is not defined on the {len(val_labels)} validation rows, "
                "so it cannot choose a strength; use another metric or more validation rows"
            )
        return found if METRICS[metric].higher_is_better else -found

    best: _Candidate | None = None
    tried: dict[Pooling, float] = {}
    for pooling, cache in caches.items():
        train_NE, val_NE = (_read_finite(cache, rows) for rows in (inputs.train, inputs.val))
        scale = Scale.fit(train_NE, has_bias=has_bias)
        scale.apply(train_NE)
        scale.apply(val_NE)
        train = TrainingRows(train_NE, inputs.train.targets.numpy(), weights_NC, has_bias)
        choice = None
        if head == "regression" or len(caches) > 1:  # else ridge regression decides nothing
            choice = choose_by_ridge(head, train, val_NE, score=score, num_outputs=len(names))
        if choice is None or choice.score > max(tried.values(), default=-np.inf):
            best = _Candidate(pooling, train, val_NE, scale, choice)
        if choice is not None:
            tried[pooling] = choice.score
        del train, train_NE, val_NE
    assert best is not None
    pooling, train, val_NE, scale, choice = best
    if choice is None or head != "regression":
        choice = choose_by_logistic(head, train, val_NE, score=score, num_outputs=len(names))
    logits_NC = torch.from_numpy(choice.solution.apply(val_NE))
    found = measure(
        val_labels, to_outputs(logits_NC, head).numpy(), names=names, config=labels
    ).metrics
    val = {name: value for name, value in found.items() if value is not None}
    val["loss"] = float(loss(logits_NC, inputs.val.targets, row_weights_B=inputs.val.weights))
    train_logits_NC = torch.from_numpy(choice.solution.apply(train.vectors_NE))
    sign = -1 if metric == "loss" or not METRICS[metric].higher_is_better else 1
    return LinearHead(
        scale.fold(choice.solution),
        HeadFit(
            pooling=pooling,
            strength=choice.strength,
            is_at_edge=choice.is_at_edge,
            metric=metric,
            best=sign * choice.score,
            by_strength={f"{s:g}": sign * found for s, found in choice.scores.items()},
            by_pooling={p.describe(): sign * found for p, found in tried.items()},
            num_rows=len(inputs.train) + len(inputs.val),
            num_computed=states.num_computed,
            num_computed_tokens=states.num_tokens,
            encoding_seconds=round(states.seconds, 2),
            fitting_seconds=round(time.perf_counter() - started, 2),
        ),
        float(loss(train_logits_NC, inputs.train.targets, row_weights_B=inputs.train.weights)),
        val,
    )


def _read_finite(cache: StateCache, examples: Examples) -> NDArray[np.float32]:
    """Return the vectors of rows, [N, E].

    Raises:
        UserError: If one is not finite, with its row.
    """
    vectors_NE = cache.gather(examples.encoded)
    extremes = (vectors_NE.min(axis=1), vectors_NE.max(axis=1))  # without a copy of the vectors
    broken = np.flatnonzero(~np.isfinite(extremes).all(axis=0))
    if len(broken):
        raise UserError(
            f"the base's states of {len(broken)} rows are not finite, the first of them "
            f"{examples.ids[broken[0]]!r}; try train.precision float32, and look at this row"
        )
    return vectors_NE
