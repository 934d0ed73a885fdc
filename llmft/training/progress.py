"""What a person sees while a run trains: a bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger("llmft.training")


class ProgressReporter(TrainerCallback):  # type: ignore[misc]
    """Shows loss and validation metric in a progress bar, and logs one line per evaluation."""

    def __init__(self, *, metric: str) -> None:
        self._metric = metric
        self._started = 0.0
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar, and count the seconds on from where an earlier attempt ended."""
        earlier = max((record.get("seconds", 0.0) for record in state.log_history), default=0.0)
        self._started = time.perf_counter() - earlier
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            desc="training",
            disable=not (state.is_world_process_zero and sys.stderr.isatty()),
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar, and log the loss before every validation."""
        control.should_log |= control.should_evaluate
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log the loss before every validation."""
        control.should_log |= control.should_evaluate

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Note the time, and show the last loss and the last validation metric."""
        state.log_history[-1]["seconds"] = round(time.perf_counter() - self._started, 2)
        for key, label in (("loss", "loss"), (f"eval_{self._metric}", f"val {self._metric}")):
            if logs and key in logs:
                self._shown[label] = f"{logs[key]:.4f}"
        if self._bar is not None:
            self._bar.set_postfix(self._shown)
        if logs and f"eval_{self._metric}" in logs and state.is_world_process_zero:
            shown = ", ".join(f"{label} {value}" for label, value in self._shown.items())
            logger.info(
                "epoch %.2f, step %d of %d: %s",
                state.epoch,
                state.global_step,
                state.max_steps,
                shown,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
