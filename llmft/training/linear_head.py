"""A linear head on vectors: ridge or logistic regression, its strength chosen on validation.

Shapes: N rows, E numbers of a vector, C outputs, D dimensions, L labels.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from llmft.config.head import Head
from llmft.models.memory.estimates import ROWS_PER_BLOCK

logger = logging.getLogger("llmft.train")

STRENGTHS = [float(f"{s:.3g}") for s in 10.0 ** np.arange(5, -3.5, -0.5)]
"""Of the penalty on the squared weights, the strongest first; the vectors are scaled so that their
numbers have a variance of 1 on average."""
_MAX_ITERATIONS = 1_000
_TOLERANCE = 1e-4  # of the mean gradient
_ROUGH_TOLERANCE = 1e-3  # enough to compare strengths, in a third of the time
_FEW_NUMBERS = 20_000_000  # with fewer, one thread is as fast, and threads that wait cost others
_PATIENCE = 2  # weaker strengths without a better score
_SHARPNESS = 10.0  # of the logits of classes that least squares predict
_RARE = 1e-6  # probability of a class or label that no training row has

_Models = dict[int, LogisticRegression]
"""Label, or 0 for classes -> its model."""
Score = Callable[[NDArray[np.float32]], float]
"""Takes logits [N, C] of the validation rows; the higher the better."""


class Solution(NamedTuple):
    """A linear head: logits = vectors @ weight.T + bias."""

    weight_CE: NDArray[np.float64]
    bias_C: NDArray[np.float64]

    def apply(self, vectors_NE: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [N, C]."""
        weight_EC, bias_C = self.weight_CE.T.astype(np.float32), self.bias_C.astype(np.float32)
        logits_NC: NDArray[np.float32] = vectors_NE @ weight_EC + bias_C
        return logits_NC


class TrainingRows(NamedTuple):
    """What a head is fitted to."""

    vectors_NE: NDArray[np.float32]
    labels: NDArray[Any]
    """Scores [N, D], classes [N], or labels [N, L]."""
    weights_NC: NDArray[np.float64]
    """Weight of each row, [N, 1], or of each of its labels, [N, L]."""
    has_bias: bool = True
    """Whether the head has a bias; the heads of decoders in transformers have none."""


class Choice(NamedTuple):
    """The solution whose strength is best on validation."""

    solution: Solution
    strength: float
    score: float
    scores: dict[float, float]
    """Strength -> its score, of all that were tried."""

    @property
    def is_at_edge(self) -> bool:
        """Whether a strength outside of the grid could be better."""
        return self.strength in (STRENGTHS[0], STRENGTHS[-1]) and len(set(self.scores.values())) > 1


class Scale(NamedTuple):
    """Shift and scale of vectors; both are folded into a solution."""

    mean_E: NDArray[np.float64]
    deviation: float
    """Root of the mean variance of the E numbers; 1 if all vectors are equal."""

    @classmethod
    def fit(cls, vectors_NE: NDArray[np.float32], *, has_bias: bool = True) -> "Scale":
        """Fit the scale to training vectors; without a bias to fold a shift into, there is none."""
        mean_E = vectors_NE.mean(axis=0, dtype=np.float64) * has_bias
        variance = (
            sum(float(np.square(block - mean_E).sum()) for block in _list_blocks(vectors_NE))
            / vectors_NE.size
        )
        return cls(mean_E, variance**0.5 or 1.0)

    def apply(self, vectors_NE: NDArray[np.float32]) -> None:
        """Scale vectors in place."""
        vectors_NE -= self.mean_E.astype(np.float32)
        vectors_NE /= np.float32(self.deviation)

    def fold(self, solution: Solution) -> Solution:
        """Return the solution for vectors that are not scaled."""
        weight_CE = solution.weight_CE / self.deviation
        return Solution(weight_CE, solution.bias_C - weight_CE @ self.mean_E)


