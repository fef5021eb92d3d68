"""Local cross-Lipschitz constants, estimated as the largest gradient over random points of a ball.

Every estimate here is a maximum over samples: it can only be too small, so the margins made from it are estimates and
not certificates.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.lipschitz.elimination import LargestNorms, largest_norms
from jaxmargin.lipschitz.gradient_norms import GradientNorms, gradient_norms_of
from jaxmargin.lipschitz.sampler import Centre
from jaxmargin.lipschitz.sampling import Sampling
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn

__all__ = ["cross_lipschitz", "leads", "local_lipschitz"]


def local_lipschitz(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    reference: jax.Array,
    *,
    norm: Norm = l2,
    radius: float | jax.Array = 5.0,
    num_samples: int = 51_200,
    chunk_size: int | None = None,
    box: Box | None = None,
    precision: str = "float32",
) -> jax.Array:
    """L_k = max_i || grad f_reference(z_i) - grad f_k(z_i) ||_* over z_i uniform in the ball B(x, radius), for every k.

    Sample i is drawn with ``fold_in(key, i)``: more samples extend the old ones, so the estimate never falls, and
    the chunk size does not change which points are visited.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key.
      x: the centre, [*d].
      reference: the class all others are compared with, an integer.
      norm: the norm that measures the ball; gradients are measured by its dual.
      radius: of the ball, in units of the input.
      num_samples: number of points.
      chunk_size: points held in memory at once, a divisor of num_samples; None chooses one. Chunks of fewer points than
        ``stable_rows`` are filled up with repeated ones.
      box: (low, high) clips the points to valid inputs, as CLEVER does; None samples the whole ball.
      precision: of matrix products and convolutions, as in ``jax.default_matmul_precision``.

    Returns:
      [c] estimates, 0 at the reference class.

    Raises:
      ValueError: radius <= 0, num_samples not a multiple of chunk_size, logits that are not [c], a reference that is no
        class; under a trace such a one gives NaN.

    Reference:
      Wu and Yu 2019, section 4.1; Hein and Andriushchenko 2017, theorem 2.1.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> local_lipschitz(lambda x: w @ x, jax.random.key(0), jnp.zeros(2), 0, num_samples=64)
    Array([0., 5.], dtype=float32)
    """
    checks.example(x)
    checks.norm(norm)
    checks.key(key)
    num_classes = checks.logits(logits_fn, x)
    checks.class_of("reference", reference, num_classes)
    gaps = jnp.ones((1, num_classes), jnp.promote_types(x.dtype, jnp.float32))
    sampling = Sampling(norm, radius, num_samples, chunk_size, box, precision, exact=True)
    reference = jnp.asarray(reference)
    found = cross_lipschitz(logits_fn, key, x[None], reference[None], gaps, sampling).largest[0]
    return jnp.where((reference >= 0) & (reference < num_classes), found, jnp.nan)  # a traced one may be no class


def leads(logits_fn: LogitsFn, xs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which class leads at each of b points, and how far the others are behind.

    Args:
      logits_fn: x -> logits [c].
      xs: [b, *d] points.

    Returns:
      (logits [b, c], predicted [b], gaps [b, c]), gaps in float32 at least.
    """
    with jax.default_matmul_precision("float32"):
        logits = jax.lax.map(logits_fn, xs)  # [b, c]
    predicted = jnp.argmax(logits, 1)
    gaps = jax.vmap(lambda row, p: row[p] - row)(logits, predicted)  # [b, c]
    return logits, predicted, gaps.astype(jnp.promote_types(gaps.dtype, jnp.float32))


def cross_lipschitz(
    logits_fn: LogitsFn,
    key: jax.Array,
    xs: jax.Array,
    references: jax.Array,
    gaps: jax.Array,
    sampling: Sampling,
    *,
    valid: jax.Array | None = None,
    view: Callable[[GradientNorms], GradientNorms] | None = None,
) -> LargestNorms:
    """``local_lipschitz`` at b points that share their samples, of the classes that can decide the margin.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key.
      xs: [b, *d] the centres.
      references: [b] the class all others are compared with.
      gaps: [b, c] f_reference - f_k at the centres.
      sampling: of the balls.
      valid: [b] bool, False skips a centre; None for all.
      view: what is measured in place of the gradient norms, made from them; None measures them as they are.

    Returns:
      LargestNorms with fields stacked [b], largest and seen of shape [b, c]: 0 and what the others saw at the reference
      class.

    Raises:
      ValueError: see ``local_lipschitz``.
    """
    rows, least_rows = sampling.rows(xs[0].size)
    norm, radius, box = sampling.norm, sampling.radius, sampling.box
    with jax.default_matmul_precision(sampling.precision):
        norms = gradient_norms_of(logits_fn, key, xs.shape[1:], xs.dtype, norm=norm, radius=radius, box=box)
        norms = norms if view is None else view(norms)
        num_classes = gaps.shape[1]
        others = (references[:, None] + 1 + jnp.arange(num_classes - 1)[None]) % num_classes  # [b, c - 1]
        pairs = jax.nn.one_hot(references, num_classes)[:, None] - jax.nn.one_hot(others, num_classes)  # [b, c - 1, c]
        valid = jnp.ones(len(xs), bool) if valid is None else valid
        centres = Centre(jax.lax.map(norms.features, xs), pairs, jnp.take_along_axis(gaps, others, 1), valid)
        if norms.constant:
            sampling = sampling._replace(num_samples=1)
        found = largest_norms(norms, centres, sampling, rows=rows, least_rows=least_rows)

    def at_classes(values: jax.Array, references: jax.Array) -> jax.Array:
        blank = jnp.broadcast_to(references[:, None], gaps.shape)
        placed: jax.Array = jax.vmap(lambda row, at, value: row.at[at].set(value))(blank, others, values)
        return placed

    none = jnp.zeros(len(xs), found.largest.dtype)
    return found._replace(largest=at_classes(found.largest, none), seen=at_classes(found.seen, found.seen.max(1)))
