"""Linear classifiers with exact margins: the hard-margin SVM, in two conventions of the bias, and the mean difference.

A classifier is (w, b), its labels are -1 and +1, and its signed margin at (x, y) is ``y (w.x + b) / |w|_2``.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runs.case_study.quadratic_program import NotSeparableError, first_state, program_of, solve, weights

__all__ = [
    "KKT",
    "Direction",
    "HardMargin",
    "NotSeparableError",
    "checked_points",
    "hard_margin_svm",
    "linear_margins",
    "mean_difference",
]

Array = NDArray[np.float64]


class KKT(NamedTuple):
    """How far a solution is from the optimality conditions, each residual relative to the terms that make it up.

    Attributes:
      feasibility: max_i (1 - y_i (w.x_i + b)), or 0 where no constraint is violated.
      slackness: max_i alpha_i |y_i (w.x_i + b) - 1| / max_i alpha_i.
      stationarity: |w - sum_i alpha_i y_i x_i| / |w|.
      balance: |sum_i alpha_i y_i| / sum_i alpha_i for a free bias; |b - sum_i alpha_i y_i| / sum_i alpha_i for a
        penalised one.
    """

    feasibility: float
    slackness: float
    stationarity: float
    balance: float


class HardMargin(NamedTuple):
    """A hard-margin SVM.

    Attributes:
      w: The weights [p], scaled so that the smallest y (w.x + b) is 1.
      b: The bias.
      support: The indices [k] of the points with a positive multiplier.
      alpha: The multipliers [n].
      kkt: What is left of the optimality conditions.
    """

    w: Array
    b: float
    support: NDArray[np.int64]
    alpha: Array
    kkt: KKT


class Direction(NamedTuple):
    """A linear classifier: weights ``w`` [p] and bias ``b``."""

    w: Array
    b: float


def linear_margins(w: ArrayLike, b: float, xs: ArrayLike, ys: ArrayLike) -> Array:
    """The signed distances to a hyperplane, ``y (w.x + b) / |w|_2``: above 0 iff classified correctly.

    Args:
      w: The weights [p], not all 0.
      b: The bias.
      xs: The points [n, p].
      ys: Their labels [n], -1 or +1.

    Returns:
      The margins [n].

    Raises:
      ValueError: For weights that are all 0, or points and labels that do not fit.

    Example:
      >>> [float(margin) for margin in linear_margins([3.0, 4.0], 5.0, [[0.0, 0.0], [1.0, 1.0]], [1, -1])]
      [1.0, -2.4]
    """
    weights = np.asarray(w, np.float64)
    points, labels = checked_points(xs, ys)
    if not (size := float(np.linalg.norm(weights))):
        raise ValueError("w=0 has no decision boundary: pass weights that are not all 0")
    return labels * (points @ weights + b) / size


def mean_difference(xs: ArrayLike, ys: ArrayLike) -> Direction:
    """The classifier by the nearer class mean, ``w = mean_+ - mean_-`` and ``b = -w.(mean_+ + mean_-) / 2``.

    The bias puts the boundary half-way between the two means. Among all unit vectors w points where the class means lie
    farthest apart, so with as many points of either class no classifier has a larger average margin.

    Args:
      xs: The points [n, p].
      ys: Their labels [n], -1 or +1.

    Returns:
      The ``Direction`` (w, b).

    Raises:
      ValueError: For points and labels that do not fit, or equal means.

    Example:
      >>> mean_difference([[0.0], [2.0], [5.0]], [-1, -1, 1])
      Direction(w=array([4.]), b=-12.0)
    """
    points, labels = checked_points(xs, ys)
    upper, lower = points[labels > 0].mean(axis=0), points[labels < 0].mean(axis=0)  # [p]
    w = upper - lower
    if not w.any():
        raise ValueError("xs: the two classes have the same mean, so their difference is no direction")
    return Direction(w, float(-w @ (upper + lower) / 2))


def hard_margin_svm(xs: ArrayLike, ys: ArrayLike, *, bias: Literal["free", "penalised"] = "free") -> HardMargin:
    """The classifier with the largest minimum margin, in either convention of the bias.

    ``free``: minimise |w|^2 / 2; ``penalised``: minimise (|w|^2 + b^2) / 2, both subject to y_i (w.x_i + b) >= 1. The
    second is the SVM without a bias of the points (x, 1): its (w, b) is the limit of the direction of gradient descent
    on the logistic loss, where w and b are trained alike, and its margin between the points is the smaller one.

    Args:
      xs: The points [n, p].
      ys: Their labels [n], -1 or +1.
      bias: ``"free"`` or ``"penalised"``.

    Returns:
      A ``HardMargin``; its minimum margin is 1 / |w|.

    Raises:
      NotSeparableError: A ``ValueError``, for classes that no hyperplane separates.
      ValueError: For an unknown ``bias``, or points and labels that do not fit.

    Reference:
      Boser, Guyon and Vapnik (1992), A training algorithm for optimal margin classifiers; Soudry, Hoffer, Nacson,
      Gunasekar and Srebro (2018), The implicit bias of gradient descent on separable data, for the limit of descent.

    Example:
      >>> svm = hard_margin_svm([[0.0], [1.0], [3.0]], [-1, -1, 1])
      >>> svm.w.round(9), round(svm.b, 9), svm.support
      (array([1.]), -2.0, array([1, 2]))
    """
    points, labels = checked_points(xs, ys)
    if bias not in ("free", "penalised"):
        raise ValueError(f"bias={bias!r} is unknown: choose from free, penalised")
    centre = points.mean(axis=0) * (bias == "free")  # a free bias takes up any shift, and short rows round less
    program = program_of(points - centre, labels, bias=bias)
    state = solve(program, 1.0, first_state(program, labels))
    u = weights(program, state)
    w, b = (u, float(state.c[0] - u @ centre)) if bias == "free" else (u[:-1], float(u[-1]))
    return HardMargin(w, b, np.flatnonzero(state.alpha), state.alpha, _kkt(w, b, state.alpha, points, labels, bias))


def _kkt(w: Array, b: float, alpha: Array, points: Array, labels: Array, bias: str) -> KKT:
    """The residuals, from the definitions and not from the solver."""
    excess = labels * (points @ w + b) - 1  # [n]
    expected_b = b if bias == "penalised" else 0.0
    return KKT(
        feasibility=max(0.0, float(-excess.min())),
        slackness=float((alpha * np.abs(excess)).max() / alpha.max()),
        stationarity=float(np.linalg.norm(w - (alpha * labels) @ points) / np.linalg.norm(w)),
        balance=float(abs(alpha @ labels - expected_b) / alpha.sum()),
    )


def checked_points(xs: ArrayLike, ys: ArrayLike) -> tuple[Array, Array]:
    """Points and labels in double precision, checked."""
    points, labels = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
    if points.ndim != 2 or labels.shape != points.shape[:1]:
        raise ValueError(f"xs and ys have shapes {points.shape} and {labels.shape}: pass points [n, p] and labels [n]")
    if not np.isfinite(points).all():
        raise ValueError("xs holds nan or infinity: clean the points first")
    if set(np.unique(labels)) != {-1.0, 1.0}:
        raise ValueError(f"ys={np.unique(labels)[:5]}...: labels are -1 and +1, and both must occur")
    return points, labels
