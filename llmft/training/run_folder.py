"""The folder of a run: its identity, its progress, and the record of a finished run."""

import fcntl
import logging
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from llmft.config.recipe import Precision, Recipe, ResolvedRecipe, TrainConfig
from llmft.config.task import name_task
from llmft.console import LineFormatter
from llmft.data.batches import BatchPlan
from llmft.data.prepared import PreparedData
from llmft.data.prompts import Prompt
from llmft.errors import UserError
from llmft.files import hash_text, read_json
from llmft.models.device import choose_precision, name_device
from llmft.models.saved import check_init_compatibility, hash_model
from llmft.processes import ask_main, is_main
from llmft.results.files import read_result, write_result
from llmft.results.run import (
    CurvePoint,
    LearningCurve,
    Run,
    RunIdentity,
    RunRecord,
    UnfinishedRun,
)
from llmft.training.checkpoints import (
    find_last_checkpoint,
    open_checkpoint,
    remove_other_checkpoints,
)
from llmft.training.launch import Launch

if TYPE_CHECKING:
    from llmft.training.inputs import Inputs
    from llmft.training.train_model import TrainedModel

logger = logging.getLogger("llmft.train")

METADATA_NAME = "training_metadata.json"
HISTORY_NAME = "training_history.json"
LOCK_NAME = ".lock"
_NOT_COMPARED = (
    # Names and paths: the contents behind them are compared.
    "recipe.name", "recipe.task", "recipe.output_dir", "recipe.prompt.file", "recipe.init_from",
    # May change between attempts of a run. How it is distributed is compared separately.
    "recipe.train.auto_batch_size", "recipe.train.save_steps", "recipe.train.save_total_limit",
    "recipe.train.report_to", "recipe.train.world_size", "recipe.launch",
    "task.oracle_sees",  # a remark on the labels, which changes no row
)  # fmt: skip
_IN_WORDS = {
    "data_fingerprint": "the prepared data",
    "prompt_sha256": "the text of the prompt",
    "init_hash": "the weights of init_from",
}
_WORDS = ("auto", "never")
_STARTED, _ENDED = "started", "ended early: "
_START_OF_LINE = r"^\d{4}-\d\d-\d\d [\d:,]+ "
_NEAR = 0.8
"""Of the free memory; a training whose estimate is above it may have been killed for it."""
_FIX = "restore the file, or remove the folder of the run and train again"
_PACKAGES = ("llmft", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy",
             "bitsandbytes", "deepspeed")  # fmt: skip


