"""What a task's labels say of its rows as a whole: strata, gaps, and whether there is a task."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from llmft.config.labels import ClassConfig, MultilabelConfig, ScoresConfig
from llmft.config.task import Split, TaskConfig
from llmft.data.fields import Row, shorten_list
from llmft.data.labels import assign_tiers, compute_overall, list_scores
from llmft.data.splitting import SPLITS, bin_scores
from llmft.errors import UserError


def list_strata(records: Sequence[Row], task: TaskConfig) -> Sequence[Any]:
    """Return per row what is to be equally frequent in every split: class, tier, score bin."""
    labels = task.labels
    match labels:
        case ClassConfig():
            return [record["labels"] for record in records]
        case MultilabelConfig():  # the rarest label of a row is the hardest to share out
            counts = Counter(name for record in records for name in record["labels"])
            return [min(r["labels"], key=lambda n: (counts[n], n), default="") for r in records]
        case ScoresConfig():
            overall = compute_overall(list_scores(records, labels), labels)
            if labels.tiers is not None:
                return list(map(int, assign_tiers(overall, labels)))
            return bin_scores(overall)


def refuse_constant_labels(records: Sequence[Row], task: TaskConfig) -> None:
    """Stop if there is nothing to learn, or too little of a class to share it out.

    Raises:
        UserError: Naming the classes.
    """
    match task.labels:
        case ClassConfig():
            counts = Counter(record["labels"] for record in records)
            if len(counts) == 1:
                raise UserError(
                    f"{task.name}: all {len(records)} usable rows are of the class "
                    f"{records[0]['labels']!r}; there is nothing to learn"
                )
            small = {n: c for n, c in counts.items() if c < len(SPLITS) - len(task.fixed_splits)}
            if small and task.split.stratify and task.split.by is None:
                named = shorten_list([f"{name!r} ({count})" for name, count in small.items()])
                raise UserError(
                    f"{task.name}: classes with too few rows to be in every split: {named}; add "
                    "rows, join classes in labels.map, leave them out with labels.exclude, or set "
                    "split.stratify: false"
                )
        case ScoresConfig():
            scores = list_scores(records, task.labels)
            if (scores == scores[0]).all():
                raise UserError(
                    f"{task.name}: all {len(records)} usable rows have the same scores; there is "
                    "nothing to learn"
                )
        case MultilabelConfig():
            if all(record["labels"] == records[0]["labels"] for record in records):
                raise UserError(
                    f"{task.name}: all {len(records)} usable rows have the same labels; there is "
                    "nothing to learn"
                )


def find_gaps(by_split: dict[Split, list[Row]], task: TaskConfig) -> list[str]:
    """Return what the splits lack of the labels, as lines for a reader.

    Raises:
        UserError: If a class has no row in train.
    """
    labels = task.labels
    if isinstance(labels, ScoresConfig):
        scores = list_scores(by_split["train"], labels)
        return [
            f"{name} is {scores[0, i]:g} in every row of train; it cannot be learned"
            for i, name in enumerate(labels.dimensions)
            if (scores[:, i] == scores[0, i]).all()
        ]
    found = {split: set(_iterate_names(rows)) for split, rows in by_split.items()}
    names = set().union(*found.values())
    if isinstance(labels, MultilabelConfig):
        names |= set(labels.names)
    absent = {split: sorted(names - found[split]) for split in SPLITS}
    if absent["train"] and isinstance(labels, ClassConfig):
        raise UserError(
            f"{task.name}: no row of train is of the class {', '.join(absent['train'])}; add rows, "
            "leave the class out with labels.exclude, or change `split`"
        )
    ordered = labels.order if isinstance(labels, ClassConfig) else None
    unused = [name for name in ordered or [] if name not in names]
    return [
        *(
            f"labels.order: no row is of the class {name}; the model will not know it"
            for name in unused
        ),
        *(f"{split} has no row with {', '.join(gone)}" for split, gone in absent.items() if gone),
    ]


def _iterate_names(records: Sequence[Row]) -> Iterator[str]:
    for record in records:
        labels = record["labels"]
        yield from [labels] if isinstance(labels, str) else labels
