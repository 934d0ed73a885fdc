"""What the audit can find, and what a person may waive."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from llmft.config.audit import Check, WaiverConfig

Status = Literal["ok", "note", "warning", "confounded", "invalid"]


class Finding(NamedTuple):
    """One answer of the audit."""

    check: Check
    status: Status
    arms: list[str]
    """Whom it concerns; empty if all."""
    message: str
    waived: str | None = None
    """Why somebody said that it does not count; it is a warning then."""


class RunFacts(NamedTuple):
    """What the audit has to know of a run."""

    arm: str
    run: str
    metadata: dict[str, Any]
    """`training_metadata.json`."""
    fit: str | None = None
    """What is fitted to its outputs; None if nothing is."""
    base_weights: str | None = None
    """Hash of a local base's weights, or the commit of one from the Hub."""


def apply_waivers(findings: Sequence[Finding], waivers: Sequence[WaiverConfig]) -> list[Finding]:
    """Turn waived findings into warnings with a reason, and note waivers that nothing needs.

    Only `confounded` and `invalid` findings can be waived. A waiver for some arms does not cover a
    finding that concerns others too.
    """
    judged, used = [], set()
    for finding in findings:
        reason = None
        if finding.status in ("confounded", "invalid"):
            for number, waiver in enumerate(waivers):
                if _covers(waiver, finding):
                    reason = reason or waiver.reason
                    used.add(number)
        judged.append(finding._replace(status="warning", waived=reason) if reason else finding)
    for number, waiver in enumerate(waivers):
        if number not in used:
            message = f"the waiver of {waiver.check!r} is not needed: the audit found no such fault"
            judged.append(Finding("waivers", "note", list(waiver.arms), message))
    return judged


def _covers(waiver: WaiverConfig, finding: Finding) -> bool:
    concerned = not waiver.arms or (finding.arms and set(finding.arms) <= set(waiver.arms))
    return waiver.check == finding.check and bool(concerned)
