"""What a person reads on a terminal: how labels are spread, and what a tokenizer makes of a row."""

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
