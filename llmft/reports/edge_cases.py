"""Edge cases: how many each arm passed, and which ones it failed."""

from collections.abc import Mapping, Sequence

from llmft.reports.formatting import format_share_interval
from llmft.reports.outline import Block, Section
from llmft.reports.series import Series
from llmft.reports.tables import Cell, Column, Head, Table, make_columns
from llmft.results.variant import EdgeCases, PassCount, VariantResult


def make_edge_cases(variants: Mapping[str, VariantResult], arms: Sequence[Series]) -> Section:
    """Return the section on edge cases: counts, overall and by category, and what failed."""
    pairs = [(arm, variants[arm.name].edge_cases) for arm in arms]
    shown = [arm for arm, cases in pairs if cases]
    found = [cases for _, cases in pairs if cases]
    blocks = [
        Block(_make_table(found, shown)),
        Block(_make_category_table(found, shown)),
        Block(_make_failed_table(found, shown)),
    ]
    return Section(
        "Edge cases",
        "Cases with a known answer. The 95 % interval is exact; few cases leave it wide.",
        [block for block in blocks if block.table and block.table.heads],
    )


def _make_table(found: Sequence[EdgeCases], arms: Sequence[Series]) -> Table:
    texts = {
        "passed": [_count(f) for f in found],
        "pass rate, 95 % interval": [format_share_interval(f.pass_rate_interval) for f in found],
        "must-pass cases failed": [", ".join(f.must_pass_failed) or "none" for f in found],
    }
    columns = make_columns(texts, words=["must-pass cases failed"])
    return Table("Edge cases passed", "arm", [Head(s.name, s) for s in arms], columns)


def _make_category_table(found: Sequence[EdgeCases], arms: Sequence[Series]) -> Table:
    names = list(dict.fromkeys(name for f in found for name in f.by_category))
    columns = [
        Column(Head(arm.name, arm), [_show_category(f, name) for name in names])
        for arm, f in zip(arms, found, strict=True)
    ]
    return Table(
        "Passed by category", "category", [Head(name or "no category") for name in names], columns
    )


def _show_category(found: EdgeCases, name: str) -> Cell:
    counts = found.by_category.get(name)
    if counts is None:
        return Cell("")
    return Cell(_count(counts), note=format_share_interval(counts.interval))


def _make_failed_table(found: Sequence[EdgeCases], arms: Sequence[Series]) -> Table:
    """Return a row per case that some arm failed, those that must pass first, and why it did."""
    failed = {case.id: case for f in found for case in f.cases if not case.passed}
    cases = sorted(failed.values(), key=lambda case: not case.must_pass)
    heads = [
        Head(case.id, note=case.category, tags=("must pass",) if case.must_pass else ())
        for case in cases
    ]  # fmt: skip
    columns = []
    for arm, f in zip(arms, found, strict=True):
        own = {case.id: case.failures for case in f.cases if not case.passed}
        cells = [Cell("; ".join(own.get(case.id, ["passed"]))) for case in cases]
        columns.append(Column(Head(arm.name, arm), cells, is_number=False))
    return Table("Cases that failed", "case", heads, columns)


def _count(found: EdgeCases | PassCount) -> str:
    return f"{found.num_passed} of {found.num_cases}"
