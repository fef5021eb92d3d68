"""Margins of single examples, and what a set of them says.

The margin of (x, y) is the distance from x to the decision boundary, positive where the prediction is right and
negative where it is wrong (Wu and Yu 2019, section 2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin import checks
from jaxmargin.norms import Norm, l2
from jaxmargin.types import LogitsFn

__all__ = [
    "Margins", "Summary", "distance_to_boundary", "gap_over_slope", "histogram", "linear_margin", "signed", "summarize",
]  # fmt: skip


class Margins(NamedTuple):
    """Margins of one example, or of n stacked along the first axis.

    Attributes:
      margin: signed distance in input units, > 0 only where the prediction is right.
      predicted: the predicted class.
      capped: True where the bound reached the radius of the ball, so that the distance may be larger.
      lipschitz: [c] constants L_k of f_predicted - f_k, 0 at k = predicted. Of a class that cannot decide the margin it
        is the largest gradient norm of the samples that showed so.
      rivals: number of classes that saw all samples.
      flagged: True where a class left behind came too close, so that all were run to the end.
      samples: number of samples that the margin rests on.
      remainder: by how much the margin is expected to fall, at most, if samples went on to num_samples.
    """

    margin: jax.Array
    predicted: jax.Array
    capped: jax.Array
    lipschitz: jax.Array
    rivals: jax.Array | None = None
    flagged: jax.Array | None = None
    samples: jax.Array | None = None
    remainder: jax.Array | None = None


class Summary(NamedTuple):
    """What a set of margins says, five scalars.

    Attributes:
      minimum: smallest signed margin.
      average: mean of the signed margins.
      average_unsigned: mean of the distances |margin|, the "Avg Margin" of Table 1 of Wu and Yu.
      accuracy: share of margins above 0.
      capped_fraction: share of margins cut at the radius.
    """

    minimum: jax.Array
    average: jax.Array
    average_unsigned: jax.Array
    accuracy: jax.Array
    capped_fraction: jax.Array


def gap_over_slope(gaps: jax.Array, slopes: jax.Array) -> jax.Array:
    """The distance at which a class could catch up: 0 for a tie, infinite where nothing moves, NaN of NaN.

    Args:
      gaps: [m] how far classes are behind.
      slopes: [m] how fast they can catch up.

    Returns:
      [m] distances in units of the input.
    """
    flat = slopes <= 0
    return jnp.where(gaps <= 0, 0.0, jnp.where(flat, jnp.inf, gaps / jnp.where(flat, 1.0, slopes)))


def distance_to_boundary(logits: jax.Array, predicted: jax.Array, constants: jax.Array) -> jax.Array:
    """min_{k != predicted} (f_predicted - f_k) / L_k; a tie is at distance 0, a flat difference infinitely far.

    Args:
      logits: [c].
      predicted: the class whose region ends there.
      constants: [c], L_k of f_predicted - f_k; that of the predicted class does not matter.

    Returns:
      A distance in units of the input; NaN where a logit or constant is.
    """
    ratio = gap_over_slope(logits[predicted] - logits, constants)  # [c]
    least = jnp.min(jnp.where(jnp.arange(len(logits)) == predicted, jnp.inf, ratio))
    return jnp.where(jnp.isnan(ratio).any(), jnp.nan, least)  # a minimum may pass over a NaN


def signed(distance: jax.Array, predicted: jax.Array, y: jax.Array) -> jax.Array:
    """The margin of a distance: positive where the prediction is right, negative where it is wrong.

    Args:
      distance: to the boundary, >= 0.
      predicted: the predicted class.
      y: the class.

    Returns:
      The signed margin.
    """
    return jnp.where(predicted == y, distance, -distance)


def linear_margin(logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, *, norm: Norm = l2) -> Margins:
    """The exact margin of an affine classifier: sign * min_{k != p} (f_p - f_k)(x) / ||w_p - w_k||_*.

    Args:
      logits_fn: an affine map x -> logits [c]; for any other the result is its linearisation at x.
      key: unused, there so that all measures are called alike.
      x: one example, [*d].
      y: its class.
      norm: the norm that measures the distance.

    Returns:
      Margins of one example; capped is never True, and a class that no step can reach is infinitely far.

    Raises:
      ValueError: logits that are not [c] or have c = 1.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> linear_margin(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 1).margin
    Array(-1., dtype=float32)
    """
    checks.example(x)
    checks.label(y)
    checks.norm(norm)
    checks.class_of("y", y, checks.logits(logits_fn, x))
    with jax.default_matmul_precision("float32"):
        logits = logits_fn(x)  # [c]
        jacobian = jax.jacrev(logits_fn)(x)  # [c, *d]
    predicted = jnp.argmax(logits)
    constants = jax.vmap(norm.dual_size)(jacobian[predicted][None] - jacobian)  # [c]
    distance = distance_to_boundary(logits, predicted, constants)
    no = jnp.zeros((), bool)
    counts = jnp.array(len(logits) - 1), no, jnp.array(1), jnp.zeros((), distance.dtype)
    return Margins(signed(distance, predicted, y), predicted, no, constants, *counts)


def summarize(margins: Margins) -> Summary:
    """Minimum, averages, accuracy and capped share of n margins.

    Args:
      margins: Margins with fields of length n.

    Returns:
      Summary.

    Raises:
      ValueError: no margins, or NaN among them. An infinite one makes the averages infinite.

    >>> import jax.numpy as jnp
    >>> m = jnp.array([1.0, -0.5, 1.5])
    >>> summarize(Margins(m, jnp.zeros(3, int), m > 1.25, jnp.ones((3, 2)))).average_unsigned
    Array(1., dtype=float32)
    """
    margin = _margin_of(margins)
    if checks.concrete(margin) and np.isnan(np.asarray(margin)).any():
        raise ValueError("margins.margin holds NaN: of such margins there is no minimum, average or accuracy")
    if checks.concrete(margin) and np.isin([np.inf, -np.inf], np.asarray(margin)).all():
        raise ValueError("margins.margin holds inf and -inf: they have no average, drop one of them and say how many")
    return Summary(
        minimum=jnp.min(margin),
        average=jnp.mean(margin),
        average_unsigned=jnp.mean(jnp.abs(margin)),
        accuracy=jnp.mean(margin > 0),
        capped_fraction=jnp.mean(margins.capped),
    )


def histogram(
    margins: Margins, bins: int = 50, bounds: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of signed margins in equal bins.

    Args:
      margins: Margins with fields of length n.
      bins: number of bins.
      bounds: (low, high) of the first and last edge; None takes the smallest and largest margin.

    Returns:
      (counts [bins], edges [bins + 1]).

    Raises:
      ValueError: no margins, or some that are not finite, as an exact margin can be.

    >>> import jax.numpy as jnp
    >>> m = jnp.array([0.1, 0.2, 0.9])
    >>> histogram(Margins(m, m, m, m), bins=2, bounds=(0.0, 1.0))[0]
    array([2, 1])
    """
    checks.whole("bins", bins)
    if bins > 1_000_000:
        raise ValueError(f"bins={bins} is more than a histogram can show: pass at most 1,000,000")
    margin = np.asarray(_margin_of(margins))
    if not np.isfinite(margin).all():
        raise ValueError("margins are not all finite: drop the infinite ones, and say how many, before a histogram")
    return np.histogram(margin, bins=bins, range=bounds)


def _margin_of(margins: Margins) -> jax.Array:
    """The margins [n], n >= 1."""
    if not hasattr(margins, "margin"):
        name = type(margins).__name__
        raise ValueError(f"margins is {name}: pass what over_batch(lipschitz_margin, ...) returns, Margins")
    if jnp.ndim(margins.margin) != 1 or not len(margins.margin):
        shape = jnp.shape(margins.margin)
        raise ValueError(f"margins.margin has shape {shape}: expected [n], n >= 1, as over_batch returns")
    return margins.margin
