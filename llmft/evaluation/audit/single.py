"""The audit of one run by itself, as `evaluate` asks for it."""

from typing import NamedTuple

from llmft.data.fields import Row
from llmft.data.prepared import PreparedData
from llmft.evaluation.audit.findings import RunFacts
from llmft.evaluation.audit.inputs import check_inputs, check_oracle_view
from llmft.evaluation.audit.leakage import check_leaks
from llmft.evaluation.audit.runs import check_run, check_test_use
from llmft.prediction.stored import StoredPredictions
from llmft.results.variant import Finding


class RunAudit(NamedTuple):
    """What the audit says of one run."""

    findings: list[Finding]
    scored: list[int]
    """Positions of the rows to score: those that the training has not seen."""


def audit_run(
    run: RunFacts,
    seen: StoredPredictions,
    rows: list[Row],
    *,
    data: PreparedData,
    name: str,
    num_reads: int,
) -> RunAudit:
    """Audit a run on some rows.

    Args:
        run: The run.
        seen: Its predictions, in the order of the rows.
        rows: Rows to evaluate.
        data: The prepared data that it was trained with.
        name: Of the rows: a split, or `data-STEM` for those of a file.
        num_reads: How many reports have read its test predictions, this one included.

    Raises:
        UserError: If the card of the model is broken.
    """
    texts = [row["text"] for row in rows]
    findings = [
        *check_run(run),
        *check_inputs(run, seen, texts),
        *check_oracle_view(run, seen, texts, view=data.task.oracle_sees),
    ]
    if name in ("train", "val"):
        message = f"{name} took part in the training, so it proves nothing"
        findings.append(
            Finding(check="unseen rows", status="invalid", variants=[], message=message)
        )
        return RunAudit(findings, list(range(len(rows))))
    leaks = check_leaks([run], rows, data=data)
    findings += leaks.findings
    if name == "test":
        findings += check_test_use(run, num_reads=num_reads)
    return RunAudit(findings, leaks.drop(rows))
