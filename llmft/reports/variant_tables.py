"""The tables of variants: metrics, confusions, costs and training."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from llmft.config.metrics import METRICS
from llmft.reports import formatting as f
from llmft.reports.formatting import format_count, format_metric, note_interval
from llmft.reports.layout import (
    Cell,
    Column,
    HeaderCell,
    ReportEntry,
    Table,
    choose_parts,
    is_higher_better,
    keep_known_columns,
    keep_known_rows,
    list_metric_names,
    make_cells,
    make_columns,
)
from llmft.results.comparison import ComparisonResult, EnsembleResult
from llmft.results.evaluation import (
    Interval,
    Latency,
    Matrix,
    Metrics,
    Reliability,
    ScoreCalibration,
    VariantResult,
)
from llmft.results.manifest import Manifest

_NUM_CONFUSED = 8
_Show = Callable[[float | None], str]
_LATENCY: tuple[tuple[str, Callable[[Latency], float | None], _Show], ...] = (
    ("one article, ms: p50", lambda t: t.single_p50_ms, f.format_quantity),
    ("one article, ms: p95", lambda t: t.single_p95_ms, f.format_quantity),
    ("prompt not cached: p50", lambda t: t.uncached_p50_ms, f.format_quantity),
    ("prompt not cached: p95", lambda t: t.uncached_p95_ms, f.format_quantity),
    ("a batch, ms: p50", lambda t: t.batch_p50_ms, f.format_quantity),
    ("a batch, ms: p95", lambda t: t.batch_p95_ms, f.format_quantity),
    ("articles in a batch", lambda t: t.batch_size, f.format_count),
    ("articles / s", lambda t: t.articles_per_second, f.format_quantity),
    ("peak memory, GiB", lambda t: t.peak_memory_gib, f.format_quantity),
    ("cost of a million articles", lambda t: t.cost_per_million, f.format_quantity),
    ("single articles timed", lambda t: t.num_singles, f.format_count),
    ("batches timed", lambda t: t.num_batches, f.format_count),
    ("threads waited for a CPU", lambda t: t.waited, f.format_percent),
)
"""Title, getter and formatter of each row."""


def explain_metrics(metrics: Sequence[str]) -> list[str]:
    """Return one line of explanation for each metric."""
    return [f"{name}: {METRICS[name].meaning}" for name in metrics if name in METRICS]


def make_metric_table(
    heads: Sequence[HeaderCell], entries: Sequence[ReportEntry], *, caption: str
) -> Table:
    """Return a row per metric and a column per entry, with intervals, the best value marked.

    Args:
        heads: The heads of the columns.
        entries: The entries of the columns.
        caption: Caption of the table.
    """
    metrics = list_metric_names(entries)
    rows = [
        _make_row(
            metric,
            [s.metrics.get(metric) for s in entries],
            [s.intervals.get(metric) for s in entries],
        )
        for metric in metrics
    ]
    names = [f"{m}\N{NO-BREAK SPACE}{'↑' if is_higher_better(m) else '↓'}" for m in metrics]
    columns = [Column(head, [row[i] for row in rows]) for i, head in enumerate(heads)]
    return Table(caption, "metric", [HeaderCell(name) for name in names], columns)


def make_parts_table(entries: Sequence[ReportEntry], *, metric: str, kind: str) -> Table:
    """Return a row per dimension or class and a column per entry, the best value marked."""
    entries = [s for s in entries if s.parts]
    parts = choose_parts(entries, metric=metric)
    rows = [
        _make_row(
            metric,
            [s.get_part(part, metric) for s in entries],
            [s.part_intervals.get(part) for s in entries],
        )
        for part in parts
    ]
    columns = [
        Column(HeaderCell(s.name, s), [row[i] for row in rows]) for i, s in enumerate(entries)
    ]
    found = [next((s.parts[part] for s in entries if part in s.parts), {}) for part in parts]
    if any("support" in metrics for metrics in found):
        support = [metrics.get("support") for metrics in found]
        columns.append(Column(HeaderCell("rows"), make_cells(support, show=format_count)))
    direction = "higher is better" if is_higher_better(metric) else "lower is better"
    caption = f"{metric} by {kind}, {direction}"
    return Table(caption, kind, [HeaderCell(part) for part in parts], columns)


def make_all_parts_table(entries: Sequence[ReportEntry], *, kind: str) -> Table:
    """Return every metric of every entry by dimension or class."""
    found: list[tuple[str, ReportEntry, Metrics]] = [
        (part, s, s.parts[part])
        for part in dict.fromkeys(part for s in entries for part in s.parts)
        for s in entries
        if part in s.parts
    ]
    names = dict.fromkeys(key for _, _, metrics in found for key in metrics)
    columns = make_columns({"of": [s.name for _, s, _ in found]}, words=["of"])
    for name in names:
        show = format_count if name == "support" else format_metric
        values = [metrics.get(name) for _, _, metrics in found]
        columns.append(Column(HeaderCell(name), make_cells(values, show=show)))
    return Table(
        f"All metrics by {kind}", kind, [HeaderCell(part) for part, _, _ in found], columns
    )


def make_calibration_table(
    calibrations: Mapping[str, Mapping[str, ScoreCalibration]],
    variants: Sequence[ReportEntry],
    *,
    names: Sequence[str],
) -> Table:
    """Return slope and bias of every variant by dimension."""
    columns = []
    for variant in variants:
        found = [calibrations[variant.name][name] for name in names]
        for key, values in (
            ("slope", [calibration.slope for calibration in found]),
            ("bias", [calibration.bias for calibration in found]),
        ):
            columns.append(
                Column(HeaderCell(key), make_cells(values, show=format_metric), variant.name)
            )
    return Table("Slope and bias", "dimension", [HeaderCell(name) for name in names], columns)


def make_reliability_table(
    found: Mapping[str, Reliability], variants: Sequence[ReportEntry]
) -> Table:
    """Return ece and Brier score of every variant."""
    shown = [found[variant.name] for variant in variants]
    ece = [
        Cell(format_metric(r.ece), note=f"by chance: up to {format_metric(r.ece_by_chance)}")
        for r in shown
    ]
    brier = [Cell(format_metric(r.brier), note=note_interval(r.brier_interval)) for r in shown]
    columns = [Column(HeaderCell("ece\N{NO-BREAK SPACE}↓"), ece),
               Column(HeaderCell("Brier\N{NO-BREAK SPACE}↓"), brier)]  # fmt: skip
    heads = [HeaderCell(variant.name, variant) for variant in variants]
    return Table("Calibration errors", "variant", heads, columns)


def make_confused_table(
    matrices: Mapping[str, Matrix], variants: Sequence[ReportEntry], *, names: Sequence[str]
) -> Table:
    """Return the most confused pairs of classes, with the counts of each variant."""
    pairs = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    counts = {
        pair: [matrices[variant.name][pair[0]][pair[1]] for variant in variants] for pair in pairs
    }
    most = sorted(pairs, key=lambda pair: -max(counts[pair]))[:_NUM_CONFUSED]
    shown = [pair for pair in most if max(counts[pair])]
    columns = make_columns({"predicted": [names[j] for _, j in shown]}, words=["predicted"])
    for i, variant in enumerate(variants):
        cells = make_cells([counts[pair][i] for pair in shown], show=format_count)
        columns.append(Column(HeaderCell(variant.name, variant), cells))
    return Table(
        "Most confused classes", "true class", [HeaderCell(names[i]) for i, _ in shown], columns
    )


def _make_row(
    metric: str, values: Sequence[float | None], intervals: Sequence[Interval | None]
) -> list[Cell]:
    cells = make_cells(values, show=format_metric, higher_is_better=is_higher_better(metric))
    return [
        cell._replace(note=note_interval(interval))
        for cell, interval in zip(cells, intervals, strict=True)
    ]


def make_head(entry: ReportEntry, result: ComparisonResult) -> HeaderCell:
    """Return the head of a row or column, with tags such as winner and reference."""
    name = entry.name
    if name in result.ensembles:
        found = result.ensembles[name]
        tags = ("recommended",) if found.recommended or name == result.recommended else ()
        return HeaderCell(name, entry, _describe_ensemble(found), tags)
    if entry.is_baseline:
        return HeaderCell(name, entry)
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
    return HeaderCell(name, entry, note, tuple(tag for tag, holds in tags_if.items() if holds))


def describe_ensembles(ensembles: Mapping[str, EnsembleResult]) -> list[str]:
    """Return a line for every ensemble: its members or routes, and whether it is recommended."""
    return [
        f"{name}: {_describe_ensemble(found)}, "
        f"{'recommended' if found.recommended else 'not recommended'}"
        for name, found in ensembles.items()
    ]


def _describe_ensemble(found: EnsembleResult) -> str:
    if found.routes:
        routes = ", ".join(f"{part} by {variant}" for part, variant in found.routes.items())
        return f"routed ensemble: {routes}"
    return f"mean of {', '.join(found.made_of)}"


class _Costs(NamedTuple):
    """Costs and inputs of a variant or ensemble; None if not applicable."""

    train_seconds: float | None
    single_p50_ms: float | None
    articles_per_second: float | None
    peak_memory_gib: float | None
    num_parameters: float | None
    num_trainable: float | None
    prompt: str
    fraction_kept: float | None


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
        record.token_budget["test"].fraction_kept,
    )


def make_costs_table(result: ComparisonResult, variants: Sequence[ReportEntry]) -> Table:
    """Return costs and inputs of every variant and ensemble."""
    found = [_find_costs(variant.name, result) for variant in variants]

    def list_costs(name: str, values: Sequence[float | None], show: _Show) -> Column:
        # The best is not marked: times that differ by less than a tenth are the same.
        return Column(HeaderCell(name), make_cells(values, show=show), "Cost")

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
        "tokens kept": [f.format_percent(c.fraction_kept) for c in found],
    }
    columns += [column._replace(group="Input") for column in make_columns(inputs)]
    heads = [make_head(variant, result) for variant in variants]
    return Table("Costs and inputs of the variants", "variant", heads, columns)


def make_latency_table(
    variants: Mapping[str, VariantResult], shown: Sequence[ReportEntry]
) -> Table:
    """Return latency of single articles and of batches, throughput, memory and cost."""
    timed = {
        variant.name: latency for variant in shown if (latency := variants[variant.name].latency)
    }
    columns = [
        Column(
            HeaderCell(variant.name, variant),
            [
                *(Cell(show(read(timed[variant.name]))) for _, read, show in _LATENCY),
                Cell(timed[variant.name].device, is_word=True),
            ],
        )
        for variant in shown
        if variant.name in timed
    ]
    heads = [HeaderCell(title) for title in (*(title for title, *_ in _LATENCY), "device")]
    return keep_known_rows(Table("Latency", "", heads if timed else [], columns))


def make_training_table(
    variants: Mapping[str, VariantResult], shown: Sequence[ReportEntry]
) -> Table:
    """Return how every variant was trained."""
    found = [variants[name.name] for name in shown]
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
    heads = [HeaderCell(name.name, name) for name in shown]
    return keep_known_columns(
        Table("How every variant was trained", "variant", heads, make_columns(texts, words=words))
    )


def describe_versions(
    variants: Mapping[str, VariantResult], shown: Sequence[ReportEntry]
) -> list[tuple[str, str]]:
    """Return package versions, each with the variants that were trained with them."""
    found: dict[str, list[str]] = {}
    for variant in shown:
        versions = f.join_values(variants[variant.name].record.packages)
        found.setdefault(versions, []).append(variant.name)
    return [(f"versions of {', '.join(names)}", text) for text, names in found.items()]


def describe_data(manifest: Manifest) -> list[tuple[str, str]]:
    """Return terms and descriptions of the prepared data."""
    near = manifest.near_duplicates
    split = manifest.split.model_dump(exclude_none=True, exclude={"ranges"})
    if any(manifest.split.ranges.values()):  # only if rows are split by date
        split["ranges"] = dict(manifest.split.ranges)
    return [
        ("fingerprint", manifest.fingerprint),
        ("rows", f.join_values(manifest.counts)),
        ("rejected", f.join_values(manifest.rejected) or "none"),
        ("near-duplicates", f"threshold {near.threshold}, clusters {near.num_clusters}, rows "
                            f"{near.num_rows}, dropped {near.num_dropped}, leaks {near.num_leaks}"),
        ("split", f.join_values(split)),
    ]  # fmt: skip
