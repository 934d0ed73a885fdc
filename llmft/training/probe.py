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
from torch import nn
from tqdm.auto import tqdm

from llmft import __version__
from llmft.config.metrics import METRICS
from llmft.config.recipe import BaseConfig, Precision, ResolvedRecipe
from llmft.console import shows_progress
from llmft.data.batches import Examples
from llmft.data.encoding import EncodedRow
from llmft.data.state_cache import STATES_FOLDER, StateCache
from llmft.data.token_cache import TokenisedRows
from llmft.errors import UserError
from llmft.files import hash_text
from llmft.metrics.definitions import compute_metric, measure
from llmft.models.bases import hash_base, pin_base
from llmft.models.device import choose_device, choose_precision
from llmft.models.forward import BatchForward
from llmft.models.heads import LabelSpace, compute_head_in_float32, to_outputs
from llmft.models.loading import load_frozen
from llmft.models.pooling import (
    PooledModel,
    can_be_cut,
    find_layers,
    list_poolings,
    make_pooled_model,
)
from llmft.models.saved import make_spec
from llmft.processes import ask_main, get_rank, get_world_size, wait_for_all
from llmft.results.run import CurvePoint, Pooling, ProbeFit
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
from llmft.training.train_model import TrainedModel
from llmft.training.trainer import TrainingResult

logger = logging.getLogger("llmft.train")

_SECONDS_PER_FILE = 60
ROWS_PER_FILE = 4_096
"""Rows of a file, and most rows whose states are lost if a pass is killed."""


def train_probe(recipe: ResolvedRecipe, inputs: Inputs) -> TrainedModel:
    """Compute the states of train and val, unless they are there, and fit the head of a recipe.

    Returns:
        The model, with outputs in the labels' units.

    Raises:
        UserError: If the base cannot be loaded, its states are not finite, or the disk is full.
    """
    started, config = time.perf_counter(), recipe.config
    base, space = pin_base(config.base), LabelSpace(config.head.type, inputs.data.label_names)
    precision = choose_precision(config.train.precision)
    base_model = load_frozen(
        base, labels=space, pad_token_id=inputs.encoder.tokenizer.pad_token_id, precision=precision
    ).to(choose_device())
    width = base_model.config.hidden_size
    poolings = _list_usable(list_poolings(base, base_model.config), base_model)
    spec = make_spec(base_model, base, recipe, inputs.data, inputs.encoder.prompt)
    logger.info(
        "%s: %s, frozen, %s; candidates: %s", spec.name, base.model, spec.precision,
        "; ".join(pooling.describe() for pooling in poolings),
    )  # fmt: skip
    rows = [inputs.train.encoded, inputs.val.encoded]
    cache, num_computed, num_tokens = _compute_states(
        base_model, poolings, rows, base=base, inputs=inputs, precision=precision
    )
    encoding_seconds = time.perf_counter() - started
    logger.info(
        "states: computed %d of %d rows in %.1f s, the others were there",
        num_computed, sum(map(len, rows)), encoding_seconds,
    )  # fmt: skip
    fitted = ask_main(lambda: _fit(recipe, inputs, poolings, cache, width=width))
    fit = fitted.fit.replace(
        num_computed=num_computed,
        num_computed_tokens=num_tokens,
        encoding_seconds=round(encoding_seconds, 2),
        fitting_seconds=round(time.perf_counter() - started - encoding_seconds, 2),
    )
    pooling = fit.pooling
    logger.info("%s", fit.describe())
    model = make_pooled_model(
        base_model, pooling, num_outputs=len(space.logit_names),
        num_prompt=len(inputs.encoder.shared_ids),
    )  # fmt: skip
    compute_head_in_float32(model)
    weight_CE, bias_C = map(torch.from_numpy, fitted.solution)
    model.score.load_state_dict({"weight": weight_CE, "bias": bias_C})
    seconds = round(time.perf_counter() - started, 2)
    point = CurvePoint(
        epoch=1.0, step=1, train_loss=fitted.train_loss, learning_rate=0.0, seconds=seconds,
        val=fitted.val,
    )  # fmt: skip
    result = TrainingResult(
        history=[point], best=point, best_metric_name=recipe.metric,
        best_metric=point.val[recipe.metric], best_checkpoint=Path(config.output_dir, "model"),
        num_steps=0, num_epochs=1.0,
        train_seconds=seconds, resumed_from_step=0,
        distributed_type=_name_distribution(), probe=fit,
    )  # fmt: skip
    spec = spec.replace(
        pooling=pooling, num_prompt_tokens=len(inputs.encoder.shared_ids),
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trainable=sum(p.numel() for p in model.score.parameters()),
    )  # fmt: skip
    return TrainedModel(model, spec, result)


def _list_usable(poolings: list[Pooling], base_model: Any) -> list[Pooling]:
    """Return the poolings at which the base can be cut."""
    num_layers = len(find_layers(base_model))
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


class HeadFit(NamedTuple):
    """The head that was fitted, and its metrics."""

    solution: Solution
    fit: ProbeFit
    train_loss: float
    val: dict[str, float]


