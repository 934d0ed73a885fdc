"""The learning curve of a run, from the trainer's log."""

from typing import Any

import numpy as np


def summarise_history(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return one entry per evaluation.

    Each has epoch, step, train_loss, learning_rate, seconds, val_loss and the metrics as val_*.

    `train_loss` is the mean over the steps since the evaluation before.
    """
    entries: list[dict[str, float]] = []
    losses: list[float] = []
    steps: list[int] = []
    rate, last_step = 0.0, 0
    for record in log:
        if "loss" in record:
            losses.append(record["loss"])
            steps.append(record["step"] - last_step)
            rate, last_step = record["learning_rate"], record["step"]
        elif "eval_loss" in record:
            timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
            measured = {
                "val_" + key.removeprefix("eval_"): value
                for key, value in record.items()
                if key.startswith("eval_") and key not in timing
            }
            entries.append(
                {
                    "epoch": record["epoch"],
                    "step": record["step"],
                    "train_loss": float(np.average(losses, weights=steps)),
                    "learning_rate": rate,
                    "seconds": record["seconds"],
                    **measured,
                }
            )
            losses, steps = [], []
    return entries
