"""Has the training seen what it is tested on? (D5, D6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmft.config.audit import Check
from llmft.config.task import Split
from llmft.data.duplicates import cluster_texts, split_words
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData, open_prepared
from llmft.errors import UserError
from llmft.evaluation.audit.findings import RunFacts
from llmft.models.saved import read_card
from llmft.results.run import RunRecord
from llmft.results.variant import Finding
from llmft.training.run_folder import read_record

_SEEN_SPLITS: tuple[Split, ...] = ("train", "val")
MAX_KNOWN = 0.01
"""Share of the rows that may be known to the training: they are dropped. Hashing finds nearly all
near-duplicates, not all."""
_NUM_QUOTED = 12
_FEWEST_QUOTED = 5


class KnownRows(NamedTuple):
    """Positions of the rows that the training has seen too."""

    equal: list[int]
    """Word for word."""
    near: list[int]
    """Near-duplicates."""

    @property
    def positions(self) -> list[int]:
        """All of them, in order."""
        return sorted([*self.equal, *self.near])


class Leaks(NamedTuple):
    """What the training of the arms has seen of the rows that they are tested on."""

    findings: list[Finding]
    known: set[int]
    """Positions of rows that must not be scored."""

    def drop(self, rows: Sequence[Row]) -> list[int]:
        """Return the positions of the rows to score; all if the training has seen every one."""
        kept = [i for i in range(len(rows)) if i not in self.known]
        return kept or list(range(len(rows)))


def find_known_rows(
    texts: Sequence[str], known_texts: Sequence[str], *, threshold: float
) -> KnownRows:
    """Find the texts that equal, or nearly equal, one of those that the training has seen.

    Args:
        texts: Evaluated texts.
        known_texts: Texts that the model was fitted to, or chosen by.
        threshold: Part of the words that near-duplicates share.
    """
    clusters = cluster_texts([*known_texts, *texts], threshold=threshold)
    known, equal = set(clusters[: len(known_texts)]), set(known_texts)
    found = [i for i, c in enumerate(clusters[len(known_texts) :]) if c in known]
    return KnownRows(
        [i for i in found if texts[i] in equal], [i for i in found if texts[i] not in equal]
    )


def check_overlap(known: KnownRows, *, num_rows: int) -> list[Finding]:
    """Near-duplicates of up to 1 % are dropped from the score; more, or a copy, spoil it (D5).

    Args:
        known: What `find_known_rows` found.
        num_rows: How many rows it looked at.
    """
    if not known.positions:
        message = "no evaluated text, nor a near-duplicate of one, was trained or selected on"
        return [Finding(check="unseen rows", status="ok", variants=[], message=message)]
    few = not known.equal and len(known.positions) <= MAX_KNOWN * num_rows
    ending = "they are not scored"
    if not few:
        ending = f"no copy, and near-duplicates of no more than {MAX_KNOWN:.0%}, can be left out"
    return [
        Finding(
            check="unseen rows",
            status="warning" if few else "invalid",
            variants=[],
            message=f"{len(known.positions)} of {num_rows} evaluated texts were trained or "
            f"selected on ({len(known.equal)} word for word, the others as near-duplicates); "
            + ending,
        )
    ]


def check_groups(rows: Sequence[Row], known_rows: Sequence[Row]) -> list[Finding]:
    """No group, such as the act that passages are quoted from, may stand on both sides (D6)."""
    shared = _list_groups(rows) & _list_groups(known_rows)
    if not shared:
        return []
    message = (
        f"{len(shared)} groups of the evaluated rows were trained or selected on, the first: "
        f"{min(shared)!r}"
    )
    return [Finding(check="unseen groups", status="invalid", variants=[], message=message)]


def find_quoted_rows(texts: Sequence[str], prompt: str) -> list[int]:
    """Return the positions of the texts that a prompt quotes.

    Case and punctuation do not count. A text is quoted if 12 words of it in a row stand in the
    prompt, or all of a shorter one of at least 5 words.
    """
    quoted_by_length: dict[int, set[tuple[str, ...]]] = {}
    prompt_words, found = split_words(prompt), []
    for position, text in enumerate(texts):
        words = split_words(text)
        length = min(len(words), _NUM_QUOTED)
        if length < _FEWEST_QUOTED:
            continue
        if length not in quoted_by_length:
            quoted_by_length[length] = set(_list_runs(prompt_words, length))
        if not quoted_by_length[length].isdisjoint(_list_runs(words, length)):
            found.append(position)
    return found


def check_prompt(arms: list[str], texts: Sequence[str], prompt: str) -> list[Finding]:
    """Examples in the prompt are training rows too, so none may be evaluated (D6)."""
    quoted = find_quoted_rows(texts, prompt)
    if not quoted:
        return []
    message = (
        f"the prompt of {', '.join(arms)} quotes {len(quoted)} of {len(texts)} evaluated texts"
    )
    return [
        Finding(check="examples in the prompt", status="invalid", variants=arms, message=message)
    ]


def check_start(run: RunFacts, rows: Sequence[Row], *, data: PreparedData) -> Leaks:
    """Look at the training of the runs that a run began with (`init_from`), back to the first.

    Args:
        run: The run.
        rows: Rows to evaluate.
        data: The prepared data of the run; what it shares with an earlier one is looked at already.
    """
    check: Check = "weights begun with"
    arm, record, names = run.arm, run.record, [run.run]
    findings: list[Finding] = []
    known: set[int] = set()
    while (name := record.recipe.init_from) is not None and name not in names:
        names.append(name)
        began = f"{arm} began with the weights of {name}"
        try:
            parent = read_record(Path(name))
            if parent.model_hash != record.init_hash:
                raise UserError("it was trained anew since")
            trained_on = _read_training_rows(parent, data)
        except (UserError, ValueError) as error:
            message = f"{began}, and what these learned from is not known: {error}"
            findings.append(Finding(check=check, status="warning", variants=[arm], message=message))
            break
        found = _find_known(rows, trained_on, threshold=data.task.clean.near_duplicates).positions
        groups = check_groups(rows, trained_on)
        if found or groups:
            few = len(found) <= MAX_KNOWN * len(rows) and not groups
            message = (
                f"{began}, which were trained or selected on {len(found)} of {len(rows)} evaluated "
                f"texts{' and on groups of them' if groups else ''}"
            )
            findings.append(
                Finding(
                    check=check,
                    status="warning" if few else "invalid",
                    variants=[arm],
                    message=message,
                )
            )
            known |= set(found) if few else set()
        record = parent
    if len(names) > 1 and not findings:
        message = f"{arm} began with the weights of {names[1]}, which know none of these rows"
        findings.append(Finding(check=check, status="ok", variants=[arm], message=message))
    return Leaks(findings, known)


def check_leaks(runs: Sequence[RunFacts], rows: Sequence[Row], *, data: PreparedData) -> Leaks:
    """Look for the rows in all that the runs were trained on: data, prompts, earlier runs.

    Args:
        runs: The runs, with their folders.
        rows: Rows to evaluate.
        data: The prepared data that the runs share.

    Raises:
        UserError: If the card of a model is missing or broken.
    """
    texts = [row["text"] for row in rows]
    trained_on = [row for name in _SEEN_SPLITS for row in data.read_split(name)]
    found = _find_known(rows, trained_on, threshold=data.task.clean.near_duplicates)
    findings = [*check_overlap(found, num_rows=len(rows)), *check_groups(rows, trained_on)]
    known = set(found.positions)
    arms_by_prompt: dict[str, list[str]] = {}
    for run in runs:
        prompt = " ".join((read_card(Path(run.run) / "model").prompt or {}).values())
        if prompt and run.arm not in arms_by_prompt.setdefault(prompt, []):
            arms_by_prompt[prompt].append(run.arm)
    for prompt, arms in arms_by_prompt.items():
        findings += check_prompt(arms, texts, prompt)
    for run in runs:
        findings += check_other_data(run, rows, data=data)
        start = check_start(run, rows, data=data)
        findings += [f for f in start.findings if f not in findings]
        known |= start.known
    are_found = any(f.check == "unseen rows" and f.status == "invalid" for f in findings)
    if len(known) > MAX_KNOWN * len(rows) and not are_found:  # each arm knows a few others
        message = f"{len(known)} of {len(rows)} evaluated texts are known to one arm or another"
        findings.append(
            Finding(check="unseen rows", status="invalid", variants=[], message=message)
        )
    return Leaks(findings, known)


def check_other_data(run: RunFacts, rows: Sequence[Row], *, data: PreparedData) -> list[Finding]:
    """Look for the rows in other prepared data that a run was trained on, which may be waived."""
    try:
        trained_on = _read_training_rows(run.record, data)
    except (UserError, ValueError) as error:
        message = f"what {run.run} learned from is not known: {error}"
        return [Finding(check="unseen rows", status="warning", variants=[run.arm], message=message)]
    known = _find_known(rows, trained_on, threshold=data.task.clean.near_duplicates).positions
    findings = [f.replace(variants=[run.arm]) for f in check_groups(rows, trained_on)]
    if known:
        message = (
            f"{run.run} was trained or selected on {len(known)} of {len(rows)} evaluated texts"
        )
        findings.append(
            Finding(check="unseen rows", status="invalid", variants=[run.arm], message=message)
        )
    return findings


def _find_known(rows: Sequence[Row], others: Sequence[Row], *, threshold: float) -> KnownRows:
    texts, known_texts = ([row["text"] for row in found] for found in (rows, others))
    return find_known_rows(texts, known_texts, threshold=threshold)


def _read_training_rows(record: RunRecord, data: PreparedData) -> list[Row]:
    """Return train and val of another run; none if it has the same data, as these are known."""
    if record.data_fingerprint == data.fingerprint:
        return []
    other = open_prepared(record.task)
    if other.fingerprint != record.data_fingerprint:
        raise UserError(f"{other.task.output}: was prepared anew since")
    return [row for name in _SEEN_SPLITS for row in other.read_split(name)]


def _list_groups(rows: Sequence[Row]) -> set[str]:
    return {row["group"] for row in rows if row.get("group") is not None}


def _list_runs(words: Sequence[str], length: int) -> Any:
    return zip(*(words[start:] for start in range(length)), strict=False)
