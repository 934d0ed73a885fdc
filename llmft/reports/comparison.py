"""The report of `llmft compare`: which variant to deploy, and how certain that is."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmft.config.suite import FEWEST_SEEDS, NoiseKind
from llmft.reports import formatting as f
from llmft.reports.gates import make_gates
from llmft.reports.layout import (
    MAX_PARTS,
    Block,
    Cell,
    Column,
    HeaderCell,
    ReportEntry,
    SavedPlot,
    Section,
    Table,
    has_package,
    is_higher_better,
    keep_known_rows,
    make_cells,
    make_columns,
    style_ensemble,
    write_report,
)
from llmft.reports.methods import make_methods
from llmft.reports.rows import make_row_table
from llmft.reports.sections import (
    ReportContext,
    describe_probe,
    draw_sections,
    make_context,
    make_edge_cases,
    make_sections,
)
from llmft.reports.variant_tables import (
    describe_data,
    describe_ensembles,
    describe_versions,
    make_costs_table,
    make_head,
    make_latency_table,
    make_metric_table,
    make_training_table,
)
from llmft.results.comparison import (
    ComparisonResult,
    Gap,
    ListQuality,
    McNemar,
    NoiseResult,
    Pair,
    Power,
    RareEvents,
    Scope,
    SliceTable,
)
from llmft.results.evaluation import Interval, MetricValue
from llmft.wording import count

if TYPE_CHECKING:
    from llmft.reports.plots import Plot
_HEADLINES = {
    "WINNER": ("good", "{winner} wins"),
    "REFERENCE_HOLDS": ("calm", "Keep {reference}"),
    "UNRESOLVED": ("open", "Not resolved yet"),
    "CONFOUNDED": ("doubt", "This comparison is not fair"),
    "INVALID": ("bad", "This comparison is not valid"),
}
_SCOPES: dict[Scope, str] = {
    "models": "one run represents each variant; other seeds of its recipe may give other results",
    "recipes": "the average over the seeds of each recipe, not a single next seed",
}
_LEADS = {
    "REVIEW": "Why REVIEW and not DEPLOY:",
    "FAIL": "Why FAIL, and then what would still be REVIEW:",
}
_SIDE_INTRO = (
    "↑ higher is better, ↓ lower is better; the best value of a row is marked, which is no test."
)
_COVERAGE: dict[Scope, str] = {
    "models": "One run of each variant; 95 % intervals cover the test rows only.",
    "recipes": "Means over the seeds of a variant; 95 % intervals cover test rows and seeds.",
}
_ENSEMBLE_INTRO = (
    " Ensembles combine variants; the routes of a routed ensemble are chosen on validation. One is "
    "recommended only if it beats the best single variant on test by the rule of the verdict."
)
_GAP_LINE = (
    "at most by, at least by: one-sided {sure} bounds of all variants together (Hsu 1984, max-t; "
    "at least by over all pairs), computed at {computed}; may be the best: the best variant is "
    "among these; as good as the best, within the margin: yes by the upper bound, no by the lower "
    "one"
)
_Read = Callable[[Pair], str]
_POWER = "power for a gain of"
_EXPLAINED = {
    "simultaneous interval": "for all challengers together, so that it also holds for the one that "
    "is named after the fact; two-sided, so it may contain the margin where the one-sided test by "
    "Holm finds a gain above it",
    "one-sided bounds": "the ends of the thin line in the plot; a challenger is better if the "
    "lower one is above the margin and Holm's p is also below the level, and not better by more "
    "than the margin if the upper one is below it",
    "p, no difference": "twice the smaller one-sided p-value of no difference, each of which is "
    "the larger of those by the bootstrap-t and by Student's t, times the safety factor (section "
    "Statistical procedures)",
    "p, gain within margin": "the same, one-sided, if the true gain were at most the margin",
    "p, Holm": "the same, corrected for the number of challengers; an ensemble is not among these, "
    "but has one test against the best of the variants",
    _POWER: "probability, with these rows, of finding a challenger with this true gain better",
    "rows needed": "about how many rows resolve the pair with 80 % power, if the true gain is the "
    "observed one, at the next look",
    "seeds needed": "the same in seeds per variant",
}
_ORACLES: dict[NoiseKind, str] = {
    "repeated": "the same oracle, asked again",
    "second_oracle": "another oracle",
}


def write_comparison_report(result: ComparisonResult, *, folder: Path) -> Path:
    """Write `report.html`, `.md` and `.docx`, and `plots/*.png`, for a comparison.

    Without matplotlib there are no plots, without python-docx no `.docx`.

    Args:
        result: The results, rendered without further computation (D10).
        folder: Where to write.

    Returns:
        Path of `report.html`.
    """
    context = make_context(result, result.variants)
    ensembles = [
        style_ensemble(len(context.shown) + i, name=name, found=found)
        for i, (name, found) in enumerate(result.ensembles.items())
    ]
    plots: dict[str, list[SavedPlot]] = defaultdict(list)
    is_drawn = has_package("matplotlib", needed_for="plots")
    if is_drawn:
        from llmft.reports.plots import save_plots, use_style

        with use_style():
            drawn = draw_sections(context) | _draw_decision(result, context.shown, ensembles)
            plots |= save_plots(drawn, folder=folder)
    content = {"is_drawn": is_drawn, **_make_content(result, context, ensembles, plots)}
    document = folder / "report.docx"
    if has_package("python-docx", needed_for=document.name):
        from llmft.reports.word import write_document

        write_document(document, result=result, content=content, folder=folder)
    else:
        document.unlink(missing_ok=True)  # of earlier results
    return write_report("comparison", folder=folder, result=result, content=content)


def _draw_decision(
    result: ComparisonResult, variants: Sequence[ReportEntry], ensembles: Sequence[ReportEntry]
) -> "dict[str, list[Plot]]":
    """Draw the gains, and the metric against latency."""
    from llmft.reports.plots import draw_gains, draw_latency

    metric = result.metric
    drawn: dict[str, list[Plot]] = {"gains": [], "latency": []}
    if result.pairs:
        drawn["gains"] = [draw_gains(result.pairs, variants, metric=metric, margin=result.margin)]
    times = {name: v.latency.single_p50_ms for name, v in result.variants.items() if v.latency}
    for name, found in result.ensembles.items():
        if found.cost.single_p50_ms is not None:
            times[name] = found.cost.single_p50_ms
    shown = [
        s for s in (*variants, *ensembles) if s.name in times and s.metrics.get(metric) is not None
    ]
    if shown:
        drawn["latency"] = [draw_latency(shown, times, metric=metric)]
    return drawn


def _make_content(
    result: ComparisonResult,
    context: ReportContext,
    ensembles: list[ReportEntry],
    plots: dict[str, list[SavedPlot]],
) -> dict[str, Any]:
    """Return the content of all three formats."""
    tone, headline = _HEADLINES[result.verdict]
    made = make_sections(context, plots)
    entries = [*context.shown, *ensembles, *context.baselines]
    heads = [make_head(s, result)._replace(note="") for s in entries]
    return {
        **made,
        "tone": tone,
        "headline": headline.format(winner=result.winner, reference=result.reference),
        "reasons_lead": _LEADS.get(result.decision, ""),
        "facts": _list_facts(result),
        "plots": plots,
        "side_intro": f"{_COVERAGE[result.scope]} {_SIDE_INTRO}"
        + (_ENSEMBLE_INTRO if ensembles else ""),
        "coverage": _COVERAGE[result.scope],
        "main_table": make_metric_table(
            heads, entries, caption="The variants and the baselines on the same test rows"
        ),
        "probe_lines": describe_probe(result, context.variants),
        "explained": [*describe_ensembles(result.ensembles), *made["explained"]],
        "costs_table": make_costs_table(result, [*context.shown, *ensembles]),
        "sections": _list_sections(result, context, ensembles, made["shared"], plots),
        "row_table": make_row_table(result, context.shown),
        "making": describe_data(result.data),
        "versions": describe_versions(result.variants, context.shown),
        "making_table": make_training_table(result.variants, context.shown),
    }


def _list_sections(
    result: ComparisonResult,
    context: ReportContext,
    ensembles: list[ReportEntry],
    shared: dict[str, Section],
    plots: dict[str, list[SavedPlot]],
) -> list[Section]:
    """Return the sections between the tables of the variants and of the rows."""
    shown, variants, both = context.shown, result.variants, [*context.shown, *ensembles]
    latency = Section(
        "Latency",
        f"{result.metric} against the latency of a single article. The dashed line is the Pareto "
        "front: no other marker is better in both. p50 and p95: 50th and 95th percentile; prompt "
        "not cached: with the prompt computed again.",
        [
            Block(
                make_latency_table(variants, shown),
                plots=plots["latency"],
                legend=both if plots["latency"] else [],
            )
        ],
    )
    found = [
        make_differences(result, both, kind=context.kind),
        shared["parts"],
        shared["curves"],
        latency,
        make_gates(variants, shown),
        make_slices(result, shown),
        make_rare_events(result.rare, shown),
        make_noise(result.noise, shown),
        make_edge_cases(variants, shown),
        shared["fits"],
        shared["predicted"],
        shared["calibration"],
        make_methods(result),
    ]
    return [section for section in found if not section.is_empty]


class _Fact(NamedTuple):
    """A setting of the comparison: term, value and note."""

    term: str
    value: str
    note: str


def _list_facts(result: ComparisonResult) -> list[_Fact]:
    direction = "higher" if is_higher_better(result.metric) else "lower"
    rows = "the same for all variants"
    if result.num_dropped:
        rows += f"; {result.num_dropped} excluded as near-duplicates of train or validation rows"
    if result.num_clusters < result.num_rows:
        rows += "; near-duplicates, pairs of one article and groups are clusters, which count once"
    else:
        rows += "; independent of each other"
    facts = [
        _Fact("metric", result.metric, f"{direction} is better"),
        _Fact("margin", f.format_threshold(result.margin), "gain that a challenger has to exceed"),
        _Fact("test rows", f"{result.num_rows} in {count(result.num_clusters, 'cluster')}", rows),
        _Fact("reference", result.reference, "the variant to beat"),
    ]
    if result.verdict == "INVALID":
        return facts
    facts += [
        _Fact("scope", result.scope, _SCOPES[result.scope]),
        _Fact("seeds", _list_seeds(result), "of the measured runs; a frozen base has none"),
        _Fact(
            "look", str(result.look),
            f"the verdict is decided at an error rate of {100 * result.level:.3g} %; that of the "
            "next look, on more rows or seeds, at a smaller one: all of them have 5 % together",
        ),
    ]  # fmt: skip
    may_be_best = [name for name, gap in result.gaps.items() if gap.may_be_best]
    if len(may_be_best) > 1:
        note = "any of them may be the best"
        facts.append(_Fact("not told apart", ", ".join(may_be_best), note))
    if result.gaps:
        name = result.recommended
        facts.append(_Fact("recommended", name or "none", _explain_recommendation(result, name)))
    change = _list_changes(result)
    if change:
        facts.append(_Fact("still needed", "; ".join(change), "a rerun is the next look"))
    return facts


def _list_seeds(result: ComparisonResult) -> str:
    """Return the seeds of the measured runs, with the number of those that are not."""
    listed = []
    for name, variant in result.variants.items():
        if variant.valid:
            seeds = ", ".join(str(run.record.recipe.train.seed) for run in variant.runs)
            rest = len(result.left_out.get(name, []))
            not_used = f" ({rest} more {'run' if rest == 1 else 'runs'} not used)" if rest else ""
            seeds = f"seed {seeds}" if len(variant.runs) == 1 else f"seeds {seeds}"
            listed.append(f"{name} {'frozen' if variant.record.is_frozen else seeds}{not_used}")
    return "; ".join(listed)


def _explain_recommendation(result: ComparisonResult, name: str | None) -> str:
    if name is None:
        usable = [n for n, gap in result.gaps.items() if gap.within_margin or n == result.winner]
        if usable:
            return "what is good enough fails its gates"
        return "no variant is certain to be as good as the best, within the margin"
    if name in result.ensembles:
        return "it beats the best variant"
    if name == result.winner:
        return "none that is as good, within the margin, is cheaper"
    return "as good as the best, within the margin, and cheaper than the others that are"


def _list_changes(result: ComparisonResult) -> list[str]:
    """Return what would resolve the comparison, or allow to deploy."""
    changes = []
    trained = [name for name, v in result.variants.items() if v.valid and not v.record.is_frozen]
    if result.scope == "models" and trained:
        changes.append(
            f"{FEWEST_SEEDS} seeds each of {', '.join(trained)}, for a verdict on recipes and for "
            "any DEPLOY"
        )
    needed = [pair.needed for pair in result.pairs if pair.needed is not None]
    if result.verdict == "UNRESOLVED":
        rows = max((found.rows for found in needed if found.rows is not None), default=None)
        seeds = max((found.seeds for found in needed if found.seeds is not None), default=None)
        if rows is not None:
            changes.append(f"about {count(rows, 'test row')}")
        if seeds is not None:
            changes.append(f"about {count(seeds, 'seed')} per variant")
    return changes


def make_differences(
    result: ComparisonResult, entries: Sequence[ReportEntry], *, kind: str
) -> Section:
    """Return the section of the gains of all challengers, ensembles included.

    Args:
        result: The comparison.
        entries: The variants and ensembles.
        kind: Whether `parts` are dimensions, classes or labels.
    """
    ensembles = [found.pair for found in result.ensembles.values() if found.pair]
    pairs = [*result.pairs, *ensembles]
    by_name = {s.name: s for s in entries}
    table = _make_pair_table(pairs, by_name, margin=result.margin, level=result.level)
    shown = [head.name for head in table.heads]
    lines = [
        f"{name.removesuffix(' for a gain of')}: {meaning}"
        for name, meaning in _EXPLAINED.items()
        if any(head.startswith(name) for head in shown)
    ]
    parts = make_findings_table(result.pairs, kind=kind)
    folded = f"Findings by {kind}" if len(parts.heads) > MAX_PARTS else ""
    about = [
        "Finding: the better variant, if the p-value, corrected (Holm) over all of one "
        "challenger, not over challengers or looks, is below 0.05, and the difference at least "
        f"{f.format_threshold(result.min_difference)}. Each interval is by itself."
        + (" Classes or labels with few rows are not told apart." if kind != "dimension" else "")
    ]
    blocks = [
        Block(table, lines=[*lines, *_describe_unseen(result)]),
        Block(_make_gap_table(result, by_name), lines=[_explain_gaps(result)]),
        Block(lines=[_describe_mcnemar(p, p.mcnemar) for p in pairs if p.mcnemar]),
        Block(parts, lines=about, summary=folded),
    ]
    return Section(
        f"Gains over {result.reference}",
        f"Gain: by how much {result.metric} is better than that of the variant it is compared "
        "with, on the same rows; negative is worse. A challenger is better only if the gain is "
        f"significantly above the margin of {f.format_threshold(result.margin)}.",
        [block for block in blocks if (block.table.heads if block.table else block.lines)],
    )


def _describe_unseen(result: ComparisonResult) -> list[str]:
    """Return what the rows cannot exclude, and the bounds that do not mind."""
    if result.unseen is None:
        return []
    rate, largest = result.unseen.rate, result.unseen.largest_error
    is_clustered = result.num_clusters < result.num_rows
    unit = "clusters of articles" if is_clustered else "articles"
    line = (
        f"not excluded (95 %, rule of three): up to {f.format_percent(rate)} of all {unit} may be "
        "of a kind that no test row shows"
    )
    if largest is not None:
        line += (
            f"; if no row's error is above {f.format_threshold(largest)}, these would change a "
            f"gain in {result.metric} by at most {f.format_metric(rate * largest)}. No verdict is "
            "proof against such rows: where a challenger is worse by 5 points on 2 % of them, and "
            "a little better else, 24 % of simulated verdicts on 55 rows name it the winner, and "
            "5 % on 200"
        )
    bounds = [
        f"{pair.challenger} {f.format_metric(pair.assumption_free)}"
        for pair in result.pairs
        if pair.assumption_free is not None
    ]
    if bounds:
        line += (
            f". One-sided {f.format_percent(1 - result.level)} lower bounds of the gains that "
            "assume only the range of the errors (betting; each challenger by itself, seeds not "
            f"covered): {', '.join(bounds)}. The verdict rests on the bounds above"
        )
    return [line]


def _name_finding(pair: Pair, margin: float) -> str:
    if margin == 0 or pair.finding == "unresolved":
        return pair.finding
    return f"{pair.finding} by more than the margin"


def _make_pair_table(
    pairs: Sequence[Pair],
    by_name: Mapping[str, ReportEntry],
    *,
    margin: float,
    level: float,
) -> Table:
    """Return a row per quantity, and a column per challenger."""
    effects = dict.fromkeys(p.power.effect for p in pairs if p.power)
    rows: dict[str, _Read] = {
        "against": lambda p: p.reference,
        "gain": lambda p: f.format_metric(p.gain),
        "95 % interval": lambda p: f.format_interval(p.interval),
        "simultaneous interval": lambda p: (
            "" if p.simultaneous == p.interval else f.format_interval(p.simultaneous)
        ),
        "one-sided bounds": lambda p: f.format_interval(Interval(p.lower, p.upper)),
        "finding": lambda p: _name_finding(p, margin),
        "p, no difference": lambda p: f.format_p_value(p.p_value),
        "p, gain within margin": lambda p: f.format_p_value(p.p_margin),
        "p, Holm": lambda p: f.format_p_value(p.p_margin_adjusted),
        **{
            name: read
            for effect in effects
            for name, read in _list_power_rows(effect, margin=margin).items()
        },
        "rows needed": lambda p: f.format_count(p.needed.rows if p.needed else None),
        "seeds needed": lambda p: f.format_count(p.needed.seeds if p.needed else None),
    }
    safety = max((pair.safety_factor for pair in pairs), default=1.0)
    computed_at = f.format_percent(1 - 0.05 / safety)
    notes = {
        "95 % interval": f"two-sided, computed at {computed_at}",
        "simultaneous interval": "95 % together, max-t",
        "one-sided bounds": f"{f.format_percent(1 - level)} each, computed at "
        f"{f.format_percent(1 - level / safety)}",
        "p, no difference": "two-sided",
        "p, gain within margin": "one-sided",
        "p, Holm": f"better: below {f.format_p_value(level)}",
    }
    columns = [
        Column(
            HeaderCell(pair.challenger, by_name[pair.challenger]),
            [
                Cell(read(pair), is_word=name in ("against", "finding"))
                for name, read in rows.items()
            ],
        )
        for pair in pairs
    ]
    return keep_known_rows(
        Table(
            "Gains with intervals and p-values",
            "",
            [HeaderCell(name, note=notes.get(name, "")) for name in rows],
            columns,
        )
    )


def _make_gap_table(result: ComparisonResult, by_name: Mapping[str, ReportEntry]) -> Table:
    """Return by how much each variant may be behind the best one."""
    gaps = result.gaps.values()
    texts = {
        "behind by": [f.format_metric(gap.gap) for gap in gaps],
        "at least by": [f.format_metric(gap.lower) for gap in gaps],
        "at most by": [f.format_metric(gap.upper) for gap in gaps],
        "may be the best": ["yes" if gap.may_be_best else "no" for gap in gaps],
        "as good as the best": [_name_gap(gap, margin=result.margin) for gap in gaps],
    }
    heads = [HeaderCell(name, by_name[name]) for name in result.gaps]
    words = ["may be the best", "as good as the best"]
    return Table("Distance from the best", "variant", heads, make_columns(texts, words=words))


def _name_gap(gap: Gap, *, margin: float) -> str:
    if gap.within_margin:
        return "yes"
    return "no" if gap.lower > margin else "not known"


def _explain_gaps(result: ComparisonResult) -> str:
    safety = max((pair.safety_factor for pair in result.pairs), default=1.0)
    return _GAP_LINE.format(
        sure=f.format_percent(1 - result.level),
        computed=f.format_percent(1 - result.level / safety),
    )


def make_findings_table(pairs: Sequence[Pair], *, kind: str) -> Table:
    """Return gain and finding of every challenger by dimension, class or label."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair.parts))
    columns: list[Column] = []
    for pair in pairs:
        parts = [pair.parts.get(name) for name in names]
        names_of = {
            "challenger": pair.challenger,
            "reference": pair.reference,
            "tie": "not told apart",
        }
        gains = [
            Cell(f.format_metric(part.gain), note=f.format_interval(part.interval))
            if part
            else Cell(f.MISSING)
            for part in parts
        ]
        texts = {
            "p, Holm, two-sided": [
                f.format_p_value(part.p_adjusted if part else None) for part in parts
            ],
            "finding": [names_of[part.finding] if part else "" for part in parts],
        }
        made = [Column(HeaderCell("gain"), gains), *make_columns(texts, words=["finding"])]
        columns += [column._replace(group=pair.challenger) for column in made]
    return Table(f"Gains by {kind}", kind, [HeaderCell(name) for name in names], columns)


