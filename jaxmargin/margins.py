"""Margins of single examples, and what a set of them says.

The margin of (x, y) is the distance from x to the decision boundary, positive where the prediction is right and
negative where it is wrong (Wu and Yu 2019, section 2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin import checks
from jaxmargin.lipschitz import cross_lipschitz, leads
from jaxmargin.norms import Norm, l2
from jaxmargin.rivals import gap_over_slope
from jaxmargin.together import Together

__all__ = ["Margins", "Summary", "histogram", "linear_margin", "lipschitz_margin", "summarize"]


class Margins(NamedTuple):
    """Margins of one example, or of n stacked along the first axis.

    Attributes:
      margin: signed distance in input units, > 0 only where the prediction is right.
      predicted: the predicted class.
      capped: True where the bound reached the radius of the ball, so that the distance may be larger.
      lipschitz: [c] constants L_k of f_predicted - f_k, 0 at k = predicted. Of a class that cannot decide the margin it
        is the largest slope of the samples that showed so.
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


def lipschitz_margin(
    logits_fn: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    radius: float = 5.0,
    num_samples: int = 51_200,
    chunk_size: int | None = None,
    box: tuple[float, float] | None = None,
    exact: bool = False,
    tolerance: float | None = None,
    precision: str = "float32",
) -> Margins:
    """The sampled Lipschitz margin: sign * min{ min_{k != p} (f_p - f_k)(x) / L_k, radius }, p the predicted class.

    With the true constants this is a lower bound of the distance; with sampled ones it is an estimate. Unless
    ``exact``, only the classes that can still decide the minimum are sampled to the end, which gives the same margin
    several times faster (``rivals`` says how); that form has no reverse-mode derivative.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key; all points measured with it share their samples.
      x: one example, [*d].
      y: its class.
      norm: the norm that measures the distance.
      radius: of the ball in which slopes are sampled, and the largest margin that can come out.
      num_samples: number of sampled points.
      chunk_size: points held in memory at once, a divisor of num_samples; None chooses one.
      box: (low, high) clips the sampled points to valid inputs.
      exact: whether all classes see all samples.
      tolerance: in input units; sampling stops once the margin is not expected to fall by more until num_samples. None
        samples them all.
      precision: of the products behind the slopes, as in ``jax.default_matmul_precision``; "tensorfloat32" and
        "bfloat16" are faster on accelerators. Logits are always float32.

    Returns:
      Margins of one example.

    Raises:
      ValueError: radius or tolerance <= 0, num_samples not a multiple of chunk_size, logits that are not [c] or have
        c = 1, an unknown precision.

    Reference:
      Wu and Yu 2019, eq. (3); Hein and Andriushchenko 2017, theorem 2.1.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> lipschitz_margin(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0, num_samples=64).margin
    Array(1., dtype=float32)
    """
    options: dict[str, Any] = dict(norm=norm, radius=radius, num_samples=num_samples, chunk_size=chunk_size, box=box)
    options |= dict(exact=exact, tolerance=tolerance, precision=precision)
    return _TOGETHER.alone(logits_fn, key, x, y, **options)


def _together(
    logits_fn: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    indices: jax.Array,
    xs: jax.Array,
    ys: jax.Array,
    asked: jax.Array,
    *,
    radius: float,
    **options: Any,
) -> Margins:
    """``lipschitz_margin`` of b examples, which share their samples."""
    del indices
    checks.logits(logits_fn, xs[0])
    logits, predicted, gaps = leads(logits_fn, xs)
    found = cross_lipschitz(logits_fn, key, xs, predicted, gaps, radius=radius, asked=asked, **options)
    distance = jax.vmap(_distance)(logits, predicted, found.largest)  # [b]
    margin = jax.vmap(_signed)(jnp.minimum(distance, radius), predicted, ys)
    samples = jnp.max(found.seen, 1)  # [b]
    rivals = jnp.sum(found.seen == samples[:, None], 1) - 1
    return Margins(
        margin, predicted, distance >= radius, found.largest, rivals, found.flagged, samples, found.remainder
    )


# In batches of 16 what the examples share costs little, and a call does not take too long.
_TOGETHER = Together(_together, batch_size=lambda: 16, divides_samples=True)
lipschitz_margin.together = _TOGETHER  # type: ignore[attr-defined]


def linear_margin(
    logits_fn: Callable[[jax.Array], jax.Array], key: jax.Array, x: jax.Array, y: jax.Array, *, norm: Norm = l2
) -> Margins:
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
    checks.logits(logits_fn, x)
    with jax.default_matmul_precision("float32"):
        logits = logits_fn(x)  # [c]
        jacobian = jax.jacrev(logits_fn)(x)  # [c, *d]
    predicted = jnp.argmax(logits)
    constants = jax.vmap(norm.dual_size)(jacobian[predicted][None] - jacobian)  # [c]
    distance = _distance(logits, predicted, constants)
    no = jnp.zeros((), bool)
    counts = jnp.array(len(logits) - 1), no, jnp.array(1), jnp.zeros((), distance.dtype)
    return Margins(_signed(distance, predicted, y), predicted, no, constants, *counts)


def summarize(margins: Margins) -> Summary:
    """Minimum, averages, accuracy and capped share of n margins.

    Args:
      margins: Margins with fields of length n.

    Returns:
      Summary.

    Raises:
      ValueError: no margins.

    >>> import jax.numpy as jnp
    >>> m = jnp.array([1.0, -0.5, 1.5])
    >>> summarize(Margins(m, jnp.zeros(3, int), m > 1.25, jnp.ones((3, 2)))).average_unsigned
    Array(1., dtype=float32)
    """
    margin = margins.margin
    if jnp.ndim(margin) != 1 or margin.shape[0] == 0:
        raise ValueError(f"margins.margin has shape {jnp.shape(margin)}: expected [n], n >= 1, as over_batch returns")
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
      ValueError: margins that are not finite, as an exact margin can be.

    >>> import jax.numpy as jnp
    >>> m = jnp.array([0.1, 0.2, 0.9])
    >>> histogram(Margins(m, m, m, m), bins=2, bounds=(0.0, 1.0))[0]
    array([2, 1])
    """
    checks.whole("bins", bins)
    margin = np.asarray(margins.margin)
    if not np.isfinite(margin).all():
        raise ValueError("margins are not all finite: drop the infinite ones, and say how many, before a histogram")
    return np.histogram(margin, bins=bins, range=bounds)


def _distance(logits: jax.Array, predicted: jax.Array, constants: jax.Array) -> jax.Array:
    """min_{k != predicted} (f_predicted - f_k) / L_k; a tie is at distance 0, a flat difference infinitely far."""
    ratio = gap_over_slope(logits[predicted] - logits, constants)  # [c]
    least = jnp.min(jnp.where(jnp.arange(len(logits)) == predicted, jnp.inf, ratio))
    return jnp.where(jnp.isnan(ratio).any(), jnp.nan, least)  # a minimum may pass over a NaN


def _signed(distance: jax.Array, predicted: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(predicted == y, distance, -distance)
