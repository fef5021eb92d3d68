"""DDN: steps on a sphere around x that shrinks as long as there are misclassified inputs on it."""

import jax
import jax.numpy as jnp

from jaxmargin.attacks.base import Attack, Loss, clip_to_box, loss_named, target_of
from jaxmargin.attacks.minimum_norm_search import (
    Search,
    ascent_direction,
    check_share,
    cosine,
    keep,
    search_from,
)  # fmt: skip
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn

__all__ = ["ddn"]


def ddn(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    num_steps: int = 500,
    gamma: float = 0.05,
    loss: str | Loss = "scaled_cross_entropy",
    box: Box | None = None,
) -> Attack:
    """Decoupled direction and norm: steps on a sphere that shrinks where the iterate is misclassified and else grows.

    offset <- epsilon * v / ||v|| with v = offset + a * epsilon * g / |g|, a falling from 1 to 0.01 along a cosine, and
    epsilon <- (1 -+ gamma) epsilon. The first epsilon is the logit margin over its slope.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key, for a direction where the gradient vanishes.
      x: one example, [*d].
      y: its class.
      norm: of the distance; l2 in the paper.
      num_steps: number of steps.
      gamma: by how much the sphere shrinks or grows, in (0, 1).
      loss: as in ``pgd``.
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack; where nothing is found, x_adv = x. An example that is wrong from the start is at distance 0.

    Raises:
      ValueError: num_steps not positive, gamma outside (0, 1), an unknown loss, a box that is empty or does not hold x.

    Reference:
      Rony et al. 2019, Decoupling direction and norm, algorithm 1 (there with steps of absolute length).

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> attack = ddn(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0)  # the exact distance is 1
    >>> 1.0 <= float(attack.distance) < 1.01
    True
    """
    target = target_of(logits_fn, x, y, norm, box, num_steps=num_steps)
    check_share("gamma", gamma)
    loss_fn, clip = loss_named(loss), clip_to_box(box)
    x = target.x

    def step(t: jax.Array, search: Search, away: jax.Array) -> Search:
        logits, _, gradient = target.value_and_gradient(lambda logits: loss_fn(logits, y), clip(x + search.offset))
        wrong = target.misclassified(logits)
        search = keep(search, wrong, norm)
        epsilon = jnp.minimum(search.epsilon * jnp.where(wrong, 1 - gamma, 1 + gamma), target.horizon)
        ahead = search.offset + cosine(1.0, 0.01, t / num_steps) * epsilon * ascent_direction(norm, gradient, away, 0.0)
        size = norm.size(ahead)
        offset = ahead * jnp.where(size > 0, epsilon / jnp.where(size > 0, size, 1.0), 0.0)
        return search._replace(offset=clip(x + offset) - x, epsilon=epsilon)

    return search_from(target, step, num_steps, key=key, norm=norm, box=box)
