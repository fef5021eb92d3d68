"""Local cross-Lipschitz constants, estimated as the largest gradient over random points of a ball.

Every estimate here is a maximum over samples: it can only be too small, so the margins made from it are estimates and
not certificates.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.norms import Norm, l2

__all__ = ["default_chunk_size", "default_rows", "local_lipschitz", "stable_rows"]

# Gradient entries held at once when the caller names no chunk_size: 64 MiB of float32.
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
      chunk_size: points held in memory at once, a divisor of num_samples; None chooses one. Where 64 MiB hold them,
        chunks of fewer points than ``stable_rows`` are filled up with repeated ones.
      box: (low, high) clips the points to valid inputs, as CLEVER does; None samples the whole ball.

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
    checks.positive("radius", radius)
    checks.whole("num_samples", num_samples)
    num_classes = checks.logits(logits_fn, x)
    checks.box(box)
    entries = (num_classes - 1) * x.size  # of one sample's gradients
    if chunk_size is None:
        chunk_size = default_chunk_size(num_samples, entries)
    checks.whole("chunk_size", chunk_size)
    checks.divisible("num_samples", num_samples, "chunk_size", chunk_size)

    others = (reference + 1 + jnp.arange(num_classes - 1)) % num_classes  # [c - 1]
    differences = jax.nn.one_hot(reference, num_classes)[None] - jax.nn.one_hot(others, num_classes)  # [c - 1, c]

    def sample(index: jax.Array) -> jax.Array:
        offset = (radius * norm.sample_ball(jax.random.fold_in(key, index), x.shape)).astype(x.dtype)  # [*d]
        return x + offset if box is None else jnp.clip(x + offset, *box)

    def slopes(index: jax.Array) -> jax.Array:
        logits, pullback = jax.vjp(logits_fn, sample(index))
        (gradients,) = jax.vmap(pullback)(differences.astype(logits.dtype))  # [c - 1, *d]
        return jax.vmap(norm.dual_size)(gradients)  # [c - 1]

    fill = stable_rows(x.size)
    rows = max(chunk_size, fill) if fill * entries <= _CHUNK_ENTRIES else chunk_size

    def chunk(i: jax.Array, largest: jax.Array) -> jax.Array:
        indices = jnp.minimum(i * rows + jnp.arange(rows), num_samples - 1)  # [s]
        values = jax.vmap(slopes)(indices).astype(largest.dtype)  # [s, c - 1]
        # A maximum may pass over a NaN, so it is put back by hand.
        return jnp.where(jnp.isnan(values).any(0) | jnp.isnan(largest), jnp.nan, jnp.maximum(largest, values.max(0)))

    with jax.default_matmul_precision("float32"):
        start = jnp.zeros(num_classes - 1, jnp.promote_types(x.dtype, jnp.float32))
        largest = jax.lax.fori_loop(0, -(-num_samples // rows), chunk, start)  # [c - 1]
    return jnp.zeros(num_classes, largest.dtype).at[others].set(largest)


def default_chunk_size(num_samples: int, entries: int) -> int:
    """The largest divisor of num_samples that keeps the device busy and its gradients, ``entries`` a sample, small.

    Args:
      num_samples: number of samples.
      entries: numbers held for one sample, (c - 1) times the size of the input.

    Returns:
      A divisor of num_samples, at most ``default_rows()``.

    Raises:
      ValueError: num_samples is (nearly) prime, so that only tiny chunks would divide it.

    >>> default_chunk_size(51_200, 9 * 784) % 64
    0
    """
    most = max(1, min(default_rows(), _CHUNK_ENTRIES // entries, num_samples))
    size = next(size for size in range(most, 0, -1) if num_samples % size == 0)
    if size < most / 8:
        raise ValueError(
            f"num_samples={num_samples} has no divisor between {-(-most // 8)} and {most} to be a chunk_size: pass"
            f" num_samples={-(-num_samples // most) * most}"
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


def default_rows() -> int:
    """Rows of a matrix product that keep the default device busy: few on a CPU, whose caches are small.

    Returns:
      256 on a CPU, 8,192 elsewhere.
    """
    return 256 if jax.default_backend() == "cpu" else 8192