def choose_by_ridge(
    head: Head, train: TrainingRows, val_NE: NDArray[np.float32], *, score: Score, num_outputs: int
) -> Choice:
    """Fit ridge regression to scores, or to classes and labels as 0 and 1."""
    targets_NC = train.labels
    if head in ("binary", "multiclass"):
        targets_NC = np.eye(num_outputs)[train.labels]
        targets_NC = targets_NC[:, 1:] if head == "binary" else targets_NC
    solve = solve_ridge(
        train.vectors_NE, targets_NC.astype(np.float64), train.weights_NC.mean(axis=1),
        has_bias=train.has_bias,
    )  # fmt: skip
    solutions = ((strength, solve(strength)) for strength in STRENGTHS)
    if head != "regression":
        solutions = (
            (s, Solution(_SHARPNESS * w, _SHARPNESS * (b - 0.5) * train.has_bias))
            for s, (w, b) in solutions
        )
    return _choose(solutions, val_NE, score, patience=len(STRENGTHS))


def choose_by_logistic(
    head: Head, train: TrainingRows, val_NE: NDArray[np.float32], *, score: Score, num_outputs: int
) -> Choice:
    """Fit logistic regression to classes, or to each label on its own.

    Every other strength is tried, the strongest first, each beginning at the solution before, until
    two in a row score below the best. They are solved roughly, and then the best one precisely.
    """
    path: dict[float, _Models] = {}

    def solve(strength: float, *, tolerance: float) -> Solution:
        before = path.get(strength) or next(reversed(path.values()), {})
        path[strength] = models = {key: copy.deepcopy(model) for key, model in before.items()}
        return _solve_logistic(head, train, models, num_outputs, strength, tolerance)

    with threadpool_limits(1 if train.vectors_NE.size < _FEW_NUMBERS else None):
        rough = ((s, solve(s, tolerance=_ROUGH_TOLERANCE)) for s in STRENGTHS[::2])
        choice = _choose(rough, val_NE, score, patience=_PATIENCE)
        solution = solve(choice.strength, tolerance=_TOLERANCE)
    found = score(solution.apply(val_NE))
    return Choice(solution, choice.strength, found, {**choice.scores, choice.strength: found})