def identify_run(recipe: ResolvedRecipe, data: PreparedData, prompt: Prompt) -> RunIdentity:
    """Return the identity of what a recipe would train now."""
    init_from = recipe.config.init_from
    return RunIdentity(
        # The task is recorded next to the recipe.
        recipe=recipe.config.model_copy(update={"task": name_task(recipe.config.task)}),
        task=recipe.task,
        data_fingerprint=data.fingerprint,
        prompt_sha256=hash_text("\0".join(prompt)) if recipe.prompt_path else None,
        init_hash=None if init_from is None else hash_model(Path(init_from) / "model"),
    )


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append log lines, and the error that ends the context, to a file, in the main process.

    An application that shows fewer lines of llmft than the file has still shows only those.
    """
    if not is_main():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(LineFormatter("%(asctime)s %(message)s"))
    handlers: list[logging.Handler] = [handler]
    logger = logging.getLogger("llmft")
    level, shown, propagates = logger.level, logger.getEffectiveLevel(), logger.propagate
    of_application = list(logger.handlers)

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno >= shown

    if shown > logging.INFO:
        if propagates and logger.parent is not None:
            handlers.append(_Forwarder(logger.parent, level=shown))
        logger.propagate = False
        logger.setLevel(logging.INFO)
    for one in of_application:
        one.addFilter(is_shown)
    for one in handlers:
        logger.addHandler(one)
    handler.handle(_note(_STARTED))
    try:
        yield
    except BaseException as error:
        handler.handle(_note(f"{_ENDED}{str(error) or type(error).__name__}"))
        raise
    finally:
        for one in handlers:
            logger.removeHandler(one)
        for one in of_application:
            one.removeFilter(is_shown)
        logger.setLevel(level)
        logger.propagate = propagates
        handler.close()


class _Forwarder(logging.Handler):
    """Passes on to the handlers of another logger what its level admits."""

    def __init__(self, target: logging.Logger, *, level: int) -> None:
        super().__init__(level)
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        self._target.callHandlers(record)


def _note(text: str) -> logging.LogRecord:
    return logging.LogRecord("llmft.train", logging.INFO, __file__, 0, text, None, None)


def claim_run_folder(
    run_dir: Path, identity: RunIdentity, *, launch: Launch, resume: str
) -> UnfinishedRun | None:
    """Claim the folder for this run, by writing its metadata; call it in the main process only.

    Afterwards the last checkpoint in it, if there is any, is the one to resume from.

    Args:
        run_dir: Folder of the run.
        identity: What is to be trained.
        launch: How the processes share it.
        resume: `auto` resumes from the last checkpoint, `never` starts from scratch, and all else
            names a checkpoint of this run to resume from; later ones are removed.

    Returns:
        The run as it is now recorded; None if it is finished already.

    Raises:
        UserError: If the folder contains another run, or `resume` is not a checkpoint of this one.
    """
    path, checkpoints = run_dir / METADATA_NAME, run_dir / "checkpoints"
    if not path.is_file():
        if run_dir.is_dir() and any(not p.name.startswith(".") for p in run_dir.iterdir()):
            raise UserError(
                f"{run_dir}: contains files that are not a run of llmft; choose another output_dir"
            )
        if resume not in _WORDS:
            raise UserError(f"resume: {resume}: there is no run in {run_dir} yet; use auto")
        return _write_unfinished(run_dir, identity, launch)
    found = _read_metadata(run_dir)
    has_finished = isinstance(found, RunRecord)
    last = find_last_checkpoint(checkpoints)
    differing = list_differences(found, identity)
    if differing and (has_finished or last is not None):  # else nothing was learned yet
        raise UserError(
            f"{run_dir}: contains another run, which differs in "
            f"{', '.join(_IN_WORDS.get(name, name) for name in differing)}; choose another "
            "output_dir, or remove the folder"
        )
    if has_finished and resume == "auto":
        return None
    if resume == "never":
        last = None
    elif resume != "auto":
        last = open_checkpoint(Path(resume), run_dir=run_dir)
    before = Launch(found.world_size, found.parallelism, None)
    precision = _choose_precision(identity)
    if last is not None and found.precision != precision:
        raise UserError(
            f"{run_dir}: contains a run that began in {found.precision}, but this machine computes "
            f"in {precision}; resume on a machine as before, or start from scratch with `resume: "
            "never`"
        )
    if last is not None and before.describe() != launch.describe():
        raise UserError(
            f"{run_dir}: contains a run that began with {before.describe()}, and "
            f"{launch.describe()} cannot resume it; launch it as before, or start from scratch "
            "with `resume: never`"
        )
    remove_other_checkpoints(checkpoints, last=last)
    continues = not differing and resume != "never"
    return _write_unfinished(
        run_dir, identity, launch,
        before=found if continues and isinstance(found, UnfinishedRun) else None,
        has_learned=last is not None,
    )  # fmt: skip


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Keep other trainings out of a run folder, within the context; in all processes.

    Raises:
        UserError: If one is under way there.
    """
    path, lock = run_dir / LOCK_NAME, ExitStack()

    def acquire() -> None:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            file = lock.enter_context(path.open("w"))
        except OSError as error:
            raise UserError(
                f"{run_dir}: cannot be written: {error.strerror}; choose another output_dir"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run_dir}: another process is training it; wait for its end, or choose another "
                "output_dir"
            ) from None
        except OSError as error:  # some network file systems have no locks
            logger.warning(
                "%s cannot be locked (%s); do not train it twice at once", run_dir, error.strerror
            )

    with lock:
        ask_main(acquire)
        try:
            yield
        finally:
            if is_main() and not (run_dir / METADATA_NAME).is_file():  # the folder was refused
                path.unlink(missing_ok=True)


class SilentEnd(NamedTuple):
    """The last start of a run, which probably was killed."""

    words: str
    by_memory: bool
    """Whether it needed nearly all of the memory that was free."""


