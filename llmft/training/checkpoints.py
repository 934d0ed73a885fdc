"""Checkpoints: choosing the best, saving on schedule and on SIGTERM, surviving a kill."""

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmft.config.metrics import METRICS
from llmft.config.recipe import TrainConfig
from llmft.errors import StoppedError, UserError
from llmft.files import read_json, write_json
from llmft.processes import is_any, is_main, is_orphan, wait_for_all

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-\d+")
_SEAL = "complete.json"
"""Written last, when all processes have written: names and sizes of all files."""


def read_step(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def keep_best_by(metric: str) -> dict[str, Any]:
    """Return the trainer's settings by which the best checkpoint on validation becomes the model.

    Of equal ones the first is kept.

    Args:
        metric: A metric, or `loss`.
    """
    return {
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": metric != "loss" and METRICS[metric].higher_is_better,
    }


def find_last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint; None if there is none."""
    return max(_list_complete(folder), key=read_step, default=None)


def open_checkpoint(path: Path, *, run_dir: Path) -> Path:
    """Return a checkpoint of a run, named by the user.

    Raises:
        UserError: If it is not a checkpoint of this run, or is incomplete.
    """
    folder = run_dir / "checkpoints"
    if path.resolve().parent != folder.resolve():
        raise UserError(
            f"resume: {path} is not a checkpoint of {run_dir}; to start a new training with "
            "another run's weights, name that run as init_from in the recipe"
        )
    fault = _find_fault(path) if _NAME.fullmatch(path.name) else "is not named checkpoint-STEP"
    if fault is None:
        state = read_json(path / "trainer_state.json", fix="choose another checkpoint")
        best = Path(state.get("best_model_checkpoint") or path).name
        if not (folder / best).is_dir():
            fault = f"needs {best}, the best checkpoint so far, which was removed since"
    if fault is not None:
        names = ", ".join([path.name for path in _list_complete(folder)])
        raise UserError(
            f"resume: {path} {fault}; complete checkpoints: {names or 'none'}; name one"
        )
    return path


def remove_other_checkpoints(folder: Path, *, last: Path | None) -> None:
    """Remove incomplete checkpoints, and those later than the last one to keep."""
    for path in _list_checkpoints(folder):
        fault = _find_fault(path)
        if fault is not None:
            logger.info("%s: %s, removed", path, fault)
        if last is None or read_step(path) > read_step(last) or fault is not None:
            shutil.rmtree(path)


def _list_complete(folder: Path) -> list[Path]:
    """Return the checkpoints that were written to their end, the oldest first."""
    return [path for path in _list_checkpoints(folder) if _find_fault(path) is None]


def _list_checkpoints(folder: Path) -> list[Path]:
    """Return whatever looks like a checkpoint, the oldest first."""
    found = (p for p in folder.glob("checkpoint-*") if _NAME.fullmatch(p.name))
    return sorted(found, key=read_step)


class Checkpointing(TrainerCallback):  # type: ignore[misc]
    """Saves at the recipe's steps and on SIGTERM, and seals what was saved.

    The trainer's own rotation would remove the old checkpoint before the new one is complete.
    """

    def __init__(self, config: TrainConfig, *, steps_per_epoch: int) -> None:
        """Prepare saving on schedule; `stop` makes it save and stop at the next step.

        Args:
            config: When to save, and how many checkpoints to keep.
            steps_per_epoch: Optimizer steps in an epoch.
        """
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        self._got_sigterm = False
        self._is_stopping = False

    def stop(self) -> None:
        """Save and stop after the current step; a handler of SIGTERM."""
        self._got_sigterm = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Update the path of the best checkpoint, since the run's folder may have been moved."""
        if state.best_model_checkpoint is not None:
            name = Path(state.best_model_checkpoint).name
            state.best_model_checkpoint = str(Path(args.output_dir, name))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Request a checkpoint when one is due, and log the loss so far (R5)."""
        self._is_stopping = is_any(self._got_sigterm or is_orphan())
        is_due = self._config.save_steps and state.global_step % self._config.save_steps == 0
        # The trainer validates and saves at the end of an epoch anyway; resuming from a checkpoint
        # saved just before would skip that validation.
        ends_epoch = state.global_step % self._steps_per_epoch == 0
        is_validated = self._config.eval_steps is None and ends_epoch
        if (is_due or self._is_stopping) and not is_validated:
            control.should_save |= state.global_step < state.max_steps
        control.should_log |= control.should_save

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Seal the checkpoint when all processes have written their shard; stop after SIGTERM.

        Raises:
            StoppedError: After SIGTERM.
        """
        wait_for_all()
        folder = Path(args.output_dir)
        if is_main():
            seal_checkpoint(folder / f"checkpoint-{state.global_step}")
            self._remove_old(folder, best=state.best_model_checkpoint)
        wait_for_all()
        if is_any(self._is_stopping or self._got_sigterm):  # perhaps in the validation before
            raise StoppedError(
                f"stopped at step {state.global_step} of {state.max_steps}, with everything saved; "
                "run the same command to resume"
            )

    def _remove_old(self, folder: Path, *, best: str | None) -> None:
        for path in _list_complete(folder)[: -self._config.save_total_limit]:
            if best is None or path.name != Path(best).name:
                shutil.rmtree(path)


def seal_checkpoint(checkpoint: Path) -> None:
    """Mark a checkpoint as complete, once it is synced to disk."""
    sizes = _measure_files(checkpoint)
    for name in sizes:
        with (checkpoint / name).open("rb") as file:
            os.fsync(file.fileno())
    write_json(checkpoint / _SEAL, {"files": sizes})


def _find_fault(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be used; None if it is complete."""
    if not (checkpoint / _SEAL).is_file():
        return "is incomplete"
    try:
        sealed = read_json(checkpoint / _SEAL).get("files")
    except UserError:
        sealed = None
    if not isinstance(sealed, dict):
        return f"cannot be trusted, as its {_SEAL} was changed"
    sizes = _measure_files(checkpoint)
    changed = sorted(name for name in {**sealed, **sizes} if sealed.get(name) != sizes.get(name))
    return (
        f"cannot be trusted, as {changed[0]} was changed since it was written" if changed else None
    )


def _measure_files(checkpoint: Path) -> dict[str, int]:
    """Return the size in bytes of each file, by its path within the checkpoint."""
    return {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != _SEAL
    }
