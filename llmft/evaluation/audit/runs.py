"""What a reader has to know of how a run was made and used (D8)."""

from llmft.evaluation.audit.findings import RunFacts
from llmft.results.variant import Finding, Status

_FEW_READS = 1
_MANY_READS = 10


def check_run(run: RunFacts) -> list[Finding]:
    """Repeat what a reader has to know of how a run was made."""
    arm, record = run.arm, run.record
    findings = []
    if record.budget_warnings:
        message = f"{arm}: {'; '.join(record.budget_warnings)}"
        findings.append(
            Finding(check="token budget", status="warning", variants=[arm], message=message)
        )
    waived = record.recipe.tokens.waive
    if waived is not None:
        message = f"{arm}: the refused token budget was waived for the training: {waived}"
        findings.append(
            Finding(check="token budget", status="warning", variants=[arm], message=message)
        )
    limit = record.recipe.train.limit_rows
    if limit is not None:
        message = f"{arm} was trained on at most {limit} rows (train.limit_rows): a quick trial"
        findings.append(Finding(check="trial", status="warning", variants=[arm], message=message))
    if not record.base_pretrained:
        base = record.recipe.base.model
        message = f"{arm}: the base {base} was never pretrained; it shows how the parts work"
        findings.append(
            Finding(check="pretrained base", status="note", variants=[arm], message=message)
        )
    return findings


def check_test_use(run: RunFacts, *, num_reads: int) -> list[Finding]:
    """Test rows are for the last look: validation chooses, and every look makes them worth less.

    Args:
        run: The run.
        num_reads: How many reports have read its test predictions, this one included.
    """
    arm, chosen_by = run.arm, run.record.best_metric_name
    findings = []
    if not chosen_by.startswith("val_"):
        message = f"the checkpoint of {arm} was chosen by {chosen_by}, so the test rows are used up"
        findings.append(
            Finding(
                check="checkpoint chosen on val", status="invalid", variants=[arm], message=message
            )
        )
    else:
        message = f"the checkpoint of {arm} was chosen by {chosen_by}"
        findings.append(
            Finding(check="checkpoint chosen on val", status="ok", variants=[arm], message=message)
        )
    status: Status = (
        "warning" if num_reads >= _MANY_READS else "note" if num_reads > _FEW_READS else "ok"
    )
    times = "once" if num_reads == 1 else f"{num_reads} times"
    message = f"the test rows of {arm} were read {times}, this report included" + (
        "; whoever chooses by what they say ends up with results that do not hold"
        if status == "warning"
        else ""
    )
    return [*findings, Finding(check="test reads", status=status, variants=[arm], message=message)]
