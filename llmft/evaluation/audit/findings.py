"""What the audit can find, and what a person may waive."""

from collections.abc import Sequence
from typing import NamedTuple

from llmft.config.audit import WaiverConfig
from llmft.results.run import RunRecord
from llmft.results.variant import Finding


class RunFacts(NamedTuple):
    """What the audit has to know of a run."""

    arm: str
    run: str
    record: RunRecord
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
        judged.append(finding.replace(status="warning", waived=reason) if reason else finding)
    for number, waiver in enumerate(waivers):
        if number not in used:
            message = f"the waiver of {waiver.check!r} is not needed: the audit found no such fault"
            judged.append(
                Finding(check="waivers", status="note", variants=list(waiver.arms), message=message)
            )
    return judged


def _covers(waiver: WaiverConfig, finding: Finding) -> bool:
    concerned = not waiver.arms or (finding.variants and set(finding.variants) <= set(waiver.arms))
    return waiver.check == finding.check and bool(concerned)
