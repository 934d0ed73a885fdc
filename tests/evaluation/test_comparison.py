"""What a verdict is about, and what becomes of it where variants have few seeds (D16)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmft.evaluation.comparison import (
    choose_runs,
    find_collapsed,
    find_look,
    recommend_variant,
)
from llmft.results.comparison import ComparisonResult, Gap
from llmft.results.evaluation import VariantResult
from llmft.results.files import write_result
from tests.reports.made_up import make_comparison


def make_runs(*on_val: float | None, is_frozen: bool = False) -> list[Any]:
    """Return runs with a metric on validation."""
    record = SimpleNamespace(is_frozen=is_frozen)
    return [
        SimpleNamespace(path=f"seed-{i}", record=record, get_val=lambda metric, value=value: value)
        for i, value in enumerate(on_val)
    ]


def measure(
    variants: dict[str, list[Any]], metric: str = "mae"
) -> tuple[list[str], dict[str, list]]:
    found, few_seeds = choose_runs(variants, list(variants), metric=metric)
    return few_seeds, {name: [run.path for run in runs] for name, runs in found.items()}


def test_d16_three_seeds_of_each_speak_of_recipes() -> None:
    variants = {"ref": make_runs(3, 1, 2), "a": make_runs(1, 1, 1, 1), "f": make_runs(2)}
    variants["f"] = make_runs(2, is_frozen=True)
    few_seeds, runs = measure(variants)
    assert few_seeds == []
    assert {name: len(found) for name, found in runs.items()} == {"ref": 3, "a": 4, "f": 1}


def test_d16_with_fewer_each_variant_is_one_run_of_as_many() -> None:
    variants = {"ref": make_runs(3, 2, 1, 1), "a": make_runs(3, 3), "b": make_runs(1, 2, 0)}
    few_seeds, runs = measure(variants)
    assert few_seeds == ["a"]
    assert runs == {"ref": ["seed-1"], "a": ["seed-0"], "b": ["seed-0"]}, "of the first two"
    assert measure(variants, "f1_macro")[1] == {
        "ref": ["seed-0"], "a": ["seed-0"], "b": ["seed-1"],
    }  # fmt: skip
    variants["c"] = make_runs(5)
    assert measure(variants)[1] == {name: ["seed-0"] for name in variants}, "the first of each"


def test_d16_a_metric_that_was_not_measured_on_validation_chooses_nothing() -> None:
    variants = {"ref": make_runs(None, None), "a": make_runs(None, 3)}
    assert measure(variants)[1] == {"ref": ["seed-0"], "a": ["seed-1"]}


def test_d9_a_run_that_predicts_one_value_does_not_stand_for_a_variant() -> None:
    labels = np.arange(40.0)[:, None]
    rows = SimpleNamespace(labels=labels)
    runs = make_runs(1), make_runs(1)
    for [run], outputs in zip(runs, (labels, np.full((40, 1), 3.0)), strict=True):
        run.record.recipe = SimpleNamespace(train=SimpleNamespace(seed=1))
        run.decision_scores = outputs
    variants: Any = dict(zip(("good", "flat"), runs, strict=True))
    found = find_collapsed(variants, ["good", "flat"], rows)  # type: ignore[arg-type]
    assert [(f.status, f.variants) for f in found] == [("invalid", ["flat"])]


def test_variants_that_the_audit_excluded_count_no_seeds() -> None:
    variants = {"ref": make_runs(1, 2, 3), "a": make_runs(1, 2, 3), "broken": make_runs(1)}
    assert choose_runs(variants, ["ref", "a"], metric="mae") == (variants, [])


# Looks.
def look_again(tmp_path: Path, *, then: ComparisonResult, **changes: Any) -> int:
    """Return which look a comparison is that follows another one in the same folder."""
    path = tmp_path / "comparison.json"
    write_result(path, then)
    now = make_comparison().replace(**changes)
    opened = {
        name: [SimpleNamespace(path=run.path, record=run.record) for run in variant.runs]
        for name, variant in now.variants.items()
    }
    suite = SimpleNamespace(config=SimpleNamespace(metric=now.metric, reference=now.reference))
    comparison: Any = SimpleNamespace(
        suite=suite,
        opened=opened,
        variants=opened,
        data=SimpleNamespace(fingerprint=now.data.fingerprint),
    )
    return find_look(path, comparison)


def test_d19_the_same_variants_on_more_rows_or_seeds_are_another_look(tmp_path: Path) -> None:
    then = make_comparison()
    more_rows = then.data.replace(fingerprint="another")
    assert look_again(tmp_path, then=then) == 1, "the same rows and runs"
    assert look_again(tmp_path, then=then, data=more_rows) == 2
    assert look_again(tmp_path, then=then.replace(look=4), data=more_rows) == 5
    assert look_again(tmp_path, then=then.replace(look=4)) == 4
    assert look_again(tmp_path, then=then, left_out={}) == 1, "other seeds that are not measured"
    other = then.variants["instruction"]
    run = other.runs[0].replace(path="runs/instruction/seed-9")
    variants = {**then.variants, "instruction": other.replace(runs=[*other.runs, run])}
    assert look_again(tmp_path, then=then, variants=variants) == 2, "a further seed is measured"
    broken = then.replace(look=3, pairs=[])
    assert look_again(tmp_path, then=broken, data=more_rows) == 3, "it decided nothing"


def test_d19_other_recipes_or_another_question_are_no_look(tmp_path: Path) -> None:
    then = make_comparison().replace(look=2)
    more_rows = then.data.replace(fingerprint="another")
    assert look_again(tmp_path, then=then, data=more_rows, metric="rmse") == 1
    few = then.replace(pairs=[pair.replace(shortage="too few") for pair in then.pairs])
    assert look_again(tmp_path, then=few, data=more_rows) == 2, "it could find nothing"
    other = then.variants["instruction"]
    recipe = other.record.recipe
    run = other.runs[0].replace(
        record=other.record.replace(
            recipe=recipe.model_copy(
                update={"head": recipe.head.model_copy(update={"init": "probe"})}
            )
        )
    )
    changed = {**then.variants, "instruction": other.replace(runs=[run])}
    assert look_again(tmp_path, then=then, data=more_rows, variants=changed) == 1


def test_d19_earlier_results_that_nobody_can_read_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    comparison: Any = None
    assert find_look(tmp_path / "comparison.json", comparison) == 1
    (tmp_path / "comparison.json").write_text('{"schema_version": 1}')
    assert find_look(tmp_path / "comparison.json", comparison) == 1
    assert "counts as the first look" in caplog.text


# What is recommended.
def make_costs(**milliseconds: float) -> dict[str, VariantResult]:
    one = make_comparison().variants["distillation"]
    assert one.latency is not None
    return {
        name: one.replace(decision="REVIEW", latency=one.latency.replace(single_p50_ms=value))
        for name, value in milliseconds.items()
    }


def make_gaps(**within_margin: bool) -> dict[str, Gap]:
    return {
        name: Gap(gap=0.1, lower=0.0, upper=0.3, may_be_best=True, within_margin=known)
        for name, known in within_margin.items()
    }


def test_d22_of_about_equally_cheap_ones_the_best_is_recommended() -> None:
    variants = make_costs(large=20.1, small=20.0)
    gaps = make_gaps(large=True, small=True)
    gaps["large"] = gaps["large"].replace(gap=0.0)
    assert recommend_variant(variants, gaps, winner="large") == "large"


@pytest.mark.parametrize(
    ("winner", "within", "expected"),
    [
        ("large", {"large": True, "small": True, "tiny": False}, "small"),
        ("large", {"large": False, "small": False, "tiny": False}, "large"),
        (None, {"large": False, "small": False, "tiny": False}, None),
        (None, {"large": True, "small": False, "tiny": False}, "large"),
        (None, {}, None),
    ],
)
def test_d22_the_cheapest_that_is_as_good_as_the_best_is_recommended(
    winner: str | None, within: dict[str, bool], expected: str | None
) -> None:
    variants = make_costs(large=90.0, small=9.0, tiny=1.0)
    assert recommend_variant(variants, make_gaps(**within), winner=winner) == expected


def test_d22_what_its_gates_fail_is_not_recommended() -> None:
    variants = make_costs(large=90.0, small=9.0)
    gaps = make_gaps(large=True, small=True)
    variants["small"] = variants["small"].replace(decision="FAIL")
    assert recommend_variant(variants, gaps, winner="small") == "large"
    variants["large"] = variants["large"].replace(decision="FAIL")
    assert recommend_variant(variants, gaps, winner="small") is None
