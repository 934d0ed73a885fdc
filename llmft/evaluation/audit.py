"""Is the comparison fair, and did the models see the articles? Asked before any metric."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from llmft.config.head import SELECTION_METRIC
from llmft.data.budget import ENOUGH_KEPT
from llmft.data.duplicates import cluster_texts
from llmft.evaluation.metrics import is_better
from llmft.prediction.stored import StoredPredictions

Status = Literal["ok", "note", "warning", "confounded", "invalid"]

_TREATMENT = ("base", "head", "prompt", "tokens.max_length", "tokens.min_article", "tokens.waive")
_FOLLOWS_BASE = (
    "train.learning_rate",
    "train.warmup_ratio",
    "train.warmup_steps",
    "train.epochs",
    "train.steps",
)
_NOT_COMPARED = ("name", "task", "output_dir", "train.seed")
_NOTED = (
    "train.precision",
    "train.gradient_checkpointing",
    "train.save_total_limit",
    "train.report_to",
)
_MAX_NEAR_DUPLICATES = 0.01


class Finding(NamedTuple):
    """One answer of the audit."""

    check: str
    status: Status
    arms: list[str]
    """Whom it concerns; empty if all."""
    message: str


class RunFacts(NamedTuple):
    """What the audit has to know of a run."""

    arm: str
    run: str
    metadata: dict[str, Any]
    """`training_metadata.json`."""


def check_data(runs: Sequence[RunFacts], *, fingerprint: str) -> list[Finding]:
    """Every arm has to be trained on the prepared data that it is tested with."""
    others = [r for r in runs if r.metadata["data_fingerprint"] != fingerprint]
    if not others:
        return [Finding("same data", "ok", [], "all arms were trained on the same prepared data")]
    return [
        Finding("same data", "invalid", [r.arm], f"{r.run} was trained on other prepared data")
        for r in others
    ]


def check_treatment(runs: Sequence[RunFacts], *, reference: str) -> list[Finding]:
    """Arms may differ from the reference in the treatment only (D2)."""
    check = "only the treatment differs"
    first = next(r for r in runs if r.arm == reference)
    expected = _list_settings(first)
    findings: dict[tuple[str, str], Finding] = {}
    for run in runs:
        found = _list_settings(run)
        differing = sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))
        base_differs = any(key in differing for key in ("base.model", "base.tuning"))
        allowed = _TREATMENT + (_FOLLOWS_BASE if base_differs else ())
        for key in differing:
            if not _is_under(key, allowed):
                ours, theirs = found.get(key), expected.get(key)
                status: Status = "note" if key in _NOTED else "confounded"
                message = f"{key} is {ours!r} in {run.arm} and {theirs!r} in {reference}"
                findings[run.arm, key] = Finding(check, status, [run.arm], message)
    if not any(f.status == "confounded" for f in findings.values()):
        message = "the arms differ in the treatment only (base, head, prompt, max_length)"
        findings["", ""] = Finding(check, "ok", [], message)
    return list(findings.values())


def check_seeds(runs: Sequence[RunFacts]) -> list[Finding]:
    """Runs of one arm are averaged, so they must differ in nothing that matters but the seed."""
    findings = []
    by_arm: defaultdict[str, list[RunFacts]] = defaultdict(list)
    for run in runs:
        by_arm[run.arm].append(run)
    for arm, own in by_arm.items():
        expected = _list_settings(own[0])
        for other in own[1:]:
            found = _list_settings(other)
            differing = sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))
            if differing:
                message = f"{other.run} differs from {own[0].run} in {', '.join(differing)}"
                status: Status = "note" if set(differing) <= set(_NOTED) else "invalid"
                findings.append(Finding("runs of an arm agree", status, [arm], message))
    if any(len(own) == 1 for own in by_arm.values()):
        message = (
            "an arm was trained with one seed only: the intervals cover the choice of rows, not "
            "the luck of training"
        )
        findings.append(Finding("several seeds", "note", [], message))
    return findings


def check_inputs(arm: str, seen: StoredPredictions, texts: Sequence[str]) -> list[Finding]:
    """Say how much of the articles the model saw, and whether it could tell them apart (D1)."""
    whole, kept = int(seen.article_tokens.sum()), int(seen.kept_tokens.sum())
    num_cut = int((seen.kept_tokens < seen.article_tokens).sum())
    share = kept / max(1, whole)
    message = f"{arm} saw {share:.1%} of the article tokens; {num_cut} of {len(texts)} rows cut"
    status: Status = "note" if num_cut else "ok"
    findings = [
        Finding("articles seen", "warning" if share < ENOUGH_KEPT else status, [arm], message)
    ]
    by_input: defaultdict[str, set[str]] = defaultdict(set)
    for input_hash, text in zip(seen.input_hashes, texts, strict=True):
        by_input[input_hash].add(text)
    num_same = sum(len(texts) for texts in by_input.values() if len(texts) > 1)
    if num_same:
        message = f"{arm} got the same input for {num_same} rows of different text"
        findings.append(Finding("inputs differ", "warning", [arm], message))
    return findings


def check_run(run: RunFacts) -> list[Finding]:
    """Repeat what a reader has to know of how a run was made."""
    findings = [
        Finding("token budget", "warning", [run.arm], f"{run.arm}: {warning}")
        for warning in run.metadata["budget_warnings"]
    ]
    waived = run.metadata["recipe"]["tokens"]["waive"]
    if waived is not None:
        message = f"{run.arm}: the refused token budget was waived: {waived}"
        findings.append(Finding("token budget", "warning", [run.arm], message))
    limit = run.metadata["recipe"]["train"]["limit_rows"]
    if limit is not None:
        message = f"{run.arm} was trained on at most {limit} rows (train.limit_rows): a quick trial"
        findings.append(Finding("trial", "warning", [run.arm], message))
    if not run.metadata["base_pretrained"]:
        base = run.metadata["recipe"]["base"]["model"]
        message = f"{run.arm}: the base {base} was never pretrained; it shows how the parts work"
        findings.append(Finding("pretrained base", "note", [run.arm], message))
    return findings


def check_overlap(
    texts: Sequence[str], known_texts: Sequence[str], *, threshold: float
) -> list[Finding]:
    """No evaluated text, nor a near-duplicate of it, may have taken part in the training (D5).

    Up to 1 % of near-duplicates are a warning: hashing finds nearly all of them, not all.

    Args:
        texts: Evaluated texts.
        known_texts: Texts that the model was fitted to, or chosen by.
        threshold: Part of the words that near-duplicates share.
    """
    clusters = cluster_texts([*known_texts, *texts], threshold=threshold)
    known, equal = set(clusters[: len(known_texts)]), set(known_texts)
    num_known = sum(cluster in known for cluster in clusters[len(known_texts) :])
    if num_known == 0:
        message = "no evaluated text, nor a near-duplicate of one, was trained or selected on"
        return [Finding("unseen rows", "ok", [], message)]
    num_equal = sum(text in equal for text in texts)
    few = num_equal == 0 and num_known <= _MAX_NEAR_DUPLICATES * len(texts)
    message = (
        f"{num_known} of {len(texts)} evaluated texts were trained or selected on "
        f"({num_equal} word for word, the others as near-duplicates)"
    )
    return [Finding("unseen rows", "warning" if few else "invalid", [], message)]


def check_baselines(
    metric: str, arms: dict[str, float | None], baselines: dict[str, float | None]
) -> list[Finding]:
    """A model that costs more than a baseline ought to beat it (D9).

    Args:
        metric: Name of the metric that decides.
        arms: Its value for each arm.
        baselines: Its value for each baseline.
    """
    findings = []
    for arm, value in arms.items():
        unbeaten = [
            name for name, other in baselines.items() if not is_better(metric, value, other)
        ]
        if unbeaten:
            message = f"{arm} does not beat the baseline {' or '.join(unbeaten)} in {metric}"
            findings.append(Finding("beats the baselines", "warning", [arm], message))
    return findings or [Finding("beats the baselines", "ok", [], "every arm beats both baselines")]


def _list_settings(run: RunFacts) -> dict[str, Any]:
    """Return what may make a difference, as dotted keys."""
    settings = _flatten(run.metadata["recipe"])
    for key in _NOT_COMPARED:
        settings.pop(key, None)
    # The recipe's batch size is one device's, its precision may say auto, and its metric be left to
    # the head: take what came of it.
    settings.pop("train.batch_size")
    settings.pop("train.gradient_accumulation_steps")
    settings["train.metric"] = settings["train.metric"] or SELECTION_METRIC[settings["head.type"]]
    settings["global_batch_size"] = run.metadata["global_batch_size"]
    settings["train.precision"] = run.metadata["precision"]
    settings["prompt.sha256"] = run.metadata["prompt_sha256"]
    return settings


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _is_under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
