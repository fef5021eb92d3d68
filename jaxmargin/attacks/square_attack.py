"""A random search that needs no gradients: where it finds what the others miss, their gradients are to blame."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.attacks.base import Attack, target_of
from jaxmargin.norms import Norm, l1, l2, linf
from jaxmargin.types import Box, LogitsFn

__all__ = ["square"]

# Shares of the queries after which the windows' area is halved.
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


class _Search(NamedTuple):
    query: jax.Array
    offset: jax.Array  # [h, w, channels]
    margin: jax.Array


def square(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = linf,
    epsilon: float | jax.Array,
    num_queries: int = 1000,
    area: float = 0.3,
    box: Box | None = None,
) -> Attack:
    """Square attack: proposes changes in random windows and keeps those that lower the logit margin.

    In linf a window takes the values +-epsilon, one sign a channel. In l2 the change of another window is undone, and
    the length that this sets free goes into the new one, as two humps of opposite sign.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key.
      x: one example: an image [h, w, channels] or [h, w], or a vector, whose windows are stretches.
      y: its class.
      norm: of the ball, linf or l2.
      epsilon: its radius, in input units.
      num_queries: the most forward passes; the search ends where x_adv is misclassified.
      area: of the first windows, as a share of the input; it is halved on the way.
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack.

    Raises:
      ValueError: epsilon, num_queries or area not positive, norm = l1, an x of four axes, a box that is empty or does
        not hold x.

    Reference:
      Andriushchenko et al. 2020, Square Attack (there the l2 windows spend their length channel by channel).

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> bool(square(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0, epsilon=0.75, num_queries=50).found)
    True
    """
    target = target_of(logits_fn, x, y, norm, box, num_queries=num_queries)
    checks.positive("epsilon", epsilon)
    checks.positive("area", area)
    if norm is l1:
        raise ValueError("norm=l1 has no square attack: pass linf or l2")
    x, logits_fn = target.x, target.logits_fn
    if x.ndim > 3:
        raise ValueError(f"x has shape {x.shape}: the square attack takes an image [h, w, channels] or a vector [d]")
    image = x.shape + (1,) * (3 - x.ndim)  # (h, w, channels)
    project = target.projection(norm, epsilon, box)
    propose = _linf_window if norm is linf else _l2_windows

    def at(offset: jax.Array) -> jax.Array:
        return project(x + offset.reshape(x.shape))

    def judged(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = at(offset)
        return (z - x).reshape(image), target.margin(logits_fn(z))

    def step(search: _Search) -> _Search:
        key_step = jax.random.fold_in(key, search.query)
        halvings = jnp.sum(search.query > jnp.asarray(_HALVINGS) * num_queries)
        offset, margin = judged(propose(key_step, search.offset, epsilon, jnp.minimum(area, 1.0) / 2.0**halvings))
        better = (margin < search.margin) | jnp.isnan(margin)
        return _Search(
            search.query + 1, jnp.where(better, offset, search.offset), jnp.where(better, margin, search.margin)
        )

    with jax.default_matmul_precision("float32"):
        start = _start(jax.random.fold_in(key, 0), image, norm, epsilon).astype(x.dtype)
        search = _Search(jnp.array(1), *judged(start))
        search = jax.lax.while_loop(lambda s: (s.query < num_queries) & (s.margin >= 0), step, search)
        return target.outcome(at(search.offset), norm)


def _start(key: jax.Array, image: tuple[int, ...], norm: Norm, epsilon: float | jax.Array) -> jax.Array:
    """Stripes of one sign a column and channel, as long as the ball allows."""
    stripe = (1, *image[1:]) if image[1] > 1 else image
    signs = jnp.broadcast_to(jax.random.rademacher(key, stripe, float), image)
    return epsilon * signs / norm.size(signs)


def _window(key: jax.Array, image: tuple[int, ...], area: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How far rows [h, 1, 1] and columns [1, w, 1] lie from the middle of a random window, in half sides."""
    share = jnp.sqrt(area) if image[1] > 1 else area
    places = []
    for axis, key_axis in enumerate(jax.random.split(key)):
        size = image[axis]
        side = jnp.clip(jnp.round(share * size), 1, size)
        first = jnp.floor(jax.random.uniform(key_axis) * (size - side + 1))
        shape = [1, 1, 1]
        shape[axis] = size
        places.append(((jnp.arange(size) - first - (side - 1) / 2) / (side / 2)).reshape(shape))
    return places[0], places[1]


def _within(places: tuple[jax.Array, jax.Array], image: tuple[int, ...]) -> jax.Array:
    """[h, w, 1] whether a pixel lies in the window."""
    rows, columns = (jnp.broadcast_to(place, (*image[:2], 1)) for place in places)
    return (jnp.abs(rows) < 1) & (jnp.abs(columns) < 1)


def _linf_window(key: jax.Array, offset: jax.Array, epsilon: float | jax.Array, area: jax.Array) -> jax.Array:
    key_window, key_signs = jax.random.split(key)
    mask = jnp.broadcast_to(_within(_window(key_window, offset.shape, area), offset.shape), offset.shape)
    signs = jax.random.rademacher(key_signs, (1, 1, offset.shape[2]), offset.dtype)
    return jnp.where(mask, epsilon * jnp.broadcast_to(signs, offset.shape), offset)


def _l2_windows(key: jax.Array, offset: jax.Array, epsilon: float | jax.Array, area: jax.Array) -> jax.Array:
    key_new, key_old, key_signs, key_axis = jax.random.split(key, 4)
    places = _window(key_new, offset.shape, area)
    new = jnp.broadcast_to(_within(places, offset.shape), offset.shape)
    old = jnp.broadcast_to(_within(_window(key_old, offset.shape, area), offset.shape), offset.shape)
    rest = jnp.where(new | old, 0.0, offset)
    left = epsilon * jnp.sqrt(jnp.maximum(1 - (l2.size(rest) / epsilon) ** 2, 0.0))
    rows, columns = (jnp.broadcast_to(place, offset.shape) for place in places)
    across = jnp.where(jax.random.bernoulli(key_axis), rows, columns)
    hump = 1 / (1 + 4 * jnp.maximum(jnp.abs(jnp.abs(across) - 0.5), 0.0)) ** 2 * jnp.where(across < 0, -1.0, 1.0)
    signs = jax.random.rademacher(key_signs, (1, 1, offset.shape[2]), offset.dtype)
    kept = jnp.where(new, offset, 0.0)
    size = l2.size(kept)
    change = jnp.where(new, hump * jnp.broadcast_to(signs, offset.shape), 0.0)
    change = change / l2.size(change) + kept / jnp.where(size > 0, size, 1.0)
    size = l2.size(change)
    return rest + change * left / jnp.where(size > 0, size, 1.0)
