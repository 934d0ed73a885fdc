"""Summaries for a terminal: labels, results, and the tokens of a row."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from llmft.data.encoding import Encoder
from llmft.data.fields import Row
from llmft.reports.formatting import format_percent, format_threshold
from llmft.reports.sections import describe_probe
from llmft.results.comparison import ComparisonResult
from llmft.results.evaluation import EvaluationResult, Finding, Metrics
from llmft.results.manifest import Manifest, ScoreStats
from llmft.wording import shorten_list

_TOKENS = {
    "special": ("2", "special tokens"),
    "prompt": ("34", "prompt, the same in every row"),
    "article": ("0", "article"),
    "pair": ("36", "text pair"),
    "cut": ("9;31", "removed by truncation"),
    "tail": ("35", "tail, the same in every row"),
}
"""Kind of tokens -> ANSI colour, meaning."""


def describe_labels(manifest: Manifest) -> Iterator[str]:
    """Yield lines on the distribution of the labels of each split."""
    for split, found in manifest.label_stats.items():
        is_scores = any(isinstance(stats, ScoreStats) for stats in found.values())
        tiers = found.get("tiers")
        counts = (tiers if isinstance(tiers, dict) else {}) if is_scores else found
        num_rows = manifest.counts[split]
        counted = [
            f"{name} {n} ({format_percent(n / num_rows)})"
            for name, n in counts.items()
            if isinstance(n, int)
        ]
        if counted:
            yield f"{split}: {shorten_list(counted)}"
    for name, stats in manifest.label_stats["train"].items():
        if isinstance(stats, ScoreStats):
            yield (
                f"train: {name} mean {stats.mean:.2f}, SD {stats.sd:.2f}, "
                f"{format_threshold(stats.min)} to {format_threshold(stats.max)}"
            )


def describe_evaluation(result: EvaluationResult) -> Iterator[str]:
    """Yield lines on the results of `evaluate`."""
    fit = result.fit
    shown: dict[str, Metrics] = {"unfitted": fit.metrics_before} if fit else {}
    shown[fit.method if fit else "model"] = result.metrics
    shown |= {name: baseline.metrics for name, baseline in result.baselines.items()}
    yield f"{result.name} on {result.describe_rows()} of {result.file or result.data}"
    if result.left_out:
        yield f"  {result.describe_left_out()}"
    for name, metrics in shown.items():
        numbers = [f"{k} {v:z.3f}" for k, v in metrics.items() if v is not None]
        yield f"  {name:<9} {', '.join(numbers)}"
    yield from (f"  {line}" for line in describe_probe(result, {result.name: result}))
    for gate in result.gates:
        yield f"  gate {gate.result}: {gate.reason}"
    yield from _describe_audit(result.audit)
    yield f"decision: {result.decision}"
    of_gates = [gate.reason for gate in result.gates]
    yield from (f"  {reason}" for reason in result.reasons if reason not in of_gates)


def describe_comparison(result: ComparisonResult) -> Iterator[str]:
    """Yield lines on the results of `compare`."""
    metrics = {
        **{
            variant_name: variant.metrics
            for variant_name, variant in result.variants.items()
            if variant.valid
        },
        **{name: ensemble.metrics for name, ensemble in result.ensembles.items()},
        **{name: baseline.metrics for name, baseline in result.baselines.items()},
    }
    keys = list(next(iter(metrics.values())))
    width = max(14, *map(len, metrics))
    yield f"{result.describe_rows('test')} of {result.task}"
    yield f"  {'':<{width}} " + " ".join(f"{key:>9}" for key in keys)
    for name, found in metrics.items():
        numbers = ["-" if (value := found[key]) is None else f"{value:z.3f}" for key in keys]
        aligned = [f"{n:>{max(9, len(key))}}" for n, key in zip(numbers, keys, strict=True)]
        yield f"  {name:<{width}} " + " ".join(aligned)
    for pair in result.pairs:
        low, high = pair.interval
        yield (
            f"  {pair.challenger} against {pair.reference}: gain {pair.gain:z.3f} "
            f"{result.metric}, 95 % interval {low:z.3f} to {high:z.3f}: {pair.finding}"
        )
    yield from (f"  {line}" for line in describe_probe(result, result.variants))
    yield from _describe_audit(result.audit)
    yield f"verdict: {result.verdict} ({result.why})"
    of = f" for {result.winner}" if result.winner else ""
    yield f"decision{of}: {result.decision}"
    if result.decision != "DEPLOY":
        yield from (f"  {reason}" for reason in result.reasons)
    may_be_best = [name for name, gap in result.gaps.items() if gap.may_be_best]
    if len(may_be_best) > 1:
        yield f"not told apart: any of {', '.join(may_be_best)} may be the best"
    if result.verdict != "INVALID":
        level = format_percent(result.level)
        yield f"look {result.look} at these variants, decided at an error rate of {level}"
    if result.gaps:
        yield f"recommended: {result.recommended or 'none'}"


def _describe_audit(audit: Sequence[Finding]) -> Iterator[str]:
    for finding in audit:
        if finding.status != "ok":
            waived = f" (waived: {finding.waived})" if finding.waived else ""
            yield f"  {finding.status}: {finding.message}{waived}"


def show_row(row: Row, *, split: str, encoder: Encoder) -> Iterator[str]:
    """Yield lines with the tokens of a row, each kind of piece in its colour.

    Without a terminal, or with NO_COLOR set, the kinds are in brackets.
    """
    (pieces,) = encoder.dissect([row])
    (encoded,) = encoder.encode([row])
    yield (
        f"row {row['id']} of {split}: {encoded.num_tokens} tokens of at most "
        f"{encoder.max_length}, {encoded.num_kept_tokens} of {encoded.num_article_tokens} article "
        "tokens kept"
    )
    present = [piece for piece in pieces if piece.ids]
    kinds = dict.fromkeys(piece.kind for piece in present)
    yield "  ".join(_paint(_TOKENS[kind][1], kind, name=kind) for kind in kinds)
    yield "".join(
        _paint(
            _decode(encoder.tokenizer, piece.ids), piece.kind, name=f"{piece.kind} {len(piece.ids)}"
        )
        for piece in present
    )


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    # Text from data must not contain escape sequences.
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _paint(text: str, kind: str, *, name: str) -> str:
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        return f"\x1b[{_TOKENS[kind][0]}m{text}\x1b[0m"
    return f"[{name}]{text}"