def _list_power_rows(effect: float, *, margin: float) -> dict[str, _Read]:
    """Return how to format the power for an effect; pairs may have other effects."""

    def find(pair: Pair) -> Power | None:
        return pair.power if pair.power and pair.power.effect == effect else None

    name = f"{_POWER} {f.format_threshold(margin)} + {f.format_threshold(effect)}"
    return {
        name: lambda p: f.format_metric(found.power if (found := find(p)) else None),
        f"{name}, 95 % interval": lambda p: f.format_interval(
            found.interval if (found := find(p)) else None
        ),
    }


def _describe_mcnemar(pair: Pair, found: McNemar) -> str:
    """Return a line on the rows that only one of two variants classifies correctly."""
    p_value = f.format_p_value(found.p_value)
    tested = f"McNemar p {p_value if '<' in p_value else f'= {p_value}'}"
    if found.p_value is None:
        tested = "no McNemar p, since rows of one cluster are not independent"
    return (
        f"accuracy of the first run of each: only {pair.challenger} is right on "
        f"{found.only_challenger} rows, only {pair.reference} on {found.only_reference} (both on "
        f"{found.both_right}, neither on {found.both_wrong}); {tested}, other seeds not covered"
    )


def make_slices(result: ComparisonResult, entries: Sequence[ReportEntry]) -> Section:
    """Return one table per slicing: the metric of every variant by slice."""
    return Section(
        "Slices",
        "Subsets of the test rows; the best value of a row is marked, which is no test. With few "
        "rows the interval is wide; intervals are not corrected for the number of slices.",
        [
            Block(_make_slice_table(found, entries, result.metric), is_named=True)
            for found in result.slices
        ],
    )


