"""The section on gains of challengers over the reference: overall, and per dimension or class."""

from collections.abc import Callable, Mapping, Sequence

from llmft.reports import formatting as f
from llmft.reports.entries import MAX_PARTS, ReportEntry
from llmft.reports.layout import (
    Block,
    Cell,
    Column,
    Head,
    Section,
    Table,
    keep_known_rows,
    make_columns,
)
from llmft.results.comparison import ComparisonResult, McNemar, Pair
from llmft.results.variant import Interval

_Read = Callable[[Pair], str]
_POWER = "power for a gain of"
_EXPLAINED = {
    "one-sided 95 % bounds": "the ends of the thin line in the plot; a challenger is better if the "
    "lower one is above the margin and Holm's p is also below 0.05, and not better if the upper "
    "one is below the margin",
    "p, no difference": "probability of such a gain if the variants were the same, by permutation",
    "p, gain within margin": "probability of such a gain if the true gain were at most the margin; "
    "bounds and this p are more cautious than their nominal level (docs/suites.md)",
    "p, Holm": "the same, corrected for the number of challengers",
    _POWER: "probability, with these rows, of finding a challenger with this true gain better",
    "rows needed": "about how many rows would resolve the pair",
    "seeds needed": "about how many seeds per variant would resolve the pair",
}


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
    table = _make_pair_table(pairs, by_name, margin=result.margin)
    shown = [head.name for head in table.heads]
    lines = [
        f"{name.removesuffix(' for a gain of')}: {meaning}"
        for name, meaning in _EXPLAINED.items()
        if any(head.startswith(name) for head in shown)
    ]
    parts = make_findings_table(result.pairs, kind=kind)
    folded = f"Findings by {kind}" if len(parts.heads) > MAX_PARTS else ""
    about = [
        "Finding: the better variant, if the p-value, corrected for the number of comparisons "
        f"(Holm), is below 0.05 and the difference at least "
        f"{f.format_threshold(result.min_difference)}; else a tie."
    ]
    blocks = [
        Block(table, lines=lines),
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


def _make_pair_table(
    pairs: Sequence[Pair], by_name: Mapping[str, ReportEntry], *, margin: float
) -> Table:
    """Return a row per quantity, and a column per challenger."""
    effects = dict.fromkeys(p.power.effect for p in pairs if p.power)
    rows: dict[str, _Read] = {
        "against": lambda p: p.reference,
        "gain": lambda p: f.format_metric(p.gain),
        "95 % interval": lambda p: f.format_interval(p.interval),
        "one-sided 95 % bounds": lambda p: f.format_interval(Interval(p.lower, p.upper)),
        "finding": lambda p: p.finding,
        "p, no difference": lambda p: f.format_p_value(p.p_value),
        "p, gain within margin": lambda p: f.format_p_value(p.p_margin),
        "p, Holm": lambda p: f.format_p_value(p.p_margin_adjusted),
        **{
            f"{_POWER} {f.format_threshold(margin)} + {f.format_threshold(effect)}": _read_power(
                effect
            )
            for effect in effects
        },
        "rows needed": lambda p: f.format_count(p.needed.rows if p.needed else None),
        "seeds needed": lambda p: f.format_count(p.needed.seeds if p.needed else None),
    }
    columns = [
        Column(
            Head(pair.challenger, by_name[pair.challenger]),
            [
                Cell(read(pair), is_word=name in ("against", "finding"))
                for name, read in rows.items()
            ],
        )
        for pair in pairs
    ]
    return keep_known_rows(
        Table("Gains with intervals and p-values", "", [Head(name) for name in rows], columns)
    )


def make_findings_table(pairs: Sequence[Pair], *, kind: str) -> Table:
    """Return gain and finding of every challenger by dimension, class or label."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair.parts))
    columns: list[Column] = []
    for pair in pairs:
        parts = [pair.parts.get(name) for name in names]
        names_of = {"challenger": pair.challenger, "reference": pair.reference, "tie": "tie"}
        gains = [
            Cell(f.format_metric(part.gain), note=f.format_interval(part.interval))
            if part
            else Cell(f.MISSING)
            for part in parts
        ]
        texts = {
            "p, Holm": [f.format_p_value(part.p_adjusted if part else None) for part in parts],
            "finding": [names_of[part.finding] if part else "" for part in parts],
        }
        made = [Column(Head("gain"), gains), *make_columns(texts, words=["finding"])]
        columns += [column._replace(group=pair.challenger) for column in made]
    return Table(f"Gains by {kind}", kind, [Head(name) for name in names], columns)


def _read_power(effect: float) -> _Read:
    """Return a function that formats the power for an effect; pairs may have other effects."""

    def read(pair: Pair) -> str:
        power = pair.power
        return f.format_percent(power.power if power and power.effect == effect else None)

    return read


def _describe_mcnemar(pair: Pair, found: McNemar) -> str:
    """Return a line on the rows that only one of two variants classifies correctly."""
    p_value = f.format_p_value(found.p_value)
    return (
        f"accuracy: only {pair.challenger} is right on {found.only_challenger} rows, only "
        f"{pair.reference} on {found.only_reference} (both on {found.both_right}, neither on "
        f"{found.both_wrong}); McNemar p {p_value if '<' in p_value else f'= {p_value}'}"
    )
