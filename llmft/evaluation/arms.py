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
from llmft.evaluation.reads import record_test_read
from llmft.evaluation.verdict import find_valid_arms
from llmft.models.saved import read_card
from llmft.prediction.fits import Fit, FittedOutputs, apply_fit, read_fit
from llmft.prediction.stored import ChangedModelError, StoredPredictions, load_or_predict
from llmft.results.run import RunRecord
from llmft.results.variant import Finding
from llmft.training.run_folder import read_record


class Run(NamedTuple):
    """One finished run of an arm."""

    path: Path
    record: RunRecord
    seen: StoredPredictions | None
    """Test predictions in the order of the test rows; None if the run is invalid."""
    fit: Fit | None = None
    """Its post-hoc fit; the run is judged with it."""

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
    report: str,
    treatment: list[str] | None = None,
    waivers: Sequence[WaiverConfig] = (),
) -> OpenedArms:
    """Open every run and audit it; a run that cannot be trusted is struck out with its arm.

    Args:
        paths: Arm -> folders of its runs.
        data: The prepared data.
        rows: All test rows.
        reference: The arm that the others are held against.
        report: What the results are written to, for the count of test reads.
        treatment: Keys of the recipe in which the arms are meant to differ; None: the default.
        waivers: Findings that do not count.

    Raises:
        UserError: If a run is missing or unreadable.
    """
    fits: dict[str, Fit | None] = {}
    facts: dict[str, list[RunFacts]] = {arm: [] for arm in paths}
    for arm, path in ((arm, path) for arm, runs in paths.items() for path in runs):
        record = read_record(path)
        fit = fits[str(path)] = read_fit(path, model_hash=record.model_hash)
        card = read_card(path / "model")
        weights = card.base_hash or card.base.revision
        facts[arm].append(RunFacts(arm, str(path), record, name_fit(fit), weights))
    every = [run for runs in facts.values() for run in runs]
    audit = check_data(every, fingerprint=data.fingerprint)
    audit += check_treatment(every, reference=reference, treatment=treatment)
    audit += check_seeds(every)
    leaks = check_leaks(every, rows, data=data)
    audit += leaks.findings
    scored = leaks.drop(rows)
    valid = find_valid_arms(list(paths), apply_waivers(audit, waivers))
    arms: Arms = {}
    for arm, runs in facts.items():
        arms[arm] = []
        for run in runs:
            seen = None
            if arm in valid:
                seen, found = _open_predictions(run, data=data, rows=rows, report=report)
                audit += [f for f in found if f not in audit]
            seen = seen and seen.take(scored)
            arms[arm].append(Run(Path(run.run), run.record, seen, fits[run.run]))
        audit += check_run(runs[0])
        if all(run.seen is not None for run in arms[arm]):
            labels = make_targets([rows[i] for i in scored], label_names=data.label_names)
            by_seed = {r.record.recipe.train.seed: r.outputs for r in arms[arm]}
            audit += check_variation(arm, labels.numpy(), by_seed)
    return OpenedArms(arms, apply_waivers(audit, waivers), [rows[i] for i in scored])


def _open_predictions(
    run: RunFacts, *, data: PreparedData, rows: list[Row], report: str
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
    num_reads = record_test_read(path, by="compare", report=report)
    return seen, [
        *check_inputs(run, seen, texts),
        *check_oracle_view(run, seen, texts, view=data.task.oracle_sees),
        *check_test_use(run, num_reads=num_reads),
    ]
