"""Variants put together: chosen on validation, scored on test, recommended only if better (D7)."""

import numpy as np
import pytest

from llmft.evaluation.ensembles import (
    ENSEMBLE,
    ROUTING,
    find_best_variant,
    make_ensembles,
    recommend,
    sum_costs,
)
from llmft.metrics.definitions import compute_metric
from llmft.results.comparison import Cost
from tests.evaluation.shortcuts import compare_runs

RNG = np.random.default_rng(11)
NAMES = ["a", "b"]


def add_noise(labels: np.ndarray, sds: list[float]) -> np.ndarray:
    return labels + RNG.normal(size=labels.shape) * sds


def test_the_ensemble_averages_the_runs_of_each_seed() -> None:
    variants = {
        "one": [np.array([[1.0, 2]]), np.array([[3.0, 4]]), np.array([[9.0, 9]])],
        "two": [np.array([[3.0, 2]]), np.array([[5.0, 8]])],
    }
    mixed = make_ensembles(
        variants, val_variants=variants, val_labels=np.array([0, 1]), names=NAMES
    )
    ensemble = mixed[ENSEMBLE]
    assert (ensemble.kind, ensemble.made_of) == ("ensemble", ["one", "two"])
    assert (ensemble.routes, ensemble.fitted_on) == (None, None)
    assert [run.tolist() for run in ensemble.runs] == [[[2, 2]], [[4, 6]]]  # two has two seeds


def test_one_run_of_a_frozen_base_is_part_of_every_run_of_an_ensemble() -> None:
    variants = {
        "trained": [np.array([[1.0, 2]]), np.array([[3.0, 4]]), np.array([[5.0, 6]])],
        "frozen": [np.array([[3.0, 2]])],
    }
    runs = make_ensembles(
        variants, val_variants=variants, val_labels=np.array([0, 1]), names=NAMES
    )[ENSEMBLE].runs
    assert [run.tolist() for run in runs] == [[[2, 2]], [[3, 3]], [[4, 4]]]


def test_the_mean_of_independent_errors_is_smaller_by_the_root_of_their_number() -> None:
    labels = np.zeros((4_000, 1))
    variants = {f"variant{i}": [RNG.normal(size=labels.shape)] for i in range(4)}
    mixed = make_ensembles(variants, val_variants=variants, val_labels=labels, names=["a"])
    assert set(mixed) == {ENSEMBLE}  # one dimension leaves nothing to route
    found = compute_metric("mae", labels, mixed[ENSEMBLE].runs[0])
    assert found == pytest.approx(np.sqrt(2 / np.pi) / 2, rel=0.05)


def test_averaged_probabilities_are_probabilities() -> None:
    variants = {name: [RNG.dirichlet(np.ones(3), size=20)] for name in "xy"}
    labels = RNG.integers(0, 3, size=20)
    mixed = make_ensembles(variants, val_variants=variants, val_labels=labels, names=list("abc"))
    assert set(mixed) == {ENSEMBLE}  # the probabilities of classes belong together
    assert mixed[ENSEMBLE].runs[0].sum(axis=1) == pytest.approx(np.ones(20))


def test_each_dimension_goes_to_the_variant_that_is_best_at_it_on_validation() -> None:
    val, test = RNG.uniform(0, 10, size=(60, 2)), RNG.uniform(0, 10, size=(200, 2))
    sds = {"one": [0.5, 3.0], "two": [2.0, 1.0], "idle": [4.0, 4.0]}
    val_variants = {variant: [add_noise(val, sd) for _ in range(2)] for variant, sd in sds.items()}
    variants = {variant: [add_noise(test, sd) for _ in range(2)] for variant, sd in sds.items()}
    variants["idle"].pop()  # a variant that predicts nothing costs no run
    routing = make_ensembles(variants, val_variants=val_variants, val_labels=val, names=NAMES)[
        ROUTING
    ]
    assert routing.routes == {"a": "one", "b": "two"}
    assert (routing.kind, routing.made_of, routing.fitted_on) == ("routing", ["one", "two"], "val")
    assert len(routing.runs) == 2
    for i, run in enumerate(routing.runs):
        assert (run[:, 0] == variants["one"][i][:, 0]).all()
        assert (run[:, 1] == variants["two"][i][:, 1]).all()


def test_d7_test_has_no_say_in_the_routes() -> None:
    """On test the variants are the other way round; the routes stay, and lose."""
    val, test = RNG.uniform(0, 10, size=(60, 2)), RNG.uniform(0, 10, size=(60, 2))
    val_variants = {"one": [add_noise(val, [0.1, 3])], "two": [add_noise(val, [3, 0.1])]}
    variants = {"one": [add_noise(test, [3, 0.1])], "two": [add_noise(test, [0.1, 3])]}
    routing = make_ensembles(variants, val_variants=val_variants, val_labels=val, names=NAMES)[
        ROUTING
    ]
    assert routing.routes == {"a": "one", "b": "two"}
    assert compute_metric("mae", test, routing.runs[0]) > 2


