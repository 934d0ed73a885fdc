"""The baseline `probe`: the base of a run, frozen, on the same rows, tokens and prompt."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from llmft.config.recipe import BaseConfig, LaunchConfig, PromptConfig, Recipe, TrainConfig
from llmft.config.task import name_task
from llmft.data.fields import Row
from llmft.errors import UserError
from llmft.evaluation.rows import LabelledRows
from llmft.evaluation.variants import Run as VariantRun
from llmft.files import write_text
from llmft.models.bases import hash_base, pin_base
from llmft.models.saved import ModelSpec
from llmft.prediction.stored import load_or_predict, name_source
from llmft.results.evaluation import ProbeBaseline
from llmft.results.run import Run, RunIdentity, RunRecord
from llmft.training.run_folder import is_finished, list_differences, read_record

logger = logging.getLogger(__name__)

LARGEST_COST = 0.2
"""Of the baseline's pass, relative to the training, unless it is asked for."""
HOW_TO_ASK = "a suite with baselines: {probe: true} asks for it"


def explain_no_probe(config: Recipe, *, num_rows: Mapping[str, int], epochs: float) -> str | None:
    """Return why the baseline is not fitted unless a suite asks for it; None if it is.

    A step of the training costs as much as 3 forward passes over its rows, with adapters 2, and 1
    more with gradient checkpointing; validation is left out.

    Args:
        config: The recipe.
        num_rows: Split -> number of rows.
        epochs: Of the training.
    """
    if config.base.tuning == "qlora":
        return "its base in full may not fit where one in 4 bit does"
    per_row = (3 if config.base.tuning == "full" else 2) + config.train.gradient_checkpointing
    cost = sum(num_rows.values()) / (num_rows["train"] * epochs * per_row)
    if cost <= LARGEST_COST:
        return None
    return f"its pass over the rows costs {cost:.0%} of the training, more than a fifth"


def prepare_probe(
    run: Run, spec: ModelSpec, *, wanted: bool | Literal["auto"], folder: Path
) -> Recipe | None:
    """Return the recipe of the baseline, its folder made ready; None if there is none.

    Another run in the folder, of other rows or of another recipe, is removed.

    Args:
        run: The run that it is compared with.
        spec: Of its model.
        wanted: auto: where it is cheap, and the base is there.
        folder: Where its run is to be.

    Raises:
        UserError: If it is wanted, and the base is not there or is another one now.
    """
    record = run.record
    epochs = run.curve.epochs[-1].epoch
    if wanted is False:
        return None
    reason = explain_no_probe(record.recipe, num_rows=record.num_rows, epochs=epochs)
    if wanted == "auto" and reason is not None:
        logger.info("no baseline probe: %s; %s", reason, HOW_TO_ASK)
        return None
    recipe = _make_recipe(record, spec, folder)
    try:
        pin_base(recipe.base)
        if hash_base(recipe.base) != spec.base_hash:
            raise UserError(
                f"the base {recipe.base.model} is not the one that {run.path} was trained on: its "
                "weights changed; restore it, or train the run again"
            )
    except UserError as error:
        if wanted is True:
            raise
        logger.warning("the baseline probe is left out: %s", error)
        return None
    if not _is_current(folder, recipe, record):
        shutil.rmtree(folder, ignore_errors=True)
    return recipe


def _is_current(folder: Path, recipe: Recipe, record: RunRecord) -> bool:
    """Return False if a folder has a finished run of another recipe or rows, or a broken one."""
    identity = RunIdentity(
        recipe=recipe.model_copy(update={"task": name_task(recipe.task)}), task=record.task,
        data_fingerprint=record.data_fingerprint, prompt_sha256=record.prompt_sha256,
        init_hash=None,
    )  # fmt: skip
    try:
        return not is_finished(folder) or not list_differences(read_record(folder), identity)
    except UserError:
        return False


def _make_recipe(record: RunRecord, spec: ModelSpec, folder: Path) -> Recipe:
    """Return the recipe; its prompt is the text of the run, whose file may have changed since."""
    ours = record.recipe
    prompt = PromptConfig()
    if spec.prompt is not None:
        path = folder.with_name(f"{folder.name}-prompt.md")
        write_text(path, "".join(spec.make_prompt()))
        prompt = ours.prompt.model_copy(update={"file": str(path)})
    train = TrainConfig(
        metric=ours.train.metric, limit_rows=ours.train.limit_rows, precision=ours.train.precision
    )
    base = BaseConfig(model=ours.base.model, revision=spec.base.revision, tuning="frozen")
    return ours.model_copy(
        update={
            "name": "probe", "task": record.task, "base": base, "head": ours.head.convex,
            "prompt": prompt, "train": train, "launch": LaunchConfig(), "init_from": None,
            "output_dir": str(folder),
        }
    )  # fmt: skip


class PredictedProbe(NamedTuple):
    """The baseline, predicted."""

    baseline: ProbeBaseline
    run: VariantRun
    """Its run, with its predictions for the rows to measure."""


def predict_probe(
    folder: Path, rows: LabelledRows, *, name: str, all_rows: list[Row], data: str
) -> PredictedProbe:
    """Predict the rows to measure.

    Args:
        folder: The finished run of the baseline.
        rows: The rows to measure.
        name: Of all rows, for the file of the predictions.
        all_rows: The rows, and those that are not measured.
        data: Fingerprint of the prepared data, or hash of the file that the rows are from.
    """
    record = read_record(folder)
    ids = [row["id"] for row in all_rows]
    place = {row_id: i for i, row_id in enumerate(ids)}
    stored = load_or_predict(
        folder, all_rows,
        path=folder / "predictions" / f"{name}.parquet",
        source=name_source(record.model_hash, data),
    ).align(ids)  # fmt: skip
    predictions = stored.take([place[row["id"]] for row in rows.rows])
    num_unknown = len(rows.names) - predictions.outputs.shape[1]
    assert record.head_fit is not None
    baseline = ProbeBaseline(
        base=record.recipe.base.model, run=str(folder), prompt_sha256=record.prompt_sha256,
        tokens=record.recipe.tokens, head_fit=record.head_fit,
    )  # fmt: skip
    run = VariantRun.open(folder)._replace(predictions=predictions, num_unknown=num_unknown)
    return PredictedProbe(baseline, run)
