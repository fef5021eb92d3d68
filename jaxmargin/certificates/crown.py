"""Linear bounds of a network's outputs on a ball (CROWN): intervals forwards through the layers, then bounds backwards.

Forwards, every unit is bounded on the ball B(x, r) twice, by interval arithmetic and by how fast it can move from its
value at x. Backwards, v . f >= coefficients . z + offset is carried layer by layer, each ReLU and pooling replaced by a
line below or above it that its unit's interval allows.

Everything here runs in float64. ``size`` collects the magnitudes that a bound was added up from; what rounding can have
lost is a multiple of it, and is taken off.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin.certificates.rounding import EPSILON, rounding_error
from jaxmargin.layers import Layer
from jaxmargin.norms import Norm

__all__ = ["Interval", "LinearBound", "backward_bound", "intervals", "reaches"]


class Interval(NamedTuple):
    """Bounds of the units before a layer, on a ball.

    Attributes:
      low: [*units].
      high: [*units].
      size: of a layer with weights, magnitudes of the sums that it forms, |W| |z| + |b| at the largest |z|; [*out].
    """

    low: jax.Array
    high: jax.Array
    size: jax.Array | None = None


class LinearBound(NamedTuple):
    """Lower bounds of m functions: coefficients . z + offset - rounding, the rounding in proportion to size.

    Attributes:
      coefficients: [m, *units].
      offset: [m].
      size: [m].
    """

    coefficients: jax.Array
    offset: jax.Array
    size: jax.Array


def reaches(
    layers: Sequence[Layer], spectral_norms: Sequence[jax.Array], norm: Norm, in_l2: jax.Array | float
) -> list[jax.Array]:
    """How far the outputs of each layer with weights can move while the input moves by 1.

    Args:
      layers: first to last, float64.
      spectral_norms: of the layers with weights.
      norm: that measures the input.
      in_l2: the largest l2 size of an input of size 1.

    Returns:
      One [o] for each layer with weights: of the first one the dual size of its rows, of others the l2 size of
      their rows times the Lipschitz constant of all before.
    """
    found: list[jax.Array] = []
    constant = in_l2 * jnp.ones((), jnp.float64)
    for kernel in (layer.kernel for layer in layers if layer.kernel is not None):
        safe = 1 + rounding_error(kernel.size) + 16 * EPSILON
        if found:
            found.append(constant * jnp.sqrt(jnp.sum(kernel**2, tuple(range(kernel.ndim - 1)))) * safe)
        else:
            found.append(jax.vmap(norm.dual_size, -1)(kernel) * safe)
        constant = constant * spectral_norms[len(found) - 1] * (1 + 4 * EPSILON)
    return found


def intervals(
    layers: Sequence[Layer],
    x: jax.Array,
    radius: jax.Array | float,
    reaches: Sequence[jax.Array] = (),
    at_x: Sequence[Interval] = (),
) -> list[Interval]:
    """Bounds of the units before each layer, and of the outputs, on the ball B(x, radius).

    Args:
      layers: first to last, float64.
      x: the centre, [*d], float64.
      radius: of the ball, in any norm whose unit ball lies in the box [-1, 1]^d.
      reaches: as the function of that name gives them; none for interval arithmetic alone.
      at_x: what this function gives for radius 0, where reaches are given.

    Returns:
      An Interval before each layer and one after the last.
    """
    low, high = x - radius, x + radius
    slack = 2 * EPSILON * (jnp.abs(x) + radius)
    found, moving = [Interval(low - slack, high + slack)], iter(reaches)
    for i, layer in enumerate(layers):
        before = found[-1]
        if layer.kernel is None:
            step = _SIMPLE[layer.kind]
            found.append(Interval(step(before.low), step(before.high)))
            continue
        size, after = _affine(layer, before)
        if reaches:
            far = radius * next(moving) * (1 + 8 * EPSILON)  # [o]
            far, error = jnp.broadcast_to(far, size.shape), 4 * EPSILON * size
            near = at_x[i + 1]
            after = Interval(
                jnp.maximum(after.low, near.low - far - error), jnp.minimum(after.high, near.high + far + error)
            )
        found[-1] = before._replace(size=size)
        found.append(after)
    return found


def backward_bound(layers: Sequence[Layer], bounds: Sequence[Interval], rows: jax.Array) -> LinearBound:
    """Lower bounds of v . f that are linear in the input and hold wherever the bounds do.

    Args:
      layers: first to last, float64.
      bounds: as ``intervals`` gives them.
      rows: [m, c], one v for each of m functions.

    Returns:
      LinearBound with coefficients [m, *d].
    """
    zeros = jnp.zeros(len(rows), rows.dtype)
    bound = LinearBound(rows, zeros, zeros)
    for layer, before in reversed([*zip(layers, bounds, strict=False)]):
        bound = _BACK[layer.kind](layer, before, bound)
    return bound


# Layers with weights -------------------------------------------------------------------------------------------------


def _affine(layer: Layer, before: Interval) -> tuple[jax.Array, Interval]:
    """(size, bounds) after a layer with weights, by interval arithmetic."""
    kernel = layer.kernel
    assert kernel is not None
    middle, spread = (before.low + before.high) / 2, (before.high - before.low) / 2
    largest = jnp.maximum(jnp.abs(before.low), jnp.abs(before.high))
    center = _linear(layer, kernel, middle)
    size, spread = _linear(layer, jnp.abs(kernel), jnp.stack([largest, spread]))
    if layer.bias is not None:
        bias = jnp.broadcast_to(layer.bias, center.shape)
        center, size = center + bias, size + jnp.abs(bias)
    spread = spread + rounding_error(math.prod(kernel.shape[:-1])) * size
    return size, Interval(center - spread, center + spread)


def _linear(layer: Layer, kernel: jax.Array, z: jax.Array) -> jax.Array:
    """W z for z [..., *units]."""
    return z @ kernel if layer.kind == "dense" else _convolve(z, kernel, _pads(layer))


def _transposed(layer: Layer, slopes: jax.Array) -> jax.Array:
    """W' g for g [..., *out]."""
    kernel = layer.kernel
    assert kernel is not None
    if layer.kind == "dense":
        return slopes @ kernel.T
    pads = [(size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape, _pads(layer), strict=False)]
    return _convolve(slopes, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), pads)


