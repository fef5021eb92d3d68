"""Two classes, one hyperplane: gradient descent on the logistic loss against the SVM and the front of margins.

Everything is linear in v = (w, b), so the margins are exact at every epoch: with rows z_i = y_i (x_i, 1), the signed
logits are ``s_i = z_i.v``, the loss is ``L(v) = mean_i softplus(-s_i)`` and the margins are ``s_i / |w|``.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from runs.case_study.front import Front
from runs.case_study.hyperplanes import (
    Classifier,
    Task,
    at,
    front_of,
    package_difference,
    references,
    scikit_learn_distance,
    signed_rows,
)

__all__ = ["METHODS", "Method", "Result", "Trace", "default_step", "descend", "run"]

Array = NDArray[np.float64]
Floats = NDArray[np.float32]


class Method(NamedTuple):
    """A way to descend: ``v <- v + step (g + d)`` with ``d = sum_i weigh(s)_i z_i`` and ``g <- momentum(t) (g + d)``.

    Attributes:
      label: Its name in tables and figures.
      weigh: Logits [n] to the weights [n] of the rows.
      momentum: Epochs so far to the factor on what was accumulated.
      rule: The update in words, with its source.
    """

    label: str
    weigh: Callable[[jax.Array], jax.Array]
    momentum: Callable[[jax.Array], jax.Array]
    rule: str


class Trace(NamedTuple):
    """What is measured after each of t epochs, on the training points unless it says test; marks are chosen epochs.

    Attributes:
      log_loss: ln L [t], finite where L itself is too small for a float.
      train_error: Share of points [t] with a margin of 0 or less.
      test_error: The same on the test points [t].
      minimum: Minimum margin [t].
      average: Average signed margin [t].
      distance: |w/|w| - r/|r|| [t, r] to each of the reference weights.
      v: (w, b) at the marked epochs [k, p + 1].
    """

    log_loss: Floats
    train_error: Floats
    test_error: Floats
    minimum: Floats
    average: Floats
    distance: Floats
    v: Floats


# The descent.


class _Descent(NamedTuple):
    """Weights v [p + 1], what was accumulated g [p + 1], logits s [n], and v at the marked epochs so far [k, p + 1]."""

    v: jax.Array
    g: jax.Array
    s: jax.Array
    marked: jax.Array


def _log_softplus(s: jax.Array) -> jax.Array:
    """ln softplus(-s), the logarithm of one example's loss; from s = 15 on it is -s in single precision."""
    return jnp.where(s > 15, -s, jnp.log(jax.nn.softplus(-jnp.minimum(s, 15.0))))


def _by_mean(s: jax.Array) -> jax.Array:
    """sigmoid(-s) / n, which makes d = -grad L."""
    return jax.nn.sigmoid(-s) / len(s)


def _by_loss(s: jax.Array) -> jax.Array:
    """sigmoid(-s) / sum softplus(-s), which makes d = -grad L / L; in logarithms, because L soon underflows."""
    return jnp.exp(-jax.nn.softplus(s) - jax.nn.logsumexp(_log_softplus(s)))


METHODS: Mapping[str, Method] = {
    "plain": Method(
        "gradient descent",
        _by_mean,
        lambda t: 0.0 * t,
        "v <- v - step grad L, as in the paper; the step is 1 over the loss's smoothness, 4 / lambda_max(mean z z').",
    ),
    "normalised": Method(
        "loss-normalised descent",
        _by_loss,
        lambda t: 0.0 * t,
        "v <- v - step grad L / L, the step divided by the loss (Nacson et al. 2019, Convergence of gradient descent "
        "on separable data, who also let it shrink with the square root of t; constant, as here, in Ji and Telgarsky "
        "2021, Characterizing the implicit bias via a primal-dual analysis). The step is the plain one, above the "
        "1 / max |z|^2 of the theory, so early epochs oscillate.",
    ),
    "momentum": Method(
        "normalised descent, momentum",
        _by_loss,
        lambda t: t / (t + 1),
        "the same direction d = -grad L / L with momentum, g <- t/(t + 1) (g + d), v <- v + step (g + d) (Ji, Srebro "
        "and Telgarsky 2021, Fast margin maximization via dual acceleration). The step is 1 / max |z|^2.",
    ),
}


def default_step(method: str, zs: Array) -> float:
    """The step of a method's rule, from the rows z [n, p + 1].

    Args:
      method: A key of ``METHODS``.
      zs: The rows y (x, 1).

    Returns:
      ``1 / max_i |z_i|^2`` with momentum, else ``4 / lambda_max(mean z z')``.
    """
    if method == "momentum":
        return 1 / float(np.einsum("np,np->n", zs, zs).max())
    return 4 / float(np.linalg.eigvalsh(zs.T @ zs / len(zs))[-1])


