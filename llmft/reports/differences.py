"""How far each challenger is from the reference: overall, and in every dimension or class."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmft.reports import formatting as f
from llmft.reports.outline import Block, Section
from llmft.reports.series import MAX_PARTS, Series
from llmft.reports.tables import Cell, Column, Head, Table, keep_known_rows, make_columns

_Read = Callable[[dict[str, Any]], str]
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


def make_differences(results: dict[str, Any], series: Sequence[Series], *, kind: str) -> Section:
    """Return the section of the gains of all challengers, mixed rows included.

    Args:
        results: The results file.
        series: The arms and mixed rows.
        kind: Whether `parts` are dimensions, classes or labels.
    """
    pairs = [*results["pairs"], *list_mixed_pairs(results)]
    by_name = {s.name: s for s in series}
    table = _make_pair_table(pairs, by_name, margin=results["margin"])
    shown = [head.name for head in table.heads]
    lines = [
        f"{name.removesuffix(' of')}: {said}"
        for name, said in _SAID.items()
        if any(head.startswith(name) for head in shown)
    ]
    parts = make_findings_table(results["pairs"], by_name, kind=kind)
    folded = f"Findings by {kind}" if len(parts.heads) > MAX_PARTS else ""
    about = [
        "Findings: the arm that is ahead, if the p-value, corrected for the number of "
        f"comparisons (Holm), is below 0.05 and the difference at least "
        f"{f.format_threshold(results.get('min_difference'))}; else a tie."
    ]
    shared = [line for pair in pairs for line in _describe_mcnemar(pair)]
    blocks = [
        Block(table, lines=lines),
        Block(lines=shared),
        Block(parts, lines=about, summary=folded),
    ]
    return Section(
        f"Gains over {results['reference']}",
        f"Gain: how much better than the arm it is held against in {results['metric']}, on the "
        "same rows; below zero is worse. A challenger is better only if the gain is surely beyond "
        f"the margin of {f.format_threshold(results['margin'])}.",
        [block for block in blocks if (block.table.heads if block.table else block.lines)],
    )


def list_mixed_pairs(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pairs of the mixed rows with the best single arm, as far as there are any."""
    return [m["pair"] for m in (results.get("mixed") or {}).values() if m.get("pair")]


def _make_pair_table(
    pairs: Sequence[dict[str, Any]], by_name: Mapping[str, Series], *, margin: float
) -> Table:
    """Return a row per quantity, and a column per challenger."""
    effects = dict.fromkeys(p["power"]["effect"] for p in pairs if p.get("power"))
    rows: dict[str, _Read] = {
        "against": lambda p: p["reference"],
        "gain": lambda p: f.format_metric(p["gain"]),
        "95 % interval": lambda p: f.format_interval(p["interval"]),
        "one-sided 95 % bounds": _format_bounds,
        "finding": lambda p: p["finding"],
        "p, no difference": lambda p: f.format_p_value(p.get("p_value")),
        "p, gain within margin": lambda p: f.format_p_value(p.get("p_margin")),
        "p, Holm": lambda p: f.format_p_value(p.get("p_margin_adjusted")),
        **{
            f"{_POWER} {f.format_threshold(margin)} + {f.format_threshold(effect)}": _read_power(
                effect
            )
            for effect in effects
        },
        "rows needed": lambda p: f.format_count((p.get("needed") or {}).get("rows")),
        "seeds needed": lambda p: f.format_count((p.get("needed") or {}).get("seeds")),
    }
    columns = [
        Column(
            Head(pair["challenger"], by_name.get(pair["challenger"])),
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


def make_findings_table(
    pairs: Sequence[dict[str, Any]], by_name: Mapping[str, Series], *, kind: str
) -> Table:
    """Return gain and finding of every challenger by dimension, class or label."""
    found = [pair for pair in pairs if pair.get("parts")]
    names = list(dict.fromkeys(name for pair in found for name in pair["parts"]))
    columns: list[Column] = []
    for pair in found:
        parts = [pair["parts"].get(name) or {} for name in names]
        said = {key: pair[key] for key in ("challenger", "reference")} | {"tie": "tie"}
        gains = [
            Cell(f.format_metric(part.get("gain")), note=_note_interval(part)) for part in parts
        ]
        texts = {
            "p, Holm": [f.format_p_value(part.get("p_adjusted")) for part in parts],
            "finding": [said.get(part.get("finding") or "", "") for part in parts],
        }
        made = [Column(Head("gain"), gains), *make_columns(texts, words=["finding"])]
        columns += [column._replace(group=pair["challenger"]) for column in made]
    return Table(f"Gains by {kind}", kind, [Head(name) for name in names], columns)


def _read_power(effect: float) -> _Read:
    """Return how to read the chance to find an effect; pairs may be asked for different ones."""

    def read(pair: dict[str, Any]) -> str:
        power = pair.get("power") or {}
        return f.format_share(power.get("power") if power.get("effect") == effect else None)

    return read


def _describe_mcnemar(pair: dict[str, Any]) -> list[str]:
    """Return a line on the rows that only one of two arms gets right, if they were counted."""
    found = pair.get("mcnemar")
    if not found:
        return []
    p_value = f.format_p_value(found["p_value"])
    counts = {key: f.format_count(value) for key, value in found.items()}
    return [
        f"accuracy: {pair['challenger']} alone right on {counts['only_challenger']}, "
        f"{pair['reference']} alone on {counts['only_reference']} (both {counts['both_right']}, "
        f"none {counts['both_wrong']}); McNemar p {p_value if '<' in p_value else f'= {p_value}'}"
    ]


def _format_bounds(pair: dict[str, Any]) -> str:
    lower, upper = pair.get("lower"), pair.get("upper")
    return f.format_interval(None if lower is None or upper is None else [lower, upper])


def _note_interval(part: dict[str, Any]) -> str:
    return f.format_interval(part["interval"]) if part.get("interval") else ""
