from llmft.config.metrics import METRICS
from llmft.reports.formatting import format_labels
from llmft.reports.metric_tables import explain_metrics
from llmft.reports.series import (
    Series,
    choose_part_metric,
    choose_parts,
    is_higher_better,
    style_arm,
)


def make_arm(f1_by_class: dict[str, float | None]) -> Series:
    parts = {name: {"f1": value} for name, value in f1_by_class.items()}
    return style_arm(0, name="a", found={}, parts=parts, metric="f1")


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
    assert choose_parts([make_arm({"b": 0.9, "a": 0.1})], metric="f1") == ["b", "a"]


def test_of_many_parts_the_worst_of_any_arm_come_first() -> None:
    names = [f"c{i}" for i in range(30)]
    good = make_arm({name: 0.5 + i / 100 for i, name in enumerate(names)})
    bad_at_one = make_arm({**dict.fromkeys(names, 0.95), "c20": 0.1, "c21": None})
    chosen = choose_parts([good, bad_at_one], metric="f1")
    assert chosen == ["c20", *names[:14], "⋯", *names[25:]]


def test_of_many_dimensions_the_largest_errors_come_first() -> None:
    parts = {f"d{i}": {"mae": float(i)} for i in range(30)}
    arm = style_arm(0, name="a", found={}, parts=parts, metric="mae")
    chosen = choose_parts([arm], metric="mae")
    assert (chosen[0], chosen[-1], len(chosen)) == ("d29", "d0", 21)


def test_intervals_by_part_belong_to_their_metric_only() -> None:
    found = {"part_intervals": {"metric": "mae", "intervals": {"severity": [0.1, 0.2]}}}
    for metric, expected in (("mae", {"severity": [0.1, 0.2]}), ("skill", {})):
        arm = style_arm(0, name="a", found=found, parts={}, metric=metric)
        assert arm.part_intervals == expected
