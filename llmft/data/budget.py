"""The token budget: truncation of the articles, and whether enough of them is kept."""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmft.config.recipe import TokensConfig
from llmft.data.encoding import EncodedRow, Encoder
from llmft.data.fields import Row
from llmft.errors import UserError
from llmft.results.run import TokenBudget

ENOUGH_KEPT = 0.99
"""Fraction of the article tokens from which on truncated rows are no warning."""
_MAX_BETWEEN_TOKENS = 64  # enough for labels such as "Title:" and "Published:"


class BudgetFindings(NamedTuple):
    """Refusals and warnings about a budget."""

    refusals: list[str]
    """Reasons not to train."""
    warnings: list[str]
    """Reasons to be careful, repeated in every report."""


def measure_budget(
    rows: Sequence[Row], encoded: Sequence[EncodedRow], *, encoder: Encoder
) -> TokenBudget:
    """Measure the budget of encoded rows; `encoded[i]` is the input of `rows[i]`."""
    lengths, kept, inputs = np.zeros(len(rows), int), np.zeros(len(rows), int), []
    texts_by_input: defaultdict[bytes, set[str]] = defaultdict(set)
    for i, (row, e) in enumerate(zip(rows, encoded, strict=True)):
        lengths[i], kept[i] = e.num_article_tokens, e.num_kept_tokens
        # Only a row's own ids can differ, and a digest takes less memory than ids.
        inputs.append(hashlib.sha256(array("i", e.own_ids).tobytes()).digest())
        texts_by_input[inputs[-1]].add(row["text"])
    collisions = {digest for digest, texts in texts_by_input.items() if len(texts) > 1}
    return TokenBudget(
        num_rows=len(rows),
        prompt_tokens=encoder.num_prompt_tokens - encoder.num_special_tokens,
        article_tokens_median=float(np.median(lengths)),
        article_tokens_p95=float(np.quantile(lengths, 0.95)),
        article_tokens_max=int(lengths.max()),
        num_cut=int((kept < lengths).sum()),
        fraction_kept=float(kept.sum() / max(1, lengths.sum())),
        fraction_kept_median=float(np.median(kept / np.maximum(1, lengths))),
        num_identical=sum(digest in collisions for digest in inputs),
    )


def list_prompt_refusals(encoder: Encoder, config: TokensConfig) -> list[str]:
    """Return why a prompt is refused, for any articles."""
    refusals = []
    if encoder.has_prompt and encoder.room < config.min_article:
        refusals.append(
            f"prompt and tail take {encoder.num_prompt_tokens} of tokens.max_length "
            f"{encoder.max_length}, which leaves {max(0, encoder.room)} tokens for the article; "
            f"tokens.min_article is {config.min_article}"
        )
    if encoder.num_between_tokens > _MAX_BETWEEN_TOKENS:
        refusals.append(
            f"{encoder.num_between_tokens} tokens of the prompt are between its first and last "
            "placeholder, where they would count as article and be truncated with it; at most "
            f"{_MAX_BETWEEN_TOKENS} are allowed there: move the placeholders together"
        )
    return refusals


def check_budget(
    budgets: dict[str, TokenBudget], *, encoder: Encoder, config: TokensConfig
) -> BudgetFindings:
    """Check how much truncation leaves of the articles (D1).

    A recipe is refused if its prompt leaves too few tokens for the article, or if the median row
    loses more than half of its article to a prompt or to a budget below `min_article`. Other
    truncation is a warning, if more than 1 % of all article tokens are lost.
    """
    refusals, warnings = list_prompt_refusals(encoder, config), []
    for name, budget in budgets.items():
        is_squeezed = encoder.has_prompt or encoder.room < config.min_article
        if is_squeezed and budget.fraction_kept_median < 0.5:
            refusals.append(
                f"{name}: the median row keeps {budget.fraction_kept_median:.0%} of its article; "
                f"prompt and tail take {budget.prompt_tokens} of tokens.max_length "
                f"{encoder.max_length}, the median article has {budget.article_tokens_median:.0f}"
            )
        elif budget.fraction_kept < ENOUGH_KEPT:
            warnings.append(
                f"{name}: {budget.num_cut} of {budget.num_rows} articles are truncated to "
                f"{encoder.room} tokens; {budget.fraction_kept:.1%} of all article tokens are kept"
            )
        if budget.num_identical:
            warnings.append(
                f"{name}: {budget.num_identical} rows with different texts have identical inputs"
            )
    return BudgetFindings(refusals, warnings)


def refuse_budget(refusals: list[str], *, waive: str | None) -> None:
    """Raise the refusals, unless the recipe waives them with a reason.

    Raises:
        UserError: With every reason.
    """
    if refusals and waive is None:
        raise UserError(
            "the token budget is refused, since truncation would remove most of the articles:\n  "
            + "\n  ".join(refusals)
            + "\n  Raise tokens.max_length, shorten the prompt, or give a reason in tokens.waive"
        )
