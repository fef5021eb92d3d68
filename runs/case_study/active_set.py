"""The quadratic program behind the exact margins of linear classifiers, and its solution to rounding error.

The program, solved by an active-set method in double precision::

    minimise  |u - t|^2 / 2 - r c    over u [p] and c [k]    subject to  z_i.u + e_i c >= s  for every i

has rows z_i = y_i x_i. The SVM with a free bias has e_i = y_i, t = 0, r = 0, s = 1; the one with a penalised bias has
the feature 1 appended to x and no c; the front of margins has t = mean(y x), r = mean(y) and one s for each point.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NotSeparableError", "Program", "State", "first_state", "program_of", "solve", "tight", "weights"]

Array = NDArray[np.float64]
FEASIBLE = 1e-11  # a constraint is violated when it misses its level by more than this, relative to max_i |z_i| |u|
DEPENDENT = 1e-13  # a row lies in the span of the active ones below this squared distance, relative to max_i |z_i|^2
POOL = 64  # violated constraints looked at between two looks at all of them
THINNEST = 1e-6  # a margin below this part of max_i |z_i| cannot be told from 0: the classes count as not separable
NOT_SEPARABLE = "xs: no hyperplane separates the two classes: choose others, such as digits 0 and 1"


class NotSeparableError(ValueError):
    """No hyperplane separates the two classes, or only one with a margin too thin for double precision."""


class Program(NamedTuple):
    """The quadratic program: rows z [n, p], border e [n, k], tilt t [p], slope r [k]."""

    rows: Array
    border: Array
    tilt: Array
    slope: Array
    reach: float  # max_i |z_i|


class State(NamedTuple):
    """Multipliers alpha [n] and c [k] at a level s; ``active`` are the constraints held as equalities."""

    alpha: Array
    c: Array
    active: list[int]
    level: float


def program_of(points: Array, labels: Array, *, bias: str = "free", tilted: bool = False) -> Program:
    """The SVM's program, or, tilted by the average margin, the front's."""
    rows, border = labels[:, None] * points, labels[:, None]
    if bias == "penalised":
        rows, border = np.hstack([rows, border]), border[:, :0]
    tilt, slope = rows.mean(axis=0) * tilted, border.mean(axis=0) * tilted
    return Program(rows, border, tilt, slope, float(np.sqrt(np.einsum("np,np->n", rows, rows).max())))


def first_state(program: Program, labels: Array) -> State:
    """One point of each class, with multipliers that meet the equality sum_i alpha_i e_i = -r."""
    alpha, active = np.zeros(len(labels)), [int(np.argmax(labels > 0)), int(np.argmax(labels < 0))]
    if program.slope.any():
        alpha[active] = max(-program.slope[0], 0.0), max(program.slope[0], 0.0)
    return State(alpha, program.slope, active if program.border.shape[1] else [], 0.0)


def solve(program: Program, level: float, start: State) -> State:
    """The dual active-set method of Goldfarb and Idnani (1983), with a free c and a warm start.

    The most violated constraint enters while the active ones stay tight; multipliers that reach 0 leave. Every round
    raises the dual objective, so no active set comes twice. Between two looks at all n constraints, POOL are looked at.
    """
    state = _settle(program, start._replace(level=level))
    for _ in range(100 * sum(program.rows.shape)):
        slack = _slack(program, state, slice(None))  # [n]
        slack[state.active] = 0.0  # tight up to rounding
        pool = np.argsort(slack)[:POOL]
        if slack[pool[0]] >= -_tolerance(program, state):
            return state
        state = _settle(program, _admit(program, state, pool))
        if not program.tilt.any() and level < THINNEST * program.reach * np.linalg.norm(weights(program, state)):
            break
    raise NotSeparableError(NOT_SEPARABLE)


def weights(program: Program, state: State) -> Array:
    """The stationary u = t + sum_i alpha_i z_i [p]."""
    return program.tilt + state.alpha[state.active] @ program.rows[state.active]


def tight(program: Program, active: list[int], level: float) -> tuple[Array, Array]:
    """The multipliers and c with which every active constraint is an equality, after one step of refinement."""
    matrix = _bordered(program, active)
    right = np.concatenate([level - program.rows[active] @ program.tilt, -program.slope])
    solution = np.linalg.solve(matrix, right)
    solution += np.linalg.solve(matrix, right - matrix @ solution)
    return solution[: len(active)], solution[len(active) :]


def _slack(program: Program, state: State, which: NDArray[np.int64] | slice) -> Array:
    """By how much constraints exceed the level, z_i.u + e_i c - s."""
    return program.rows[which] @ weights(program, state) + program.border[which] @ state.c - state.level


def _tolerance(program: Program, state: State) -> float:
    """The violation that rounding explains."""
    return FEASIBLE * max(program.reach * float(np.linalg.norm(weights(program, state))), abs(state.level))


def _bordered(program: Program, active: list[int]) -> Array:
    """The matrix [[Z Z', E], [E', 0]] of the active rows."""
    rows, border = program.rows[active], program.border[active]
    return np.block([[rows @ rows.T, border], [border.T, np.zeros((border.shape[1],) * 2)]])


def _settle(program: Program, state: State) -> State:
    """Walks the multipliers to the values that make every active constraint tight; whoever reaches 0 leaves."""
    alpha, active = state.alpha.copy(), state.active
    while True:
        target, c = tight(program, active, state.level)
        if not (target < 0).any():
            alpha[active] = target
            return State(alpha, c, active, state.level)
        active, _ = _walk(alpha, active, target - alpha[active], 1.0)


def _walk(alpha: Array, active: list[int], direction: Array, longest: float) -> tuple[list[int], float]:
    """Moves ``alpha[active]`` along a direction, in place, until one of them reaches 0 and leaves."""
    falling = direction < 0
    steps = np.where(falling, alpha[active] / np.where(falling, -direction, 1.0), np.inf)
    first = int(steps.argmin())
    step = float(min(steps[first], longest))
    alpha[active] = np.maximum(alpha[active] + step * direction, 0.0) if step < np.inf else alpha[active]
    if steps[first] > longest:
        return active, step
    alpha[active[first]] = 0.0
    return active[:first] + active[first + 1 :], step


def _admit(program: Program, state: State, pool: NDArray[np.int64]) -> State:
    """Lets constraints of the pool enter, the most violated first, until none of them is violated."""
    tolerance = _tolerance(program, state)
    while True:
        slack = _slack(program, state, pool)
        slack[np.isin(pool, state.active)] = 0.0
        worst = int(slack.argmin())
        if slack[worst] >= -tolerance:
            return state
        state = _enter(program, state, int(pool[worst]), -float(slack[worst]))


def _enter(program: Program, state: State, entering: int, violation: float) -> State:
    """Raises one multiplier until its constraint is tight, with all active ones held tight by a linear answer.

    A row that depends on the active ones gains nothing on its own: it is exchanged for the first that reaches 0. If
    none ever does, a positive combination of rows vanishes, and by Farkas nothing separates the classes.
    """
    alpha, c, active = state.alpha.copy(), state.c, state.active
    while True:
        own, matrix = program.rows[entering], _bordered(program, active)
        coupling = np.concatenate([program.rows[active] @ own, program.border[entering]])
        answer = np.linalg.solve(matrix, -coupling)
        direction, change = answer[: len(active)], answer[len(active) :]
        gain = float(own @ own + coupling @ answer)  # how fast the slack grows
        longest = violation / gain if gain > DEPENDENT * program.reach**2 else np.inf
        remaining, step = _walk(alpha, active, direction, longest) if active else (active, longest)
        if step == np.inf:
            raise NotSeparableError(NOT_SEPARABLE)
        alpha[entering], c, violation = alpha[entering] + step, c + step * change, violation - step * gain
        if step == longest:
            return State(alpha, c, [*remaining, entering], state.level)
        active = remaining
        if not active and len(c):  # alone, it takes all of the equality, and c closes its slack
            return _settle(program, State(alpha, c, [entering], state.level))
