"""Gains of variants over the reference on the same rows, and the verdict that follows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from llmft.config.metrics import METRICS
from llmft.config.task import LabelsConfig
from llmft.metrics.definitions import Floats, find_label_type
from llmft.results.comparison import (
    Gap,
    Pair,
    PartGain,
    SampleSize,
    Scope,
    UnseenRows,
    VerdictName,
)
from llmft.results.evaluation import Finding, Interval
from llmft.statistics.estimates import (
    Estimate,
    bound,
    bound_by_betting,
    estimate_contrasts,
    find_common_tail,
    find_p_value,
)
from llmft.statistics.intervals import bound_proportion, find_largest_error
from llmft.statistics.paired_tests import (
    adjust_by_holm,
    estimate_power,
    find_sample_size,
)
from llmft.statistics.resampling import (
    Groups,
    Jackknife,
    find_clusters,
    jackknife_metric,
    jackknife_parts,
)
from llmft.statistics.shortages import (
    FEWEST_DIFFERENT,
    Shortage,
    count_clusters,
    find_shortage,
    list_rare,
)
from llmft.wording import count

OutputsByVariant = dict[str, list[Floats]]
"""Variant -> decision scores [N, C] of each of its runs (seeds)."""
ERROR_RATE = 0.05
_MAX_LISTED = 2


def find_level(look: int) -> float:
    """Return the error rate of the k-th look at the same variants, on more rows or seeds (D19).

    Those of all looks together are 5 %, however many there are: 5 % times 6 / (pi k)^2.
    """
    return ERROR_RATE * 6 / (math.pi * look) ** 2


def find_safety_factor(estimate: Estimate, *, tail: float = ERROR_RATE) -> float:
    """Return by what error rates of a gain's bounds are divided, and its p-values multiplied.

    1.1, and more on few clusters of rows, where the bounds of skewed errors hold less often than
    they say, by an order of one over the clusters, and the more so the smaller the error rate
    (Hall 1988, doi:10.1214/aos/1176350933).

    Args:
        estimate: The gain.
        tail: Error rate, below 5 % where each of many findings has only a part of it.

    Source:
        Loh 1987, Calibrating Confidence Coefficients, doi:10.1080/01621459.1987.10478408: a level
        chosen by simulation. What comes out: `llmft bench verdict`, docs/suites.md.
    """
    growth = _find_skew_error(min(tail, ERROR_RATE)) / _find_skew_error(ERROR_RATE)
    return 1.1 + 8 * growth / (estimate.row_degrees + 1)


def _find_skew_error(tail: float) -> float:
    """Return by what fraction skewness moves the error rate of a studentised bound, up to a factor.

    The leading terms of its Edgeworth expansion.
    """
    quantile = float(norm.isf(max(tail, 1e-12)))
    return float(norm.pdf(quantile)) / max(tail, 1e-12) * quantile * (2 * quantile**2 + 1)


class Rules(NamedTuple):
    """Metric and thresholds of a comparison, from the suite."""

    metric: str
    reference: str
    """The variant to beat."""
    margin: float
    """Gain that a challenger has to exceed."""
    min_difference: float
    """Effect that power is computed for; smaller differences in a dimension or class are ties."""
    level: float = ERROR_RATE
    """Error rate of a finding."""
    next_level: float = ERROR_RATE
    """That of the next look, for which the rows and seeds that it needs are computed."""


class JackknifedVariants(NamedTuple):
    """The metric of variants on the same rows, and without each cluster of them."""

    variants: dict[str, Jackknife]
    rules: Rules
    num_rows: int
    num_clusters: int
    shortage: Shortage | None
    """Why the rows are too few for evidence."""
    largest_error: float | None
    """Of a row; None where the metric is no mean over rows."""
    is_balanced: bool
    """Whether all clusters have the same number of rows."""
    seed: int

    def estimate_gains(self, over: str) -> dict[str, Estimate]:
        """Return the gains over a variant of all others for which the metric is defined."""
        sign = 1 if METRICS[self.rules.metric].higher_is_better else -1
        gains = {
            name: estimate_contrasts([self.variants[over], variant], [-sign, sign], seed=self.seed)[
                0
            ]
            for name, variant in self.variants.items()
            if name != over
        }
        return {name: gain for name, gain in gains.items() if gain is not None}


def jackknife_variants(
    variants: OutputsByVariant,
    labels: NDArray[Any],
    *,
    rules: Rules,
    groups: Groups | None = None,
    config: LabelsConfig | None = None,
    seed: int = 0,
) -> JackknifedVariants:
    """Leave each cluster of rows out of the metric of a comparison, for all its variants.

    Args:
        variants: Variant -> outputs of each of its runs; the reference and the valid challengers.
        labels: Scores [N, D], classes [N], or labels [N, L].
        rules: Metric, thresholds and error rate.
        groups: The cluster of each row, [N]; None if rows are independent.
        config: The task's labels.
        seed: Seed of the resampling.
    """
    clusters = find_clusters(len(labels), groups, seed=seed)
    jackknifed = {
        name: jackknife_metric(
            rules.metric, labels, runs, clusters=clusters, config=config, seed=seed
        )._replace(stream=i)
        for i, (name, runs) in enumerate(variants.items())
    }
    shortage = find_shortage(len(labels), groups, metric=rules.metric, labels=labels)
    largest = None
    if METRICS[rules.metric].is_mean:
        every = [outputs for runs in variants.values() for outputs in runs]
        largest = find_largest_error(rules.metric, labels, every, config=config)
    return JackknifedVariants(
        jackknifed,
        rules,
        num_rows=len(labels),
        num_clusters=count_clusters(np.ones(len(labels), dtype=bool), groups),
        shortage=shortage,
        largest_error=largest,
        is_balanced=bool(clusters.sizes_G.max() == clusters.sizes_G.min()),
        seed=seed,
    )


def compare_with_reference(jackknifed: JackknifedVariants) -> dict[str, Pair]:
    """Compare every challenger with the reference on the same rows, with Holm's correction.

    Rows are resampled in pairs, so the difficulty of a row cancels out. The value of a variant is
    the mean over its runs; with several, seeds are resampled too. A bound of a gain is the more
    cautious of the bootstrap-t and Student's t, at an error rate below the one that is meant
    (`find_safety_factor`).

    Returns:
        Challenger -> its pair with the reference; without those with an undefined metric.
    """
    rules = jackknifed.rules
    estimates = jackknifed.estimate_gains(rules.reference)
    adjusted = adjust_by_holm([compute_margin_p_value(e, rules.margin) for e in estimates.values()])
    tail_of_all = ERROR_RATE / 2
    if estimates:
        tail_of_all = find_common_tail([*estimates.values()], tail=ERROR_RATE / 2, two_sided=True)
    return {
        variant: _make_pair(
            variant, estimate, jackknifed,
            p_adjusted=p_adjusted, num_challengers=len(estimates), tail_of_all=tail_of_all,
        )
        for (variant, estimate), p_adjusted in zip(estimates.items(), adjusted, strict=True)
    }  # fmt: skip


def compare_with_best(jackknifed: JackknifedVariants) -> dict[str, Gap]:
    """Return by how much each variant may be behind the best one (D22).

    The bounds hold for all variants together, although nobody knows which one is the best: those
    computed for the true best do, and each variant's is the widest for any that may be it.

    Returns:
        Variant -> its gap, the best first; empty where the metric is undefined, or the rows are
        too few.

    Source:
        Hsu 1984, Constrained Simultaneous Confidence Intervals for Multiple Comparisons with the
        Best, doi:10.1214/aos/1176346732; with max-t in place of Dunnett's quantile.
    """
    rules = jackknifed.rules
    gains = {variant: jackknifed.estimate_gains(variant) for variant in jackknifed.variants}
    is_known = all(len(found) == len(gains) - 1 for found in gains.values())
    if not is_known or jackknifed.shortage is not None:
        return {}
    lower: dict[str, dict[str, float]] = {}
    for variant, others in gains.items():
        tail = find_common_tail([*others.values()], tail=rules.level)
        lower[variant] = {name: bound_gain(gain, tail=tail)[0] for name, gain in others.items()}
    every = [gain for others in gains.values() for gain in others.values()]
    tail_of_all = find_common_tail(every, tail=rules.level)  # Tukey's family: all pairs
    may_be_best = [name for name, found in lower.items() if max(found.values()) <= 0]
    gaps = {}
    for variant, others in gains.items():
        # If `name` is the best, this one is behind it by no more than that.
        behind = [-lower[name][variant] for name in may_be_best if name != variant]
        upper = max([0.0, *behind])
        gaps[variant] = Gap(
            gap=max([0.0, *(gain.value for gain in others.values())]),
            lower=max([0.0, *(bound_gain(g, tail=tail_of_all).low for g in others.values())]),
            upper=upper,
            may_be_best=variant in may_be_best,
            within_margin=upper <= rules.margin,
        )
    return dict(sorted(gaps.items(), key=lambda item: item[1].gap))


def bound_gain(estimate: Estimate, *, tail: float) -> Interval:
    """Return one-sided lower and upper bounds, each with an error rate of `tail`."""
    return bound(estimate, tail=tail / find_safety_factor(estimate))


def compute_margin_p_value(estimate: Estimate, margin: float) -> float:
    """Return the one-sided p-value of a gain of at most the margin, by inverting `bound_gain`."""
    return min(1.0, find_safety_factor(estimate) * find_p_value(estimate, margin))


def compute_p_value(estimate: Estimate) -> float:
    """Return the two-sided p-value of no gain, by inverting both bounds of `bound_gain`."""
    one_sided = (compute_margin_p_value(gain, 0.0) for gain in (estimate, estimate.negate()))
    return min(1.0, 2 * min(one_sided))


def _compute_part_p_value(estimate: Estimate) -> float:
    """Return `compute_p_value` of a part, of which several share the error rate."""
    smaller = min(find_p_value(gain, 0.0) for gain in (estimate, estimate.negate()))
    return min(1.0, 2 * find_safety_factor(estimate, tail=smaller) * smaller)


def _make_pair(
    challenger: str,
    estimate: Estimate,
    jackknifed: JackknifedVariants,
    *,
    p_adjusted: float,
    num_challengers: int,
    tail_of_all: float,
) -> Pair:
    """Return the pair with its finding, its power and the sample size that would resolve it."""
    rules, num_rows = jackknifed.rules, jackknifed.num_rows
    shortage = jackknifed.shortage or _find_few_differences(estimate, jackknifed)
    lower, upper = bound_gain(estimate, tail=rules.level)
    runs = [len(jackknifed.variants[name].values_KP) for name in (rules.reference, challenger)]
    finding: Literal["better", "not better", "unresolved"] = "unresolved"
    if p_adjusted < rules.level and shortage is None:
        finding = "better"
    elif upper <= rules.margin and shortage is None:
        finding = "not better"
    safety = find_safety_factor(estimate)
    above, next_tail = estimate.value > rules.margin, rules.next_level / safety
    needed = None
    if finding == "unresolved":
        needed = find_sample_size(
            estimate,
            margin=rules.margin,
            tail=next_tail / num_challengers if above else next_tail,
            num_rows=num_rows,
            num_seeds=min((num_runs for num_runs in runs if num_runs > 1), default=1),
        )
    if needed is not None and shortage is not None:
        least = math.ceil(num_rows / shortage.fraction - 1e-9) if shortage.fraction else None
        needed = SampleSize(
            rows=None if least is None else max(least, needed.rows or 0), seeds=needed.seeds
        )
    return Pair(
        challenger=challenger,
        reference=rules.reference,
        gain=estimate.value,
        interval=bound_gain(estimate, tail=ERROR_RATE / 2),
        simultaneous=bound_gain(estimate, tail=tail_of_all),
        lower=lower,
        upper=upper,
        p_value=compute_p_value(estimate),
        p_margin=compute_margin_p_value(estimate, rules.margin),
        p_margin_adjusted=p_adjusted,
        safety_factor=safety,
        finding=finding,
        power=estimate_power(
            estimate,
            effect=rules.min_difference,
            tail=rules.level / safety / num_challengers,
        ),
        needed=needed,
        shortage=None if shortage is None else shortage.reason,
    )


def bound_without_assumptions(jackknifed: JackknifedVariants) -> dict[str, float]:
    """Return lower bounds of the gains for any distribution of errors within their range.

    They cover rows, not seeds; empty where the metric is no mean over rows, and for clusters of
    unequal size.
    """
    rules, largest = jackknifed.rules, jackknifed.largest_error
    if largest is None or not jackknifed.is_balanced:
        return {}
    return {
        name: bound_by_betting(gain, largest=largest, tail=rules.level, seed=jackknifed.seed)
        for name, gain in jackknifed.estimate_gains(rules.reference).items()
    }


def find_unseen(jackknifed: JackknifedVariants) -> UnseenRows:
    """Return what so many clusters of rows cannot exclude.

    Source:
        Hanley and Lippman-Hand 1983, If Nothing Goes Wrong, Is Everything All Right?,
        doi:10.1001/jama.1983.03330370053031 (rule of three; this is the exact one).
    """
    rate = 1 - 0.05 ** (1 / jackknifed.num_clusters)
    return UnseenRows(rate=rate, largest_error=jackknifed.largest_error)


def _find_few_differences(estimate: Estimate, jackknifed: JackknifedVariants) -> Shortage | None:
    """Return a shortage if two variants differ in hardly any cluster of rows (D14).

    None if even then the gain is within the margin, by the bound of the fraction of such clusters.
    """
    rules, largest = jackknifed.rules, jackknifed.largest_error
    gains_G = estimate.value + estimate.influences_G
    num_different = int((np.abs(gains_G) > 1e-9).sum())
    if num_different >= FEWEST_DIFFERENT:
        return None
    if largest is not None:
        rate = bound_proportion(num_different, len(gains_G)).high
        if estimate.value + rate * largest <= rules.margin:
            return None
    unit = "rows" if jackknifed.num_clusters == jackknifed.num_rows else "clusters of rows"
    reason = (
        f"the variants differ in {num_different} of {len(gains_G)} {unit} only; at least "
        f"{FEWEST_DIFFERENT} are needed for evidence"
    )
    return Shortage(reason, num_different / FEWEST_DIFFERENT)


def compare_parts(
    labels: NDArray[Any],
    *,
    names: list[str],
    reference: list[Floats],
    challenger: list[Floats],
    min_difference: float,
    groups: Groups | None = None,
    seed: int = 0,
) -> dict[str, PartGain]:
    """Compare two variants in each dimension (mae), or in each class or label (f1).

    A variant is better in a part only if Holm's p is below 0.05 and the difference is not a tie.
    Classes and labels with fewer than 10 rows, or clusters of rows, that have them or not are ties
    (D20).

    Args:
        labels: Scores [N, D], classes [N], or labels [N, L].
        names: Of the dimensions, classes or labels.
        reference: Decision scores [N, C] of each run.
        challenger: The same.
        min_difference: Smaller differences are ties.
        groups: The cluster of each row, [N]; None if rows are independent.
        seed: Seed of the resampling.

    Returns:
        Name -> gain; without the classes that never occur.
    """
    clusters = find_clusters(len(labels), groups, seed=seed)
    shortage = find_shortage(len(labels), groups)
    rare = list_rare(labels, groups, names)
    variants = [
        jackknife_parts(labels, runs, clusters=clusters)._replace(stream=i)
        for i, runs in enumerate((reference, challenger))
    ]
    is_error = find_label_type(labels) == "scores"
    sign = -1 if is_error else 1
    estimates = estimate_contrasts(variants, [-sign, sign], seed=seed)
    known = [
        (name, estimate, _compute_part_p_value(estimate))
        for name, estimate in zip(names, estimates, strict=True)
        if estimate is not None
    ]
    found = {}
    for (name, estimate, p_value), p_adjusted in zip(
        known, adjust_by_holm([p_value for _, _, p_value in known]), strict=True
    ):
        finding: Literal["challenger", "reference", "tie"] = "tie"
        is_sure = p_adjusted < ERROR_RATE and shortage is None and name not in rare
        if is_sure and abs(estimate.value) >= min_difference:
            finding = "challenger" if estimate.value > 0 else "reference"
        interval = bound_gain(estimate, tail=ERROR_RATE / 2)
        metric = "mae" if is_error else "f1"
        found[name] = PartGain(
            metric=metric,
            gain=estimate.value,
            interval=interval,
            p_value=p_value,
            p_adjusted=p_adjusted,
            finding=finding,
        )
    return found


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


def reach_verdict(
    pairs: Mapping[str, Pair],
    *,
    valid_variants: list[str],
    findings: Sequence[Finding],
    reference: str,
    metric: str,
    margin: float,
    scope: Scope,
    level: float = ERROR_RATE,
) -> Verdict:
    """Return the verdict with its reason; that of a fair one says first if it is about models only.

    Args:
        pairs: Challenger -> its gain over the reference, for valid challengers for which
            the metric is defined.
        valid_variants: Variants that the audit did not exclude.
        findings: Findings of the audit.
        reference: The variant to beat.
        metric: Name of the metric.
        margin: Gain that a challenger has to exceed.
        scope: What the pairs are about.
        level: Error rate of the bounds of the pairs.
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
    found = _judge(
        pairs, valid_variants, reference=reference, metric=metric, margin=margin, level=level
    )
    if scope == "recipes":
        return found
    number = "two" if len(valid_variants) == 2 else len(valid_variants)
    limits = f"this is about these {number} trained models, not about their recipes"
    return found._replace(why=f"{limits}: {found.why}")


