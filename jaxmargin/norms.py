"""Norms as values: what distances, projections, steps and samples need to know of a norm, as six functions.

>>> import jax.numpy as jnp, jaxmargin as jm
>>> g = jnp.array([3.0, -4.0])
>>> [float(norm.dual_size(g)) for norm in (jm.l2, jm.linf, jm.l1)]
[5.0, 7.0, 4.0]
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

__all__ = ["Norm", "l1", "l2", "linf", "radial", "scale_of", "summable"]


class Norm(NamedTuple):
    """A norm on inputs of any shape [*d], flattened where a formula needs a vector.

    Attributes:
      size: x -> ||x||, a scalar.
      dual_size: g -> ||g||_* = max <g, u> over ||u|| <= 1, the size of a gradient.
      steepest: g -> the u with ||u|| <= 1 that attains it; 0 where g = 0.
      spread: (g, share) -> a direction of ascent with ||u|| <= 1 that moves at least that share of the coordinates: the
        steepest one, which in l1 would move a single coordinate.
      project: (x, radius) -> the nearest point (Euclidean) of the ball of that radius around 0.
      sample_ball: (key, shape) -> one point uniform in the unit ball.
    """

    size: Callable[[jax.Array], jax.Array]
    dual_size: Callable[[jax.Array], jax.Array]
    steepest: Callable[[jax.Array], jax.Array]
    spread: Callable[[jax.Array, jax.Array | float], jax.Array]
    project: Callable[[jax.Array, jax.Array | float], jax.Array]
    sample_ball: Callable[[jax.Array, tuple[int, ...]], jax.Array]


def summable(x: jax.Array) -> jax.Array:
    """The same in single precision at least, in which a sum of many halves is right and does not overflow.

    Args:
      x: [*d].

    Returns:
      [*d].
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def scale_of(largest: jax.Array) -> jax.Array:
    """A power of two that brings numbers of that size where their squares are ordinary; 1 where they are already.

    Multiplied by a power of two, and divided by it again in the end, a number keeps its bits.

    Args:
      largest: sizes of any shape.

    Returns:
      Scales of that shape, without derivative.
    """
    # XLA may square a scale by itself: that must not overflow.
    scale = jnp.where(largest > 2.0**40, 2.0**-60, jnp.where(largest < 2.0**-40, 2.0**60, 1.0))
    return jax.lax.stop_gradient(scale).astype(largest.dtype)


def _l2_size(x: jax.Array) -> jax.Array:
    x = summable(x)
    square = jnp.sum(x * x)
    nonzero = square != 0  # the slope of sqrt at 0 is infinite; the double where keeps its NaN out of the gradient
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def _linf_size(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(summable(x)))


def _l1_size(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(summable(x)))


def _l2_steepest(g: jax.Array) -> jax.Array:
    scale = _linf_size(g)  # dividing by the largest entry first keeps tiny gradients from underflowing when squared
    unit = g / jnp.where(scale > 0, scale, 1.0)
    return (unit / jnp.maximum(_l2_size(unit), 1.0)).astype(g.dtype)


def _l1_steepest(g: jax.Array) -> jax.Array:
    flat = g.reshape(-1)
    largest = jnp.argmax(jnp.abs(flat))
    return jnp.zeros_like(flat).at[largest].set(jnp.sign(flat[largest])).reshape(g.shape)


def _l1_spread(g: jax.Array, share: jax.Array | float) -> jax.Array:
    size = jnp.abs(g).reshape(-1)
    count = jnp.clip(jnp.ceil(share * size.size).astype(int), 1, size.size)
    least = jnp.sort(size)[size.size - count]
    signs = jnp.where(jnp.abs(g) >= least, jnp.sign(g), 0.0)
    return (signs / jnp.maximum(_l1_size(signs), 1.0)).astype(g.dtype)


def _l2_project(x: jax.Array, radius: jax.Array | float) -> jax.Array:
    size = _l2_size(x)
    return (x * jnp.minimum(1.0, radius / jnp.maximum(size, jnp.finfo(size.dtype).tiny))).astype(x.dtype)


def _linf_project(x: jax.Array, radius: jax.Array | float) -> jax.Array:
    return jnp.clip(x, -radius, radius).astype(x.dtype)


def _l1_project(x: jax.Array, radius: jax.Array | float) -> jax.Array:
    wide, outside = summable(x), _l1_size(x) > radius
    size = jnp.abs(wide)
    # The simplex does not mind a shift, and differences from the largest entry are exact however small the radius.
    positive = jnp.asarray(jnp.where(radius > 0, radius, 1.0), wide.dtype)  # of radius 0 it would divide by 0
    kept = optax.projections.projection_simplex((size - jnp.max(size)).reshape(-1), positive)
    total = jnp.sum(kept)  # the radius, up to rounding: put it right
    kept = kept * (radius / jnp.where(total > 0, total, 1.0))
    return jnp.where(outside, jnp.sign(wide) * kept.reshape(x.shape), wide).astype(x.dtype)


def _l2_sample(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    key_direction, key_radius = jax.random.split(key)
    direction = jax.random.normal(key_direction, shape)
    return direction / _l2_size(direction) * jax.random.uniform(key_radius) ** (1 / direction.size)


def _linf_sample(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0)


def _l1_sample(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # Laplace coordinates over their own sum plus one more exponential are uniform in the ball (Barthe et al. 2005).
    key_laplace, key_slack = jax.random.split(key)
    laplace = jax.random.laplace(key_laplace, shape)
    return laplace / (_l1_size(laplace) + jax.random.exponential(key_slack))


def radial(norm: Norm) -> Norm:
    """The same norm with other samples of its ball: their sizes are uniform in [0, 1), whatever the dimension.

    Args:
      norm: any norm.

    Returns:
      Norm.

    >>> import jax, jax.numpy as jnp, jaxmargin as jm
    >>> for seed, norm in enumerate((jm.l2, radial(jm.l2))):
    ...     keys = jax.random.split(jax.random.key(seed), 100)
    ...     samples = jax.vmap(lambda key: norm.sample_ball(key, (784,)))(keys)
    ...     print(jnp.mean(jax.vmap(norm.size)(samples)).round(1))
    1.0
    0.5
    """

    def sample(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        key_direction, key_size = jax.random.split(key)
        point = norm.sample_ball(key_direction, shape)
        size = norm.size(point)
        return point / jnp.where(size > 0, size, 1.0) * jax.random.uniform(key_size)

    return norm._replace(sample_ball=sample)


l2 = Norm(_l2_size, _l2_size, _l2_steepest, lambda g, share: _l2_steepest(g), _l2_project, _l2_sample)
linf = Norm(_linf_size, _l1_size, jnp.sign, lambda g, share: jnp.sign(g), _linf_project, _linf_sample)
l1 = Norm(_l1_size, _linf_size, _l1_steepest, _l1_spread, _l1_project, _l1_sample)
