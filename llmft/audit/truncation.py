"""Truncation of the articles, for the models and for the oracle (D1, D4)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmft.audit.findings import RunFacts, make_finding
from llmft.config.suite import Check
from llmft.config.task import OracleViewConfig
from llmft.data.encoding import ENOUGH_KEPT, HEAD_FRACTION
from llmft.prediction.stored import StoredPredictions
from llmft.results.evaluation import Finding, Status

_MAX_SAME_INPUTS = 0.01


def check_inputs(
    run: RunFacts, predictions: StoredPredictions, texts: Sequence[str]
) -> list[Finding]:
    """Report how many article tokens truncation left, and inputs that became identical (D1).

    What `train` refuses is invalid here, with or without `tokens.waive`: the median row keeps less
    than half of its article, because of the prompt or of a budget below `min_article`.
    """
    variant, recipe = run.variant, run.record.recipe
    tokens = recipe.tokens
    article_N, kept_N = predictions.article_tokens, predictions.kept_tokens
    num_cut = int((kept_N < article_N).sum())
    fraction = int(kept_N.sum()) / max(1, int(article_N.sum()))
    median = float(np.median(kept_N / np.maximum(1, article_N)))
    message = (
        f"{variant}: truncation keeps {fraction:.1%} of the article tokens; {num_cut} of "
        f"{len(texts)} rows are truncated"
    )
    status: Status = "note" if num_cut else "ok"
    has_prompt = recipe.prompt.mode == "include"
    room = int(kept_N[kept_N < article_N].max(initial=0)) if num_cut else 0
    if median < 0.5 and (has_prompt or room < tokens.min_article):
        status = "invalid"
        taken = f"a prompt of {run.record.token_budget['test'].prompt_tokens} tokens"
        message = (
            f"{variant}: truncation leaves the median test row {median:.0%} of its article: "
            f"{taken if has_prompt else 'its budget'} leaves {room} of {tokens.max_length} "
            f"tokens for articles of {np.median(article_N):.0f}"
        )
    elif fraction < ENOUGH_KEPT:
        status = "warning"
    findings = [make_finding("truncation", status, message, variant)]
    by_input: defaultdict[str, list[str]] = defaultdict(list)
    for input_hash, text in zip(predictions.input_hashes, texts, strict=True):
        by_input[input_hash].append(text)
    num_same = sum(len(found) for found in by_input.values() if len(set(found)) > 1)
    if num_same:
        status = "invalid" if num_same > _MAX_SAME_INPUTS * len(texts) else "warning"
        message = (
            f"{variant}: {num_same} of {len(texts)} rows with different texts have identical inputs"
        )
        findings.append(make_finding("identical_inputs", status, message, variant))
    return findings


def check_oracle_view(
    run: RunFacts,
    predictions: StoredPredictions,
    texts: Sequence[str],
    *,
    view: OracleViewConfig | None,
) -> list[Finding]:
    """Compare the truncation of the oracle's articles with that of the model's (D4).

    Both keep a head and maybe a tail, as fractions of the article: in words for the oracle, in
    tokens for the model.

    Args:
        run: The run.
        predictions: Its predictions, with the tokens that were kept of each article.
        texts: The articles.
        view: The oracle's truncation, from the task; None if it is not known.
    """
    check: Check = "oracle_view"
    variant = run.variant
    student_N = predictions.kept_tokens / np.maximum(1, predictions.article_tokens)
    if view is None:
        if np.all(student_N >= 1):
            return []
        message = (
            "articles are truncated, and the task does not say how much of them the labels were "
            "made from (`oracle_sees`), so labels may depend on text that the models did not get"
        )
        return [make_finding(check, "note", message)]
    num_words_N = np.array([max(1, len(text.split())) for text in texts])
    oracle_N = np.minimum(1.0, view.max_words / num_words_N)
    keeps_tail = run.record.recipe.tokens.article == "head_tail"
    both_N = _measure_overlap(
        oracle_N,
        student_N,
        oracle_head=view.head_share,
        student_head=HEAD_FRACTION if keeps_tail else 1.0,
    )
    by_student = float(np.mean(both_N / oracle_N))
    has_text_N = student_N > 0
    by_oracle = float(np.mean(both_N[has_text_N] / student_N[has_text_N])) if any(has_text_N) else 0
    worst = min(by_student, by_oracle)
    status: Status = "ok" if worst >= ENOUGH_KEPT else "note" if worst >= 0.5 else "warning"
    message = (
        f"{variant} got about {by_student:.0%} of the text that the oracle got, and the oracle "
        f"about {by_oracle:.0%} of the text that {variant} got"
    )
    return [make_finding(check, status, message, variant)]


def _measure_overlap(
    oracle_N: Any, student_N: Any, *, oracle_head: float, student_head: float
) -> Any:
    """Return the fraction of each article that both got, [N].

    Args:
        oracle_N: Fraction of the article that the oracle got.
        student_N: Fraction of the article that the model got.
        oracle_head: Fraction of the oracle's text from the head; the rest is from the tail.
        student_head: The same for the model.
    """
    heads = oracle_N * oracle_head, student_N * student_head
    tails = oracle_N - heads[0], student_N - heads[1]
    both = np.minimum(*heads) + np.minimum(*tails)
    for head, tail in ((heads[0], tails[1]), (heads[1], tails[0])):
        both = both + np.maximum(0.0, head + tail - 1.0)
    return both
