"""The learning curve of a run, from the trainer's log."""

from typing import Any

import numpy as np

from llmft.results.run import CurvePoint

_TIMING = ("runtime", "samples_per_second", "steps_per_second")


def summarise_history(log: list[dict[str, Any]]) -> list[CurvePoint]:
    """Return one point per evaluation."""
    points: list[CurvePoint] = []
    losses: list[float] = []
    steps: list[int] = []
    rate, last_step = 0.0, 0
    for record in log:
        if "loss" in record:
            losses.append(record["loss"])
            steps.append(record["step"] - last_step)
            rate, last_step = record["learning_rate"], record["step"]
        elif "eval_loss" in record:
            measured = {
                key.removeprefix("eval_"): value
                for key, value in record.items()
                if key.startswith("eval_")
            }
            points.append(
                CurvePoint(
                    epoch=record["epoch"],
                    step=record["step"],
                    train_loss=float(np.average(losses, weights=steps)),
                    learning_rate=rate,
                    seconds=record["seconds"],
                    val={key: value for key, value in measured.items() if key not in _TIMING},
                )
            )
            losses, steps = [], []
    return points
