"""How often a verdict is false, and how often a true gain is found, on simulated test rows."""

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from llmft.benchmarks.plans import Figures
from llmft.config.metrics import METRICS
from llmft.errors import UserError
from llmft.evaluation.verdict import (
    ERROR_RATE,
    OutputsByVariant,
    Rules,
    compare_with_reference,
    find_level,
    jackknife_variants,
    reach_verdict,
)
from llmft.metrics.definitions import Floats, compute_metric
from llmft.statistics.intervals import bound_proportion
from llmft.statistics.resampling import Groups

_NUM_DRAWS, _NUM_POWER_DRAWS = 10_000, 1_000
_QUICK = 50
"""A quick run takes so many times fewer draws, and leaves out the largest test sets."""
_NUM_LOOKS = 4
_DETECTABLE = float(norm.ppf(0.95) + norm.ppf(0.8))
"""Standard errors of a gain that a one-sided test at 5 % finds in 80 % of all cases."""
_MANY_ROWS = 100_000


class TestSet(NamedTuple):
    """Simulated test rows with the outputs of the variants; `reference` is one of them."""

    variants: OutputsByVariant
    labels: NDArray[Any]
    """Scores [N, 1], or classes [N]."""
    groups: Groups | None = None


class Shape(NamedTuple):
    """A way in which errors are distributed."""

    draw: Callable[[np.random.Generator, int, float], TestSet]
    """Random numbers, N, strength -> test set. At strength 0 all variants are equal on average;
    above, the first challenger is better."""
    metric: str = "mae"
    num_rows: tuple[int, ...] = (20, 55, 200, 1_000)
    margins: tuple[float, ...] = (0.0, 0.2)
    looks: bool = False
    """Whether rows are added four times, until there is a winner."""


Errors = Callable[[np.random.Generator, int], tuple[Floats, Floats]]
"""Random numbers, N -> errors of the reference and of a challenger, with equal means, [N]."""


def draw_skewed_integers(rng: np.random.Generator, num_rows: int) -> tuple[Floats, Floats]:
    """Return skewed errors with ties, which are large on the same hard rows."""
    hard = rng.normal(size=num_rows)
    levels = [(hard + rng.normal(size=num_rows)) / math.sqrt(2) for _ in range(2)]
    ours, theirs = np.floor(-1.5 * norm.logsf(levels))
    return ours, theirs


def _draw_zero_inflated(rng: np.random.Generator, num_rows: int) -> tuple[Floats, Floats]:
    """70 % of the errors are 0."""
    shape = (2, num_rows)
    ours, theirs = np.where(rng.random(shape) < 0.3, rng.exponential(2.0, size=shape), 0.0)
    return ours, theirs


def _draw_heavy_tails(rng: np.random.Generator, num_rows: int) -> tuple[Floats, Floats]:
    """Log-normal errors: their standard deviation is 1.3 times their mean."""
    ours, theirs = rng.lognormal(-0.5, 1.0, size=(2, num_rows))
    return ours, theirs


def _draw_few_differences(rng: np.random.Generator, num_rows: int) -> tuple[Floats, Floats]:
    """The variants differ in 15 % of the rows only."""
    shared = rng.exponential(size=num_rows)
    other = np.where(rng.random(num_rows) < 0.15, rng.exponential(size=num_rows), shared)
    return shared, other


def _draw_seldom_worse(rng: np.random.Generator, num_rows: int) -> tuple[Floats, Floats]:
    """The errors of the reference vary little, those of the challenger are exponential."""
    return rng.gamma(4, 0.25, size=num_rows), rng.exponential(size=num_rows)


def _draw_disasters(rng: np.random.Generator, num_rows: int) -> tuple[Floats, Floats]:
    """The challenger is a little better, but worse by 5 points on 2 % of the rows."""
    reference = rng.normal(size=num_rows)
    worse = np.where(rng.random(num_rows) < 0.02, 5.0, 0.0)
    return reference, reference + rng.normal(-0.1, 0.3, size=num_rows) + worse