def descend(
    task: Task, method: Method, *, step: float, epochs: int, marks: Iterable[int] = (), targets: Iterable[Array] = ()
) -> Trace:
    """Full-batch descent on the logistic loss from v = 0, one ``lax.scan``, with exact margins after every epoch.

    Args:
      task: The points.
      method: A value of ``METHODS``.
      step: The step size.
      epochs: How many steps.
      marks: Epochs, counted from 1, whose (w, b) to keep.
      targets: Weights [p] whose directions are measured against.

    Returns:
      A ``Trace``.

    Example:
      >>> points, labels = np.array([[0.0], [1.0]]), np.array([-1.0, 1.0])
      >>> trace = descend(Task(points, labels, points, labels), METHODS["plain"], step=1.0, epochs=200)
      >>> round(float(trace.minimum[-1]), 3), float(trace.train_error[-1])
      (0.471, 0.0)
    """
    zs, test = (jnp.asarray(signed_rows(*part), jnp.float32) for part in (task[:2], task[2:]))
    units = [target / np.linalg.norm(target) for target in targets]
    aims = jnp.asarray(units, jnp.float32).reshape(-1, zs.shape[1] - 1)  # [r, p]
    kept = jnp.asarray(list(marks), jnp.int32)  # [k]

    def epoch(state: _Descent, t: jax.Array) -> tuple[_Descent, tuple[jax.Array, ...]]:
        v, g, s, marked = state
        slope = method.weigh(s) @ zs  # [p + 1]
        g = method.momentum(t.astype(jnp.float32)) * (g + slope)
        v = v + step * (g + slope)
        s, size = zs @ v, jnp.linalg.norm(v[:-1])
        marked = jnp.where((kept == t + 1)[:, None], v[None], marked)
        log_loss = jax.nn.logsumexp(_log_softplus(s)) - jnp.log(len(s))
        distance = jnp.linalg.norm((v[:-1] / size)[None] - aims, axis=1)  # [r]
        measured = (log_loss, jnp.mean(s <= 0), jnp.mean(test @ v <= 0), s.min() / size, s.mean() / size, distance)
        return _Descent(v, g, s, marked), measured

    @jax.jit
    def run() -> tuple[_Descent, tuple[jax.Array, ...]]:
        v = jnp.zeros(zs.shape[1])
        start = _Descent(v, v, jnp.zeros(len(zs)), jnp.zeros((len(kept), len(v))))
        return jax.lax.scan(epoch, start, jnp.arange(epochs))

    with jax.default_matmul_precision("float32"):
        last, measured = run()
    return Trace(*map(np.asarray, (*measured, last.marked)))


# The whole of it.


class Result(NamedTuple):
    """All that was measured.

    Attributes:
      task: The points.
      steps: Step size by method.
      marks: Epochs by method, the last one the end, whose (w, b) its trace keeps.
      traces: What each method did.
      rows: The classifiers: each method's end, the two SVMs, the mean difference.
      front: The exact front.
      ceilings: By row, the front's average at the row's minimum margin.
      residuals: KKT residuals, the front's largest relative gap, and the differences to scikit-learn and the package.
      seconds: By stage.
    """

    task: Task
    steps: dict[str, float]
    marks: dict[str, list[int]]
    traces: dict[str, Trace]
    rows: dict[str, Classifier]
    front: Front
    ceilings: dict[str, float]
    residuals: dict[str, Any]
    seconds: dict[str, float]


def run(task: Task, *, epochs: Mapping[str, int], steps: Mapping[str, float | None], front_points: int = 40) -> Result:
    """Trains with each method, solves for the SVMs and the front, and checks them.

    Args:
      task: From ``two_classes``.
      epochs: By key of ``METHODS``.
      steps: By key of ``METHODS``; None for ``default_step``.
      front_points: Points of the front beside those at the rows' minimum margins.

    Returns:
      A ``Result``.

    Raises:
      NotSeparableError: For classes that no hyperplane separates.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "references"):
        found, residuals = references(task)
    zs, targets = signed_rows(task.train_xs, task.train_ys), [found[name].direction.w for name in ("penalised", "free")]
    sizes = {name: steps[name] or default_step(name, zs) for name in METHODS}
    marks = {name: sorted({*(10**k for k in range(7) if 10**k < epochs[name]), epochs[name]}) for name in METHODS}
    traces, rows = {}, {}
    for name, method in METHODS.items():
        with _timed(seconds, name):
            traces[name] = descend(
                task, method, step=sizes[name], epochs=epochs[name], marks=marks[name], targets=targets
            )
        rows[name] = at(method.label, traces[name].v[-1], task)
    rows |= found
    with _timed(seconds, "front"):
        front, ceilings = front_of(task, rows, front_points)
    with _timed(seconds, "cross_checks"):
        residuals["front_gap_relative"] = float(np.max(np.abs(front.gap / front.average)))
        residuals["scikit_learn_distance"] = scikit_learn_distance(task, rows["free"])
        residuals["linear_margin_difference"] = package_difference(task, rows.values())
    return Result(task, sizes, marks, traces, rows, front, ceilings, residuals, seconds)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)