def find_silent_end(run_dir: Path) -> SilentEnd | None:
    """Return how the last start of an unfinished run ended, if its log has no error.

    Call it before the run is claimed again, under its lock: else it may still be training.
    """
    path = run_dir / "logs" / "training.log"
    if not path.is_file() or not (run_dir / METADATA_NAME).is_file():
        return None
    run = _read_metadata(run_dir)
    if isinstance(run, RunRecord):
        return None
    log = re.split(_START_OF_LINE + _STARTED + "$", path.read_text("utf-8", "replace"), flags=re.M)
    if re.search(_START_OF_LINE + _ENDED, log[-1], flags=re.M):
        return None
    steps = re.findall(r"step ([\d,]+) of [\d,]+[:,] ", log[-1])
    when = f"after step {steps[-1]}" if steps else "before a step was logged"
    words = f"the last start was probably killed {when}: its log ends without an error"
    if run.memory_gib is None or run.free_gib is None or run.memory_gib < _NEAR * run.free_gib:
        return SilentEnd(words, by_memory=False)
    return SilentEnd(
        f"{words}; by estimate it needed {run.memory_gib:.1f} of the {run.free_gib:.1f} GiB that "
        "were free, so memory is the likely cause",
        by_memory=True,
    )


def check_init_from(config: Recipe, *, label_names: list[str]) -> None:
    """Check that `init_from` is a finished run, and that its weights fit the recipe's model.

    Raises:
        UserError: If it is not, or they do not.
    """
    if config.init_from is None:
        return
    if not is_finished(Path(config.init_from)):
        raise UserError(
            f"init_from: {config.init_from} contains no finished run; name the folder in which "
            f"{METADATA_NAME} and model/ are, or train it first"
        )
    check_init_compatibility(config, label_names=label_names)


def update_run(run_dir: Path, run: UnfinishedRun, **changes: Any) -> UnfinishedRun:
    """Record a change of an unfinished run; any process may do it."""
    changed = run.replace(**changes)
    write_result(run_dir / METADATA_NAME, changed)
    return changed


def write_run(
    run_dir: Path, record: RunRecord, history: Sequence[CurvePoint], *, metric: str
) -> None:
    """Write learning curve and record, the record last: with it the run is finished."""
    write_result(run_dir / HISTORY_NAME, LearningCurve(metric=metric, epochs=list(history)))
    write_result(run_dir / METADATA_NAME, record)


def _write_unfinished(
    run_dir: Path, identity: RunIdentity, launch: Launch, *,
    before: UnfinishedRun | None = None, has_learned: bool = False,
) -> UnfinishedRun:  # fmt: skip
    """Record a run as unfinished, with what an attempt before found out.

    Without a checkpoint the model begins anew, perhaps launched in another way.
    """
    goes_on = before if has_learned else None
    record = UnfinishedRun(
        **dict(identity),
        world_size=launch.world_size,
        parallelism=launch.parallelism,
        precision=_choose_precision(identity),
        micro_batch_divisor=before.micro_batch_divisor if before else 1,
        gradient_checkpointing=before.gradient_checkpointing if before else False,
        memory_gib=before.memory_gib if before else None,
        free_gib=before.free_gib if before else None,
        resolved=goes_on.resolved if goes_on else None,
        head_fit=goes_on.head_fit if goes_on else None,
    )
    write_result(run_dir / METADATA_NAME, record)
    return record


def list_differences(found: RunIdentity, wanted: RunIdentity) -> list[str]:
    """Return the dotted names in which a recorded run differs from what would be trained now."""
    keys = set(RunIdentity.model_fields)
    then, now = (
        one.model_dump(mode="json", by_alias=True, include=keys) for one in (found, wanted)
    )
    return [name for key in now for name in _list_differences(then[key], now[key], key)]


def is_finished(run_dir: Path) -> bool:
    """Return whether the folder contains a finished run.

    Raises:
        UserError: If its record is broken or of another version.
    """
    return (run_dir / METADATA_NAME).is_file() and isinstance(_read_metadata(run_dir), RunRecord)


def open_run(run_dir: Path) -> Run:
    """Return a finished run.

    Raises:
        UserError: If there is none, or one of its files is broken.
    """
    return Run(path=str(run_dir), record=read_record(run_dir), curve=read_curve(run_dir))


def read_record(run_dir: Path) -> RunRecord:
    """Return the record of a finished run.

    Raises:
        UserError: If there is none, or it is broken or of another version.
    """
    if (run_dir / METADATA_NAME).is_file():
        found = _read_metadata(run_dir)
        if isinstance(found, RunRecord):
            return found
    inside = sorted(path.parent for path in run_dir.glob(f"*/{METADATA_NAME}"))
    near = " or ".join(str(path) for path in inside if is_finished(path))
    fix = f"did you mean {near}?" if near else "train it with `llmft train RECIPE`"
    raise UserError(f"{run_dir}: contains no finished run; {fix}")


def read_curve(run_dir: Path) -> LearningCurve:
    """Return the learning curve of a run.

    Raises:
        UserError: If it is missing, broken or of another version.
    """
    return read_result(run_dir / HISTORY_NAME, LearningCurve, fix=_FIX)


