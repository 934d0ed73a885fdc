"""Did the models see the articles, and what the oracle saw of them? (D1, D4)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmft.config.audit import Check
from llmft.config.task import OracleViewConfig
from llmft.data.budget import ENOUGH_KEPT
from llmft.data.encoding import HEAD_SHARE
from llmft.evaluation.audit.findings import RunFacts
from llmft.prediction.stored import StoredPredictions
from llmft.results.variant import Finding, Status

_MAX_SAME_INPUTS = 0.01


def check_inputs(run: RunFacts, seen: StoredPredictions, texts: Sequence[str]) -> list[Finding]:
    """Say how much of the articles the model saw, and whether it could tell them apart (D1).

    What `train` refuses is invalid here, a `tokens.waive` or not: the median row keeps less than
    half of its article, and it is the prompt, or a budget below `min_article`, that takes it away.
    """
    arm, recipe = run.arm, run.record.recipe
    tokens = recipe.tokens
    whole_N, kept_N = seen.article_tokens, seen.kept_tokens
    num_cut = int((kept_N < whole_N).sum())
    share = int(kept_N.sum()) / max(1, int(whole_N.sum()))
    median = float(np.median(kept_N / np.maximum(1, whole_N)))
    message = f"{arm} saw {share:.1%} of the article tokens; {num_cut} of {len(texts)} rows cut"
    status: Status = "note" if num_cut else "ok"
    has_prompt = recipe.prompt.mode == "include"
    room = int(kept_N[kept_N < whole_N].max(initial=0)) if num_cut else 0
    if median < 0.5 and (has_prompt or room < tokens.min_article):
        status = "invalid"
        taken = f"a prompt of {run.record.token_budget['test'].prompt_tokens} tokens"
        message = (
            f"the median test row shows {arm} {median:.0%} of its article: "
            f"{taken if has_prompt else 'its budget'} leaves {room} of {tokens.max_length} "
            f"tokens for articles of {np.median(whole_N):.0f}"
        )
    elif share < ENOUGH_KEPT:
        status = "warning"
    findings = [Finding(check="articles seen", status=status, variants=[arm], message=message)]
    by_input: defaultdict[str, list[str]] = defaultdict(list)
    for input_hash, text in zip(seen.input_hashes, texts, strict=True):
        by_input[input_hash].append(text)
    num_same = sum(len(found) for found in by_input.values() if len(set(found)) > 1)
    if num_same:
        status = "invalid" if num_same > _MAX_SAME_INPUTS * len(texts) else "warning"
        message = f"{arm} got the same input for {num_same} of {len(texts)} rows of different text"
        findings.append(
            Finding(check="inputs differ", status=status, variants=[arm], message=message)
        )
    return findings


def check_oracle_view(
    run: RunFacts, seen: StoredPredictions, texts: Sequence[str], *, view: OracleViewConfig | None
) -> list[Finding]:
    """Compare what the oracle saw of the articles with what the model saw (D4).

    Both see a head and maybe a tail. Where they end is taken as a fraction of the article, in words
    for the oracle and in tokens for the model.

    Args:
        run: The run.
        seen: What the model saw.
        texts: The articles.
        view: What the oracle saw, as the task says; None if it says nothing.
    """
    check: Check = "what the oracle saw"
    arm = run.arm
    student_N = seen.kept_tokens / np.maximum(1, seen.article_tokens)
    if view is None:
        if np.all(student_N >= 1):
            return []
        message = (
            "articles are cut, and the task does not say what the oracle saw of them "
            "(`oracle_sees`), so nobody knows whether it judged what the models read"
        )
        return [Finding(check=check, status="note", variants=[], message=message)]
    num_words_N = np.array([max(1, len(text.split())) for text in texts])
    oracle_N = np.minimum(1.0, view.max_words / num_words_N)
    shared_N = _measure_overlap(
        oracle_N, student_N,
        head_share=view.head_share,
        student_head_share=HEAD_SHARE
        if run.record.recipe.tokens.article == "head_tail"
        else 1.0,
    )  # fmt: skip
    by_student = float(np.mean(shared_N / oracle_N))
    by_oracle = float(np.mean(shared_N[student_N > 0] / student_N[student_N > 0]))
    worst = min(by_student, by_oracle)
    status: Status = "ok" if worst >= ENOUGH_KEPT else "note" if worst >= 0.5 else "warning"
    message = (
        f"{arm} saw about {by_student:.0%} of what the oracle saw, and the oracle about "
        f"{by_oracle:.0%} of what {arm} saw"
    )
    return [Finding(check=check, status=status, variants=[arm], message=message)]


def _measure_overlap(
    oracle_N: Any, student_N: Any, *, head_share: float, student_head_share: float
) -> Any:
    """Return which part of each article both saw, [N].

    Args:
        oracle_N: Part of the article that the oracle saw.
        student_N: Part of the article that the model saw.
        head_share: How much of the oracle's part is head, unless it saw all; the rest is tail.
        student_head_share: The same for the model.
    """
    heads = oracle_N * head_share, student_N * student_head_share
    tails = oracle_N - heads[0], student_N - heads[1]
    shared = np.minimum(*heads) + np.minimum(*tails)
    for head, tail in ((heads[0], tails[1]), (heads[1], tails[0])):
        shared = shared + np.maximum(0.0, head + tail - 1.0)
    return shared
