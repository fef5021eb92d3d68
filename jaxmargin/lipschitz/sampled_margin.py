"""The sampled Lipschitz margin: the distance at which a class could catch up, were it as steep as samples show."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.batching.rules import Batch, batch_rule, single_example
from jaxmargin.lipschitz.constants import cross_lipschitz, leads
from jaxmargin.lipschitz.gradient_norms import GradientNorms
from jaxmargin.lipschitz.sampling import Sampling
from jaxmargin.margins import Margins, distance_to_boundary, signed
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn

__all__ = ["lipschitz_margin", "margins_of_batch"]


def margins_of_batch(
    logits_fn: LogitsFn,
    key: jax.Array,
    batch: Batch,
    sampling: Sampling,
    *,
    view: Callable[[GradientNorms], GradientNorms] | None = None,
) -> Margins:
    """``lipschitz_margin`` of b examples, which share their samples.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key.
      batch: the examples.
      sampling: of the balls around them.
      view: as in ``cross_lipschitz``.

    Returns:
      Margins with fields of length b.

    Raises:
      ValueError: see ``lipschitz_margin``.
    """
    checks.logits(logits_fn, batch.xs[0])
    logits, predicted, gaps = leads(logits_fn, batch.xs)
    found = cross_lipschitz(logits_fn, key, batch.xs, predicted, gaps, sampling, valid=batch.valid, view=view)
    distance = jax.vmap(distance_to_boundary)(logits, predicted, found.largest)  # [b]
    margin = jax.vmap(signed)(jnp.minimum(distance, sampling.radius), predicted, batch.ys)
    samples = jnp.max(found.seen, 1)  # [b]
    candidates = jnp.sum(found.seen == samples[:, None], 1) - 1
    capped = distance >= sampling.radius
    return Margins(margin, predicted, capped, found.largest, candidates, found.flagged, samples, found.remainder)


def _of_batch(logits_fn: LogitsFn, key: jax.Array, batch: Batch, **options: Any) -> Margins:
    return margins_of_batch(logits_fn, key, batch, Sampling(**options))


# In batches of 16 what the examples share costs little, and a call does not take too long.
@batch_rule(_of_batch, batch_size=lambda: 16, divides_samples=True)
def lipschitz_margin(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    radius: float = 5.0,
    num_samples: int = 51_200,
    chunk_size: int | None = None,
    box: Box | None = None,
    exact: bool = False,
    tolerance: float | None = None,
    precision: str = "float32",
) -> Margins:
    """The sampled Lipschitz margin: sign * min{ min_{k != p} (f_p - f_k)(x) / L_k, radius }, p the predicted class.

    With the true constants this is a lower bound of the distance; with sampled ones it is an estimate. Unless
    ``exact``, only the classes that can still decide the minimum are sampled to the end, which gives the same margin
    several times faster (``elimination`` says how); that form has no reverse-mode derivative.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key; all points measured with it share their samples.
      x: one example, [*d].
      y: its class.
      norm: the norm that measures the distance.
      radius: of the ball in which gradients are sampled, and the largest margin that can come out.
      num_samples: number of sampled points.
      chunk_size: points held in memory at once, a divisor of num_samples; None chooses one.
      box: (low, high) clips the sampled points to valid inputs.
      exact: whether all classes see all samples.
      tolerance: in input units; sampling stops once the margin is not expected to fall by more until num_samples. None
        samples them all.
      precision: of the products behind the gradients, as in ``jax.default_matmul_precision``; "tensorfloat32" and
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
    return single_example(
        _of_batch, logits_fn, key, x, y, norm=norm, radius=radius, num_samples=num_samples, chunk_size=chunk_size,
        box=box, exact=exact, tolerance=tolerance, precision=precision,
    )  # fmt: skip
