"""From pairs of arms, and what the audit says of them, to one verdict."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmft.evaluation.differences import MIN_GROUPS
from llmft.evaluation.intervals import MIN_ROWS
from llmft.results.comparison import Needed, Pair, VerdictName
from llmft.results.variant import Finding

_FEWEST_SEEDS = 3
_MAX_LISTED = 2


class Verdict(NamedTuple):
    """What a comparison says."""

    name: VerdictName
    winner: str | None
    """The arm to deploy, or None if nobody can tell."""
    why: str


def find_valid_arms(arms: list[str], findings: Sequence[Finding]) -> list[str]:
    """Return the arms that the audit did not strike out; a finding without arms strikes all.

    A finding that the suite waives strikes nobody.
    """
    struck = {arm for f in findings if _counts(f, "invalid") for arm in f.variants or arms}
    return [arm for arm in arms if arm not in struck]


def is_provisional(num_seeds: int) -> bool:
    """Return whether an arm has too few seeds to tell the recipe from its luck."""
    return num_seeds < _FEWEST_SEEDS


def reach_verdict(
    pairs: Mapping[str, Pair],
    *,
    valid_arms: list[str],
    findings: Sequence[Finding],
    reference: str,
    metric: str,
    margin: float,
) -> Verdict:
    """Decide.

    Args:
        pairs: Challenger -> its gain over the reference, for valid challengers for which
            the metric is defined.
        valid_arms: Arms that are left after the audit.
        findings: What the audit said.
        reference: The arm to beat.
        metric: Name of the metric.
        margin: What has to be gained.
    """
    if reference not in valid_arms or len(valid_arms) < 2:
        broken = "; ".join(f.message for f in findings if _counts(f, "invalid"))
        return Verdict("INVALID", None, f"the comparison cannot be trusted: {broken}")
    confounded = [
        f.message
        for f in findings
        if _counts(f, "confounded") and (not f.variants or set(f.variants) & set(valid_arms))
    ]
    if confounded:
        listed = "; ".join(confounded[:_MAX_LISTED])
        if len(confounded) > _MAX_LISTED:
            listed += f"; and {len(confounded) - _MAX_LISTED} more in the audit"
        return Verdict(
            "CONFOUNDED", None, f"more than the treatment differs, so nobody can tell why: {listed}"
        )
    better = {arm: d for arm, d in pairs.items() if d.finding == "better"}
    if better:
        winner = max(better, key=lambda arm: better[arm].gain)
        why = f"{winner} beats {reference} by {better[winner].gain:.3f} {metric}"
        sure = _assure(better[winner], margin=margin, num_challengers=len(pairs))
        return Verdict("WINNER", winner, f"{why} {sure}")
    undefined = [arm for arm in valid_arms if arm not in (reference, *pairs)]
    unresolved = {arm: d for arm, d in pairs.items() if d.finding == "unresolved"}
    if undefined:
        why = (
            f"{metric}, or its interval, is not defined for {reference} or {undefined[0]} on these "
            "rows: choose another metric, or other test rows, and more than one of them"
        )
        return Verdict("UNRESOLVED", None, why)
    if unresolved:
        arm = max(unresolved, key=lambda arm: unresolved[arm].gain)
        pair = unresolved[arm]
        verb, onto = ("gains", "over") if pair.gain >= 0 else ("loses", "to")
        why = f"{arm} {verb} {abs(pair.gain):.3f} {metric} {onto} {reference}"
        doubt = _doubt(pair, margin=margin, num_challengers=len(pairs))
        return Verdict("UNRESOLVED", None, f"{why}{doubt}; {_advise(pair.needed)}")
    most = max(d.upper for d in pairs.values())
    why = (
        f"no challenger beats {reference} by more than the margin {margin:g} {metric}: the upper "
        f"bounds of their gains (one-sided, 95 %) end at {most:.3f}"
    )
    return Verdict("REFERENCE_HOLDS", reference, why)


def _assure(pair: Pair, *, margin: float, num_challengers: int) -> str:
    """Say why a gain is better."""
    return (
        f"(95 % interval {pair.interval.low:.3f} to {pair.interval.high:.3f}), more than the "
        f"margin {margin:g} (one-sided p = {pair.p_margin_adjusted:.2g}"
        f"{_name_holm(num_challengers)})"
    )


def _doubt(pair: Pair, *, margin: float, num_challengers: int) -> str:
    """Say why a gain is neither better nor not."""
    p_value = f"p = {pair.p_margin_adjusted:.2g}{_name_holm(num_challengers)}"
    if pair.is_small:
        return (
            f", but fewer than {MIN_ROWS} test rows, or {MIN_GROUPS} groups of them, prove nothing"
        )
    if pair.lower > margin:
        return (
            f", and its lower one-sided 95 % bound of {pair.lower:.3f} is above the margin "
            f"{margin:g}, but not after the correction for several challengers ({p_value})"
        )
    return (
        f": with one-sided 95 % bounds of the gain of {pair.lower:.3f} and {pair.upper:.3f} it may "
        f"be more or less than the margin {margin:g} ({p_value})"
    )


def _advise(needed: Needed | None) -> str:
    """Say what would settle it."""
    match needed:
        case Needed(rows=int(rows), seeds=int(seeds)):
            more = f"about {rows} test rows and {seeds} seeds an arm"
        case Needed(rows=int(rows), seeds=None):
            more = f"about {rows} test rows"
        case Needed(rows=None, seeds=int(seeds)):
            more = f"about {seeds} seeds an arm"
        case _:
            return "the gain is so near the margin that no number of rows or seeds will settle it"
    return f"{more} would settle it, if the gain stays what it is"


def _name_holm(num_challengers: int) -> str:
    return f", by Holm over {num_challengers} challengers" if num_challengers > 1 else ""


def _counts(finding: Finding, status: str) -> bool:
    return finding.status == status and finding.waived is None