def _make_slice_table(found: SliceTable, entries: Sequence[ReportEntry], leading: str) -> Table:
    metric = found.metric
    direction = "higher" if is_higher_better(metric) else "lower"
    caption = f"{metric} by {found.name}, {direction} is better"
    if metric != leading:
        caption += f" ({leading} is meaningless within one {found.name.removeprefix('true ')})"
    counts = make_cells([value.num_rows for value in found.values], show=f.format_count)
    shown = [s for s in entries if any(s.name in value.metrics for value in found.values)]
    columns = [Column(HeaderCell(s.name, s), []) for s in shown]
    for value in found.values:
        measured = [value.metrics[s.name] for s in shown]
        cells = make_cells(
            [m.value for m in measured],
            show=f.format_metric,
            higher_is_better=is_higher_better(metric),
        )
        for column, cell, m in zip(columns, cells, measured, strict=True):
            column.cells.append(cell._replace(note=f.note_interval(m.interval)))
    heads = [HeaderCell(value.value) for value in found.values]
    return Table(caption, found.name, heads, [Column(HeaderCell("rows"), counts), *columns])


def make_rare_events(rare: RareEvents | None, entries: Sequence[ReportEntry]) -> Section:
    """Return precision and recall for the rare rows: of the decisions, and at k."""
    if rare is None:
        return Section("Rare events", "", [])
    variants = [s for s in entries if s.name in rare.variants]
    found = [rare.variants[s.name] for s in variants]
    columns = _list_qualities(found, "all rows")
    lengths = [top.k for top in found[0].at_k]
    for i, k in enumerate(lengths):
        title = f"at k = {k}" + (" (number of rare rows)" if k == rare.num_high else "")
        columns += _list_qualities([variant.at_k[i] for variant in found], title)
    table = Table("Rare events", "variant", [HeaderCell(s.name, s) for s in variants], columns)
    return Section(
        "Rare events",
        f"Rare: {rare.what}, {rare.num_high} of {rare.num_rows} rows. Recall: the fraction of the "
        "rare rows that a variant predicts as rare; precision: the fraction of the rows predicted "
        "as rare that are. At k: of the k rows with the highest predictions.",
        [Block(table)],
    )