def _compute_states(
    base_model: Any,
    poolings: Sequence[Pooling],
    splits: Sequence[TokenisedRows],
    *,
    base: BaseConfig,
    inputs: Inputs,
    precision: Precision,
) -> tuple[StateCache, int, int]:
    """Compute the vectors of rows that are not in the cache, each process its part of them.

    Returns:
        The cache, and the numbers of rows and of tokens that were computed.
    """
    identity = [
        base.model, base.revision, hash_base(base), precision, inputs.encoder.shared_ids,
        inputs.unshared_reason is None, base_model.config.to_dict(),
        [pooling.model_dump() for pooling in poolings],
        __version__, version("torch"), version("transformers"),
    ]  # fmt: skip
    folder = Path(inputs.data.task.output) / STATES_FOLDER
    width = base_model.config.hidden_size * len(poolings)
    cache = StateCache(folder / hash_text(json.dumps(identity, default=str))[:16], width=width)
    lengths = [rows.lengths for rows in splits]
    # The main process decides, since another run may write states meanwhile.
    missing: list[tuple[int, int]] = ask_main(
        lambda: [(i, k) for i, rows in enumerate(splits) for k in cache.find_missing(rows)]
    )
    missing.sort(key=lambda place: -int(lengths[place[0]][place[1]]))
    own = missing[get_rank() :: get_world_size()]
    if own:
        forward = BatchForward(
            PooledModel(
                base_model, poolings, nn.Identity(), num_prompt=len(inputs.encoder.shared_ids)
            ),
            precision=precision,
            pad_token_id=inputs.encoder.tokenizer.pad_token_id,
            shared_ids=inputs.encoder.shared_ids if inputs.unshared_reason is None else None,
        )
        with tqdm(total=len(own), unit="row", desc="encoding", disable=not shows_progress()) as bar:
            for start in range(0, len(own), ROWS_PER_FILE):
                rows = [splits[i][k] for i, k in own[start : start + ROWS_PER_FILE]]
                _write_states(cache, rows, forward, bar)
        if forward.shared is not None:
            forward.shared.detach()
    wait_for_all()
    cache.read()
    return cache, len(missing), sum(int(lengths[i][k]) for i, k in missing)


def _write_states(
    cache: StateCache, rows: Sequence[EncodedRow], forward: BatchForward, bar: "tqdm[Any]"
) -> None:
    """Compute rows and write their vectors, at least once in a minute."""
    done: list[int] = []
    vectors: list[NDArray[np.float32]] = []
    num_left, written = len(rows), time.monotonic()
    for batch, vectors_BW in forward.compute(rows):
        done += batch
        vectors.append(vectors_BW.cpu().numpy())
        num_left -= len(batch)
        bar.update(len(batch))
        if num_left == 0 or time.monotonic() - written > _SECONDS_PER_FILE:
            cache.write([rows[i] for i in done], np.concatenate(vectors))
            done, vectors, written = [], [], time.monotonic()


def _fit(
    recipe: ResolvedRecipe,
    inputs: Inputs,
    poolings: Sequence[Pooling],
    cache: StateCache,
    *,
    width: int,
) -> HeadFit:
    """Choose the pooling by ridge regression, and fit the head to its vectors."""
    config, labels = recipe.config.head, inputs.data.task.labels
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

    def read(pooling: Pooling) -> tuple[TrainingRows, NDArray[np.float32], Scale]:
        start = poolings.index(pooling) * width
        columns = slice(start, start + width)
        train_NE = _read_finite(cache, inputs.train, columns)
        val_NE = _read_finite(cache, inputs.val, columns)
        scale = Scale.fit(train_NE)
        scale.apply(train_NE)
        scale.apply(val_NE)
        return TrainingRows(train_NE, inputs.train.targets.numpy(), weights_NC), val_NE, scale

    def choose(train: TrainingRows, val_NE: NDArray[np.float32], *, by_ridge: bool) -> Choice:
        fit = choose_by_ridge if by_ridge else choose_by_logistic
        return fit(head, train, val_NE, score=score, num_outputs=len(names))

    tried = {pooling: choose(*read(pooling)[:2], by_ridge=True).score for pooling in poolings}
    pooling = max(poolings, key=tried.__getitem__)
    train, val_NE, scale = read(pooling)
    choice = choose(train, val_NE, by_ridge=head == "regression")
    logits_NC = torch.from_numpy(choice.solution.apply(val_NE))
    found = measure(
        val_labels, to_outputs(logits_NC, head).numpy(), names=names, config=labels
    ).metrics
    val = {name: value for name, value in found.items() if value is not None}
    val["loss"] = float(loss(logits_NC, inputs.val.targets, row_weights_B=inputs.val.weights))
    train_logits_NC = torch.from_numpy(choice.solution.apply(train.vectors_NE))
    sign = -1 if metric == "loss" or not METRICS[metric].higher_is_better else 1
    return HeadFit(
        scale.fold(choice.solution),
        ProbeFit(
            pooling=pooling,
            strength=choice.strength,
            is_at_edge=choice.is_at_edge,
            metric=metric,
            by_strength={f"{s:g}": sign * found for s, found in choice.scores.items()},
            by_pooling={p.describe(): sign * found for p, found in tried.items()},
            num_computed=0,
            num_computed_tokens=0,
            encoding_seconds=0.0,
            fitting_seconds=0.0,
        ),
        float(loss(train_logits_NC, inputs.train.targets, row_weights_B=inputs.train.weights)),
        val,
    )


def _read_finite(cache: StateCache, examples: Examples, columns: slice) -> NDArray[np.float32]:
    """Return the vectors of rows.

    Raises:
        UserError: If one is not finite, with its row.
    """
    vectors_NE = cache.gather(examples.encoded, columns)
    broken = np.flatnonzero(~np.isfinite(vectors_NE).all(axis=1))
    if len(broken):
        raise UserError(
            f"the base's states of {len(broken)} rows are not finite, the first of them "
            f"{examples.ids[broken[0]]!r}; try train.precision float32, and look at this row"
        )
    return vectors_NE
