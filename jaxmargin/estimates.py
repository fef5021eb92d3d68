"""Two further measures of slopes around a point, beside ``margins.lipschitz_margin``, over samples drawn as its are.

``block_maxima`` keeps the largest slope of each block of samples, for ``endpoints.clever``. ``radial_margin`` uses that
a steep place matters only if it is nearer than the boundary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.lipschitz import cross_lipschitz, default_chunk_size, leads
from jaxmargin.margins import Margins, lipschitz_margin
from jaxmargin.norms import Norm, l2, radial
from jaxmargin.slopes import Slopes
from jaxmargin.together import Together

__all__ = ["BlockMaxima", "block_maxima", "radial_margin"]

LogitsFn = Callable[[jax.Array], jax.Array]


class BlockMaxima(NamedTuple):
    """The largest slopes in blocks of samples around one example, or around n stacked along the first axis.

    Attributes:
      maxima: [num_blocks, c] of the slopes of f_predicted - f_k, 0 at k = predicted.
      predicted: the predicted class.
      gaps: [c] f_predicted - f_k at the example.
    """

    maxima: jax.Array
    predicted: jax.Array
    gaps: jax.Array


def block_maxima(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    radius: float = 5.0,
    num_blocks: int = 50,
    block_size: int = 1024,
    chunk_size: int | None = None,
    box: tuple[float, float] | None = None,
    precision: str = "float32",
) -> BlockMaxima:
    """The largest slope of every class in each of num_blocks blocks of samples, what ``clever`` is made from.

    Block j holds samples j * block_size, j * block_size + 1, ...: those of ``lipschitz_margin`` with the same key,
    whose constants (``exact=True``) are the largest of the blocks'.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key; all points measured with it share their samples.
      x: one example, [*d].
      y: its class, unused, there so that all measures are called alike.
      norm: the norm that measures the distance.
      radius: of the ball in which slopes are sampled.
      num_blocks: number of blocks.
      block_size: samples in a block.
      chunk_size: points held in memory at once, a divisor of block_size; None chooses one.
      box: (low, high) clips the sampled points to valid inputs, as CLEVER does.
      precision: of the products behind the slopes, as in ``jax.default_matmul_precision``.

    Returns:
      BlockMaxima of one example.

    Raises:
      ValueError: as ``lipschitz_margin``; block_size not a multiple of chunk_size.

    Reference:
      Weng et al. 2018, "Evaluating the robustness of neural networks: an extreme value theory approach", algorithm 1.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> found = block_maxima(lambda x: w @ x, jax.random.key(0), jnp.zeros(2), 0, num_blocks=2, block_size=64)
    >>> found.maxima
    Array([[0., 5.],
           [0., 5.]], dtype=float32)
    """
    options: dict[str, Any] = dict(norm=norm, radius=radius, num_blocks=num_blocks, block_size=block_size)
    options |= dict(chunk_size=chunk_size, box=box, precision=precision)
    return _BLOCKS_TOGETHER.alone(logits_fn, key, x, y, **options)


def _blocks_together(
    logits_fn: LogitsFn,
    key: jax.Array,
    indices: jax.Array,
    xs: jax.Array,
    ys: jax.Array,
    asked: jax.Array,
    *,
    num_blocks: int,
    block_size: int,
    chunk_size: int | None,
    **options: Any,
) -> BlockMaxima:
    """``block_maxima`` of b examples, which share their samples."""
    del indices
    checks.logits(logits_fn, xs[0])
    checks.whole("num_blocks", num_blocks)
    checks.whole("block_size", block_size)
    if chunk_size is None:
        chunk_size = default_chunk_size(block_size, xs[0].size, name="block_size")
    checks.whole("chunk_size", chunk_size)
    checks.divisible("block_size", block_size, "chunk_size", chunk_size)
    _, predicted, gaps = leads(logits_fn, xs)

    def block(first: jax.Array) -> jax.Array:
        def later(slopes: Slopes) -> Slopes:
            return slopes._replace(rays=lambda indices: slopes.rays(first + indices))

        sizes: dict[str, Any] = dict(num_samples=block_size, chunk_size=chunk_size)
        found = cross_lipschitz(
            logits_fn, key, xs, predicted, gaps, asked=asked, exact=True, view=later, **sizes, **options
        )
        return found.largest  # [b, c]

    maxima = jax.lax.map(block, jnp.arange(num_blocks) * block_size)  # [num_blocks, b, c]
    return BlockMaxima(jnp.moveaxis(maxima, 0, 1), predicted, gaps)


_BLOCKS_TOGETHER = Together(_blocks_together, batch_size=lambda: 16, divides_samples=True)
block_maxima.together = _BLOCKS_TOGETHER  # type: ignore[attr-defined]


def radial_margin(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    radius: float = 5.0,
    num_samples: int = 51_200,
    chunk_size: int | None = None,
    box: tuple[float, float] | None = None,
    exact: bool = True,
    precision: str = "float32",
) -> Margins:
    """The sampled Lipschitz margin of the best radius: sign * max_{R <= radius} min{ min_{k != p} gap_k / L_k(R), R }.

    gap_k = (f_p - f_k)(x), and L_k(R) is the largest slope at samples nearer than R. Samples are ``norms.radial``, all
    distances alike, and the first one is x itself. A sample at distance r and of slope s bounds the distance at which
    class k catches up by max(r, gap_k / s), since radii up to r do not meet it; so no radius need be tried: the largest
    min(s, gap_k / r) of the samples is a constant L_k that gives the same. Never less than the bound from all of the
    samples at R = radius.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key; all points measured with it share their samples.
      x: one example, [*d].
      y: its class.
      norm: the norm that measures the distance.
      radius: the largest distance of a sample, and the largest margin that can come out.
      num_samples: number of sampled points.
      chunk_size: points held in memory at once, a divisor of num_samples; None chooses one.
      box: (low, high) clips the sampled points to valid inputs.
      exact: whether all classes see all samples. False follows only those that seem able to decide, several times
        faster; but slopes cut by their distances grow unlike those that ``rivals`` foresees, so that the margin can
        come out larger (by 3 % at one of 225 points of tiny networks).
      precision: of the products behind the slopes, as in ``jax.default_matmul_precision``.

    Returns:
      Margins of one example: lipschitz holds the smallest constants L_k that no sample nearer than gap_k / L_k exceeds,
      so that margin, capped and the other fields follow from them as in ``lipschitz_margin``.

    Raises:
      ValueError: as ``lipschitz_margin``.

    Reference:
      Hein and Andriushchenko 2017, theorem 2.1, with its maximum over the radius.

    >>> import jax, jax.numpy as jnp
    >>> steep_at_2 = lambda x: jnp.stack([1 - x[0] - 9 * jax.nn.relu(x[0] - 2), 0 * x[0]])
    >>> for measure in (lipschitz_margin, radial_margin):
    ...     print(measure(steep_at_2, jax.random.key(0), jnp.zeros(1), 0, num_samples=1024).margin)
    0.1
    1.0
    """
    options: dict[str, Any] = dict(norm=norm, radius=radius, num_samples=num_samples, chunk_size=chunk_size, box=box)
    return _RADIAL_TOGETHER.alone(logits_fn, key, x, y, **options, exact=exact, precision=precision)


def _radial_together(
    logits_fn: LogitsFn,
    key: jax.Array,
    indices: jax.Array,
    xs: jax.Array,
    ys: jax.Array,
    asked: jax.Array,
    *,
    norm: Norm,
    box: tuple[float, float] | None,
    **options: Any,
) -> Margins:
    """``radial_margin`` of b examples, which share their samples."""

    def view(slopes: Slopes) -> Slopes:
        return _within_reach(slopes, logits_fn, norm, box)

    options |= dict(norm=radial(norm), box=box, tolerance=None, view=view)
    together = lipschitz_margin.together  # type: ignore[attr-defined]
    return together.run(logits_fn, key, indices, xs, ys, asked, **options)


_RADIAL_TOGETHER = Together(_radial_together, batch_size=lambda: 16, divides_samples=True)
radial_margin.together = _RADIAL_TOGETHER  # type: ignore[attr-defined]


def _within_reach(slopes: Slopes, logits_fn: LogitsFn, norm: Norm, box: tuple[float, float] | None) -> Slopes:
    """min(slope, gap / distance of the sample) instead of slopes, the first sample moved to the point itself."""

    def rays(indices: jax.Array) -> Any:
        moved = jax.vmap(lambda index, leaf: jnp.where(index > 0, leaf, 0.0))
        offsets = moved(indices, slopes.offsets(indices))  # [s, *d]
        return moved(indices, slopes.rays(indices)), jax.vmap(norm.size)(offsets) if box is None else offsets

    def anchor(x: jax.Array) -> Any:
        with jax.default_matmul_precision("float32"):
            logits = logits_fn(x)  # [c]
        return slopes.anchor(x), x, logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def sizes(anchor: Any, rays: Any) -> Callable[[jax.Array], jax.Array]:
        inner, x, logits = anchor
        shared, away = rays
        lengths = away if box is None else jax.vmap(lambda u: norm.size(jnp.clip(x + u, *box) - x))(away)  # [s]
        size = slopes.sizes(inner, shared)

        def reaching(v: jax.Array) -> jax.Array:
            gap = jnp.sum(v * logits)  # not a product of low precision
            apart = lengths > 0
            most = jnp.where(apart, gap / jnp.where(apart, lengths, 1.0), jnp.inf)
            return jnp.minimum(size(v), most)

        return reaching

    return slopes._replace(rays=rays, anchor=anchor, sizes=sizes)