def _list_qualities(found: Sequence[ListQuality], title: str) -> list[Column]:
    recall = [
        Cell(f.format_metric(q.recall), note=f.note_interval(q.recall_interval)) for q in found
    ]
    precision = [
        Cell(f.format_metric(q.precision), note=f.note_interval(q.precision_interval))
        for q in found
    ]
    return [
        Column(HeaderCell("recall"), recall, title),
        Column(HeaderCell("precision"), precision, title),
    ]


def make_noise(noise: Sequence[NoiseResult], entries: Sequence[ReportEntry]) -> Section:
    """Return the error of second labels against the first, and of variants on the same rows."""
    if not noise:
        return Section("Label noise", "", [])
    metric = noise[0].metric
    columns = make_columns(
        {
            "rows": [f.format_count(n.num_rows) for n in noise],
            "left out": [f.format_count(n.num_left_out) for n in noise],
        }
    )
    columns.append(Column(HeaderCell("oracle"), [_make_metric_cell(n.oracle) for n in noise]))
    for s in entries:
        if s.name in noise[0].variants:
            columns.append(
                Column(
                    HeaderCell(s.name, s), [_make_metric_cell(n.variants[s.name]) for n in noise]
                )
            )
    heads = [HeaderCell(_ORACLES[n.kind], note=n.file) for n in noise]
    blocks = [Block(Table(f"{metric} of second labels", "labelled again by", heads, columns))]
    parts = list(noise[0].parts)
    if parts:
        by_part = [
            Column(head, [_make_metric_cell(n.parts[part]) for part in parts])
            for head, n in zip(heads, noise, strict=True)
        ]
        kind = "dimension" if metric == "mae" else "label"
        table = Table(
            f"{metric} of second labels by {kind}",
            kind,
            [HeaderCell(part) for part in parts],
            by_part,
        )
        blocks.append(Block(table, summary=f"By {kind}"))
    error = "mae" if metric == "mae" else "disagreement, the fraction of rows that differ"
    return Section(
        "Label noise",
        "Error of second labels (oracle) against the first ones, next to the error of each variant "
        f"against the first labels of the same rows, as {error}. Nothing is subtracted.",
        blocks,
    )


def _make_metric_cell(found: MetricValue) -> Cell:
    return Cell(f.format_metric(found.value), note=f.note_interval(found.interval))