def _compare_scores(
    errors: Errors,
    *,
    num_challengers: int = 1,
    num_seeds: tuple[int, int] = (1, 1),
    seed_deviation: float = 0.0,
    draw_groups: Callable[[int], Groups] | None = None,
) -> Callable[[np.random.Generator, int, float], TestSet]:
    """Return how to draw variants of scores by their errors.

    Args:
        errors: Of a reference and a challenger.
        num_challengers: Drawn independently of each other.
        num_seeds: Runs of the reference and of a challenger.
        seed_deviation: Standard deviation of the errors of runs as a whole.
        draw_groups: Number of rows -> cluster of each row; nine of ten rows have the errors of
            their cluster.
    """

    def vary(rng: np.random.Generator, errors_N: Floats, count: int) -> list[Floats]:
        if seed_deviation == 0:
            return [errors_N[:, None]] * count
        of_seeds = rng.normal(0, seed_deviation, size=(count, 1))
        runs_SN = errors_N + of_seeds + rng.normal(0, 0.5, size=(count, len(errors_N)))
        return [run_N[:, None] for run_N in runs_SN]

    def draw(rng: np.random.Generator, num_rows: int, strength: float) -> TestSet:
        groups = None if draw_groups is None else draw_groups(num_rows)
        found = [errors(rng, num_rows) for _ in range(num_challengers)]
        if groups is not None:
            shared = errors(rng, int(groups.max()) + 1)
            is_shared = rng.random(num_rows) < 0.9
            found = [
                (np.where(is_shared, shared[0][groups], ours),
                 np.where(is_shared, shared[1][groups], theirs))
                for ours, theirs in found
            ]  # fmt: skip
        variants: OutputsByVariant = {"reference": vary(rng, found[0][0], num_seeds[0])}
        for i, (_, errors_N) in enumerate(found):
            better = strength if i == 0 else 0.0
            variants[f"challenger{i}"] = vary(rng, errors_N - better, num_seeds[1])
        # Labels below all outputs, so that an output is an error, also where a seed lowers it.
        shift = np.full((num_rows, 1), 100.0)
        shifted: OutputsByVariant = {
            name: [run + shift for run in runs] for name, runs in variants.items()
        }
        return TestSet(shifted, np.zeros((num_rows, 1)), groups)

    return draw


def _compare_classes(fraction: float) -> Callable[[np.random.Generator, int, float], TestSet]:
    """Return how to draw two classifiers that err independently of each other half of the time.

    Args:
        fraction: Of the rows that are positive.
    """

    def draw(rng: np.random.Generator, num_rows: int, strength: float) -> TestSet:
        labels = (rng.permutation(num_rows) < round(fraction * num_rows)).astype(np.int64)
        shared = rng.normal(size=num_rows)
        variants: OutputsByVariant = {}
        for name, better in (("reference", 0.0), ("challenger", strength)):
            noise = (shared + rng.normal(size=num_rows)) / math.sqrt(2)
            scores_N = (1.8 + better) * (labels - 0.5) + noise
            variants[name] = [np.stack([-scores_N, scores_N], axis=1)]
        return TestSet(variants, labels)

    return draw


def make_small_groups(num_rows: int) -> Groups:
    """Return clusters of 1 to 8 rows, [N]."""
    sizes = np.random.default_rng(3).integers(1, 9, size=num_rows)
    return np.repeat(np.arange(num_rows), sizes)[:num_rows]


