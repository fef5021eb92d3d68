"""Projected gradient ascent, as published and as it should be run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.attacks.base import (
    Attack,
    Loss,
    loss_named,
    project_to_ball,
    random_start,
    target_of,
)
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn

__all__ = ["PUBLISHED", "ascend", "pgd"]

# The attack behind Table 1 of Wu and Yu 2019, epsilon apart: one start, the last of 1000 iterates.
PUBLISHED: dict[str, Any] = dict(
    norm=l2, step_size=0.01, num_steps=1000, loss="cross_entropy", box=(0.0, 1.0), restarts=1, keep="last"
)

# A gradient shorter than this is divided by it instead of by its own length (the published attack's floor).
_FLOOR = 1e-6


class _Search(NamedTuple):
    step: jax.Array
    z: jax.Array
    best: jax.Array
    margin: jax.Array  # the logit margin at best


def pgd(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    epsilon: float | jax.Array,
    step_size: float | jax.Array = 0.01,
    num_steps: int = 1000,
    loss: str | Loss = "cross_entropy",
    box: Box | None = None,
    restarts: int = 1,
    keep: str = "last",
) -> Attack:
    """Projected gradient ascent; with ``**PUBLISHED`` the attack behind Table 1 of Wu and Yu.

    z_0 is uniform in the box (without one: in the ball) and pulled into the ball, then
    z_{t+1} = ball(box(z_t + step_size * g / max(|g|, 1e-6))) with g the gradient of the loss. For other norms
    g / |g| is the norm's steepest direction.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key for the starts.
      x: one example, [*d].
      y: its class.
      norm: the norm of the ball.
      epsilon: radius of the ball, in input units.
      step_size: length of a step, in input units.
      num_steps: number of steps.
      loss: "cross_entropy", "logit_margin", "scaled_cross_entropy", "dlr", or a function (logits [c], y) -> scalar that
        the attack raises.
      box: (low, high) of valid inputs; None for none.
      restarts: number of starts, one after the other until one succeeds.
      keep: "last" takes the last iterate, "best" the one of the smallest logit margin, and stops at a negative one.

    Returns:
      Attack.

    Raises:
      ValueError: epsilon, step_size, num_steps or restarts not positive, an unknown loss, a box that is empty or does
        not hold x.

    Reference:
      Madry et al. 2018; Wu and Yu 2019, appendix A.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> attack = pgd(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0, epsilon=1.1, num_steps=300)
    >>> bool(attack.found), bool(attack.distance > 1.0)
    (True, True)
    """
    target = target_of(logits_fn, x, y, norm, box, num_steps=num_steps, restarts=restarts)
    checks.positive("epsilon", epsilon)
    checks.positive("step_size", step_size)
    checks.one_of("keep", keep, ("last", "best"))
    loss_fn, into_ball = loss_named(loss), target.projection(norm, epsilon, box)
    x = target.x

    def step(search: _Search) -> _Search:
        logits, _, gradient = target.value_and_gradient(lambda logits: loss_fn(logits, y), search.z)
        search = _best(search, target.margin(logits)) if keep == "best" else search
        z = into_ball(search.z + step_size * _ascent(norm, gradient))
        return search._replace(step=search.step + 1, z=z)

    def should_continue(search: _Search) -> jax.Array:
        return (search.step < num_steps) & (True if keep == "last" else search.margin >= 0)

    def from_start(key: jax.Array) -> Attack:
        z = into_ball(_start(key, x, norm, epsilon, box))
        search = target.begin(_Search(jnp.array(0), z, z, jnp.array(jnp.inf, z.dtype)))
        search = jax.lax.while_loop(should_continue, step, search)
        if keep == "last":
            return target.outcome(search.z, norm)
        return target.outcome(_best(search, target.margin(target.logits_fn(search.z))).best, norm)

    def restart(turn: tuple[jax.Array, Attack]) -> tuple[jax.Array, Attack]:
        return turn[0] + 1, from_start(jax.random.fold_in(key, turn[0]))

    with jax.default_matmul_precision("float32"):
        first = target.begin((jnp.array(1), from_start(jax.random.fold_in(key, 0))))
        if restarts == 1:
            return first[1]
        return jax.lax.while_loop(lambda turn: (turn[0] < restarts) & ~turn[1].found, restart, first)[1]


def ascend(
    loss: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    x: jax.Array,
    *,
    norm: Norm = l2,
    epsilon: float | jax.Array,
    step_size: float | jax.Array,
    num_steps: int,
    box: Box | None = None,
) -> jax.Array:
    """The last iterate of plain projected gradient ascent, as it is run inside of training.

    Args:
      loss: z [*d] -> scalar to raise.
      start: [*d], pulled into the box and the ball.
      x: [*d] the centre of the ball.
      norm: of the ball.
      epsilon: its radius, in input units.
      step_size: length of a step.
      num_steps: number of steps.
      box: (low, high) of valid inputs; None for none.

    Returns:
      [*d], in the box and the ball.

    >>> ascend(lambda z: z[0], jnp.zeros(2), jnp.zeros(2), epsilon=1.0, step_size=0.5, num_steps=3)
    Array([1., 0.], dtype=float32)
    """
    into_ball, slope = project_to_ball(x, norm, epsilon, box), jax.grad(loss)

    def step(_: jax.Array, z: jax.Array) -> jax.Array:
        return into_ball(z + step_size * norm.steepest(slope(z)))

    last: jax.Array = jax.lax.fori_loop(0, num_steps, step, into_ball(start))
    return last


def _best(search: _Search, margin: jax.Array) -> _Search:
    """The search with its iterate kept if it is the best so far, or not finite, which must not be passed over."""
    margin = margin.astype(search.margin.dtype)
    better = (margin < search.margin) | jnp.isnan(margin)
    return search._replace(
        best=jnp.where(better, search.z, search.best), margin=jnp.where(better, margin, search.margin)
    )


def _start(key: jax.Array, x: jax.Array, norm: Norm, epsilon: float | jax.Array, box: Box | None) -> jax.Array:
    if box is None:
        return random_start(key, x, norm, epsilon)
    return jax.random.uniform(key, x.shape, x.dtype, *box)


def _ascent(norm: Norm, gradient: jax.Array) -> jax.Array:
    """The steepest direction, shortened where the gradient all but vanishes."""
    return norm.steepest(gradient) * jnp.minimum(1.0, l2.size(gradient) / _FLOOR)
