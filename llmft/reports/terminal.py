"""What a person reads on a terminal: labels, results, and what a tokenizer makes of a row."""

import os
import sys
from collections.abc import Iterator
from typing import Any

from llmft.data.encoding import Encoder
from llmft.data.fields import shorten_list
from llmft.reports.formatting import format_share, format_threshold

_COLOURS = {
    "special": "2",
    "prompt": "34",
    "article": "0",
    "pair": "36",
    "cut": "9;31",
    "tail": "35",
}
_EXPLAINED = {
    "special": "special tokens",
    "prompt": "prompt, the same in every row",
    "article": "article",
    "pair": "text pair",
    "cut": "cut, which the model does not see",
    "tail": "tail, the same in every row",
}


def describe_labels(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield lines on how the labels of each split are spread, classes as a share of the rows."""
    label_stats = manifest["label_stats"]
    for split, found in label_stats.items():
        counts = found if not _is_scores(found) else found.get("tiers", {})
        num_rows = manifest["counts"][split]
        shares = [f"{name} {n} ({format_share(n / num_rows)})" for name, n in counts.items()]
        if shares:
            yield f"{split}: {shorten_list(shares)}"
    for name, stats in label_stats["train"].items():
        if isinstance(stats, dict) and name != "tiers":
            yield (
                f"train: {name} mean {stats['mean']:.2f}, SD {stats['sd']:.2f}, "
                f"{format_threshold(stats['min'])} to {format_threshold(stats['max'])}"
            )


def describe_evaluation(results: dict[str, Any]) -> Iterator[str]:
    """Yield lines on what `evaluate` found."""
    fit = results["fit"]
    shown = {fit["method"] if fit else "model": results["metrics"], **results["baselines"]}
    yield f"{results['name']} on {results['num_rows']} rows of {results['data']}"
    if fit:
        shown = {"unfitted": fit["metrics_before"], **shown}
    for name, metrics in shown.items():
        numbers = [f"{k} {v:z.3f}" for k, v in metrics.items() if isinstance(v, float)]
        yield f"  {name:<9} {', '.join(numbers)}"
    for gate in results["gates"]:
        yield f"  gate {gate['result']}: {gate['reason']}"
    yield from _describe_audit(results)
    yield f"decision: {results['decision']}"
    said = [gate["reason"] for gate in results["gates"]]
    yield from (f"  {reason}" for reason in results["reasons"] if reason not in said)


def describe_comparison(results: dict[str, Any]) -> Iterator[str]:
    """Yield lines on what `compare` found."""
    metrics = {
        **{arm: v["metrics"] for arm, v in results["variants"].items() if v["valid"]},
        **{name: mixed["metrics"] for name, mixed in results["mixed"].items()},
        **results["baselines"],
    }
    keys = [k for k, v in next(iter(metrics.values())).items() if not isinstance(v, dict)]
    width = max(14, *map(len, metrics))
    yield f"{results['num_rows']} test rows of {results['task']}"
    yield f"  {'':<{width}} " + " ".join(f"{key:>9}" for key in keys)
    for name, found in metrics.items():
        numbers = ["-" if found[key] is None else f"{found[key]:z.3f}" for key in keys]
        aligned = [f"{n:>{max(9, len(key))}}" for n, key in zip(numbers, keys, strict=True)]
        yield f"  {name:<{width}} " + " ".join(aligned)
    for pair in results["pairs"]:
        low, high = pair["interval"]
        yield (
            f"  {pair['challenger']} against {pair['reference']}: gain {pair['gain']:z.3f} "
            f"{results['metric']}, 95 % interval {low:z.3f} to {high:z.3f}: {pair['finding']}"
        )
    yield from _describe_audit(results)
    yield f"verdict: {results['verdict']} ({results['why']})"
    of = f" for {results['winner']}" if results["winner"] else ""
    yield f"decision{of}: {results['decision']}"
    if results["decision"] != "DEPLOY":
        yield from (f"  {reason}" for reason in results["reasons"])


def _describe_audit(results: dict[str, Any]) -> Iterator[str]:
    for finding in results["audit"]:
        if finding["status"] != "ok":
            waived = f" (waived: {finding['waived']})" if finding["waived"] else ""
            yield f"  {finding['status']}: {finding['message']}{waived}"


def show_row(row: dict[str, Any], *, split: str, encoder: Encoder, tokenizer: Any) -> Iterator[str]:
    """Yield lines that show what the tokenizer makes of a row: every piece in its colour.

    Without a terminal, or with NO_COLOR set, the pieces are named in brackets.
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
    yield "  ".join(_paint(_EXPLAINED[kind], kind, name=kind) for kind in kinds)
    yield "".join(
        _paint(_decode(tokenizer, piece.ids), piece.kind, name=f"{piece.kind} {len(piece.ids)}")
        for piece in present
    )


def _is_scores(found: dict[str, Any]) -> bool:
    return any(isinstance(stats, dict) for stats in found.values())


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    # Text from data must not move the cursor or change colours.
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _paint(text: str, kind: str, *, name: str) -> str:
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m"
    return f"[{name}]{text}"
