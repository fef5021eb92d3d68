"""FMN: descent on the logit margin inside a ball whose radius follows the boundary."""

import jax
import jax.numpy as jnp

from jaxmargin.attacks.base import Attack, clip_to_box, loss_named, target_of
from jaxmargin.attacks.minimum_norm_search import (
    Search,
    ascent_direction,
    check_share,
    cosine,
    farthest_corner,
    first_order_distance,
    keep,
    search_from,
)  # fmt: skip
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn

__all__ = ["fmn"]


def fmn(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    num_steps: int = 500,
    gamma: float = 0.05,
    box: Box | None = None,
) -> Attack:
    """Fast minimum norm: descent on the logit margin inside a ball whose radius follows the boundary.

    As long as nothing is found, epsilon is (1 + gamma) times the offset's length plus the logit margin over its slope;
    from then on it shrinks by gamma where the iterate is misclassified and else grows. gamma falls to a fiftieth of its
    first value and the step from epsilon to epsilon / 100, along a cosine.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key, for a direction where the gradient vanishes.
      x: one example, [*d].
      y: its class.
      norm: of the distance: l2, linf or l1.
      num_steps: number of steps.
      gamma: by how much the ball shrinks or grows at first, in (0, 1).
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack; where nothing is found, x_adv = x. An example that is wrong from the start is at distance 0.

    Raises:
      ValueError: num_steps not positive, gamma outside (0, 1), a box that is empty or does not hold x.

    Reference:
      Pintor et al. 2021, Fast minimum-norm adversarial attacks, algorithm 1 (there with steps of absolute length).

    >>> import jax, jax.numpy as jnp, jaxmargin as jm
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> attack = fmn(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0, norm=jm.linf)  # exactly 5 / 7
    >>> 5 / 7 <= float(attack.distance) < 0.72
    True
    """
    target = target_of(logits_fn, x, y, norm, box, num_steps=num_steps)
    check_share("gamma", gamma)
    loss_fn, clip = loss_named("logit_margin"), clip_to_box(box)
    x = target.x

    def step(t: jax.Array, search: Search, away: jax.Array) -> Search:
        logits, _, gradient = target.value_and_gradient(lambda logits: loss_fn(logits, y), clip(x + search.offset))
        wrong = target.misclassified(logits)
        search = keep(search, wrong, norm)
        rate = cosine(gamma, gamma / 50, t / num_steps)
        jump = norm.size(search.offset) + first_order_distance(target.margin(logits), gradient, norm, search.epsilon)
        jump = jnp.minimum(jump, jnp.minimum(farthest_corner(x, norm, box), target.horizon))
        near = (1 + rate) * jnp.where(jnp.isinf(search.distance), jump, search.epsilon)
        epsilon = jnp.where(wrong, jnp.minimum(search.epsilon * (1 - rate), search.distance), near)
        length = cosine(1.0, 0.01, t / num_steps)
        ahead = search.offset + length * epsilon * ascent_direction(norm, gradient, away, 0.2 * length)
        return search._replace(offset=clip(x + norm.project(ahead, epsilon)) - x, epsilon=epsilon)

    return search_from(target, step, num_steps, key=key, norm=norm, box=box)