def _judge(
    pairs: Mapping[str, Pair],
    valid_variants: list[str],
    *,
    reference: str,
    metric: str,
    margin: float,
    level: float,
) -> Verdict:
    """Return the verdict of a fair comparison."""
    better = {variant: pair for variant, pair in pairs.items() if pair.finding == "better"}
    if better:
        winner = max(better, key=lambda variant: better[variant].gain)
        why = f"{winner} beats {reference} by {better[winner].gain:.3f} {metric}"
        sure = _assure(better[winner], margin=margin, num_challengers=len(pairs), level=level)
        return Verdict("WINNER", winner, f"{why}, {sure}")
    undefined = [variant for variant in valid_variants if variant not in (reference, *pairs)]
    unresolved = {variant: p for variant, p in pairs.items() if p.finding == "unresolved"}
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
        doubt = _doubt(pair, margin=margin, num_challengers=len(pairs), level=level)
        return Verdict("UNRESOLVED", None, f"{why}{doubt}; {_advise(pair)}")
    most = max(pair.upper for pair in pairs.values())
    why = (
        f"no challenger beats {reference} by more than the margin {margin:g} {metric}: the largest "
        f"upper bound of a gain (one-sided, {_name_confidence(level)}) is {most:.3f}"
    )
    return Verdict("REFERENCE_HOLDS", reference, why)


