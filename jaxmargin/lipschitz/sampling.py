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
from jaxmargin.norms import Norm, l2

__all__ = ["cross_lipschitz", "default_chunk_size", "leads", "local_lipschitz", "stable_rows"]

# Entries of a chunk of samples held at once when the caller names no chunk_size: 64 MiB of float32.
_CHUNK_ENTRIES = 2**24


def local_lipschitz(
    logits_fn: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    x: jax.Array,
    reference: jax.Array,
    *,
    norm: Norm = l2,
    radius: float | jax.Array = 5.0,
    num_samples: int = 51_200,
    chunk_size: int | None = None,
    box: tuple[float, float] | None = None,
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
      ValueError: radius <= 0, num_samples not a multiple of chunk_size, logits that are not [c].

    Reference:
      Wu and Yu 2019, section 4.1; Hein and Andriushchenko 2017, theorem 2.1.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> local_lipschitz(lambda x: w @ x, jax.random.key(0), jnp.zeros(2), 0, num_samples=64)
    Array([0., 5.], dtype=float32)
    """
    checks.example(x)
    num_classes = checks.logits(logits_fn, x)
    gaps = jnp.ones((1, num_classes), jnp.promote_types(x.dtype, jnp.float32))
    found = cross_lipschitz(
        logits_fn, key, x[None], jnp.asarray(reference)[None], gaps, norm=norm, radius=radius, num_samples=num_samples,
        chunk_size=chunk_size, box=box, exact=True, precision=precision,
    )  # fmt: skip
    return found.largest[0]


def leads(logits_fn: Callable[[jax.Array], jax.Array], xs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
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
    logits_fn: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    xs: jax.Array,
    references: jax.Array,
    gaps: jax.Array,
    *,
    norm: Norm,
    radius: float | jax.Array,
    num_samples: int,
    chunk_size: int | None,
    box: tuple[float, float] | None,
    exact: bool,
    precision: str,
    tolerance: float | None = None,
    valid: jax.Array | None = None,
    axis_name: str | None = None,
    view: Callable[[GradientNorms], GradientNorms] | None = None,
) -> LargestNorms:
    """``local_lipschitz`` at b points that share their samples, of the classes that can decide the margin.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key.
      xs: [b, *d] the centres.
      references: [b] the class all others are compared with.
      gaps: [b, c] f_reference - f_k at the centres.
      norm: as in ``local_lipschitz``, and so are radius, num_samples, chunk_size, box and precision.
      radius: of the balls.
      num_samples: number of points in each ball.
      chunk_size: points held in memory at once.
      box: (low, high) of valid inputs.
      exact: whether all classes see all samples.
      precision: of products.
      tolerance: in units of the input; see ``elimination.largest_norms``.
      valid: [b] bool, False skips a centre; None for all.
      axis_name: of a mapped axis that shares the samples.
      view: what is measured in place of the gradient norms, made from them; None measures them as they are.

    Returns:
      LargestNorms with fields stacked [b], largest and seen of shape [b, c]: 0 and what the others
      saw at the reference class.

    Raises:
      ValueError: see ``local_lipschitz``.
    """
    checks.positive("radius", radius)
    checks.whole("num_samples", num_samples)
    checks.box(box)
    checks.precision(precision)
    if tolerance is not None:
        checks.positive("tolerance", tolerance)
    size = xs[0].size
    if chunk_size is None:
        chunk_size = default_chunk_size(num_samples, size)
    checks.whole("chunk_size", chunk_size)
    checks.divisible("num_samples", num_samples, "chunk_size", chunk_size)

    with jax.default_matmul_precision(precision):
        norms = gradient_norms_of(logits_fn, key, xs.shape[1:], xs.dtype, norm=norm, radius=radius, box=box)
        norms = norms if view is None else view(norms)
        num_classes = gaps.shape[1]
        others = (references[:, None] + 1 + jnp.arange(num_classes - 1)[None]) % num_classes  # [b, c - 1]
        pairs = jax.nn.one_hot(references, num_classes)[:, None] - jax.nn.one_hot(others, num_classes)  # [b, c - 1, c]
        valid = jnp.ones(len(xs), bool) if valid is None else valid
        centres = Centre(jax.lax.map(norms.features, xs), pairs, jnp.take_along_axis(gaps, others, 1), valid)
        least = stable_rows(size) if stable_rows(size) * size <= _CHUNK_ENTRIES else 1
        found = largest_norms(
            norms, centres, radius=radius, num_samples=1 if norms.constant else num_samples,
            rows=max(chunk_size, least), least_rows=least, exact=exact, tolerance=tolerance, axis_name=axis_name,
        )  # fmt: skip

    def at_classes(values: jax.Array, references: jax.Array) -> jax.Array:
        blank = jnp.broadcast_to(references[:, None], gaps.shape)
        return jax.vmap(lambda row, classes, value: row.at[classes].set(value))(blank, others, values)

    none = jnp.zeros(len(xs), found.largest.dtype)
    return found._replace(largest=at_classes(found.largest, none), seen=at_classes(found.seen, found.seen.max(1)))


def default_chunk_size(num_samples: int, entries: int, *, name: str = "num_samples") -> int:
    """The largest divisor of num_samples that keeps the device busy and its samples, ``entries`` each, small.

    Args:
      num_samples: number of samples.
      entries: numbers in one sample, the size of the input.
      name: what the caller's argument is called.

    Returns:
      A divisor of num_samples: at most 256 on a CPU, whose caches are small, and 1,024 elsewhere.

    Raises:
      ValueError: num_samples is (nearly) prime, so that only tiny chunks would divide it.

    >>> default_chunk_size(51_200, 784) % 64
    0
    """
    rows = 256 if jax.default_backend() == "cpu" else 1024
    most = max(1, min(rows, _CHUNK_ENTRIES // entries, num_samples))
    size = next(size for size in range(most, 0, -1) if num_samples % size == 0)
    if size < most / 8:
        raise ValueError(
            f"{name}={num_samples} has no divisor between {-(-most // 8)} and {most} to be a chunk_size: pass"
            f" {name}={-(-num_samples // most) * most}"
        )
    return size


def stable_rows(width: int) -> int:
    """Rows from which on the rounding of a row does not depend on how many others are computed with it.

    XLA's CPU backend compiles small matrix products (below 64 rows) and small loops (below 4,096 entries) in other
    forms than large ones, which sum in another order.

    Args:
      width: entries of the narrowest row.

    Returns:
      The number of rows.

    >>> stable_rows(784), stable_rows(10)
    (64, 410)
    """
    return max(64, -(-4096 // width))
