"""The arms of a comparison: opened and audited."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.audit import WaiverConfig
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData
from llmft.errors import UserError
from llmft.evaluation.audit import (
    RunFacts,
    apply_waivers,
    check_data,
    check_inputs,
    check_leaks,
    check_oracle_view,
    check_run,
    check_seeds,
    check_test_use,
    check_treatment,
    check_variation,
)
from llmft.evaluation.fitting import name_fit
from llmft.evaluation.reads import count_test_reads
from llmft.evaluation.verdict import find_valid_arms
from llmft.models.saved import read_card
from llmft.prediction.fits import FittedOutputs, apply_fit, read_fit
from llmft.prediction.stored import ChangedModelError, StoredPredictions, load_or_predict
from llmft.results.fit import Fit
from llmft.results.run import LearningCurve, RunRecord
from llmft.results.variant import Finding
from llmft.training.run_folder import read_curve, read_record


class Run(NamedTuple):
    """One finished run of an arm."""

    path: Path
    record: RunRecord
    curve: LearningCurve
    num_test_reads: int
    """How many reports have read its test predictions; this one counts where it reads them."""
    fit: Fit | None
    """Its post-hoc fit; the run is judged with it."""
    seen: StoredPredictions | None = None
    """Its predictions in the order of the rows; None if the run is invalid."""

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open a finished run, without its predictions.

        Raises:
            UserError: If there is none, or one of its files is broken.
        """
        record = read_record(path)
        fit = read_fit(path, model_hash=record.model_hash)
        return cls(path, record, read_curve(path), count_test_reads(path), fit)

    @property
    def outputs(self) -> NDArray[np.floating[Any]]:
        """What metrics and decisions are made from, with the fit applied; shape [N, C]."""
        return self._apply_fit().deciding_NC

    @property
    def raw(self) -> NDArray[np.float32]:
        """What the model says, without the fit; shape [N, C]."""
        assert self.seen is not None
        return self.seen.outputs

    @property
    def shown(self) -> NDArray[np.floating[Any]]:
        """Calibrated scores, or the model's own probabilities; shape [N, C]."""
        return self._apply_fit().shown_NC

    def _apply_fit(self) -> FittedOutputs:
        return apply_fit(self.raw, self.fit)


Arms = dict[str, list[Run]]


class OpenedArms(NamedTuple):
    """The arms of a comparison, and what the audit says of them."""

    arms: Arms
    audit: list[Finding]
    rows: list[Row]
    """The test rows to score: those that no arm was trained on."""


def open_arms(
    paths: dict[str, list[Path]],
    *,
    data: PreparedData,
    rows: list[Row],
    reference: str,
    treatment: list[str] | None = None,
    waivers: Sequence[WaiverConfig] = (),
) -> OpenedArms:
    """Open every run and audit it; a run that cannot be trusted is struck out with its arm.

    Args:
        paths: Arm -> folders of its runs.
        data: The prepared data.
        rows: All test rows.
        reference: The arm that the others are held against.
        treatment: Keys of the recipe in which the arms are meant to differ; None: the default.
        waivers: Findings that do not count.

    Raises:
        UserError: If a run is missing or unreadable.
    """
    arms = {arm: [Run.open(path) for path in found] for arm, found in paths.items()}
    facts = {arm: [_gather_facts(arm, run) for run in runs] for arm, runs in arms.items()}
    every = [run for runs in facts.values() for run in runs]
    audit = check_data(every, fingerprint=data.fingerprint)
    audit += check_treatment(every, reference=reference, treatment=treatment)
    audit += check_seeds(every)
    leaks = check_leaks(every, rows, data=data)
    audit += leaks.findings
    scored = leaks.drop(rows)
    valid = find_valid_arms(list(paths), apply_waivers(audit, waivers))
    for arm, runs in arms.items():
        if arm in valid:
            for i, run in enumerate(runs):
                seen, found = _open_predictions(
                    facts[arm][i], data=data, rows=rows, num_reads=run.num_test_reads + 1
                )
                audit += [f for f in found if f not in audit]
                if seen is not None:
                    num_reads = run.num_test_reads + 1
                    runs[i] = run._replace(seen=seen.take(scored), num_test_reads=num_reads)
        audit += check_run(facts[arm][0])
        if all(run.seen is not None for run in runs):
            labels = make_targets([rows[i] for i in scored], label_names=data.label_names)
            by_seed = {run.record.recipe.train.seed: run.outputs for run in runs}
            audit += check_variation(arm, labels.numpy(), by_seed)
    return OpenedArms(arms, apply_waivers(audit, waivers), [rows[i] for i in scored])


def _gather_facts(arm: str, run: Run) -> RunFacts:
    card = read_card(run.path / "model")
    weights = card.base_hash or card.base.revision
    return RunFacts(arm, str(run.path), run.record, name_fit(run.fit), weights)


def _open_predictions(
    run: RunFacts, *, data: PreparedData, rows: list[Row], num_reads: int
) -> tuple[StoredPredictions | None, list[Finding]]:
    """Return the test predictions of a run in the order of the rows; None if they are of others."""
    path, texts = Path(run.run), [row["text"] for row in rows]
    source = {"model": run.record.model_hash, "data": data.fingerprint}
    stored = path / "predictions" / "test.parquet"
    try:
        seen = load_or_predict(path, rows, path=stored, source=source)
    except ChangedModelError as error:
        return None, [
            Finding(check="same model", status="invalid", variants=[run.arm], message=str(error))
        ]
    try:
        seen = seen.align([row["id"] for row in rows])
    except UserError as error:
        return None, [
            Finding(
                check="same rows", status="invalid", variants=[run.arm], message=f"{path}: {error}"
            )
        ]
    return seen, [
        *check_inputs(run, seen, texts),
        *check_oracle_view(run, seen, texts, view=data.task.oracle_sees),
        *check_test_use(run, num_reads=num_reads),
    ]
