"""The quadratic program behind the exact margins of linear classifiers, solved to rounding error.

The program::

    minimise  |u - t|^2 / 2 - r c    over u [p] and c [k]    subject to  z_i.u + e_i c >= s  for every i

has rows z_i = y_i x_i. The SVM with a free bias has e_i = y_i, t = 0, r = 0, s = 1; the one with a penalised bias has
the feature 1 appended to x and no c; the front of margins has t = mean(y x), r = mean(y) and one s for each point.

daqp, a dual active-set method, says which constraints are tight, and a linear system gives u and c in double precision.
"""

from typing import NamedTuple

import daqp
import numpy as np
from numpy.typing import NDArray

__all__ = ["NotSeparableError", "Program", "State", "first_state", "program_of", "solve", "tight", "weights"]

Array = NDArray[np.float64]
FEASIBLE = 1e-11  # a constraint is violated when it misses its level by more than this, relative to max_i |z_i| |u|
JOINING, ROUNDS = 64, 1000  # violated constraints that join in a round, and rounds at most
THINNEST = 1e-6  # a margin below this part of max_i |z_i| cannot be told from 0: the classes count as not separable
# Of daqp. Its proximal iterations, for a c without a weight, cycle where points occur twice: c has one here. By default
# it takes rows for dependent that are not, where points are tiny beside the 1 of a penalised bias.
SETTINGS = dict(primal_tol=1e-12, dual_tol=1e-12, sing_tol=1e-15, iter_limit=100_000, eps_prox=0.0)
WEIGHT = 1e-4  # of c
INFEASIBLE = -1  # exit flag
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
    active: NDArray[np.int64]
    level: float


def program_of(points: Array, labels: Array, *, bias: str = "free", tilted: bool = False) -> Program:
    """The SVM's program, or, tilted by the average margin, the front's."""
    rows, border = labels[:, None] * points, labels[:, None]
    if bias == "penalised":
        rows, border = np.hstack([rows, border]), border[:, :0]
    tilt, slope = rows.mean(axis=0) * tilted, border.mean(axis=0) * tilted
    return Program(rows, border, tilt, slope, float(np.sqrt(np.einsum("np,np->n", rows, rows).max())))


def first_state(program: Program, labels: Array) -> State:
    """Nothing known but a point of each class, without which c has no bounds."""
    active = np.array([np.argmax(labels > 0), np.argmax(labels < 0)])
    return State(np.zeros(len(labels)), np.zeros(program.border.shape[1]), active, 0.0)


def solve(program: Program, level: float, start: State) -> State:
    """The solution under the constraints active at the start, and under those it violates besides, until none is left.

    A set of constraints without a solution, or with one of a margin that is too thin, makes the whole program so.
    """
    kept, state = start.active, start
    for _ in range(ROUNDS):
        state = _solve_kept(program, level, kept, state)
        u = weights(program, state)
        size = program.reach * float(np.linalg.norm(u))
        if not program.tilt.any() and level < THINNEST * size:
            raise NotSeparableError(NOT_SEPARABLE)
        slack = program.rows @ u + program.border @ state.c - level  # [n]
        slack[state.active] = 0.0  # up to rounding
        worst = np.argsort(slack)[:JOINING]
        violated = worst[slack[worst] < -FEASIBLE * max(size, abs(level))]
        if not len(violated) and state.alpha.min() >= -FEASIBLE * state.alpha.max():
            return state._replace(alpha=np.maximum(state.alpha, 0.0))
        kept = np.union1d(kept, violated)
    raise RuntimeError(f"the quadratic program is not solved after {ROUNDS} rounds")


def weights(program: Program, state: State) -> Array:
    """The stationary u = t + sum_i alpha_i z_i [p]."""
    return program.tilt + state.alpha[state.active] @ program.rows[state.active]


def tight(program: Program, active: NDArray[np.int64], level: float) -> tuple[Array, Array]:
    """The multipliers and c with which every active constraint is an equality, after one step of refinement."""
    rows, border = program.rows[active], program.border[active]
    matrix = np.block([[rows @ rows.T, border], [border.T, np.zeros((border.shape[1],) * 2)]])
    right = np.concatenate([level - rows @ program.tilt, -program.slope])
    solution = np.linalg.solve(matrix, right)
    solution += np.linalg.solve(matrix, right - matrix @ solution)
    return solution[: len(active)], solution[len(active) :]


def _solve_kept(program: Program, level: float, kept: NDArray[np.int64], last: State) -> State:
    """The solution under some of the constraints: daqp's active set, then the linear system of that.

    daqp wants a strictly convex program, and its tolerances are absolute. So a small weight draws c to its last value,
    which vanishes as that settles; rows have a length of at most 1, and the solution is of a size near 1.
    """
    reach, free = program.reach, program.border.shape[1]
    unit = max(float(np.linalg.norm(program.tilt)), abs(level) / reach)
    weight = np.repeat([1.0, WEIGHT], [len(program.tilt), free])
    aim = np.concatenate([program.tilt, program.slope * reach + WEIGHT * last.c / reach]) / unit
    constraints = np.hstack([program.rows[kept] / reach, program.border[kept]])
    bounds = np.full(len(kept), -level / (reach * unit))
    _, _, flag, found = daqp.solve(np.diag(weight), -aim, -constraints, bounds, **SETTINGS)
    if flag == INFEASIBLE:
        raise NotSeparableError(NOT_SEPARABLE)
    if flag < 0:
        raise RuntimeError(f"daqp stopped with exit flag {flag}: the points are too close to degenerate")
    active = kept[np.flatnonzero(found["lam"])]
    if not len(active):  # c has room: the first class bounds it
        active = np.array([np.where(program.border[:, 0] > 0, program.rows @ program.tilt, np.inf).argmin()])
    alpha = np.zeros(len(program.rows))
    alpha[active], c = tight(program, active, level)
    return State(alpha, c, active, level)