def test_labels_go_by_f1_and_one_without_rows_or_predictions_speaks_for_nobody() -> None:
    val = np.array([[True, True, False]] * 5 + [[False, False, False]] * 5)
    good, bad = val * 0.8, np.full(val.shape, 0.6)
    mixed_up = np.stack([bad[:, 0], good[:, 1], good[:, 2]], axis=1)  # c: nothing to be right about
    other = np.stack([good[:, 0], bad[:, 1], bad[:, 2]], axis=1)  # c: all predictions wrong
    val_variants = {"one": [mixed_up], "two": [other]}
    routing = make_ensembles(
        val_variants, val_variants=val_variants, val_labels=val, names=list("abc")
    )[ROUTING]
    assert routing.routes == {"a": "two", "b": "one", "c": "two"}


def test_routes_that_all_lead_to_one_variant_and_a_single_variant_mix_nothing() -> None:
    val = RNG.uniform(0, 10, size=(30, 2))
    good, bad = [add_noise(val, [0.1, 0.1])], [add_noise(val, [3, 3])]
    both = {"good": good, "bad": bad}
    assert set(make_ensembles(both, val_variants=both, val_labels=val, names=NAMES)) == {ENSEMBLE}
    same = {"one": good, "two": good}  # the first of equal ones
    assert set(make_ensembles(same, val_variants=same, val_labels=val, names=NAMES)) == {ENSEMBLE}
    alone = {"good": good}
    assert make_ensembles(alone, val_variants=both, val_labels=val, names=NAMES) == {}


def test_a_variant_that_is_excluded_takes_no_part() -> None:
    val = RNG.uniform(0, 10, size=(30, 2))
    val_variants = {
        "excluded": [val], "one": [add_noise(val, [1, 3])], "two": [add_noise(val, [3, 1])],
    }  # fmt: skip
    variants = {variant: val_variants[variant] for variant in ("one", "two")}
    mixed = make_ensembles(variants, val_variants=val_variants, val_labels=val, names=NAMES)
    assert mixed[ENSEMBLE].made_of == mixed[ROUTING].made_of == ["one", "two"]


def test_only_what_beats_the_best_variant_by_the_margin_is_recommended() -> None:
    labels = np.zeros((300, 1))
    variants = {f"variant{i}": [RNG.normal(size=labels.shape)] for i in range(4)}
    values = {variant: compute_metric("mae", labels, runs[0]) for variant, runs in variants.items()}
    best = find_best_variant("mae", values)
    assert values[best] == min(values.values())
    ensemble = make_ensembles(variants, val_variants=variants, val_labels=labels, names=["a"])[
        ENSEMBLE
    ]
    small, large = (
        compare_runs(
            "mae", labels, reference=variants[best], challenger=ensemble.runs, margin=margin
        )
        for margin in (0.1, 0.6)
    )
    assert recommend({ENSEMBLE: small}, best_variant=best) == ENSEMBLE
    assert recommend({ENSEMBLE: large}, best_variant=best) == best
    assert recommend({}, best_variant=best) == best
    bigger = small.replace(gain=small.gain + 1)
    assert recommend({ENSEMBLE: small, ROUTING: bigger}, best_variant=best) == ROUTING


def test_the_best_variant_goes_by_the_direction_of_the_metric() -> None:
    values = {"undefined": None, "one": 0.4, "two": 0.7, "equal": 0.7}
    assert find_best_variant("f1_macro", values) == "two"
    assert find_best_variant("mae", values) == "one"


def test_costs_add_up_and_an_unknown_one_leaves_the_sum_unknown() -> None:
    found = sum_costs(
        [
            Cost(single_p50_ms=10.0, peak_memory_gib=0.5, num_parameters=100),
            Cost(single_p50_ms=2.5, peak_memory_gib=None, num_parameters=50),
        ]
    )
    assert found == Cost(single_p50_ms=12.5, peak_memory_gib=None, num_parameters=150)
    assert isinstance(found.num_parameters, int)
    assert sum_costs(
        [
            Cost(single_p50_ms=None, peak_memory_gib=0.25, num_parameters=None),
            Cost(single_p50_ms=1.0, peak_memory_gib=0.25, num_parameters=1),
        ]
    ) == Cost(single_p50_ms=None, peak_memory_gib=0.5, num_parameters=None)
