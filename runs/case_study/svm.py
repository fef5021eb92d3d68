"""Linear classifiers with exact margins: the hard-margin SVM, the mean difference, and the front between them.

A classifier is (w, b), its labels are -1 and +1, and its signed margin at (x, y) is ``y (w.x + b) / |w|_2``. Everything
here is the one quadratic program of ``active_set``, solved to rounding error in double precision.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runs.case_study.active_set import NotSeparableError, Program, State, first_state, program_of, solve, tight, weights

__all__ = [
    "KKT",
    "Direction",
    "Front",
    "HardMargin",
    "NotSeparableError",
    "hard_margin_svm",
    "linear_margins",
    "mean_difference",
    "pareto_front",
    "spaced",
]

Array = NDArray[np.float64]
FAR = (1e4, 1e5, 1e6, 1e7, 1e8)  # levels that stand for infinity at the SVM's end, over the margin times the tilt


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


class Front(NamedTuple):
    """The exact trade-off between the minimum and the average margin, one entry for each of m points.

    Attributes:
      minimum: The minimum margin [m], rising.
      average: The largest average signed margin [m] of any classifier with that minimum.
      gap: The duality gap [m], at least 0: no classifier with that minimum has an average above ``average + gap``.
      w: The weights [m, p], of length 1.
      b: The biases [m].
    """

    minimum: Array
    average: Array
    gap: Array
    w: Array
    b: Array


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
    points, labels = _points(xs, ys)
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
    points, labels = _points(xs, ys)
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
    points, labels = _points(xs, ys)
    if bias not in ("free", "penalised"):
        raise ValueError(f"bias={bias!r} is unknown: choose from free, penalised")
    centre = points.mean(axis=0) * (bias == "free")  # a free bias takes up any shift, and short rows round less
    program = program_of(points - centre, labels, bias=bias)
    state = solve(program, 1.0, first_state(program, labels))
    u = weights(program, state)
    w, b = (u, float(state.c[0] - u @ centre)) if bias == "free" else (u[:-1], float(u[-1]))
    return HardMargin(w, b, np.flatnonzero(state.alpha), state.alpha, _kkt(w, b, state.alpha, points, labels, bias))


def pareto_front(xs: ArrayLike, ys: ArrayLike, *, minimums: ArrayLike | None = None, num_points: int = 40) -> Front:
    """The largest average signed margin for each minimum margin m, exactly.

    ``maximise mean(y x).w + mean(y) b`` over |w| <= 1 and b, subject to y_i (w.x_i + b) >= m for every i. It is a
    convex program, so the front is concave; it ends at the SVM with a free bias, whose minimum is the largest. With u =
    w times the multiplier of |w| <= 1 it becomes the quadratic program of ``active_set``, at the level s = m |u|.
    Its solution gives the classifier and, from its multipliers alpha (sum_i alpha_i y_i = -mean(y)), the dual bound on
    every average, ``|mean(y x) + sum_i alpha_i y_i x_i| - m sum_i alpha_i``. Where one class is larger, b alone raises
    the average without end as m falls: far below 0 the front calls every point by the larger class.

    Args:
      xs: The points [n, p].
      ys: Their labels [n], -1 or +1.
      minimums: The minimum margins m, none above the SVM's; by default ``num_points`` of them, from the mean
        difference's to the SVM's, closer together towards the SVM, where the front is steep.
      num_points: How many points, if ``minimums`` is not given.

    Returns:
      A ``Front``.

    Raises:
      NotSeparableError: A ``ValueError``, for classes that no hyperplane separates.
      ValueError: For a minimum that no classifier reaches, fewer than two points, or points and labels that do not fit.

    Example:
      >>> front = pareto_front([[0.0, 0.0], [4.0, 0.0], [4.0, 8.0]], [-1, 1, 1], minimums=[0.0, 1.0, 2.0])
      >>> front.average.round(4), bool((front.gap < 1e-6).all())
      (array([3.7712, 3.4379, 2.    ]), True)
    """
    points, labels = _points(xs, ys)
    centre = points.mean(axis=0)
    points = points - centre  # the bias takes up the shift, and short rows round less
    svm = hard_margin_svm(points, labels)
    largest = 1 / float(np.linalg.norm(svm.w))
    if minimums is None:
        if num_points < 2:
            raise ValueError(f"num_points={num_points} must be at least 2: the front has two ends")
        lowest = min(linear_margins(*mean_difference(points, labels), points, labels).min(), 0.0)
        minimums = spaced(lowest, largest, num_points)
    levels = np.sort(np.asarray(minimums, np.float64))
    if levels.ndim != 1 or not len(levels) or not levels[-1] <= largest * (1 + 1e-9):
        raise ValueError(f"minimums={minimums}: pass numbers up to the largest minimum margin, {largest:.6g}")
    program = program_of(points, labels, tilted=True)
    state, found, at_end = solve(program, 0.0, first_state(program, labels)), [], largest * (1 - 1e-9)
    for minimum in levels[levels < at_end]:
        state = _at_minimum(program, minimum, state)
        found.append(_front_point(program, [state], weights(program, state), float(state.c[0]), labels))
    for _ in levels[levels >= at_end]:  # their level is infinite: the SVM, certified from far levels
        far = [solve(program, level * largest * float(np.linalg.norm(program.tilt)), state) for level in FAR]
        found.append(_front_point(program, far, svm.w, svm.b, labels))
    front = Front(*(np.array(column) for column in zip(*found, strict=True)))
    return front._replace(b=front.b - front.w @ centre)


def spaced(lowest: float, largest: float, num_points: int) -> Array:
    """Minimum margins [num_points] between two, closer together towards the largest, where the front is steep."""
    return largest - (largest - lowest) * np.linspace(1.0, 0.0, num_points) ** 3


def _at_minimum(program: Program, minimum: float, state: State) -> State:
    """The solution at the level s with s = m |u(s)|, by Newton's method.

    While the active set stays, u(s) = p + s q, and s solves a quadratic equation. Any s gives a point of the front, so
    a run that ends early moves along the front and never off it.
    """
    flat = program._replace(tilt=0 * program.tilt, slope=0 * program.slope)
    for _ in range(60):
        u, size = weights(program, state), float(np.linalg.norm(weights(program, state)))
        if abs(state.level - minimum * size) <= 1e-12 * max(size, abs(state.level)):
            break
        q = tight(flat, state.active, 1.0)[0] @ program.rows[state.active]  # [p] the slope of u in s
        p = u - state.level * q
        bend, mixed = 1 - minimum**2 * float(q @ q), minimum * float(p @ q)
        root = np.sqrt(max(mixed**2 + bend * float(p @ p), 0.0))
        state = solve(program, minimum * ((mixed + root) / bend if bend > 0 else size), state)
    return state


def _front_point(program: Program, certificates: list[State], u: Array, c: float, labels: Array) -> tuple:
    """(minimum, average, gap, w, b) of the classifier (u, c), the gap under the best of some dual points."""
    if (size := float(np.linalg.norm(u))) <= 1e-12 * program.reach:
        raise ValueError("minimums: at one of them the bias alone gives the average: pass larger ones")
    w, b = u / size, c / size
    margins = program.rows @ w + labels * b  # [n]
    gap = min(_gap(program, state, w, b, margins) for state in certificates)
    return margins.min(), margins.mean(), gap, w, b


def _gap(program: Program, state: State, w: Array, b: float, margins: Array) -> float:
    """The dual bound less the average, ``|u| - m sum alpha - mean(y x).w - mean(y) b``, as a sum of terms >= 0.

    They are |u| - u.w, the complementary slackness, and what rounding leaves of the equality on the multipliers.
    """
    u = weights(program, state)
    size, left = float(np.linalg.norm(u)), abs(float(state.alpha @ program.border[:, 0] + program.slope[0]))
    return (
        size * float(np.sum((u / size - w) ** 2)) / 2 + float(state.alpha @ (margins - margins.min())) + left * abs(b)
    )


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


def _points(xs: ArrayLike, ys: ArrayLike) -> tuple[Array, Array]:
    """Points and labels in double precision, checked."""
    points, labels = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
    if points.ndim != 2 or labels.shape != points.shape[:1]:
        raise ValueError(f"xs and ys have shapes {points.shape} and {labels.shape}: pass points [n, p] and labels [n]")
    if not np.isfinite(points).all():
        raise ValueError("xs holds nan or infinity: clean the points first")
    if set(np.unique(labels)) != {-1.0, 1.0}:
        raise ValueError(f"ys={np.unique(labels)[:5]}...: labels are -1 and +1, and both must occur")
    return points, labels
