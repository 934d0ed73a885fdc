"""From the differences between arms to one verdict."""

from typing import Literal, NamedTuple

from llmft.evaluation.audit import Finding
from llmft.evaluation.statistics import MIN_ROWS, Difference, judge_gain

VerdictName = Literal["INVALID", "CONFOUNDED", "WINNER", "REFERENCE_HOLDS", "UNRESOLVED"]


class Verdict(NamedTuple):
    """What a comparison says."""

    name: VerdictName
    winner: str | None
    """The arm to deploy, or None if nobody can tell."""
    why: str


def find_valid_arms(arms: list[str], findings: list[Finding]) -> list[str]:
    """Return the arms that the audit did not strike out; a finding without arms strikes all."""
    struck = {
        arm for finding in findings if finding.status == "invalid" for arm in finding.arms or arms
    }
    return [arm for arm in arms if arm not in struck]


def reach_verdict(
    differences: dict[str, Difference],
    *,
    valid_arms: list[str],
    findings: list[Finding],
    reference: str,
    metric: str,
    margin: float,
) -> Verdict:
    """Decide.

    Args:
        differences: Challenger -> its gain over the reference, for valid challengers for which
            the metric is defined.
        valid_arms: Arms that are left after the audit.
        findings: What the audit said.
        reference: The arm to beat.
        metric: Name of the metric.
        margin: What has to be gained.
    """
    if reference not in valid_arms or len(valid_arms) < 2:
        broken = "; ".join(f.message for f in findings if f.status == "invalid")
        return Verdict("INVALID", None, f"the comparison cannot be trusted: {broken}")
    confounded = [
        f.message for f in findings if f.status == "confounded" and f.arms[0] in valid_arms
    ]
    if confounded:
        listed = "; ".join(confounded)
        return Verdict(
            "CONFOUNDED", None, f"more than the treatment differs, so nobody can tell why: {listed}"
        )
    better = {arm: d for arm, d in differences.items() if d.finding == "better"}
    if better:
        winner = max(better, key=lambda arm: better[arm].estimate)
        gain = better[winner]
        return Verdict(
            "WINNER",
            winner,
            f"{winner} beats {reference} by {gain.estimate:.3f} {metric} (95 % interval "
            f"{gain.interval.low:.3f} to {gain.interval.high:.3f}), more than the margin "
            f"{margin:g}",
        )
    undefined = [arm for arm in valid_arms if arm not in (reference, *differences)]
    unresolved = {arm: d for arm, d in differences.items() if d.finding == "unresolved"}
    if undefined:
        why = (
            f"{metric} is not defined for {reference} or {undefined[0]} on these rows: choose "
            "another metric, or other test rows"
        )
        return Verdict("UNRESOLVED", None, why)
    if unresolved:
        why = _explain_unresolved(unresolved, reference=reference, metric=metric, margin=margin)
        return Verdict("UNRESOLVED", None, why)
    why = f"no challenger beats {reference} by more than the margin {margin:g} {metric}"
    return Verdict("REFERENCE_HOLDS", reference, why)


def _explain_unresolved(
    unresolved: dict[str, Difference], *, reference: str, metric: str, margin: float
) -> str:
    arm = max(unresolved, key=lambda arm: unresolved[arm].estimate)
    gain = unresolved[arm]
    if judge_gain(gain.interval, margin=margin) != "unresolved":
        return f"fewer than {MIN_ROWS} test rows prove nothing: add some"
    return (
        f"{arm} gains {gain.estimate:.3f} {metric} over {reference}, but the 95 % interval "
        f"{gain.interval.low:.3f} to {gain.interval.high:.3f} holds the margin {margin:g}: more "
        "test rows are needed"
    )
