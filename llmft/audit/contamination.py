"""Contamination: evaluated rows that a run was trained or selected on (D5, D6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmft.audit.findings import RunFacts, make_finding
from llmft.config.suite import Check
from llmft.config.task import SEEN_SPLITS
from llmft.data.duplicates import cluster_texts, split_words
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData, open_prepared
from llmft.errors import UserError
from llmft.models.saved import read_spec
from llmft.results.evaluation import Finding
from llmft.results.run import RunRecord
from llmft.training.run_folder import read_record

MAX_KNOWN = 0.01
"""Fraction of contaminated rows up to which they are dropped instead of failing the audit, since
hashing misses a few near-duplicates."""
_NUM_QUOTED = 12
_FEWEST_QUOTED = 5


class ContaminatedRows(NamedTuple):
    """Positions of the evaluated rows that the model was trained or selected on."""

    equal: list[int]
    """Identical text."""
    near: list[int]
    """Near-duplicates."""

    @property
    def positions(self) -> list[int]:
        """Positions of identical rows and near-duplicates, sorted."""
        return sorted([*self.equal, *self.near])


class Contamination(NamedTuple):
    """Findings, and the evaluated rows that the variants were trained on."""

    findings: list[Finding]
    known: set[int]
    """Positions of rows that must not be measured."""

    def drop(self, rows: Sequence[Row]) -> list[int]:
        """Return the positions of the rows to measure; all if every one is contaminated."""
        kept = [i for i in range(len(rows)) if i not in self.known]
        return kept or list(range(len(rows)))


def find_contaminated_rows(
    texts: Sequence[str], known_texts: Sequence[str], *, threshold: float
) -> ContaminatedRows:
    """Find the texts that equal, or nearly equal, a text that was trained or selected on.

    Args:
        texts: Evaluated texts.
        known_texts: Texts that the model was trained or selected on.
        threshold: Jaccard similarity from which on texts are near-duplicates.
    """
    clusters = cluster_texts([*known_texts, *texts], threshold=threshold)
    known, equal = set(clusters[: len(known_texts)]), set(known_texts)
    found = [i for i, c in enumerate(clusters[len(known_texts) :]) if c in known]
    return ContaminatedRows(
        [i for i in found if texts[i] in equal], [i for i in found if texts[i] not in equal]
    )


def check_overlap(known: ContaminatedRows, *, num_rows: int) -> list[Finding]:
    """Report contaminated rows: up to 1 % near-duplicates are dropped, more are invalid (D5).

    Args:
        known: What `find_contaminated_rows` found.
        num_rows: Number of evaluated rows.
    """
    if not known.positions:
        message = "no evaluated text is in train or val, and no near-duplicate of one is"
        return [make_finding("contamination", "ok", message)]
    few = not known.equal and len(known.positions) <= MAX_KNOWN * num_rows
    ending = "they are excluded"
    if not few:
        ending = f"only near-duplicates, and at most {MAX_KNOWN:.0%} of the rows, can be excluded"
    return [
        make_finding(
            "contamination",
            "warning" if few else "invalid",
            f"{len(known.positions)} of {num_rows} evaluated texts were trained or "
            f"selected on ({len(known.equal)} identical, the others as near-duplicates); " + ending,
        )
    ]


def check_groups(rows: Sequence[Row], known_rows: Sequence[Row]) -> list[Finding]:
    """Find groups of evaluated rows, such as one tax act, among the training or val rows (D6)."""
    shared = _list_groups(rows) & _list_groups(known_rows)
    if not shared:
        return []
    message = (
        f"{len(shared)} groups of the evaluated rows were trained or selected on, the first: "
        f"{min(shared)!r}"
    )
    return [make_finding("group_contamination", "invalid", message)]


def find_quoted_rows(texts: Sequence[str], prompt: str) -> list[int]:
    """Return the positions of the texts that a prompt quotes.

    Case and punctuation do not count. A text is quoted if 12 consecutive words of it are in the
    prompt, or all words of a shorter text of at least 5 words.
    """
    quoted_by_length: dict[int, set[tuple[str, ...]]] = {}
    prompt_words, found = split_words(prompt), []
    for position, text in enumerate(texts):
        words = split_words(text)
        length = min(len(words), _NUM_QUOTED)
        if length < _FEWEST_QUOTED:
            continue
        if length not in quoted_by_length:
            quoted_by_length[length] = set(_list_ngrams(prompt_words, length))
        if not quoted_by_length[length].isdisjoint(_list_ngrams(words, length)):
            found.append(position)
    return found


def check_prompt(variants: list[str], texts: Sequence[str], prompt: str) -> list[Finding]:
    """Find evaluated texts among the few-shot examples of a prompt (D6)."""
    quoted = find_quoted_rows(texts, prompt)
    if not quoted:
        return []
    message = (
        f"the prompt of {', '.join(variants)} quotes {len(quoted)} of {len(texts)} evaluated texts"
    )
    return [make_finding("few_shot_contamination", "invalid", message, *variants)]


def check_initial_weights(
    run: RunFacts, rows: Sequence[Row], *, data: PreparedData
) -> Contamination:
    """Look for the rows in the training data of the runs that `init_from` leads to.

    Args:
        run: The run.
        rows: Rows to evaluate.
        data: The prepared data of the run; an earlier run on the same data is not searched again.
    """
    check: Check = "initial_weights"
    variant, record, names = run.variant, run.record, [run.path]
    findings: list[Finding] = []
    known: set[int] = set()
    while (name := record.recipe.init_from) is not None and name not in names:
        names.append(name)
        initial = f"the initial weights of {variant} are those of {name}"
        try:
            parent = read_record(Path(name))
            if parent.model_hash != record.init_hash:
                raise UserError("it was trained again since")
            trained_on = _read_training_rows(parent, data)
        except (UserError, ValueError) as error:
            message = f"{initial}, whose training rows are not known: {error}"
            findings.append(make_finding(check, "warning", message, variant))
            break
        found = _find_known(rows, trained_on, threshold=data.task.clean.near_duplicates).positions
        groups = check_groups(rows, trained_on)
        if found or groups:
            few = len(found) <= MAX_KNOWN * len(rows) and not groups
            message = (
                f"{initial}, which was trained or selected on {len(found)} of {len(rows)} "
                f"evaluated texts{' and on groups of them' if groups else ''}"
            )
            findings.append(make_finding(check, "warning" if few else "invalid", message, variant))
            known |= set(found) if few else set()
        record = parent
    if len(names) > 1 and not findings:
        message = (
            f"the initial weights of {variant} are those of {names[1]}, which was not trained or "
            "selected on any of these rows"
        )
        findings.append(make_finding(check, "ok", message, variant))
    return Contamination(findings, known)


def check_contamination(
    runs: Sequence[RunFacts], rows: Sequence[Row], *, data: PreparedData
) -> Contamination:
    """Look for the rows in everything that the runs learned from: data, prompts, earlier runs.

    Args:
        runs: The runs, with their folders.
        rows: Rows to evaluate.
        data: The prepared data that the runs share.

    Raises:
        UserError: If `llmft.json` of a model is missing or broken.
    """
    texts = [row["text"] for row in rows]
    trained_on = [row for name in SEEN_SPLITS for row in data.read_split(name)]
    found = _find_known(rows, trained_on, threshold=data.task.clean.near_duplicates)
    findings = [*check_overlap(found, num_rows=len(rows)), *check_groups(rows, trained_on)]
    known = set(found.positions)
    variants_by_prompt: dict[str, list[str]] = {}
    for run in runs:
        prompt = " ".join((read_spec(Path(run.path) / "model").prompt or {}).values())
        if prompt and run.variant not in variants_by_prompt.setdefault(prompt, []):
            variants_by_prompt[prompt].append(run.variant)
    for prompt, variants in variants_by_prompt.items():
        findings += check_prompt(variants, texts, prompt)
    for run in runs:
        findings += check_other_data(run, rows, data=data)
        initial = check_initial_weights(run, rows, data=data)
        findings += [f for f in initial.findings if f not in findings]
        known |= initial.known
    are_found = any(f.check == "contamination" and f.status == "invalid" for f in findings)
    if len(known) > MAX_KNOWN * len(rows) and not are_found:  # a few rows of each variant add up
        message = (
            f"{len(known)} of {len(rows)} evaluated texts were trained or selected on by one "
            "variant or another"
        )
        findings.append(make_finding("contamination", "invalid", message))
    return Contamination(findings, known)


def check_other_data(run: RunFacts, rows: Sequence[Row], *, data: PreparedData) -> list[Finding]:
    """Look for the rows in other prepared data that a run was trained on; it can be waived."""
    try:
        trained_on = _read_training_rows(run.record, data)
    except (UserError, ValueError) as error:
        message = f"the training rows of {run.path} are not known: {error}"
        return [make_finding("contamination", "warning", message, run.variant)]
    known = _find_known(rows, trained_on, threshold=data.task.clean.near_duplicates).positions
    findings = [f.replace(variants=[run.variant]) for f in check_groups(rows, trained_on)]
    if known:
        message = (
            f"{run.path} was trained or selected on {len(known)} of {len(rows)} evaluated texts"
        )
        findings.append(make_finding("contamination", "invalid", message, run.variant))
    return findings


def _find_known(
    rows: Sequence[Row], others: Sequence[Row], *, threshold: float
) -> ContaminatedRows:
    texts, known_texts = ([row["text"] for row in found] for found in (rows, others))
    return find_contaminated_rows(texts, known_texts, threshold=threshold)


def _read_training_rows(record: RunRecord, data: PreparedData) -> list[Row]:
    """Return the train and val rows of a run; none if it has the same data, checked already."""
    if record.data_fingerprint == data.fingerprint:
        return []
    other = open_prepared(record.task)
    if other.fingerprint != record.data_fingerprint:
        raise UserError(f"{other.task.output}: was prepared again since")
    return [row for name in SEEN_SPLITS for row in other.read_split(name)]


def _list_groups(rows: Sequence[Row]) -> set[str]:
    return {row["group"] for row in rows if row.get("group") is not None}


def _list_ngrams(words: Sequence[str], length: int) -> Any:
    return zip(*(words[start:] for start in range(length)), strict=False)
