"""Attacks on one example: upper bounds of its distance to the decision boundary.

In float32 the cross-entropy has an exactly zero gradient once the logit margin passes about 17, so an attack on it can
stand still and report robustness that is not there. ``loss="logit_margin"`` cannot saturate.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks, losses
from jaxmargin.norms import Norm, l2

__all__ = ["Attack", "pgd"]

Box = tuple[float, float]

# What an attack raises: (logits [c], y) -> scalar.
_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": losses.cross_entropy,
    "logit_margin": lambda logits, y: -losses.logit_margin(logits, y),
    "dlr": losses.dlr,
}

# A gradient shorter than this is divided by it instead of by its own length (the published attack's floor).
_FLOOR = 1e-6


class Attack(NamedTuple):
    """What an attack found for one example, or for n stacked along the first axis.

    Attributes:
      x_adv: the perturbed input, [*d], inside the ball and, where x is, the box.
      found: True where x_adv is classified as something other than y.
      distance: ||x_adv - x|| where found, infinity elsewhere.
    """

    x_adv: jax.Array
    found: jax.Array
    distance: jax.Array


def pgd(
    logits_fn: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    epsilon: float | jax.Array,
    step_size: float = 0.01,
    num_steps: int = 1000,
    loss: str | Callable[[jax.Array, jax.Array], jax.Array] = "cross_entropy",
    box: Box | None = None,
) -> Attack:
    """Projected gradient ascent; its defaults with ``box=(0, 1)`` are the attack behind Table 1.

    z_0 is uniform in the box (without one: in the ball) and pulled into the ball, then
    z_{t+1} = ball(box(z_t + step_size * g / max(|g|, 1e-6))) with g the gradient of the loss; the last iterate counts.
    For other norms g / |g| is the norm's steepest direction.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key for the start.
      x: one example, [*d].
      y: its class.
      norm: the norm of the ball.
      epsilon: radius of the ball, in input units.
      step_size: length of a step, in input units.
      num_steps: number of steps.
      loss: "cross_entropy", "logit_margin", "dlr", or a function (logits [c], y) -> scalar that the attack raises.
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack.

    Raises:
      ValueError: epsilon, step_size or num_steps not positive, an unknown loss, a box that is empty.

    Reference:
      Madry et al. 2018; Wu and Yu 2019, appendix A.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> attack = pgd(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0, epsilon=1.1, num_steps=300)
    >>> bool(attack.found), bool(attack.distance > 1.0)
    (True, True)
    """
    checks.example(x)
    checks.label(y)
    checks.logits(logits_fn, x)
    checks.positive("epsilon", epsilon)
    checks.positive("step_size", step_size)
    checks.whole("num_steps", num_steps)
    checks.box(box)
    loss_fn = _loss(loss)
    clip = _clip(box)

    def into_ball(z: jax.Array) -> jax.Array:
        return x + norm.project(z - x, epsilon)

    def step(_: jax.Array, z: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda z: loss_fn(logits_fn(z), y))(z)
        return into_ball(clip(z + step_size * _ascent(norm, gradient)))

    with jax.default_matmul_precision("float32"):
        x_adv = jax.lax.fori_loop(0, num_steps, step, into_ball(_start(key, x, norm, epsilon, box)))
        found = jnp.argmax(logits_fn(x_adv)) != y
    return Attack(x_adv, found, jnp.where(found, norm.size(x_adv - x), jnp.inf))


def _loss(loss: str | Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    if callable(loss):
        return loss
    checks.one_of("loss", loss, _LOSSES)
    return _LOSSES[loss]


def _clip(box: Box | None) -> Callable[[jax.Array], jax.Array]:
    if box is None:
        return lambda z: z
    low, high = box
    return lambda z: jnp.clip(z, low, high)


def _start(key: jax.Array, x: jax.Array, norm: Norm, epsilon: float | jax.Array, box: Box | None) -> jax.Array:
    if box is None:
        return x + epsilon * norm.sample_ball(key, x.shape).astype(x.dtype)
    return jax.random.uniform(key, x.shape, x.dtype, *box)


def _ascent(norm: Norm, gradient: jax.Array) -> jax.Array:
    """The steepest direction, shortened where the gradient all but vanishes."""
    return norm.steepest(gradient) * jnp.minimum(1.0, l2.size(gradient) / _FLOOR)
