from collections.abc import Mapping

from llmft.config.metrics import METRICS
from llmft.reports.formatting import format_labels
from llmft.reports.layout import (
    MARKER_STYLES,
    ReportEntry,
    choose_part_metric,
    choose_parts,
    is_higher_better,
    style_variant,
)
from llmft.reports.variant_tables import explain_metrics
from llmft.results.evaluation import Parts
from tests.reports.made_up import make_comparison


def make_variant(values: Mapping[str, float | None], *, metric: str = "f1") -> ReportEntry:
    parts: Parts = {name: {metric: value} for name, value in values.items()}
    return ReportEntry("a", {}, parts, *MARKER_STYLES[0], {}, {})


def test_every_metric_is_explained_and_has_its_direction() -> None:
    assert len(explain_metrics(list(METRICS))) == len(METRICS)
    assert not is_higher_better("hamming_loss")
    assert is_higher_better("precision")


def test_labels_of_every_type() -> None:
    assert format_labels("strong") == "strong"
    assert format_labels({"severity": 3.0, "stress": 0.5}) == "severity 3, stress 0.5"
    assert format_labels(["hate", "abusive"]) == "hate, abusive"
    assert format_labels([]) == "none"


def test_the_leading_metric_is_shown_by_part_where_parts_have_it() -> None:
    parts = [{"severity": {"mae": 1.0, "skill": None}}]
    assert choose_part_metric("skill", parts=parts, label_type="scores") == "skill"
    assert choose_part_metric("tier_accuracy", parts=parts, label_type="scores") == "mae"
    assert choose_part_metric("f1_macro", parts=[{}], label_type="class") == "f1"


def test_few_parts_keep_their_order() -> None:
    assert choose_parts([make_variant({"b": 0.9, "a": 0.1})], metric="f1") == ["b", "a"]


def test_of_many_parts_the_worst_of_any_variant_come_first() -> None:
    names = [f"c{i}" for i in range(30)]
    good = make_variant({name: 0.5 + i / 100 for i, name in enumerate(names)})
    bad_at_one = make_variant({**dict.fromkeys(names, 0.95), "c20": 0.1, "c21": None})
    chosen = choose_parts([good, bad_at_one], metric="f1")
    assert chosen == ["c20", *names[:14], "⋯", *names[25:]]


def test_of_many_dimensions_the_largest_errors_come_first() -> None:
    variant = make_variant({f"d{i}": float(i) for i in range(30)}, metric="mae")
    chosen = choose_parts([variant], metric="mae")
    assert (chosen[0], chosen[-1], len(chosen)) == ("d29", "d0", 21)


def test_intervals_by_part_belong_to_their_metric_only() -> None:
    found = make_comparison().variants["instruction"]
    assert found.part_intervals is not None
    for metric, expected in (("mae", found.part_intervals.intervals), ("skill", {})):
        variant = style_variant(0, name="a", found=found, metric=metric)
        assert variant.part_intervals == expected
