"""What the results file says of every arm: measured, and how it was made."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmft.data.prepared import PreparedData
from llmft.evaluation.arms import Arms, Run
from llmft.evaluation.fitting import describe_fit
from llmft.evaluation.intervals import estimate_part_intervals
from llmft.evaluation.metrics import Measured, find_label_type
from llmft.evaluation.reads import count_test_reads
from llmft.evaluation.scored import Scored, average_metrics
from llmft.evaluation.slices import Slicing, list_row_slices
from llmft.evaluation.tables import (
    describe_measured,
    describe_outputs,
    describe_rows,
    measure_baselines,
    name_parts,
    pick_worst,
)
from llmft.training.run_folder import read_history


def describe_arms(
    arms: Arms,
    valid: Sequence[str],
    scored: Scored,
    *,
    data: PreparedData,
    metric: str,
    slicings: Sequence[Slicing],
) -> dict[str, Any]:
    """Return `variants`, `baselines`, the table by dimension, class or label, and the rows."""
    measured = {arm: scored.measure([run.outputs for run in arms[arm]]) for arm in valid}
    variants = {arm: {"valid": arm in valid, **_describe_making(arms[arm])} for arm in arms}
    for arm in valid:
        variants[arm] |= describe_runs(arms[arm], measured[arm], scored, metric=metric)
    baselines = measure_baselines(
        data.read_split("train"), scored.rows, names=scored.names, task=data.task
    )
    by_part = {
        name: {
            arm: average_metrics([m.parts[name] for m in found]) for arm, found in measured.items()
        }
        | {key: m.parts[name] for key, m in baselines.items()}
        for name in scored.names
    }
    shown = {arm: [run.shown for run in arms[arm]] for arm in valid}
    slices = list_row_slices(slicings, num_rows=len(scored.rows))
    described = describe_rows(scored.rows, scored.labels, shown, slices=slices)
    return {
        "label_type": find_label_type(scored.labels),
        "variants": variants,
        "baselines": {k: describe_measured(m, scored.labels) for k, m in baselines.items()},
        "per_dimension": {},
        name_parts(scored.labels): by_part,
        "rows": described,
        "worst_rows": pick_worst(described) if valid else [],
    }


def describe_runs(
    runs: list[Run], measured: list[Measured], scored: Scored, *, metric: str
) -> dict[str, Any]:
    """Return what the outputs of an arm's runs come to on the rows."""
    outputs = [run.outputs for run in runs]
    overall = [m.overall for m in measured]
    intervals = scored.estimate_intervals(outputs)
    labels, names, config = scored.labels, scored.names, scored.config
    by_part = estimate_part_intervals(labels, outputs, names=names, groups=scored.groups)
    return {
        "metrics": average_metrics(overall),
        "metrics_per_run": overall,
        "interval": intervals.get(metric),
        "intervals": intervals,
        "part_intervals": by_part._asdict(),
        **describe_outputs(
            labels, outputs, names=names, config=config, shown=[run.shown for run in runs],
            groups=scored.groups,
        ),
        "fit": describe_fit(
            runs[0].fit, labels, [run.raw for run in runs], names=names, config=config
        ),
    }  # fmt: skip


def _describe_making(runs: list[Run]) -> dict[str, Any]:
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
        "test_reads": max(count_test_reads(run.path) for run in runs),
        "histories": [read_history(run.path) for run in runs],
    }