def solve_ridge(
    vectors_NE: NDArray[np.float32],
    targets_ND: NDArray[np.float64],
    weights_N: NDArray[np.float64],
    *,
    has_bias: bool = True,
) -> Callable[[float], Solution]:
    """Return the solution of weighted ridge regression as a function of its strength.

    The normal equations are summed over blocks of rows, and decomposed once for all strengths.
    """
    total = weights_N.sum()
    mean_E = _sum_blocks(vectors_NE, lambda x, rows: weights_N[rows] @ x) / total * has_bias
    mean_D = weights_N @ targets_ND / total * has_bias
    weighted_ND = weights_N[:, None] * (targets_ND - mean_D)

    def cross(block: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        centred = block - mean_E
        return np.concatenate(
            [centred.T @ (weights_N[rows, None] * centred), centred.T @ weighted_ND[rows]], axis=1
        )

    sums = _sum_blocks(vectors_NE, cross)
    width = vectors_NE.shape[1]
    values_E, directions_EE = np.linalg.eigh(sums[:, :width])
    projected_ED = directions_EE.T @ sums[:, width:]

    def solve(strength: float) -> Solution:
        weight_ED = directions_EE @ (projected_ED / (values_E.clip(min=0) + strength)[:, None])
        return Solution(weight_ED.T, mean_D - mean_E @ weight_ED)

    return solve


def _solve_logistic(
    head: Head,
    train: TrainingRows,
    models: _Models,
    num_outputs: int,
    strength: float,
    tolerance: float,
) -> Solution:
    """Return the solution for a strength; the models begin at their solutions before."""
    fit = partial(_fit, models, strength=strength, tolerance=tolerance)
    if head != "multilabel":
        found = fit(0, train.labels, train, train.weights_NC[:, 0])
        weight_CE, bias_C = _spread(found, train.labels, num_outputs, is_binary=head == "binary")
        return Solution(weight_CE, bias_C * train.has_bias)
    by_label = []
    for i, column_N in enumerate(train.labels.T.astype(np.int64)):
        found = fit(i, column_N, train, train.weights_NC[:, i])
        by_label.append(_spread(found, column_N, 2, is_binary=True))
    return Solution(
        np.concatenate([s.weight_CE for s in by_label]),
        np.concatenate([s.bias_C for s in by_label]) * train.has_bias,
    )


def _fit(
    models: _Models,
    key: int,
    labels_N: NDArray[np.int64],
    train: TrainingRows,
    weights_N: NDArray[np.float64],
    *,
    strength: float,
    tolerance: float,
) -> Solution:
    """Return the logits of the classes that occur; those of two classes are one logit."""
    if len(np.unique(labels_N)) == 1:
        return Solution(np.zeros((1, train.vectors_NE.shape[1])), np.zeros(1))
    model = models.setdefault(
        key,
        LogisticRegression(warm_start=True, max_iter=_MAX_ITERATIONS, fit_intercept=train.has_bias),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.set_params(C=1 / strength, tol=tolerance)
        model.fit(train.vectors_NE, labels_N, sample_weight=weights_N)
    if model.n_iter_.max() >= _MAX_ITERATIONS:
        logger.info("strength %g: not converged after %d iterations", strength, _MAX_ITERATIONS)
    return Solution(model.coef_.astype(np.float64), model.intercept_.astype(np.float64))


def _spread(
    found: Solution, labels_N: NDArray[np.int64], num_outputs: int, *, is_binary: bool
) -> Solution:
    """Return the logits of all classes, or of the second of two; absent classes are rare."""
    present, rare = np.unique(labels_N), float(np.log(_RARE))
    if is_binary:
        if len(present) == 2:
            return found
        return Solution(found.weight_CE, np.array([rare if present[0] == 0 else -rare]))
    if len(present) == 2:  # scikit-learn gives one logit, that of the second class
        found = Solution(
            np.concatenate([-found.weight_CE, found.weight_CE]) / 2,
            np.concatenate([-found.bias_C, found.bias_C]) / 2,
        )
    weight_CE = np.zeros((num_outputs, found.weight_CE.shape[1]))
    bias_C = np.full(num_outputs, found.bias_C.min() + rare)
    weight_CE[present], bias_C[present] = found
    return Solution(weight_CE, bias_C)


def _choose(
    solutions: Iterable[tuple[float, Solution]],
    val_NE: NDArray[np.float32],
    score: Score,
    *,
    patience: int,
) -> Choice:
    """Return the solution with the best score; of equal ones the strongest.

    Args:
        solutions: Strengths, the strongest first, and their solutions.
        val_NE: Vectors of the validation rows.
        score: Takes their logits.
        patience: Number of scores below the best, one after another, that end the search.
    """
    scores: dict[float, float] = {}
    best: tuple[float, Solution] | None = None
    num_worse = 0
    for strength, solution in solutions:
        scores[strength] = score(solution.apply(val_NE))
        if best is None or scores[strength] > scores[best[0]]:
            best = strength, solution
        num_worse = num_worse + 1 if scores[strength] < scores[best[0]] else 0
        if num_worse == patience:
            break
    assert best is not None
    return Choice(best[1], best[0], scores[best[0]], scores)


def _list_blocks(vectors_NE: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(vectors_NE), ROWS_PER_BLOCK):
        yield vectors_NE[start : start + ROWS_PER_BLOCK].astype(np.float64)


def _sum_blocks(
    vectors_NE: NDArray[np.float32],
    compute: Callable[[NDArray[np.float64], slice], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return the sum of what is computed of each block of rows."""
    total: Any = 0
    for i, block in enumerate(_list_blocks(vectors_NE)):
        start = i * ROWS_PER_BLOCK
        total = total + compute(block, slice(start, start + len(block)))
    found: NDArray[np.float64] = total
    return found
