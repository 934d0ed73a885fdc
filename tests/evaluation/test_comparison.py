"""What a verdict is about, and what becomes of it where variants have few seeds (D16)."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmft.evaluation.comparison import choose_runs, decide_comparison, find_collapsed
from llmft.evaluation.verdict import Verdict
from tests.reports.made_up import make_comparison


def make_runs(*on_val: float | None, is_frozen: bool = False) -> list[Any]:
    """Return runs with a metric on validation."""
    record = SimpleNamespace(is_frozen=is_frozen)
    return [
        SimpleNamespace(path=f"seed-{i}", record=record, get_val=lambda metric, value=value: value)
        for i, value in enumerate(on_val)
    ]


def measure(variants: dict[str, list[Any]], metric: str = "mae") -> tuple[str, dict[str, list]]:
    found, scope = choose_runs(variants, list(variants), metric=metric)
    return scope, {name: [run.path for run in runs] for name, runs in found.items()}


def test_d16_three_seeds_of_each_speak_of_recipes() -> None:
    variants = {"ref": make_runs(3, 1, 2), "a": make_runs(1, 1, 1, 1), "f": make_runs(2)}
    variants["f"] = make_runs(2, is_frozen=True)
    scope, runs = measure(variants)
    assert scope == "recipes"
    assert {name: len(found) for name, found in runs.items()} == {"ref": 3, "a": 4, "f": 1}


def test_d16_with_fewer_each_variant_is_one_run_of_as_many() -> None:
    variants = {"ref": make_runs(3, 2, 1, 1), "a": make_runs(3, 3), "b": make_runs(1, 2, 0)}
    scope, runs = measure(variants)
    assert scope == "models"
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
    found, scope = choose_runs(variants, ["ref", "a"], metric="mae")
    assert (scope, found) == ("recipes", variants)


@pytest.mark.parametrize(
    ("few_seeds", "expected"), [([], "DEPLOY"), (["a"], "REVIEW"), (["ref", "a"], "REVIEW")]
)
def test_few_seeds_hold_the_decision_back(few_seeds: list[str], expected: str) -> None:
    verdict = Verdict("REFERENCE_HOLDS", "ref", "")
    passed = make_comparison().variants["distillation"].replace(decision="DEPLOY")
    found = decide_comparison(verdict, {"ref": passed}, few_seeds=few_seeds)
    assert found.decision == expected
    if few_seeds:
        assert found.reasons[-1] == (
            f"the verdict is about these models only, since {', '.join(few_seeds)} "
            f"{'has' if len(few_seeds) == 1 else 'have'} fewer than 3 seeds"
        )