def _read_metadata(run_dir: Path) -> RunRecord | UnfinishedRun:
    path = run_dir / METADATA_NAME
    if read_json(path, fix=_FIX).get("status") == "unfinished":
        return read_result(path, UnfinishedRun, fix=_FIX)
    return read_result(path, RunRecord, fix=_FIX)


def _choose_precision(identity: RunIdentity) -> Precision:
    return choose_precision(identity.recipe.train.precision)


def _list_differences(found: Any, wanted: Any, name: str) -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [k for k in dict.fromkeys([*wanted, *found]) if f"{name}.{k}" not in _NOT_COMPARED]
        return [
            d for k in keys for d in _list_differences(found.get(k), wanted.get(k), f"{name}.{k}")
        ]
    return [] if found == wanted else [name.removeprefix("recipe.")]


def make_record(
    run: UnfinishedRun, inputs: "Inputs", trained: "TrainedModel", *, plan: BatchPlan | None,
    launch: Launch, started: float, peak_memory_gib: float, model_hash: str,
) -> RunRecord:  # fmt: skip
    """Return the record of a finished run.

    Args:
        run: Identity and settings of the run.
        inputs: Its rows and their token budgets.
        trained: The trained model.
        plan: The batches; None if all rows are one.
        launch: How it was distributed.
        started: When its last attempt started, in seconds since the epoch.
        peak_memory_gib: What the device needed most.
        model_hash: Of the saved model.
    """
    config, spec, result = run.recipe, trained.spec, trained.result
    included = config.prompt.mode == "include"
    # A shared prompt counts once per row; padding does not count.
    num_train_tokens = round(int(inputs.train.lengths.sum()) * result.num_epochs)
    seconds = result.train_seconds
    head_fit, train_seconds = run.head_fit, result.train_seconds
    if head_fit is not None and config.base.tuning == "frozen":
        num_train_tokens, seconds = head_fit.num_computed_tokens, head_fit.encoding_seconds
    elif head_fit is not None:
        train_seconds += head_fit.seconds
    return RunRecord(
        **{name: getattr(run, name) for name in RunIdentity.model_fields},
        name=config.name,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        training_mode="instruction_tuning" if included else "fine_tuning",
        world_size=launch.world_size,
        parallelism=launch.parallelism,
        distributed_type=result.distributed_type,
        deepspeed=launch.deepspeed,
        per_device_batch_size=plan.largest.num_rows if plan is not None else len(inputs.train),
        gradient_accumulation_steps=plan.num_accumulated if plan is not None else 1,
        gradient_checkpointing=run.gradient_checkpointing or config.train.gradient_checkpointing,
        global_batch_size=(
            _find_global_batch_size(launch, plan, config.train)
            if plan is not None
            else len(inputs.train)
        ),
        train_seconds=round(train_seconds, 2),
        num_train_tokens=num_train_tokens,
        tokens_per_second=round(num_train_tokens / max(seconds, 0.01), 1),
        peak_memory_gib=round(peak_memory_gib, 3),
        prompt_shared=included and inputs.unshared_reason is None,
        resolved=run.resolved,
        num_steps=result.num_steps,
        resumed_from_step=result.resumed_from_step,
        num_rows={name: len(rows) for name, rows in inputs.rows.items()},
        token_budget=inputs.budgets,
        budget_warnings=inputs.budget_findings.warnings + inputs.budget_findings.refusals,
        best_metric_name=f"val_{result.best_metric_name}",
        best_metric=result.best_metric,
        best_epoch=result.best.epoch,
        best_step=result.best.step,
        precision=spec.precision,
        num_parameters=spec.num_parameters,
        num_trainable=spec.num_trainable,
        head_fit=head_fit,
        base_pretrained=spec.base_pretrained,
        model_hash=model_hash,
        python=platform.python_version(),
        packages={name: version(name) for name in _PACKAGES if find_spec(name)},
        platform=platform.platform(terse=True),
        device=name_device(),
        num_threads=torch.get_num_threads(),
        git_revision=_read_git_revision(),
    )


def _find_global_batch_size(launch: Launch, plan: BatchPlan, config: TrainConfig) -> float:
    """Return the rows of an optimizer step; of batches by tokens it is their mean."""
    if config.batch_size is not None and config.max_tokens_per_batch is None:
        return config.batch_size * config.gradient_accumulation_steps * launch.world_size
    return round(float(sum(plan.global_sizes)) / len(plan), 1)


def _read_git_revision() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
