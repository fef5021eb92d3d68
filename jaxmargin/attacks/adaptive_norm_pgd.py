"""AN-PGD: PGD for the direction, bisection for the length; the inner search of MMA training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.attacks.base import bisect, clip_to_box, random_start, target_of
from jaxmargin.attacks.projected_gradient_descent import ascend
from jaxmargin.losses import soft_logit_margin
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn

__all__ = ["LONGER", "Boundary", "an_pgd"]

# The bisection looks a little beyond d_max, in multiples of it.
LONGER = 1.05


class Boundary(NamedTuple):
    """Where the soft logit margin of one example, or of n, becomes zero.

    Attributes:
      x_adv: [*d] the input there, on the far side by less than the bisection's resolution.
      distance: ||x_adv - x||.
      found: whether there is a boundary; False where none was met up to 1.05 d_max, and x_adv then lies there, or where
        the box ends.
    """

    x_adv: jax.Array
    distance: jax.Array
    found: jax.Array


def an_pgd(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    epsilon: float | jax.Array,
    d_max: float,
    num_steps: int = 10,
    num_halvings: int = 10,
    box: Box | None = None,
    reference: bool = False,
) -> Boundary:
    """An approximately shortest perturbation delta* with soft logit margin f_y - log sum_{k != y} exp f_k = 0.

    PGD lowers the soft logit margin within epsilon; along the direction u of its last iterate, bisection finds the
    length, between 0 and that iterate's where it succeeded, between that and 1.05 d_max where it did not.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key for the start.
      x: one example, [*d], of positive soft logit margin; any other gets a distance that means nothing.
      y: its class.
      norm: of the perturbation.
      epsilon: radius of the ball that PGD searches, in input units, at most 1.05 d_max.
      d_max: the distance of interest.
      num_steps: steps of PGD, 2.5 epsilon / num_steps long, from a uniform point of the ball.
      num_halvings: steps of the bisection.
      box: (low, high) of valid inputs; None for none.
      reference: as in the authors' released code: u = (iterate - x) / epsilon, which is shorter than 1 where the box or
        the search keeps the iterate inside of the ball, so that the length overstates the distance; x_adv may leave
        the box; and the length is the middle of the last interval.

    Returns:
      Boundary.

    Raises:
      ValueError: epsilon, d_max, num_steps or num_halvings not positive, an epsilon known to exceed 1.05 d_max, a box
        that is empty or does not hold x.

    Reference:
      Ding et al. 2020, MMA Training, algorithm 1.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> x = jnp.array([1.0, 0.5])
    >>> found = an_pgd(lambda x: w @ x, jax.random.key(0), x, 0, epsilon=0.5, d_max=2.0, num_halvings=20)
    >>> bool(found.found), 1.0 <= float(found.distance) < 1.001
    (True, True)
    """
    target = target_of(logits_fn, x, y, norm, box, num_steps=num_steps, num_halvings=num_halvings)
    checks.positive("epsilon", epsilon)
    checks.positive("d_max", d_max)
    if not isinstance(epsilon, jax.Array) and epsilon > LONGER * d_max:
        raise ValueError(f"epsilon={epsilon} exceeds {LONGER} d_max = {LONGER * d_max:g}, where the search ends")
    clip, x, logits_fn = clip_to_box(box), target.x, target.logits_fn

    def loss(z: jax.Array) -> jax.Array:
        return -soft_logit_margin(logits_fn(z), y)

    with jax.default_matmul_precision("float32"):
        start = random_start(key, x, norm, epsilon)
        step_size = 2.5 * epsilon / num_steps
        z = ascend(loss, start, x, norm=norm, epsilon=epsilon, step_size=step_size, num_steps=num_steps, box=box)
        reached = jnp.asarray(epsilon if reference else norm.size(z - x), x.dtype)
        direction = (z - x) / jnp.maximum(reached, jnp.finfo(x.dtype).tiny)

        def beyond(length: jax.Array) -> jax.Array:
            return loss(clip(x + length * direction)) >= 0

        over, longest = loss(z) >= 0, jnp.asarray(LONGER * d_max, x.dtype)
        ends = jnp.where(over, 0 * reached, reached), jnp.where(over, reached, longest)
        low, high = bisect(beyond, *ends, num_halvings)
        found = over | (high < longest)
        if reference:
            length = (low + high) / 2
            return Boundary((x + length * direction).astype(target.dtype), length, found)
        x_adv = clip(x + high * direction)
        return Boundary(x_adv.astype(target.dtype), norm.size(x_adv - x), found)
