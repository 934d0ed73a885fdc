"""Inputs and findings of the audit, and waivers of them."""

from collections.abc import Sequence
from typing import NamedTuple

from llmft.config.suite import Check, WaiverConfig
from llmft.results.evaluation import Finding, Status
from llmft.results.run import RunRecord


class RunFacts(NamedTuple):
    """The parts of a run that the audit reads."""

    variant: str
    path: str
    """Its folder."""
    record: RunRecord
    fit: str | None = None
    """Method of its calibrator or thresholds; None if nothing was fitted to its outputs."""
    base_weights: str | None = None
    """Hash of a local base's weights, or the commit of one from the Hub."""


def make_finding(check: Check, status: Status, message: str, *variants: str) -> Finding:
    """Return a finding about some variants; about all of them without any."""
    return Finding(check=check, status=status, variants=list(variants), message=message)


def apply_waivers(findings: Sequence[Finding], waivers: Sequence[WaiverConfig]) -> list[Finding]:
    """Turn waived findings into warnings with a reason, and note waivers without effect.

    Only `confounded` and `invalid` findings can be waived. A waiver for some variants does not
    cover a finding that concerns others too.
    """
    waived, used = [], set()
    for finding in findings:
        reason = None
        if finding.status in ("confounded", "invalid"):
            for number, waiver in enumerate(waivers):
                if _covers(waiver, finding):
                    reason = reason or waiver.reason
                    used.add(number)
        waived.append(finding.replace(status="warning", waived=reason) if reason else finding)
    for number, waiver in enumerate(waivers):
        if number not in used:
            message = (
                f"the waiver of {waiver.check!r} has no effect: it covers no invalid or "
                "confounded finding"
            )
            waived.append(make_finding("waivers", "note", message, *waiver.variants))
    return waived


def _covers(waiver: WaiverConfig, finding: Finding) -> bool:
    concerned = not waiver.variants or (
        finding.variants and set(finding.variants) <= set(waiver.variants)
    )
    return waiver.check == finding.check and bool(concerned)
