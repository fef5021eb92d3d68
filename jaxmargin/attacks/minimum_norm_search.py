"""What DDN and FMN share: iterates around x, each with a radius, of which the nearest misclassified one is kept."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.attacks.base import Attack, Target, clip_to_box
from jaxmargin.losses import logit_margin
from jaxmargin.margins import gap_over_slope
from jaxmargin.norms import Norm
from jaxmargin.types import Box

__all__ = [
    "Search", "Step", "ascent_direction", "check_share", "cosine", "farthest_corner", "first_order_distance", "keep",
    "search_from",
]  # fmt: skip


class Search(NamedTuple):
    """Where the search around one example stands.

    Attributes:
      offset: [*d] of the iterate from x.
      epsilon: radius of the sphere or the ball that it lies in.
      best: [*d] the nearest misclassified offset so far.
      distance: of best, infinite as long as there is none.
    """

    offset: jax.Array
    epsilon: jax.Array
    best: jax.Array
    distance: jax.Array


# (number of the step, search, a direction to take where there is no gradient) -> search
Step = Callable[[jax.Array, Search, jax.Array], Search]


def search_from(
    target: Target,
    step: Step,
    num_steps: int,
    *,
    key: jax.Array,
    norm: Norm,
    box: Box | None,
) -> Attack:
    """Repeats a step from x on, in a ball as large as the linearised margin; looks at the last iterate too.

    Args:
      target: the classifier and the example.
      step: of the search.
      num_steps: number of steps.
      key: a PRNG key, for a direction where the gradient vanishes.
      norm: of the distance.
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack; where nothing is found, x_adv = x, and NaN where a gradient was not finite.
    """
    clip, logits_fn, x, y = clip_to_box(box), target.logits_fn, target.x, target.y
    with jax.default_matmul_precision("float32"):
        away = norm.sample_ball(key, x.shape).astype(x.dtype)
        away = away / norm.size(away)
        logits, _, gradient = target.value_and_gradient(lambda logits: logit_margin(logits, y), x)
        epsilon = first_order_distance(target.margin(logits), gradient, norm, norm.size(jnp.ones_like(x)))
        epsilon = jnp.minimum(epsilon, jnp.minimum(farthest_corner(x, norm, box), target.horizon)).astype(x.dtype)
        search = Search(jnp.zeros_like(x), epsilon, jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype))
        search = target.begin(search)
        search = jax.lax.fori_loop(0, num_steps, lambda t, search: step(t, search, away), search)
        search = keep(search, target.misclassified(logits_fn(clip(x + search.offset))), norm)
        best = jnp.where(jnp.argmax(logits) != y, 0, search.best)
        unsound = ~jnp.isfinite(search.offset).all()  # a gradient that was not finite must not be passed over
        return target.outcome(jnp.where(unsound, jnp.nan, clip(x + best)), norm)


def keep(search: Search, wrong: jax.Array, norm: Norm) -> Search:
    """The search with its iterate kept where that is misclassified and nearer than all before.

    Args:
      search: where it stands.
      wrong: whether the iterate is misclassified.
      norm: of the distance.

    Returns:
      Search.
    """
    size = norm.size(search.offset)
    better = wrong & (size < search.distance)
    return search._replace(
        best=jnp.where(better, search.offset, search.best), distance=jnp.where(better, size, search.distance)
    )


def first_order_distance(margin: jax.Array, gradient: jax.Array, norm: Norm, far: jax.Array) -> jax.Array:
    """The distance at which the linearised logit margin reaches 0.

    Args:
      margin: the logit margin.
      gradient: [*d] of it, of either sign.
      norm: of the distance.
      far: what it is where the margin is flat.

    Returns:
      A distance in input units.
    """
    slope = norm.dual_size(gradient)
    return jnp.where(slope <= 0, far, gap_over_slope(margin, slope))


def ascent_direction(norm: Norm, gradient: jax.Array, away: jax.Array, share: jax.Array | float) -> jax.Array:
    """The direction of a gradient, or another where it vanishes.

    Args:
      norm: whose unit ball the direction lies in.
      gradient: [*d].
      away: [*d] the other direction.
      share: of the coordinates that it moves at least, as in ``Norm.spread``.

    Returns:
      [*d].
    """
    return jnp.where(norm.dual_size(gradient) > 0, norm.spread(gradient, share), away)


def farthest_corner(x: jax.Array, norm: Norm, box: Box | None) -> jax.Array | float:
    """The distance to the farthest corner of the box.

    Args:
      x: [*d].
      norm: of the distance.
      box: (low, high) of valid inputs; None for none.

    Returns:
      A distance, infinite without a box.
    """
    return jnp.inf if box is None else norm.size(jnp.maximum(x - box[0], box[1] - x))


def cosine(first: float, last: float, progress: jax.Array) -> jax.Array:
    """A schedule that falls along half a cosine.

    Args:
      first: its value at the beginning.
      last: its value at the end.
      progress: from 0 to 1.

    Returns:
      The value there.
    """
    return last + (first - last) * (1 + jnp.cos(jnp.pi * progress)) / 2


def check_share(name: str, value: float) -> None:
    """Refuses what is no share of a radius.

    Args:
      name: of the option.
      value: its value.

    Returns:
      None.

    Raises:
      ValueError: anything outside (0, 1).
    """
    checks.positive(name, value)
    if checks.concrete(value) and not value < 1:
        raise ValueError(f"{name}={value} must be below 1: it is the share by which a radius changes")
