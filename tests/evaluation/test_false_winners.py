"""How often a comparison names a winner where there is none, and finds one where there is."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import norm

from llmft.benchmarks.verdicts import make_small_groups
from llmft.evaluation.verdict import Rules, Verdict, reach_verdict
from llmft.results.comparison import Pair
from tests.evaluation.shortcuts import compare_all

FORMS = [(55, False), (120, True), (515, False), (515, True)]
"""Rows, and whether in clusters."""


def draw_errors(
    rng: np.random.Generator, num_variants: int, num_rows: int, groups: np.ndarray | None
) -> np.ndarray:
    """Return errors of integer scores, [A, N]: skewed, tied, and large on the same hard rows."""

    def vary() -> np.ndarray:
        """Vary by row, or to 60 % by cluster."""
        by_row = rng.normal(size=num_rows)
        if groups is None:
            return by_row
        by_cluster = rng.normal(size=groups.max() + 1)[groups]
        return np.sqrt(0.6) * by_cluster + np.sqrt(0.4) * by_row

    hard = vary()
    levels = [(hard + vary()) / np.sqrt(2) for _ in range(num_variants)]
    return np.floor(-1.5 * norm.logsf(levels))


def simulate(
    *,
    form: tuple[int, bool],
    num_challengers: int = 1,
    margin: float = 0.2,
    effect: float = 0.0,
    num_seeds: int = 1,
    seed_deviation: float = 0.0,
    num_draws: int = 1_000,
) -> Iterator[tuple[Verdict, dict[str, Pair]]]:
    """Compare variants that beat the reference by the margin and an effect, on new rows each time.

    Each seed of a variant is worse or better than it as a whole, and on each row.
    """
    num_rows, is_clustered = form
    groups = make_small_groups(num_rows) if is_clustered else None
    rng = np.random.default_rng(0)
    names = ["ref", *(f"a{i}" for i in range(num_challengers))]
    rules = Rules("mae", "ref", margin, effect or 0.05)
    labels = np.full((num_rows, 1), -100.0)  # below all outputs: the error of a seed stays a shift
    for _ in range(num_draws):
        errors = draw_errors(rng, len(names), num_rows, groups)
        errors[0] += rng.random(num_rows) < margin + effect
        variants = {}
        for name, errors_N in zip(names, errors, strict=True):
            variants[name] = [errors_N[:, None]] * num_seeds
            if seed_deviation:
                by_seed = rng.normal(0, seed_deviation, size=(num_seeds, 1, 1))
                by_row = rng.normal(0, 0.5, size=(num_seeds, num_rows, 1))
                variants[name] = list(variants[name] + by_seed + by_row)
        differences = compare_all(variants, labels, rules, groups=groups)
        verdict = reach_verdict(
            differences, valid_variants=names, findings=[], reference="ref", metric="mae",
            margin=margin, scope="recipes",
        )  # fmt: skip
        yield verdict, differences


def count_winners(**form) -> int:
    return sum(verdict.name == "WINNER" for verdict, _ in simulate(**form))


@pytest.mark.parametrize(
    "form", [*FORMS[:2], *(pytest.param(form, marks=pytest.mark.launched) for form in FORMS[2:])]
)
def test_no_more_than_1_in_20_winners_is_false(form) -> None:
    """One challenger, the case in which Holm does not help."""
    assert count_winners(form=form) <= 50


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_challengers", [1, 2, 3, 4])
@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_several_challengers_have_no_more_false_winners(form, num_challengers, margin) -> None:
    assert count_winners(form=form, num_challengers=num_challengers, margin=margin) <= 50


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("seed_deviation", [0.1, 0.3, 1.0])
def test_seeds_that_scatter_make_no_more_false_winners(form, num_seeds, seed_deviation) -> None:
    found = count_winners(form=form, num_seeds=num_seeds, seed_deviation=seed_deviation)
    assert found <= 50


def test_a_lucky_seed_is_no_winner() -> None:
    found = count_winners(form=(55, False), num_seeds=3, seed_deviation=0.5, num_draws=400)
    assert found <= 20


@pytest.mark.parametrize(("form", "effect"), [((55, False), 0.6), ((515, True), 0.25)])
def test_a_true_gain_is_found_as_often_as_the_power_says(form, effect: float) -> None:
    found = list(simulate(form=form, effect=effect, num_draws=400))
    share = np.mean([verdict.name == "WINNER" for verdict, _ in found])
    stated = np.mean([differences["a0"].power.power for _, differences in found])
    assert 0.3 < share < 0.95
    assert share == pytest.approx(stated, abs=0.08)