def _assure(pair: Pair, *, margin: float, num_challengers: int, level: float) -> str:
    """Return the evidence that a challenger is better."""
    low, high = pair.simultaneous
    together = "" if num_challengers == 1 else f" for the {num_challengers} challengers together"
    return (
        f"more than the margin {margin:g} (one-sided p {_show_p(pair.p_margin_adjusted)}"
        f"{_name_holm(num_challengers)}, below the level {level:.3g}; two-sided 95 % "
        f"interval{together} {low:.3f} to {high:.3f})"
    )


def _show_p(p_value: float) -> str:
    if p_value < 0.001:
        return "< 0.001"
    return "> 0.99" if p_value > 0.99 else f"= {p_value:.2g}"


def _doubt(pair: Pair, *, margin: float, num_challengers: int, level: float) -> str:
    """Return why a pair is unresolved."""
    p_value = f"p {_show_p(pair.p_margin_adjusted)}{_name_holm(num_challengers)}"
    confidence = _name_confidence(level)
    if pair.shortage is not None:
        return f", but {pair.shortage}"
    if pair.lower > margin:
        return (
            f", and its lower one-sided {confidence} bound of {pair.lower:.3f} is above the margin "
            f"{margin:g}, but not after the correction for several challengers ({p_value})"
        )
    return (
        f": the one-sided {confidence} bounds of the gain, {pair.lower:.3f} and {pair.upper:.3f}, "
        f"are on both sides of the margin {margin:g} ({p_value})"
    )


def _name_confidence(level: float) -> str:
    return f"{100 * (1 - level):.3g} %" if level > 0.001 else "over 99.9 %"


def _advise(pair: Pair) -> str:
    """Return how many rows or seeds would resolve a pair."""
    if pair.shortage is not None:
        rows = pair.needed and pair.needed.rows
        return (
            f"at least about {count(rows, 'test row')} are needed"
            if rows
            else "other rows are needed"
        )
    match pair.needed:
        case SampleSize(rows=int(rows), seeds=int(seeds)):
            more = f"about {count(rows, 'test row')} and {count(seeds, 'seed')} per variant"
        case SampleSize(rows=int(rows), seeds=None):
            more = f"about {count(rows, 'test row')}"
        case SampleSize(rows=None, seeds=int(seeds)):
            more = f"about {count(seeds, 'seed')} per variant"
        case _:
            return "the gain is so close to the margin that no number of rows or seeds resolves it"
    return f"with {more} a gain of this size is resolved in 80 % of all cases, at the next look"


def _name_holm(num_challengers: int) -> str:
    return f", by Holm over {num_challengers} challengers" if num_challengers > 1 else ""


def _counts(finding: Finding, status: str) -> bool:
    return finding.status == status and finding.waived is None
