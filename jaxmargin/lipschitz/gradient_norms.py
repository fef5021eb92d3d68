"""How steep the differences of logits are at random points of a ball, with what points share worked out once.

Every point x is looked at from the same random offsets u_1, u_2, ...: the samples are x + u_i. A network that begins
with a dense layer then needs the product W u_i once for all points, since W (x + u_i) + b = (W x + b) + W u_i; one that
is affine throughout has the same slopes everywhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin.layers import Layer, layers_of
from jaxmargin.norms import Norm, l2

__all__ = ["Slopes", "slopes_of"]

LogitsFn = Callable[[jax.Array], jax.Array]


class Slopes(NamedTuple):
    """The slopes of a classifier around any point, in three steps.

    Attributes:
      rays: indices [s] -> arrays [s, ...], what all points share of samples number i.
      anchor: x [*d] -> arrays, what a point needs once.
      sizes: (anchor, rays) -> a function of v [c] that gives the dual norms of v . grad f at the samples, [s].
      offsets: indices [s] -> [s, *d], samples number i less the point, before any box; rays are linear in them.
      constant: whether the slopes are the same everywhere, so that one sample says all.
    """

    rays: Callable[[jax.Array], Any]
    anchor: Callable[[jax.Array], Any]
    sizes: Callable[[Any, Any], Callable[[jax.Array], jax.Array]]
    offsets: Callable[[jax.Array], jax.Array]
    constant: bool = False


def slopes_of(
    logits_fn: LogitsFn,
    key: jax.Array,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    *,
    norm: Norm,
    radius: float | jax.Array,
    box: tuple[float, float] | None,
) -> Slopes:
    """The fastest form of a classifier's slopes on balls of one radius.

    Args:
      logits_fn: x [*d] -> logits [c].
      key: a PRNG key; sample i is drawn with ``fold_in(key, i)``.
      shape: *d.
      dtype: of the inputs.
      norm: the norm that measures the ball; gradients are measured by its dual.
      radius: of the ball.
      box: (low, high) clips the samples; None keeps them.

    Returns:
      Slopes.
    """

    def offset(index: jax.Array) -> jax.Array:
        return (radius * norm.sample_ball(jax.random.fold_in(key, index), shape)).astype(dtype)

    layers = layers_of(logits_fn)
    if layers is None or box is not None or [layer.kind for layer in layers[:2]] != ["flatten", "dense"]:
        return _general(logits_fn, jax.vmap(offset), norm, box)
    rest = [layer for layer in layers[2:] if layer.kind != "dropout"]
    if not {layer.kind for layer in rest} <= {"dense", "relu"}:
        return _general(logits_fn, jax.vmap(offset), norm, box)
    return _after_dense(layers[1], rest, jax.vmap(offset), shape, norm)


def _general(logits_fn: LogitsFn, offsets: Callable, norm: Norm, box: tuple[float, float] | None) -> Slopes:
    def sizes(x: jax.Array, u: jax.Array) -> Callable[[jax.Array], jax.Array]:
        samples = x[None] + u if box is None else jnp.clip(x[None] + u, *box)  # [s, *d]
        logits, pullback = jax.vjp(jax.vmap(logits_fn), samples)

        def size(v: jax.Array) -> jax.Array:
            (gradients,) = pullback(jnp.broadcast_to(v.astype(logits.dtype), logits.shape))  # [s, *d]
            return jax.vmap(norm.dual_size)(gradients)

        return size

    return Slopes(offsets, lambda x: x, sizes, offsets)


def _after_dense(first: Layer, rest: list[Layer], offsets: Callable, shape: tuple[int, ...], norm: Norm) -> Slopes:
    kernel = first.kernel  # [d, h]
    assert kernel is not None
    measure = _pulled_through(kernel, shape, norm)

    def rays(indices: jax.Array) -> jax.Array:
        return offsets(indices).reshape(len(indices), -1) @ kernel  # [s, h]

    def anchor(x: jax.Array) -> jax.Array:
        return _affine(first, x.reshape(-1))  # [h]

    def sizes(anchor: jax.Array, rays: jax.Array) -> Callable[[jax.Array], jax.Array]:
        logits, pullback = jax.vjp(lambda hidden: _run(rest, hidden), anchor[None] + rays)

        def size(v: jax.Array) -> jax.Array:
            (gradients,) = pullback(jnp.broadcast_to(v.astype(logits.dtype), logits.shape))  # [s, h]
            return measure(gradients)

        return size

    return Slopes(rays, anchor, sizes, offsets, constant=all(layer.kind == "dense" for layer in rest))


def _pulled_through(kernel: jax.Array, shape: tuple[int, ...], norm: Norm) -> Callable[[jax.Array], jax.Array]:
    """g [s, h] -> ||W g||_*, the size of the input's gradient; from the Gram matrix W'W where that is cheaper."""
    inputs, hidden = kernel.shape
    # ||W g||^2 = g' (W'W) g; other norms have no such form
    if norm.dual_size is l2.dual_size and 3 * hidden <= 2 * inputs:
        gram = kernel.T @ kernel
        return lambda g: jnp.sqrt(jnp.maximum(((g @ gram) * g).sum(1), 0.0))
    return lambda g: jax.vmap(norm.dual_size)((g @ kernel.T).reshape(-1, *shape))


def _affine(layer: Layer, x: jax.Array) -> jax.Array:
    assert layer.kernel is not None
    product = x @ layer.kernel
    return product if layer.bias is None else product + jnp.broadcast_to(layer.bias, product.shape)


def _run(layers: list[Layer], x: jax.Array) -> jax.Array:
    for layer in layers:
        x = jax.nn.relu(x) if layer.kind == "relu" else _affine(layer, x)
    return x
