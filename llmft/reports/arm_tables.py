"""What the arms of a comparison are, what they cost and how they were made."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from llmft.reports import formatting as f
from llmft.reports.series import Series
from llmft.reports.tables import (
    Cell,
    Column,
    Head,
    Table,
    keep_known_columns,
    keep_known_rows,
    make_cells,
    make_columns,
)
from llmft.results.comparison import ComparisonResult, EnsembleResult
from llmft.results.manifest import Manifest
from llmft.results.variant import Latency, VariantResult

_Show = Callable[[float | None], str]
_LATENCY: tuple[tuple[str, Callable[[Latency], float | None], _Show], ...] = (
    ("one article, ms: p50", lambda t: t.single_p50_ms, f.format_quantity),
    ("one article, ms: p95", lambda t: t.single_p95_ms, f.format_quantity),
    ("prompt not kept: p50", lambda t: t.uncached_p50_ms, f.format_quantity),
    ("prompt not kept: p95", lambda t: t.uncached_p95_ms, f.format_quantity),
    ("a batch, ms: p50", lambda t: t.batch_p50_ms, f.format_quantity),
    ("a batch, ms: p95", lambda t: t.batch_p95_ms, f.format_quantity),
    ("articles in a batch", lambda t: t.batch_size, f.format_count),
    ("articles / s", lambda t: t.articles_per_second, f.format_quantity),
    ("peak memory, GiB", lambda t: t.peak_memory_gib, f.format_quantity),
    ("cost of a million articles", lambda t: t.cost_per_million, f.format_quantity),
    ("single articles timed", lambda t: t.num_singles, f.format_count),
    ("batches timed", lambda t: t.num_batches, f.format_count),
)
"""Title, what to read, and how to write it."""


def make_head(series: Series, result: ComparisonResult) -> Head:
    """Return the head of a row or column, with what matters about an arm as tags."""
    name = series.name
    if name in result.ensembles:
        found = result.ensembles[name]
        tags = ("recommended",) if found.recommended or name == result.recommended else ()
        return Head(name, series, _describe_ensemble(found), tags)
    if series.is_baseline:
        return Head(name, series)
    variant = result.variants[name]
    tags_if = {
        "winner": name == result.winner and result.verdict == "WINNER",
        "reference": name == result.reference,
        "recommended": name == result.recommended,
        "invalid": not variant.valid,
        "never pretrained": not variant.record.base_pretrained,
    }
    base = variant.record.recipe.base
    note = f"{base.model} ·\N{NO-BREAK SPACE}{base.tuning}"
    return Head(name, series, note, tuple(tag for tag, holds in tags_if.items() if holds))


def describe_ensembles(ensembles: Mapping[str, EnsembleResult]) -> list[str]:
    """Return a line for every ensemble: what it is made of, and whether it is worth it."""
    return [
        f"{name}: {_describe_ensemble(found)}, "
        f"{'recommended' if found.recommended else 'not recommended'}"
        for name, found in ensembles.items()
    ]


def _describe_ensemble(found: EnsembleResult) -> str:
    parts = found.made_of
    if found.routes:
        parts = [f"{part} by {arm}" for part, arm in found.routes.items()]
    return f"{found.kind} of {', '.join(parts)}"


class _Costs(NamedTuple):
    """What an arm or ensemble costs, and what it was given; None where that means nothing."""

    train_seconds: float | None
    single_p50_ms: float | None
    articles_per_second: float | None
    peak_memory_gib: float | None
    num_parameters: float | None
    num_trainable: float | None
    prompt: str
    share_kept: float | None


def _find_costs(name: str, result: ComparisonResult) -> _Costs:
    if name in result.ensembles:
        cost = result.ensembles[name].cost
        return _Costs(
            None, cost.single_p50_ms, None, cost.peak_memory_gib, cost.num_parameters, None, "",
            None,
        )  # fmt: skip
    variant = result.variants[name]
    record, latency = variant.record, variant.latency
    return _Costs(
        variant.train_seconds,
        latency.single_p50_ms if latency else None,
        latency.articles_per_second if latency else None,
        latency.peak_memory_gib if latency else None,
        record.num_parameters,
        record.num_trainable,
        "yes" if record.recipe.prompt.mode == "include" else "no",
        record.token_budget["test"].share_kept,
    )


def make_costs_table(result: ComparisonResult, arms: Sequence[Series]) -> Table:
    """Return what every arm or ensemble costs, and what it was given."""
    found = [_find_costs(arm.name, result) for arm in arms]

    def list_costs(name: str, values: Sequence[float | None], show: _Show) -> Column:
        # Nothing is marked as the best: times that differ by less than a tenth are the same.
        return Column(Head(name), make_cells(values, show=show), "Cost")

    columns = [
        list_costs("training", [c.train_seconds for c in found], f.format_seconds),
        list_costs("one article, ms", [c.single_p50_ms for c in found], f.format_quantity),
        list_costs("articles / s", [c.articles_per_second for c in found], f.format_quantity),
        list_costs("memory, GiB", [c.peak_memory_gib for c in found], f.format_quantity),
        list_costs("parameters", [c.num_parameters for c in found], f.format_size),
        list_costs("trainable", [c.num_trainable for c in found], f.format_size),
    ]
    inputs = {
        "prompt": [c.prompt for c in found],
        "text kept": [f.format_share(c.share_kept) for c in found],
    }
    columns += [column._replace(group="Input") for column in make_columns(inputs)]
    heads = [make_head(arm, result) for arm in arms]
    return Table("What the arms cost, and what they were given", "arm", heads, columns)


def make_latency_table(variants: Mapping[str, VariantResult], arms: Sequence[Series]) -> Table:
    """Return the times of every arm, one article and a batch at a time, and what they cost."""
    timed = {arm.name: latency for arm in arms if (latency := variants[arm.name].latency)}
    columns = [
        Column(
            Head(arm.name, arm),
            [
                *(Cell(show(read(timed[arm.name]))) for _, read, show in _LATENCY),
                Cell(timed[arm.name].device, is_word=True),
            ],
        )
        for arm in arms
        if arm.name in timed
    ]
    heads = [Head(title) for title in (*(title for title, *_ in _LATENCY), "device")]
    return keep_known_rows(Table("Latency", "", heads if timed else [], columns))


def make_making_table(variants: Mapping[str, VariantResult], arms: Sequence[Series]) -> Table:
    """Return how every arm was trained."""
    found = [variants[arm.name] for arm in arms]
    records = [variant.record for variant in found]
    texts: dict[str, list[str]] = {
        "seeds": [
            ", ".join(str(run.record.recipe.train.seed) for run in variant.runs)
            for variant in found
        ],
        "runs": [", ".join(run.path for run in variant.runs) for variant in found],
        "training mode": [record.training_mode for record in records],
        "max. tokens": [str(record.recipe.tokens.max_length) for record in records],
        "device": [record.device for record in records],
        "precision": [record.precision for record in records],
        "test reads": [str(variant.num_test_reads) for variant in found],
        "git revision": [record.git_revision or "" for record in records],
    }
    words = [title for title in texts if title not in ("max. tokens", "test reads")]
    heads = [Head(arm.name, arm) for arm in arms]
    return keep_known_columns(
        Table("How every arm was trained", "arm", heads, make_columns(texts, words=words))
    )


def describe_versions(
    variants: Mapping[str, VariantResult], arms: Sequence[Series]
) -> list[tuple[str, str]]:
    """Return the packages that arms were trained with, and which arms those are."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        versions = f.join_values(variants[arm.name].record.packages)
        found.setdefault(versions, []).append(arm.name)
    return [(f"versions of {', '.join(names)}", text) for text, names in found.items()]


def describe_data(manifest: Manifest) -> list[tuple[str, str]]:
    """Return terms and descriptions of the prepared data."""
    near = manifest.near_duplicates
    split = manifest.split.model_dump(exclude_none=True, exclude={"ranges"})
    if any(manifest.split.ranges.values()):  # those of a split by date
        split["ranges"] = dict(manifest.split.ranges)
    return [
        ("fingerprint", manifest.fingerprint),
        ("rows", f.join_values(manifest.counts)),
        ("rejected", f.join_values(manifest.rejected) or "none"),
        ("near-duplicates", f"threshold {near.threshold}, clusters {near.num_clusters}, rows "
                            f"{near.num_rows}, dropped {near.num_dropped}, leaks {near.num_leaks}"),
        ("split", f.join_values(split)),
    ]  # fmt: skip
