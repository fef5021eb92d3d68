"""The front between the minimum and the average margin: what linear classifiers can have of one, given the other."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runs.case_study.quadratic_program import Program, State, first_state, program_of, solve, tight, weights
from runs.case_study.svm import checked_points, hard_margin_svm, linear_margins, mean_difference

__all__ = ["Front", "pareto_front", "spaced"]

Array = NDArray[np.float64]
FAR = (1e4, 1e5, 1e6, 1e7, 1e8)  # levels that stand for infinity at the SVM's end, over the margin times the tilt


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


def pareto_front(xs: ArrayLike, ys: ArrayLike, *, minimums: ArrayLike | None = None, num_points: int = 40) -> Front:
    """The largest average signed margin for each minimum margin m, exactly.

    ``maximise mean(y x).w + mean(y) b`` over |w| <= 1 and b, subject to y_i (w.x_i + b) >= m for every i. It is a
    convex program, so the front is concave; it ends at the SVM with a free bias, whose minimum is the largest. With u =
    w times the multiplier of |w| <= 1 it becomes the program of ``quadratic_program``, at the level s = m |u|. Its
    solution gives the classifier and, from its multipliers alpha (sum_i alpha_i y_i = -mean(y)), the dual bound on
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
    points, labels = checked_points(xs, ys)
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


def _front_point(
    program: Program, certificates: list[State], u: Array, c: float, labels: Array
) -> tuple[float, float, float, Array, float]:
    """(minimum, average, gap, w, b) of the classifier (u, c), the gap under the best of some dual points."""
    if (size := float(np.linalg.norm(u))) <= 1e-12 * program.reach:
        raise ValueError("minimums: at one of them the bias alone gives the average: pass larger ones")
    w, b = u / size, c / size
    margins = program.rows @ w + labels * b  # [n]
    gap = min(_gap(program, state, w, b, margins) for state in certificates)
    return float(margins.min()), float(margins.mean()), gap, w, b


def _gap(program: Program, state: State, w: Array, b: float, margins: Array) -> float:
    """The dual bound less the average, ``|u| - m sum alpha - mean(y x).w - mean(y) b``, as a sum of terms >= 0.

    They are |u| - u.w, the complementary slackness, and what rounding leaves of the equality on the multipliers.
    """
    u = weights(program, state)
    size, left = float(np.linalg.norm(u)), abs(float(state.alpha @ program.border[:, 0] + program.slope[0]))
    return (
        size * float(np.sum((u / size - w) ** 2)) / 2 + float(state.alpha @ (margins - margins.min())) + left * abs(b)
    )