def _pads(layer: Layer) -> list[tuple[int, int]]:
    assert layer.kernel is not None
    lost_pixels = [size - 1 if layer.padding == "SAME" else 0 for size in layer.kernel.shape[:2]]
    return [(pixels // 2, pixels - pixels // 2) for pixels in lost_pixels]


def _convolve(z: jax.Array, kernel: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """A convolution as one matrix product of patches: its transposes have no fast kernel inside of a loop on a CPU."""
    z = jnp.pad(z, [(0, 0)] * (z.ndim - 3) + [*pads, (0, 0)])
    height, width = (z.shape[axis - 3] - kernel.shape[axis] + 1 for axis in (0, 1))
    parts = [z[..., i : i + height, j : j + width, :] for i, j in np.ndindex(kernel.shape[:2])]
    return jnp.concatenate(parts, -1) @ kernel.reshape(-1, kernel.shape[3])


def _back_affine(layer: Layer, before: Interval, bound: LinearBound) -> LinearBound:
    assert before.size is not None
    offset = bound.offset
    if layer.bias is not None:
        offset = offset + _sum(bound.coefficients * layer.bias[(None,) * (bound.coefficients.ndim - 1)])
    coefficients = _transposed(layer, bound.coefficients)
    return LinearBound(coefficients, offset, bound.size + _sum(jnp.abs(bound.coefficients) * before.size[None]))


# Layers without weights ----------------------------------------------------------------------------------------------


def _blocks(z: jax.Array) -> jax.Array:
    """[..., h, w, o] -> [..., 4, h // 2, w // 2, o], the four pixels of each 2 x 2 block."""
    *batch, height, width, channels = z.shape
    z = z[..., : height // 2 * 2, : width // 2 * 2, :].reshape(*batch, height // 2, 2, width // 2, 2, channels)
    z = jnp.moveaxis(z, (-4, -2), (-5, -4))  # [..., 2, 2, h // 2, w // 2, o]
    return z.reshape(*batch, 4, height // 2, width // 2, channels)


def _from_blocks(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The transpose of ``_blocks``: pixels in their places, 0 in odd edges."""
    *batch, _, height, width, channels = blocks.shape
    z = jnp.moveaxis(blocks.reshape(*batch, 2, 2, height, width, channels), (-5, -4), (-4, -2))
    z = z.reshape(*batch, 2 * height, 2 * width, channels)
    edges = [(0, 0)] * len(batch) + [(0, shape[0] - 2 * height), (0, shape[1] - 2 * width), (0, 0)]
    return jnp.pad(z, edges)


def _chord(low: jax.Array, high: jax.Array, floor: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """(slope, offset) of the line that is max(z, floor) at both ends of [low, high], and above it between them."""
    start, width = jnp.maximum(low, floor), high - low
    rise = jnp.maximum(high, start) - start
    slope = rise / jnp.where(width > 0, width, 1.0) * (1 + 8 * EPSILON)  # a steeper line from the same start is above
    return slope, start - slope * low


def _relu(z: jax.Array) -> jax.Array:
    return jnp.maximum(z, 0.0)


def _back_relu(_: Layer, before: Interval, bound: LinearBound) -> LinearBound:
    """relu(z) >= z or 0, whichever leaves the smaller triangle, and below the chord."""
    slope, start = _chord(before.low, before.high, 0.0)
    below = jnp.where(before.high > -before.low, 1.0, 0.0)
    return _bent(bound, below, slope, start, jnp.maximum(jnp.abs(before.low), jnp.abs(before.high)))


def _back_max_pool(_: Layer, before: Interval, bound: LinearBound) -> LinearBound:
    """The maximum is at least the unit with the largest lower bound, and below its chord over the other three."""
    low, high = _blocks(before.low), _blocks(before.high)  # [4, h, w, o]
    best = low == jnp.max(low, 0, keepdims=True)
    chosen, taken = [], jnp.zeros(best.shape[1:], bool)
    for i in range(4):  # the first of several
        chosen.append(best[i] & ~taken)
        taken = taken | best[i]
    mask = jnp.stack(chosen)
    others = jnp.max(jnp.where(mask, -jnp.inf, high), 0)
    first, last = jnp.max(low, 0), jnp.sum(jnp.where(mask, high, 0.0), 0)
    slope, start = _chord(first, last, others)
    largest = jnp.max(jnp.maximum(jnp.abs(low), jnp.abs(high)), 0)
    bound = _bent(bound, jnp.ones_like(slope), slope, start, largest)
    coefficients = jnp.where(mask[None], bound.coefficients[:, None], 0.0)  # [m, 4, h, w, o]
    return bound._replace(coefficients=_from_blocks(coefficients, before.low.shape))


def _bent(bound: LinearBound, below: jax.Array, slope: jax.Array, start: jax.Array, largest: jax.Array) -> LinearBound:
    """A bound before a bend: rising coefficients meet the line below it, falling ones the line above it."""
    rising, falling = jnp.maximum(bound.coefficients, 0.0), jnp.minimum(bound.coefficients, 0.0)
    size = bound.size + _sum(jnp.abs(bound.coefficients) * (2 * largest)[None])
    return LinearBound(rising * below[None] + falling * slope[None], bound.offset + _sum(falling * start[None]), size)


def _sum(values: jax.Array) -> jax.Array:
    """[m, *units] -> [m]."""
    return jnp.sum(values, tuple(range(1, values.ndim)))


def _back_flatten(_: Layer, before: Interval, bound: LinearBound) -> LinearBound:
    return bound._replace(coefficients=bound.coefficients.reshape(-1, *before.low.shape))


def _back_dropout(_: Layer, before: Interval, bound: LinearBound) -> LinearBound:
    return bound


_SIMPLE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": _relu,
    "max_pool": lambda z: jnp.max(_blocks(z), -4),
    "flatten": jnp.ravel,
    "dropout": lambda z: z,
}
_BACK: dict[str, Callable[[Layer, Interval, LinearBound], LinearBound]] = {
    "conv": _back_affine,
    "dense": _back_affine,
    "relu": _back_relu,
    "max_pool": _back_max_pool,
    "flatten": _back_flatten,
    "dropout": _back_dropout,
}