def _make_dominant_groups(num_rows: int) -> Groups:
    """Return clusters of 2 rows and, of a quarter of the rows, of 10, [N]."""
    large = np.arange(num_rows // 4) // 10
    return np.concatenate([large, large[-1] + 1 + np.arange(num_rows - len(large)) // 2])


SHAPES: dict[str, Shape] = {
    "skewed integers": Shape(_compare_scores(draw_skewed_integers)),
    "zero-inflated": Shape(_compare_scores(_draw_zero_inflated)),
    "heavy tails": Shape(_compare_scores(_draw_heavy_tails)),
    "few differences": Shape(_compare_scores(_draw_few_differences)),
    "seldom worse": Shape(_compare_scores(_draw_seldom_worse)),
    "rare disasters": Shape(_compare_scores(_draw_disasters), margins=(0.0,)),
    "small clusters": Shape(
        _compare_scores(draw_skewed_integers, draw_groups=make_small_groups),
        num_rows=(200, 1_000),
    ),
    "dominant clusters": Shape(
        _compare_scores(draw_skewed_integers, draw_groups=_make_dominant_groups),
        num_rows=(200, 1_000),
    ),
    "10 challengers": Shape(
        _compare_scores(draw_skewed_integers, num_challengers=10),
        num_rows=(55, 200), margins=(0.0,),
    ),
    "three seeds": Shape(
        _compare_scores(draw_skewed_integers, num_seeds=(3, 3), seed_deviation=0.1),
        num_rows=(20, 55, 200),
    ),
    "three seeds that vary": Shape(
        _compare_scores(draw_skewed_integers, num_seeds=(3, 3), seed_deviation=0.5),
        num_rows=(55, 200), margins=(0.0,),
    ),
    "three seeds against eight": Shape(
        _compare_scores(draw_skewed_integers, num_seeds=(3, 8), seed_deviation=0.3),
        num_rows=(55, 200), margins=(0.0,),
    ),
    "four looks": Shape(
        _compare_scores(draw_skewed_integers), num_rows=(55, 200, 1_000), margins=(0.0,), looks=True
    ),
    **{
        f"{metric}, {fraction:.0%} positive": Shape(
            _compare_classes(fraction), metric, num_rows=num_rows, margins=(0.0,)
        )
        for metric, fraction, num_rows in (
            ("accuracy", 0.3, (55, 200, 1_000)),
            ("balanced_accuracy", 0.3, (55, 200, 1_000)),
            ("balanced_accuracy", 0.1, (200, 1_000)),
            ("f1_macro", 0.1, (200, 1_000)),
            ("roc_auc", 0.1, (200, 1_000)),
        )
    },
}  # fmt: skip
"""Name -> shape of the errors."""


class Cell(NamedTuple):
    """A shape on test sets of one size, with one margin."""

    shape: str
    num_rows: int
    margin: float
    num_draws: int
    num_power_draws: int
    seed: int


def list_cells(*, seed: int, quick: bool = False) -> list[Cell]:
    """Return the cells of the grid."""
    divisor = _QUICK if quick else 1
    return [
        Cell(name, num_rows, margin, _NUM_DRAWS // divisor, _NUM_POWER_DRAWS // divisor, seed)
        for name, shape in SHAPES.items()
        for num_rows in shape.num_rows
        for margin in shape.margins
        if not quick or num_rows <= 55
    ]


def measure_verdicts(*, seed: int, quick: bool, resume: Path | None) -> Iterator[Figures]:
    """Measure all cells of the grid, in as many processes as there are CPUs.

    Args:
        seed: Seed of the test sets.
        quick: Whether to take few draws of small test sets.
        resume: JSON of an earlier run, whose cells are not measured again.

    Yields:
        One object per cell: rates of false verdicts and of gains that are found; first all of
        `resume`.

    Raises:
        UserError: If `resume` is no such file, or is one of other versions.
    """
    known = {} if resume is None else _read_known(resume)
    cells = list_cells(seed=seed, quick=quick)
    # Each process multiplies small matrices: threads of their own would only wait for each other.
    with ProcessPoolExecutor(initializer=threadpool_limits, initargs=(1,)) as pool:
        running = [pool.submit(measure_cell, cell) for cell in cells if cell not in known]
        yield from known.values()  # other grids in the same file are kept as well
        for found in running:
            yield found.result()


def _read_known(path: Path) -> dict[Cell, Figures]:
    if not path.is_file():
        return {}
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text())
        known = {_read_cell(entry): entry for entry in entries}
        others = {entry["versions"] for entry in entries} - {_name_versions()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--json: {path}: is not the result of an earlier run; remove it, or name another file"
        ) from error
    if others:
        raise UserError(
            f"--json: {path}: was measured by {'; '.join(sorted(others))}, and this is "
            f"{_name_versions()}; remove it, or name another file"
        )
    return known


def _name_versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("llmft", "numpy", "scipy"))


def _read_cell(entry: dict[str, Any]) -> Cell:
    return Cell(
        entry["shape"], entry["num_rows"], entry["margin"], entry["num_draws"],
        entry["num_power_draws"], entry["seed"],
    )  # fmt: skip


def measure_cell(cell: Cell) -> Figures:
    """Return how often the verdicts of a cell are false, and how often a true gain is found."""
    shape = SHAPES[cell.shape]
    outcomes = list(_compare(cell, cell.num_draws, strength=0.0))
    effect = _DETECTABLE * float(np.std([outcome.gain for outcome in outcomes]))
    strength = _find_strength(shape, effect)
    found = sum(
        outcome.is_winner for outcome in _compare(cell, cell.num_power_draws, strength=strength)
    )
    first_look = sum(outcome.wins_first_look for outcome in outcomes) / cell.num_draws
    return {
        **cell._asdict(),
        "metric": shape.metric,
        **_describe_rate("false_winner", sum(o.is_winner for o in outcomes), cell.num_draws),
        **_describe_rate("false_reference_holds", sum(o.holds for o in outcomes), cell.num_draws),
        "false_winner_first_look": None if shape.looks else first_look,
        "too_few_rows": sum(o.is_short for o in outcomes) / cell.num_draws,
        "effect": effect,
        **_describe_rate("power", found, cell.num_power_draws),
        "date": time.strftime("%Y-%m-%d"),
        "versions": _name_versions(),
    }


def _describe_rate(name: str, count: int, num_draws: int) -> Figures:
    interval = bound_proportion(count, num_draws)
    return {
        name: count / num_draws, f"{name}_low": interval.low, f"{name}_high": interval.high,
    }  # fmt: skip


def _find_strength(shape: Shape, effect: float) -> float:
    """Return the strength that gives the first challenger a gain, by bisection on many rows."""

    def compute_gain(strength: float) -> float:
        drawn = shape.draw(np.random.default_rng(0), _MANY_ROWS, strength)
        values = [
            np.mean([compute_metric(shape.metric, drawn.labels, run) for run in runs])
            for runs in list(drawn.variants.values())[:2]
        ]
        sign = 1 if METRICS[shape.metric].higher_is_better else -1
        return sign * float(values[1] - values[0])

    at_zero = compute_gain(0.0)
    most = 10.0
    if compute_gain(most) - at_zero < effect:
        return most
    return float(optimize.brentq(lambda x: compute_gain(x) - at_zero - effect, 0, most, xtol=1e-3))


class _Outcome(NamedTuple):
    """What a comparison found; of several looks, what any of them found."""

    is_winner: bool
    holds: bool
    wins_first_look: bool
    """Whether there is a winner at the level of a first look."""
    is_short: bool
    """Whether the rows are too few for any verdict."""
    gain: float
    """Of the first challenger."""


def _compare(cell: Cell, num_draws: int, *, strength: float) -> Iterator[_Outcome]:
    """Yield what is found on new test rows, where the true gain is the margin and more."""
    shape = SHAPES[cell.shape]
    rng = np.random.default_rng([cell.seed, cell.num_rows, *cell.shape.encode()])
    for _ in range(num_draws):
        drawn = shape.draw(rng, cell.num_rows, strength)
        if cell.margin:
            by_margin = (rng.random((cell.num_rows, 1)) < cell.margin).astype(float)
            drawn.variants["reference"] = [run + by_margin for run in drawn.variants["reference"]]
        if shape.looks:
            yield _look_again(drawn, shape.metric)
        else:
            yield _judge(drawn, Rules(shape.metric, "reference", cell.margin, 0.05, ERROR_RATE))


def _look_again(drawn: TestSet, metric: str) -> _Outcome:
    """Add rows until there is a winner, each look at its own level."""
    num_rows, look, holds = len(drawn.labels), 1, False
    for part in range(1, _NUM_LOOKS + 1):
        seen = slice(0, math.ceil(num_rows * part / _NUM_LOOKS))
        so_far = TestSet(
            {name: [run[seen] for run in runs] for name, runs in drawn.variants.items()},
            drawn.labels[seen],
        )
        found = _judge(so_far, Rules(metric, "reference", 0.0, 0.05, find_level(look)))
        holds |= found.holds
        if found.is_winner:
            break
        look += not found.is_short  # what could find nothing is no look
    return found._replace(holds=holds)


def _judge(drawn: TestSet, rules: Rules) -> _Outcome:
    jackknifed = jackknife_variants(drawn.variants, drawn.labels, rules=rules, groups=drawn.groups)
    pairs = compare_with_reference(jackknifed)
    verdict = reach_verdict(
        pairs, valid_variants=list(drawn.variants), findings=[], reference=rules.reference,
        metric=rules.metric, margin=rules.margin, scope="recipes", level=rules.level,
    )  # fmt: skip
    first, *_ = pairs.values()
    return _Outcome(
        is_winner=verdict.name == "WINNER",
        holds=verdict.name == "REFERENCE_HOLDS",
        wins_first_look=any(
            pair.p_margin_adjusted < find_level(1) and pair.shortage is None
            for pair in pairs.values()
        ),
        is_short=jackknifed.shortage is not None,
        gain=first.gain,
    )
