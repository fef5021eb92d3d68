"""Gradient norms of differences of logits at random points of a ball, with what the centres share worked out once.

Every centre x is perturbed by the same random offsets u_1, u_2, ...: the samples are x + u_i. A network that begins
with a dense layer then needs the product W u_i once for all centres, since W (x + u_i) + b = (W x + b) + W u_i; one
that is affine throughout has the same gradients everywhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin.layers import Layer, layers_of
from jaxmargin.norms import Norm, l2, scale_of
from jaxmargin.types import Box, LogitsFn

__all__ = ["GradientNorms", "gradient_norms_of"]

NormOf = Callable[[jax.Array], jax.Array]  # v [c] -> [s], the dual norms of v . grad f at s samples
Offsets = Callable[[jax.Array], jax.Array]  # indices [s] -> [s, *d]


class GradientNorms(NamedTuple):
    """The gradient norms of a classifier around any centre, in three steps.

    Attributes:
      perturbations: indices [s] -> arrays [s, ...], what all centres share of samples number i.
      features: x [*d] -> arrays, what a centre needs once.
      at: (features, perturbations) -> a function of v [c] that gives the dual norms of v . grad f at the samples, [s].
      offsets: indices [s] -> [s, *d], samples number i less the centre, before any box; perturbations are linear in
        them.
      constant: whether the gradients are the same everywhere, so that one sample says all.
    """

    perturbations: Callable[[jax.Array], Any]
    features: Callable[[jax.Array], Any]
    at: Callable[[Any, Any], NormOf]
    offsets: Offsets
    constant: bool = False


def gradient_norms_of(
    logits_fn: LogitsFn,
    key: jax.Array,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    *,
    norm: Norm,
    radius: float | jax.Array,
    box: Box | None,
) -> GradientNorms:
    """The fastest form of a classifier's gradient norms on balls of one radius.

    Args:
      logits_fn: x [*d] -> logits [c].
      key: a PRNG key; sample i is drawn with ``fold_in(key, i)``.
      shape: *d.
      dtype: of the inputs.
      norm: the norm that measures the ball; gradients are measured by its dual.
      radius: of the ball.
      box: (low, high) clips the samples; None keeps them.

    Returns:
      GradientNorms.
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


def _general(logits_fn: LogitsFn, offsets: Offsets, norm: Norm, box: Box | None) -> GradientNorms:
    def at(x: jax.Array, u: jax.Array) -> NormOf:
        samples = x[None] + u if box is None else jnp.clip(x[None] + u, *box)  # [s, *d]
        logits, pullback = jax.vjp(jax.vmap(logits_fn), samples)

        def norm_of(v: jax.Array) -> jax.Array:
            (gradients,) = pullback(jnp.broadcast_to(v.astype(logits.dtype), logits.shape))  # [s, *d]
            return jax.vmap(norm.dual_size)(gradients)

        return norm_of

    return GradientNorms(offsets, lambda x: x, at, offsets)


def _after_dense(
    first: Layer, rest: list[Layer], offsets: Offsets, shape: tuple[int, ...], norm: Norm
) -> GradientNorms:
    kernel = first.kernel  # [d, h]
    assert kernel is not None
    measure = _pulled_through(kernel, shape, norm)

    def perturbations(indices: jax.Array) -> jax.Array:
        return offsets(indices).reshape(len(indices), -1) @ kernel  # [s, h]

    def features(x: jax.Array) -> jax.Array:
        return _affine(first, x.reshape(-1))  # [h]

    def at(features: jax.Array, perturbations: jax.Array) -> NormOf:
        logits, pullback = jax.vjp(lambda hidden: _run(rest, hidden), features[None] + perturbations)

        def norm_of(v: jax.Array) -> jax.Array:
            (gradients,) = pullback(jnp.broadcast_to(v.astype(logits.dtype), logits.shape))  # [s, h]
            return measure(gradients)

        return norm_of

    constant = all(layer.kind == "dense" for layer in rest)
    return GradientNorms(perturbations, features, at, offsets, constant)


def _pulled_through(kernel: jax.Array, shape: tuple[int, ...], norm: Norm) -> NormOf:
    """g [s, h] -> ||W g||_*, the size of the input's gradient; from the Gram matrix W'W where that is cheaper."""
    inputs, hidden = kernel.shape
    # ||W g||^2 = g' (W'W) g; other norms have no such form
    if norm.dual_size is l2.dual_size and 3 * hidden <= 2 * inputs:
        scale = scale_of(jnp.max(jnp.abs(kernel)))
        gram = (kernel * scale).T @ (kernel * scale)

        def from_gram(g: jax.Array) -> jax.Array:
            scale_g = scale_of(jnp.max(jnp.abs(g), 1))  # [s]
            g = g * scale_g[:, None]
            return jnp.sqrt(jnp.maximum((g @ gram * g).sum(1), 0.0)) / scale_g / scale

        return from_gram
    return lambda g: jax.vmap(norm.dual_size)((g @ kernel.T).reshape(-1, *shape))


def _affine(layer: Layer, x: jax.Array) -> jax.Array:
    assert layer.kernel is not None
    product = x @ layer.kernel
    return product if layer.bias is None else product + jnp.broadcast_to(layer.bias, product.shape)


def _run(layers: list[Layer], x: jax.Array) -> jax.Array:
    for layer in layers:
        x = jax.nn.relu(x) if layer.kind == "relu" else _affine(layer, x)
    return x
