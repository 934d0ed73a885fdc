"""What the arms of a comparison are, what they cost and how they were made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmft.reports import formatting as f
from llmft.reports.series import Series
from llmft.reports.tables import (
    Column,
    Head,
    Table,
    keep_known_columns,
    keep_known_rows,
    make_cells,
    make_columns,
)

_MAKING = {
    "seeds": "seeds",
    "runs": "runs",
    "training mode": "training_mode",
    "max. tokens": "max_length",
    "device": "device",
    "precision": "precision",
    "test reads": "test_reads",
    "git revision": "git_revision",
}
_LATENCY: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("one article, ms: p50", "single_p50_ms", f.format_quantity),
    ("one article, ms: p95", "single_p95_ms", f.format_quantity),
    ("prompt not kept: p50", "uncached_p50_ms", f.format_quantity),
    ("prompt not kept: p95", "uncached_p95_ms", f.format_quantity),
    ("a batch, ms: p50", "batch_p50_ms", f.format_quantity),
    ("a batch, ms: p95", "batch_p95_ms", f.format_quantity),
    ("articles in a batch", "batch_size", f.format_count),
    ("articles / s", "articles_per_second", f.format_quantity),
    ("peak memory, GiB", "peak_memory_gib", f.format_quantity),
    ("cost of a million articles", "cost_per_million", f.format_quantity),
    ("single articles timed", "num_singles", f.format_count),
    ("batches timed", "num_batches", f.format_count),
    ("device", "device", f.join_values),
)
"""Title, key, and how to write it."""


def make_head(series: Series, results: dict[str, Any]) -> Head:
    """Return the head of a row or column, with what matters about an arm as tags."""
    name, mixed = series.name, (results.get("mixed") or {}).get(series.name)
    recommended = name == results.get("recommended")
    if mixed:
        tags = ("recommended",) if recommended or mixed["recommended"] else ()
        return Head(name, series, _describe_mix(mixed), tags)
    if series.is_baseline:
        return Head(name, series)
    variant = results["variants"][name]
    tags_if = {
        "winner": name == results["winner"] and results["verdict"] == "WINNER",
        "reference": name == results["reference"],
        "recommended": recommended,
        "invalid": not variant["valid"],
        "never pretrained": not variant["base_pretrained"],
    }
    note = f"{variant['base']} ·\N{NO-BREAK SPACE}{variant['tuning']}"
    return Head(name, series, note, tuple(tag for tag, holds in tags_if.items() if holds))


def describe_mixed(results: dict[str, Any]) -> list[str]:
    """Return a line for every mixed row: what it is made of, and whether it is worth it."""
    return [
        f"{name}: {_describe_mix(mixed)}, "
        f"{'recommended' if mixed['recommended'] else 'not recommended'}"
        for name, mixed in (results.get("mixed") or {}).items()
    ]


def _describe_mix(mixed: dict[str, Any]) -> str:
    parts = mixed["made_of"]
    if mixed.get("routes"):
        parts = [f"{part} by {arm}" for part, arm in mixed["routes"].items()]
    return f"{mixed['kind']} of {', '.join(parts)}"


def make_costs_table(results: dict[str, Any], arms: Sequence[Series]) -> Table:
    """Return what every arm or mixed row costs, and what it was given."""
    mixed = results.get("mixed") or {}
    found = [results["variants"].get(arm.name) or mixed[arm.name] for arm in arms]
    latency = results.get("latency") or {}
    running = [latency.get(arm.name) or mixed.get(arm.name) or {} for arm in arms]

    def list_costs(name: str, holders: list[Any], key: str, show: Any) -> Column:
        # Nothing is marked as the best: times that differ by less than a tenth are the same.
        cells = make_cells([holder.get(key) for holder in holders], show=show)
        return Column(Head(name), cells, "Cost")

    columns = [
        list_costs("training", found, "train_seconds", f.format_seconds),
        list_costs("one article, ms", running, "single_p50_ms", f.format_quantity),
        list_costs("articles / s", running, "articles_per_second", f.format_quantity),
        list_costs("memory, GiB", running, "peak_memory_gib", f.format_quantity),
        list_costs("parameters", found, "num_parameters", f.format_size),
        list_costs("trainable", found, "num_trainable", f.format_size),
    ]
    said = {"include": "yes", "exclude": "no", None: ""}
    prompts = [variant.get("prompt_mode") for variant in found]
    budgets = [variant.get("token_budget") or {} for variant in found]
    inputs = {
        "prompt": [said.get(prompt, str(prompt)) for prompt in prompts],
        "text kept": [f.format_share(budget.get("share_kept")) for budget in budgets],
    }
    columns += [column._replace(group="Input") for column in make_columns(inputs)]
    heads = [make_head(arm, results) for arm in arms]
    return Table("What the arms cost, and what they were given", "arm", heads, columns)


def make_latency_table(results: dict[str, Any], arms: Sequence[Series]) -> Table:
    """Return the times of every arm, one article and a batch at a time, and what they cost."""
    latency = results.get("latency") or {}
    timed = [arm for arm in arms if arm.name in latency]
    rows = []
    for _, key, show in _LATENCY:
        values = [latency[arm.name].get(key) for arm in timed]
        cells = make_cells(values, show=show)
        rows.append([cell._replace(is_word=key == "device") for cell in cells])
    heads = [Head(title) for title, *_ in _LATENCY]
    columns = [Column(Head(arm.name, arm), [row[i] for row in rows]) for i, arm in enumerate(timed)]
    return keep_known_rows(Table("Latency", "", heads if timed else [], columns))


def make_making_table(variants: Mapping[str, Any], arms: Sequence[Series]) -> Table:
    """Return how every arm was trained."""
    texts = {
        title: [f.join_values(variants[arm.name].get(key)) for arm in arms]
        for title, key in _MAKING.items()
    }
    words = [title for title in _MAKING if title not in ("max. tokens", "test reads")]
    heads = [Head(arm.name, arm) for arm in arms]
    return keep_known_columns(
        Table("How every arm was trained", "arm", heads, make_columns(texts, words=words))
    )


def describe_versions(variants: Mapping[str, Any], arms: Sequence[Series]) -> list[tuple[str, str]]:
    """Return the packages that arms were trained with, and which arms those are."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        found.setdefault(f.join_values(variants[arm.name].get("packages")), []).append(arm.name)
    return [(f"versions of {', '.join(names)}", text) for text, names in found.items() if text]


def describe_data(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return terms and descriptions of the prepared data."""
    near = {k.removeprefix("num_"): v for k, v in (data["near_duplicates"] or {}).items()}
    split = {k: v for k, v in data["split"].items() if v is not None}
    if not any((split.get("ranges") or {}).values()):  # those of a split by date
        split.pop("ranges", None)
    return [
        ("fingerprint", data["fingerprint"]),
        ("rows", f.join_values(data["counts"])),
        ("rejected", f.join_values(data["rejected"]) or "none"),
        ("near-duplicates", f.join_values(near) or "not looked for"),
        ("split", f.join_values(split)),
    ]
