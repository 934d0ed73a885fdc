"""The arms of a comparison: opened, audited, measured and described."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.data.prepared import PreparedData, Row
from llmft.errors import UserError
from llmft.evaluation.audit import (
    Finding,
    RunFacts,
    check_data,
    check_inputs,
    check_overlap,
    check_run,
    check_seeds,
    check_treatment,
)
from llmft.evaluation.metrics import find_label_type, measure
from llmft.evaluation.statistics import Difference, estimate_interval
from llmft.evaluation.tables import (
    describe_measured,
    describe_outputs,
    describe_rows,
    measure_baselines,
    name_parts,
    pick_worst,
)
from llmft.evaluation.verdict import find_valid_arms
from llmft.prediction.stored import StoredPredictions, load_or_predict
from llmft.training.run_folder import read_history, read_metadata


class Run(NamedTuple):
    """One finished run of an arm."""

    path: Path
    metadata: dict[str, Any]
    seen: StoredPredictions | None
    """Test predictions in the order of the test rows; None if the run is invalid."""

    @property
    def outputs(self) -> NDArray[np.float32]:
        """Shape [N, C]."""
        assert self.seen is not None
        return self.seen.outputs


Arms = dict[str, list[Run]]


class OpenedArms(NamedTuple):
    """The arms of a comparison, and what the audit says of them."""

    arms: Arms
    audit: list[Finding]


def open_arms(
    paths: dict[str, list[Path]], *, data: PreparedData, rows: list[Row], reference: str
) -> OpenedArms:
    """Open every run and audit it; a run on other rows is struck out, an unreadable one stops."""
    ids, texts = [row["id"] for row in rows], [row["text"] for row in rows]
    opened = {arm: [(path, read_metadata(path)) for path in runs] for arm, runs in paths.items()}
    facts = [
        RunFacts(arm, str(path), metadata)
        for arm, runs in opened.items()
        for path, metadata in runs
    ]
    audit = check_data(facts, fingerprint=data.fingerprint)
    audit += check_treatment(facts, reference=reference)
    audit += check_seeds(facts)
    known = [row["text"] for name in ("train", "val") for row in data.read_split(name)]
    audit += check_overlap(texts, known, threshold=data.task.clean.near_duplicates)
    valid = find_valid_arms(list(opened), audit)
    arms: Arms = {}
    for arm, runs in opened.items():
        arms[arm] = []
        for path, metadata in runs:
            seen = None
            if arm in valid:
                source = {"model": metadata["model_hash"], "data": data.fingerprint}
                stored = path / "predictions" / "test.parquet"
                seen = load_or_predict(path, rows, path=stored, source=source)
                try:
                    seen = seen.align(ids)
                    if not arms[arm]:  # the other seeds see the same
                        audit += check_inputs(arm, seen, texts)
                except UserError as error:
                    audit.append(Finding("same rows", "invalid", [arm], f"{path}: {error}"))
                    seen = None
            arms[arm].append(Run(path, metadata, seen))
        audit += check_run(RunFacts(arm, str(runs[0][0]), runs[0][1]))
    return OpenedArms(arms, audit)


def measure_arms(
    arms: Arms,
    valid: Sequence[str],
    data: PreparedData,
    rows: list[Row],
    labels: NDArray[Any],
    *,
    metric: str,
) -> dict[str, Any]:
    """Return `variants`, `baselines`, the table by dimension, class or label, and the rows."""
    names, config = data.label_names, data.task.labels
    measured = {
        arm: [measure(labels, run.outputs, names=names, config=config) for run in arms[arm]]
        for arm in valid
    }
    mean_outputs = {arm: np.mean([r.outputs for r in arms[arm]], axis=0) for arm in valid}
    variants = {}
    for arm, runs in arms.items():
        variants[arm] = {"valid": arm in valid, **_describe_runs(runs)}
        if arm in valid:
            outputs = [run.outputs for run in runs]
            overall = [m.overall for m in measured[arm]]
            intervals = {
                name: estimate_interval(name, labels, outputs, config=config) for name in overall[0]
            }
            variants[arm] |= {
                "metrics": _average(overall),
                "metrics_per_run": overall,
                "interval": intervals.get(metric),
                "intervals": intervals,
                **describe_outputs(labels, outputs, names=names, config=config),
            }
    baselines = measure_baselines(data.read_split("train"), rows, names=names, task=data.task)
    by_part = {
        name: {arm: _average([m.parts[name] for m in found]) for arm, found in measured.items()}
        | {key: m.parts[name] for key, m in baselines.items()}
        for name in names
    }
    described = describe_rows(rows, labels, mean_outputs)
    return {
        "label_type": find_label_type(labels),
        "variants": variants,
        "baselines": {key: describe_measured(m, labels) for key, m in baselines.items()},
        "per_dimension": {},
        name_parts(labels): by_part,
        "rows": described,
        "worst_rows": pick_worst(described, rows) if valid else [],
    }


def _describe_runs(runs: list[Run]) -> dict[str, Any]:
    first = runs[0].metadata
    recipe = first["recipe"]
    return {
        "runs": [str(run.path) for run in runs],
        "seeds": [run.metadata["recipe"]["train"]["seed"] for run in runs],
        "base": recipe["base"]["model"],
        "base_pretrained": first["base_pretrained"],
        "tuning": recipe["base"]["tuning"],
        "prompt_mode": recipe["prompt"]["mode"],
        "training_mode": first["training_mode"],
        "max_length": recipe["tokens"]["max_length"],
        "num_parameters": first["num_parameters"],
        "num_trainable": first["num_trainable"],
        "train_seconds": float(np.mean([run.metadata["train_seconds"] for run in runs])),
        "peak_memory_gib": max(run.metadata["peak_memory_gib"] for run in runs),
        "token_budget": first["token_budget"]["test"],
        "device": first["device"],
        "packages": first["packages"],
        "git_revision": first["git_revision"],
        "precision": first["precision"],
        "histories": [read_history(run.path) for run in runs],
    }


def describe_pair(challenger: str, reference: str, found: Difference) -> dict[str, Any]:
    """Return a difference as the results file holds it."""
    return {
        "challenger": challenger,
        "reference": reference,
        "gain": found.estimate,
        "interval": found.interval,
        "finding": found.finding,
    }


def _average(found: list[dict[str, float | None]]) -> dict[str, float | None]:
    averaged: dict[str, float | None] = {}
    for key in found[0]:
        values = [m[key] for m in found]
        known = [v for v in values if v is not None]
        averaged[key] = float(np.mean(known)) if len(known) == len(values) else None
    return averaged
