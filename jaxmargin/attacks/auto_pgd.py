"""Auto-PGD: projected gradient ascent with momentum that chooses its own step size (Croce and Hein 2020).

It is written as one step of a search, one gradient each: ``apgd`` repeats it for one example, ``worst_case`` for many.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin import checks
from jaxmargin.attacks.base import (
    Attack,
    Loss,
    Target,
    loss_named,
    random_start,
    target_of,
)
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn

__all__ = ["Search", "apgd", "init", "should_continue", "step", "value_and_grad_of"]

_MOMENTUM = 0.75
_RISING = 0.75  # the share of rising steps below which the step size is halved


class Search(NamedTuple):
    """Where the search around one example stands, before z is looked at.

    Attributes:
      step: number of iterates looked at.
      z: [*d] the next iterate.
      before: [*d] the last one.
      value: the loss there.
      best: [*d] the iterate of the largest loss, or the first one that is misclassified.
      best_gradient: [*d] of the loss there.
      best_value: the loss there; NaN once anything was.
      found: whether best is misclassified.
      length: of a step, in input units.
      rises: steps since the last checkpoint that raised the loss.
      halved: whether the last checkpoint halved the step size.
      value_then: best_value at the last checkpoint.
    """

    step: jax.Array
    z: jax.Array
    before: jax.Array
    value: jax.Array
    best: jax.Array
    best_gradient: jax.Array
    best_value: jax.Array
    found: jax.Array
    length: jax.Array
    rises: jax.Array
    halved: jax.Array
    value_then: jax.Array


ValueAndGrad = Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]  # z -> loss, gradient, misclassified
Project = Callable[[jax.Array], jax.Array]


def apgd(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    epsilon: float | jax.Array,
    num_steps: int = 100,
    loss: str | Loss = "logit_margin",
    box: Box | None = None,
) -> Attack:
    """Auto-PGD from one random start: stops at the first iterate that is misclassified.

    The first step is 2 epsilon long; at checkpoints it is halved, and the search goes back to its best iterate, where
    too few steps raised the loss or where the best one has not changed.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key for the start.
      x: one example, [*d].
      y: its class.
      norm: the norm of the ball; in l1 a step changes a fifth of the coordinates at first, fewer as it shrinks.
      epsilon: radius of the ball, in input units.
      num_steps: number of steps.
      loss: as in ``pgd``.
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack; where nothing is found, x_adv is the iterate of the largest loss.

    Raises:
      ValueError: epsilon or num_steps not positive, an unknown loss, a box that is empty or does not hold x.

    Reference:
      Croce and Hein 2020, algorithm 1.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> bool(apgd(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0, epsilon=1.01, num_steps=20).found)
    True
    """
    target = target_of(logits_fn, x, y, norm, box, num_steps=num_steps)
    checks.positive("epsilon", epsilon)
    project, loss_fn = target.projection(norm, epsilon, box), loss_named(loss)
    value_and_grad = value_and_grad_of(target, lambda logits: loss_fn(logits, y))
    with jax.default_matmul_precision("float32"):
        search = target.begin(init(project(random_start(key, target.x, norm, epsilon)), epsilon))
        search = jax.lax.while_loop(
            lambda search: should_continue(search, num_steps),
            lambda search: step(value_and_grad, project, norm, epsilon, num_steps, search),
            search,
        )
        return target.outcome(search.best, norm)


def value_and_grad_of(target: Target, loss: Callable[[jax.Array], jax.Array]) -> ValueAndGrad:
    """What a search asks of an iterate.

    Args:
      target: the classifier and the class that z should not have.
      loss: logits [c] -> scalar to raise.

    Returns:
      z [*d] -> (loss, its gradient [*d], whether z is misclassified), by one forward and one backward pass.
    """

    def value_and_grad(z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits, value, gradient = target.value_and_gradient(loss, z)
        return value, gradient, target.misclassified(logits)

    return value_and_grad


def init(z: jax.Array, epsilon: float | jax.Array) -> Search:
    """The search before its first iterate.

    Args:
      z: [*d] that iterate.
      epsilon: radius of the ball.

    Returns:
      Search.
    """
    least, length = jnp.array(-jnp.inf, z.dtype), jnp.asarray(2.0 * epsilon, z.dtype)
    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    return Search(zero, z, z, least, z, jnp.zeros_like(z), least, no, length, zero, no, least)


def should_continue(search: Search, num_steps: int) -> jax.Array:
    """Whether there are steps left and a reason for them.

    Args:
      search: where it stands.
      num_steps: of the whole search.

    Returns:
      A bool.
    """
    return (search.step < num_steps) & ~search.found & ~jnp.isnan(search.best_value)


def step(
    value_and_grad: ValueAndGrad,
    project: Project,
    norm: Norm,
    epsilon: float | jax.Array,
    num_steps: int,
    search: Search,
) -> Search:
    """Looks at the next iterate, passes the checkpoint where there is one, and steps on.

    Args:
      value_and_grad: z -> loss, its gradient, whether z is misclassified; see ``value_and_grad_of``.
      project: z -> the nearest allowed point.
      norm: the norm of the ball.
      epsilon: radius of the ball.
      num_steps: of the whole search.
      search: where it stands.

    Returns:
      Search.
    """
    z, before = search.z, search.before
    value, gradient, found = value_and_grad(z)
    # A search that goes back to its best iterate would hide a gradient that is not finite.
    value = jnp.where(jnp.isfinite(gradient).all(), value, jnp.nan).astype(search.value.dtype)
    better = (value > search.best_value) | found | jnp.isnan(value)
    search = search._replace(
        best=jnp.where(better, jnp.where(jnp.isnan(value), jnp.nan, z), search.best),
        best_gradient=jnp.where(better, gradient, search.best_gradient),
        best_value=jnp.where(better, value, search.best_value),
        found=found,
        rises=search.rises + (value > search.value),
    )
    search, back = _checkpoint(search, num_steps)
    z = jnp.where(back, search.best, z)
    gradient = jnp.where(back, search.best_gradient, gradient)
    ahead = project(z + search.length * norm.spread(gradient, 0.2 * search.length / (2.0 * epsilon)))
    momentum = jnp.where(search.step == 0, 1.0, _MOMENTUM)
    following = project(z + momentum * (ahead - z) + (1 - momentum) * (z - before))
    value = jnp.where(back, search.best_value, value)
    return search._replace(step=search.step + 1, z=following, before=z, value=value)


def _checkpoint(search: Search, num_steps: int) -> tuple[Search, jax.Array]:
    """Halves the step where the search does not get on; whether it is to go back to its best iterate."""
    dues, intervals = _checkpoints(num_steps)
    due, interval = jnp.asarray(dues)[search.step], jnp.asarray(intervals)[search.step]
    stuck = (search.rises < _RISING * interval) | ~search.halved & (search.best_value <= search.value_then)
    search = search._replace(
        length=jnp.where(due & stuck, search.length / 2, search.length),
        rises=jnp.where(due, 0, search.rises),
        halved=jnp.where(due, stuck, search.halved),
        value_then=jnp.where(due, search.best_value, search.value_then),
    )
    return search, due & stuck


def _checkpoints(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """[num_steps + 1] whether a step is followed by a checkpoint, and the steps since the one before."""
    due, interval = np.zeros(num_steps + 1, bool), np.ones(num_steps + 1, np.int32)
    shares, done = [0.0, 0.22], 0
    while shares[-1] < 1:
        at = int(np.ceil(shares[-1] * num_steps))
        if done < at <= num_steps:
            due[at], interval[at], done = True, at - done, at
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return due, interval
