"""The verdict of a comparison, from pairs of variants and the findings of the audit."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmft.evaluation.pairs import MIN_GROUPS
from llmft.results.comparison import Pair, SampleSize, VerdictName
from llmft.results.variant import Finding
from llmft.statistics.intervals import MIN_ROWS

_FEWEST_SEEDS = 3
_MAX_LISTED = 2


class Verdict(NamedTuple):
    """The verdict of a comparison."""

    name: VerdictName
    winner: str | None
    """The variant to deploy; None if the comparison is not resolved, fair or valid."""
    why: str


def find_valid_variants(variants: list[str], findings: Sequence[Finding]) -> list[str]:
    """Return the variants that the audit did not exclude; a finding without variants excludes all.

    A finding that the suite waives excludes no variant.
    """
    excluded = {
        variant for f in findings if _counts(f, "invalid") for variant in f.variants or variants
    }
    return [variant for variant in variants if variant not in excluded]


def is_provisional(num_seeds: int) -> bool:
    """Return whether a variant has too few seeds to cover the variance between seeds."""
    return num_seeds < _FEWEST_SEEDS


def reach_verdict(
    pairs: Mapping[str, Pair],
    *,
    valid_variants: list[str],
    findings: Sequence[Finding],
    reference: str,
    metric: str,
    margin: float,
) -> Verdict:
    """Return the verdict with its reason.

    Args:
        pairs: Challenger -> its gain over the reference, for valid challengers for which
            the metric is defined.
        valid_variants: Variants that the audit did not exclude.
        findings: Findings of the audit.
        reference: The variant to beat.
        metric: Name of the metric.
        margin: Gain that a challenger has to exceed.
    """
    if reference not in valid_variants or len(valid_variants) < 2:
        broken = "; ".join(f.message for f in findings if _counts(f, "invalid"))
        return Verdict("INVALID", None, f"the comparison cannot be trusted: {broken}")
    confounded = [
        f.message
        for f in findings
        if _counts(f, "confounded") and (not f.variants or set(f.variants) & set(valid_variants))
    ]
    if confounded:
        listed = "; ".join(confounded[:_MAX_LISTED])
        if len(confounded) > _MAX_LISTED:
            listed += f"; and {len(confounded) - _MAX_LISTED} more in the audit"
        return Verdict(
            "CONFOUNDED", None, f"the variants differ in more than the treatment: {listed}"
        )
    better = {variant: d for variant, d in pairs.items() if d.finding == "better"}
    if better:
        winner = max(better, key=lambda variant: better[variant].gain)
        why = f"{winner} beats {reference} by {better[winner].gain:.3f} {metric}"
        sure = _assure(better[winner], margin=margin, num_challengers=len(pairs))
        return Verdict("WINNER", winner, f"{why} {sure}")
    undefined = [variant for variant in valid_variants if variant not in (reference, *pairs)]
    unresolved = {variant: d for variant, d in pairs.items() if d.finding == "unresolved"}
    if undefined:
        why = (
            f"{metric}, or its interval, is not defined for {reference} or {undefined[0]} on these "
            "rows: choose another metric, or more and other test rows"
        )
        return Verdict("UNRESOLVED", None, why)
    if unresolved:
        variant = max(unresolved, key=lambda variant: unresolved[variant].gain)
        pair = unresolved[variant]
        verb, onto = ("gains", "over") if pair.gain >= 0 else ("loses", "to")
        why = f"{variant} {verb} {abs(pair.gain):.3f} {metric} {onto} {reference}"
        doubt = _doubt(pair, margin=margin, num_challengers=len(pairs))
        return Verdict("UNRESOLVED", None, f"{why}{doubt}; {_advise(pair.needed)}")
    most = max(d.upper for d in pairs.values())
    why = (
        f"no challenger beats {reference} by more than the margin {margin:g} {metric}: the upper "
        f"bounds of their gains (one-sided, 95 %) end at {most:.3f}"
    )
    return Verdict("REFERENCE_HOLDS", reference, why)


def _assure(pair: Pair, *, margin: float, num_challengers: int) -> str:
    """Return the evidence that a challenger is better."""
    return (
        f"(95 % interval {pair.interval.low:.3f} to {pair.interval.high:.3f}), more than the "
        f"margin {margin:g} (one-sided p = {pair.p_margin_adjusted:.2g}"
        f"{_name_holm(num_challengers)})"
    )


def _doubt(pair: Pair, *, margin: float, num_challengers: int) -> str:
    """Return why a pair is unresolved."""
    p_value = f"p = {pair.p_margin_adjusted:.2g}{_name_holm(num_challengers)}"
    if pair.is_small:
        return (
            f", but fewer than {MIN_ROWS} test rows, or {MIN_GROUPS} clusters of them, are no "
            "evidence"
        )
    if pair.lower > margin:
        return (
            f", and its lower one-sided 95 % bound of {pair.lower:.3f} is above the margin "
            f"{margin:g}, but not after the correction for several challengers ({p_value})"
        )
    return (
        f": the one-sided 95 % bounds of the gain, {pair.lower:.3f} and {pair.upper:.3f}, are on "
        f"both sides of the margin {margin:g} ({p_value})"
    )


def _advise(needed: SampleSize | None) -> str:
    """Return how many rows or seeds would resolve a pair."""
    match needed:
        case SampleSize(rows=int(rows), seeds=int(seeds)):
            more = f"about {rows} test rows and {seeds} seeds per variant"
        case SampleSize(rows=int(rows), seeds=None):
            more = f"about {rows} test rows"
        case SampleSize(rows=None, seeds=int(seeds)):
            more = f"about {seeds} seeds per variant"
        case _:
            return "the gain is so close to the margin that no number of rows or seeds resolves it"
    return f"{more} would resolve it, if the gain stays the same"


def _name_holm(num_challengers: int) -> str:
    return f", by Holm over {num_challengers} challengers" if num_challengers > 1 else ""


def _counts(finding: Finding, status: str) -> bool:
    return finding.status == status and finding.waived is None
