"""Certified lower bounds of the distance from an example to the boundary of its predicted class.

A certificate holds for the network of real numbers with exactly these weights, at exactly this input: all arithmetic is
float64, widened by what it can lose to rounding, and the result is rounded downwards. ``lipschitz_margin`` estimates;
this bounds.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.batching.chunks import in_chunks
from jaxmargin.batching.rules import Batch, batch_rule
from jaxmargin.certificates.crown import Interval, backward_bound, intervals, reaches
from jaxmargin.certificates.rounding import EPSILON, below, double_precision, rounding_error
from jaxmargin.certificates.spectral import norms_in_double
from jaxmargin.layers import Layer, layers_of, shapes_of
from jaxmargin.margins import gap_over_slope
from jaxmargin.norms import Norm, l1, l2, linf
from jaxmargin.types import LogitsFn

__all__ = ["Certificate", "certified_margin"]

# How far below its first guess the search for the largest certified ball begins, should that guess not be certified.
_BELOW_GUESS = 2.0**-10
# Bytes of float64 that examples relaxed together may take in their widest layer: about what a CPU's cache holds.
_MEMORY = 2**24
# How far logits in the classifier's own precision may be from those of its layers in double precision, of the largest.
_ROUNDED = 1e-2
_AFFINE = ("conv", "dense", "flatten", "dropout")  # layers without a bend


class Certificate(NamedTuple):
    """What is certain about one example, or about n stacked along the first axis.

    Attributes:
      distance: no input closer than this is classified as anything but ``predicted``; the larger one of the next two.
      predicted: the predicted class.
      spectral: the bound by the spectral norms of all layers.
      relaxed: the bound by linear relaxation (CROWN), at most the radius; exact for an affine network.
      supported: False where nothing is known of the classifier, or of the norm: then the distances are 0, which is true
        and says nothing.
    """

    distance: jax.Array
    predicted: jax.Array
    spectral: jax.Array
    relaxed: jax.Array
    supported: jax.Array


def _of_batch(logits_fn: LogitsFn, key: jax.Array, batch: Batch, **options: Any) -> Certificate:
    """``certified_margin`` of b examples; which of them are relaxed at once is decided here, not by the batch."""
    return jax.vmap(lambda x, y: certified_margin(logits_fn, key, x, y, **options))(batch.xs, batch.ys)


@batch_rule(_of_batch, batch_size=lambda: 64)
def certified_margin(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    radius: float = 5.0,
    num_steps: int = 10,
) -> Certificate:
    """A certified lower bound of the distance at which the predicted class p can change, in two ways.

    spectral: min_k (f_p - f_k)(x) / (||w_p - w_k||_2 Lip(Phi)), Phi the input of the last layer, its constant bounded
    by the product of the spectral norms of the layers before. relaxed: the largest r found for which lower bounds of
    all f_p - f_k, linear in the input and valid on B(x, r), stay positive there.

    Args:
      logits_fn: x -> logits [c], a classifier that shows its layers (``jaxmargin.layers``), the last one dense.
      key: unused, there so that all measures are called alike.
      x: one example, [*d].
      y: its class; the bound does not depend on it.
      norm: l2, linf or l1, the norm that measures the distance.
      radius: of the largest ball that is relaxed.
      num_steps: balls that are tried. Each of them certifies something, and the bracket around the largest r shrinks
        at least as fast as by bisection on a logarithmic scale.

    Returns:
      Certificate. A tie is at distance 0; infinitely far is a boundary that no weight leads to; weights that are not
      finite give NaN.

    Raises:
      ValueError: radius or num_steps not positive, logits that are not [c] or have c = 1.

    Reference:
      Wu and Yu 2019, section 4.3; Zhang et al. 2018 (CROWN); Boopathy et al. 2019 (CNN-Cert).

    >>> import functools, jax, jax.numpy as jnp, jaxmargin as jm
    >>> params = {"Dense_0": {"kernel": jnp.array([[3.0, 0.0], [4.0, 0.0]]), "bias": jnp.zeros(2)}}
    >>> logits_fn = functools.partial(jm.models.linear((2,), 2).apply, params)
    >>> certified_margin(logits_fn, jax.random.key(0), jnp.array([1.0, 0.5]), 0).distance.round(5)
    Array(1., dtype=float32)
    """
    checks.example(x)
    checks.label(y)
    checks.norm(norm)
    checks.class_of("y", y, checks.logits(logits_fn, x))
    checks.positive("radius", radius)
    checks.whole("num_steps", num_steps)
    x = jnp.asarray(x)
    with jax.default_matmul_precision("float32"):
        logits = logits_fn(x)
    predicted = jnp.argmax(logits)
    layers, dtype = layers_of(logits_fn), jnp.promote_types(x.dtype, jnp.float32)
    if layers is None or not _known(layers, x.shape, norm):
        zero = jnp.zeros((), dtype)
        return Certificate(zero, predicted, zero, zero, jnp.zeros((), bool))
    weights = tuple((layer.kernel, layer.bias) for layer in layers)
    plan = _Plan(tuple((layer.kind, layer.padding) for layer in layers), norm, float(radius), num_steps, dtype)
    with double_precision():
        spectral, relaxed, same = _measured(plan, weights, x, predicted, logits)
    spectral, relaxed = (jnp.where(same, distance, jnp.zeros_like(distance)) for distance in (spectral, relaxed))
    return Certificate(jnp.maximum(spectral, relaxed), predicted, spectral, relaxed, same)


class _Plan(NamedTuple):
    """All that is static: one compilation for each."""

    kinds: tuple[tuple[str, str | None], ...]
    norm: Norm
    radius: float
    num_steps: int
    dtype: Any


Weights = Sequence[tuple[jax.Array | None, jax.Array | None]]


def _known(layers: Sequence[Layer], shape: tuple[int, ...], norm: Norm) -> bool:
    return norm in (l2, linf, l1) and shapes_of(layers, shape) is not None and layers[-1].kind == "dense"


@functools.partial(jax.jit, static_argnums=0)
def _measured(
    plan: _Plan, weights: Weights, x: jax.Array, predicted: jax.Array, logits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As ``_bounds``; what depends on the weights alone stays outside of the loop over examples."""
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), weights)
    layers, norm = _layers(plan, weights), plan.norm
    norms = norms_in_double(layers, x.shape)
    in_l2 = jnp.maximum(1.0, math.sqrt(x.size) / norm.size(jnp.ones(x.shape)))  # of any lp norm
    in_l2 = in_l2 * (1 + rounding_error(x.size))
    moving = reaches(layers, norms, norm, in_l2)
    constant = functools.reduce(jnp.multiply, norms[:-1], in_l2) * (1 + rounding_error(len(layers)))
    x, logits = x.astype(jnp.float64), logits.astype(jnp.float64)
    leaves, tree = jax.tree.flatten((weights, moving, constant, norms[-1], x, predicted, logits))

    def one(*leaves: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _bounds(plan, *jax.tree.unflatten(tree, leaves))

    found = in_chunks(one, _chunk(layers, x.shape), double_precision)(*leaves)
    return below(found[0], plan.dtype), below(found[1], plan.dtype), found[2]


def _layers(plan: _Plan, weights: Weights) -> list[Layer]:
    return [Layer(kind, *pair, padding) for (kind, padding), pair in zip(plan.kinds, weights, strict=True)]


def _chunk(layers: Sequence[Layer], shape: tuple[int, ...]) -> int:
    """Examples relaxed at once, from what the widest layer takes: its patches, for all classes."""
    shapes = shapes_of(layers, shape)
    assert shapes is not None
    widest = max(math.prod(units) for units in shapes)
    for layer, (before, after) in zip(layers, itertools.pairwise(shapes), strict=True):
        if layer.kind == "conv" and layer.kernel is not None:
            pixels = (before[0] + layer.kernel.shape[0]) * (before[1] + layer.kernel.shape[1])
            widest = max(widest, pixels * math.prod(layer.kernel.shape[:2]) * after[2])
    return max(1, _MEMORY // (8 * widest * shapes[-1][0]))


def _bounds(
    plan: _Plan,
    weights: Weights,
    moving: Sequence[jax.Array],
    constant: jax.Array,
    last_norm: jax.Array,
    x: jax.Array,
    predicted: jax.Array,
    logits: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(spectral, relaxed), float64, of one example, and whether the layers give its logits but for rounding."""
    layers = _layers(plan, weights)
    at_x = intervals(layers, x, 0.0)
    others = jnp.arange(at_x[-1].low.size) != predicted  # [c]
    spectral = _spectral(layers[-1], at_x[-1], others, constant)
    reached = functools.partial(_reached, layers, x, plan.norm, others, moving, at_x)
    if all(kind in _AFFINE for kind, _ in plan.kinds):
        relaxed = _affine_distance(reached)
    else:
        relaxed = _search(reached, jnp.minimum(spectral, plan.radius), plan.radius, plan.num_steps)
    relaxed = jnp.where(jnp.isinf(spectral), spectral, relaxed)
    parts = (*at_x[-1][:2], constant, last_norm, *moving)
    sound = functools.reduce(jnp.logical_and, [jnp.isfinite(part).all() for part in parts])
    low, high = at_x[-1].low, at_x[-1].high
    apart = jnp.maximum(low - logits, logits - high)  # [c]
    same = (apart <= _ROUNDED * jnp.max(jnp.abs(logits))).all() | ~sound
    return jnp.where(sound, spectral, jnp.nan), jnp.where(sound, relaxed, jnp.nan), same


def _spectral(last: Layer, logits: Interval, others: jax.Array, constant: jax.Array) -> jax.Array:
    """min_k (f_p - f_k)(x) / (||w_p - w_k|| constant)."""
    assert last.kernel is not None
    mine = last.kernel @ jnp.where(others, 0.0, 1.0)  # [f]
    lengths = jnp.sqrt(jnp.sum((mine[:, None] - last.kernel) ** 2, 0))  # [c]
    low = jnp.sum(jnp.where(others, 0.0, logits.low))
    gaps = low - logits.high - 2 * EPSILON * (jnp.abs(low) + jnp.abs(logits.high))
    return _nearest(gaps, lengths * constant * (1 + rounding_error(len(mine))), others)


def _nearest(gaps: jax.Array, slopes: jax.Array, others: jax.Array) -> jax.Array:
    """The smallest gap over slope among the other classes."""
    return jnp.min(jnp.where(others, gap_over_slope(gaps, slopes), jnp.inf)) * (1 - 4 * EPSILON)


def _reached(
    layers: Sequence[Layer],
    x: jax.Array,
    norm: Norm,
    others: jax.Array,
    moving: Sequence[jax.Array],
    at_x: Sequence[Interval],
    radius: jax.Array,
) -> jax.Array:
    """Where the bounds that hold on B(x, radius) first meet 0; within the radius there is no boundary before that."""
    rows = jnp.where(others, 0.0, 1.0)[None] - jnp.eye(len(others))  # [c, c], e_p - e_k
    bound = backward_bound(layers, intervals(layers, x, radius, moving, at_x), rows)
    flat = bound.coefficients.reshape(len(rows), -1)  # [c, d]
    size = bound.size + jnp.abs(flat) @ (jnp.abs(x) + radius).reshape(-1)
    kernels = [layer.kernel for layer in layers if layer.kernel is not None]
    terms = sum(bounds.low.size for bounds in at_x) + sum(k.size // min(k.shape[-2:]) for k in kernels)  # and fans
    gaps = flat @ x.reshape(-1) + bound.offset - rounding_error(terms) * size
    return _nearest(gaps, jax.vmap(norm.dual_size)(bound.coefficients) * (1 + rounding_error(x.size)), others)


def _affine_distance(reached: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Exact up to rounding, which needs a radius all the same."""
    radius = 2 * reached(jnp.zeros((), jnp.float64))
    return jnp.minimum(radius, reached(radius))


def _search(reached: Callable[[jax.Array], jax.Array], guess: jax.Array, radius: float, num_steps: int) -> jax.Array:
    """The largest min(r, reached(r)) met on the way to the fixed point of ``reached``, which falls as r grows.

    So r and reached(r) lie on both sides of it. Every ball that is tried certifies what it reaches: nothing rests on
    the search having come to an end.
    """

    def step(_: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        r, best, low, high = state
        found = reached(r)
        best = jnp.maximum(best, jnp.minimum(r, found))
        low, high = jnp.maximum(low, best), jnp.minimum(high, jnp.maximum(r, found))
        return jnp.sqrt(low * high), best, low, high

    start = guess, jnp.zeros_like(guess), guess * _BELOW_GUESS, jnp.full_like(guess, radius)
    best: jax.Array = jax.lax.fori_loop(0, num_steps, step, start)[1]
    return best
