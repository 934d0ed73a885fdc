"""The findings of the audit in the order in which they matter."""

from collections.abc import Sequence
from typing import NamedTuple

from llmft.results.variant import Finding

_ORDER = ("invalid", "confounded", "waived", "warning", "note", "ok")


class Bar(NamedTuple):
    """What one check found with one status; a waiver of the suite names the check."""

    status: str
    """`waived` if the suite does not count the finding, else what the audit says."""
    check: str
    findings: list[Finding]


def group_findings(audit: Sequence[Finding]) -> list[Bar]:
    """Return the findings by status and check, the gravest first."""
    bars: dict[tuple[str, str], Bar] = {}
    for finding in audit:
        status = "waived" if finding.waived else finding.status
        bar = bars.setdefault((status, finding.check), Bar(status, finding.check, []))
        bar.findings.append(finding)
    return sorted(bars.values(), key=lambda bar: _ORDER.index(bar.status))
