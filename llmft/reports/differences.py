"""How far each challenger is from the reference: overall, and in every dimension or class."""

from collections.abc import Callable, Mapping, Sequence

from llmft.reports import formatting as f
from llmft.reports.outline import Block, Section
from llmft.reports.series import MAX_PARTS, Series
from llmft.reports.tables import Cell, Column, Head, Table, keep_known_rows, make_columns
from llmft.results.comparison import ComparisonResult, McNemar, Pair
from llmft.results.variant import Interval

_Read = Callable[[Pair], str]
_POWER = "chance to have found a gain of"
_SAID = {
    "one-sided 95 % bounds": "the ends of the thin line in the plot; a challenger is better if the "
    "lower one is above the margin and Holm's p is below 0.05 as well, and not better if the upper "
    "one is below the margin",
    "p, no difference": "chance of such a gain if the arms were the same, by permutation",
    "p, gain within margin": "chance of such a gain if the true one were no more than the margin; "
    "bounds are drawn more cautiously than 95 % asks for, and this p with them (docs/suites.md)",
    "p, Holm": "the same, corrected for the number of challengers",
    _POWER: "how probable it was, with these rows, to find a challenger better whose true gain "
    "is that much",
    "rows needed": "about how many rows would settle what is unresolved",
    "seeds needed": "about how many seeds an arm would settle it",
}


def make_differences(result: ComparisonResult, series: Sequence[Series], *, kind: str) -> Section:
    """Return the section of the gains of all challengers, ensembles included.

    Args:
        result: The comparison.
        series: The arms and ensembles.
        kind: Whether `parts` are dimensions, classes or labels.
    """
    ensembles = [found.pair for found in result.ensembles.values() if found.pair]
    pairs = [*result.pairs, *ensembles]
    by_name = {s.name: s for s in series}
    table = _make_pair_table(pairs, by_name, margin=result.margin)
    shown = [head.name for head in table.heads]
    lines = [
        f"{name.removesuffix(' of')}: {said}"
        for name, said in _SAID.items()
        if any(head.startswith(name) for head in shown)
    ]
    parts = make_findings_table(result.pairs, kind=kind)
    folded = f"Findings by {kind}" if len(parts.heads) > MAX_PARTS else ""
    about = [
        "Findings: the arm that is ahead, if the p-value, corrected for the number of "
        f"comparisons (Holm), is below 0.05 and the difference at least "
        f"{f.format_threshold(result.min_difference)}; else a tie."
    ]
    blocks = [
        Block(table, lines=lines),
        Block(lines=[_describe_mcnemar(p, p.mcnemar) for p in pairs if p.mcnemar]),
        Block(parts, lines=about, summary=folded),
    ]
    return Section(
        f"Gains over {result.reference}",
        f"Gain: how much better than the arm it is held against in {result.metric}, on the "
        "same rows; below zero is worse. A challenger is better only if the gain is surely beyond "
        f"the margin of {f.format_threshold(result.margin)}.",
        [block for block in blocks if (block.table.heads if block.table else block.lines)],
    )


def _make_pair_table(
    pairs: Sequence[Pair], by_name: Mapping[str, Series], *, margin: float
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
        Table("Gains, and how sure they are", "", [Head(name) for name in rows], columns)
    )


def make_findings_table(pairs: Sequence[Pair], *, kind: str) -> Table:
    """Return gain and finding of every challenger by dimension, class or label."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair.parts))
    columns: list[Column] = []
    for pair in pairs:
        parts = [pair.parts.get(name) for name in names]
        said = {"challenger": pair.challenger, "reference": pair.reference, "tie": "tie"}
        gains = [
            Cell(f.format_metric(part.gain), note=f.format_interval(part.interval))
            if part
            else Cell(f.MISSING)
            for part in parts
        ]
        texts = {
            "p, Holm": [f.format_p_value(part.p_adjusted if part else None) for part in parts],
            "finding": [said[part.finding] if part else "" for part in parts],
        }
        made = [Column(Head("gain"), gains), *make_columns(texts, words=["finding"])]
        columns += [column._replace(group=pair.challenger) for column in made]
    return Table(f"Gains by {kind}", kind, [Head(name) for name in names], columns)


def _read_power(effect: float) -> _Read:
    """Return how to read the chance to find an effect; pairs may be asked for different ones."""

    def read(pair: Pair) -> str:
        power = pair.power
        return f.format_share(power.power if power and power.effect == effect else None)

    return read


def _describe_mcnemar(pair: Pair, found: McNemar) -> str:
    """Return a line on the rows that only one of two arms gets right."""
    p_value = f.format_p_value(found.p_value)
    return (
        f"accuracy: {pair.challenger} alone right on {found.only_challenger}, "
        f"{pair.reference} alone on {found.only_reference} (both {found.both_right}, "
        f"none {found.both_wrong}); McNemar p {p_value if '<' in p_value else f'= {p_value}'}"
    )
