"""The largest gradient norm of each block of samples around a point, from which ``clever_score`` makes its scores."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.batching.rules import Batch, batch_rule, single_example
from jaxmargin.lipschitz.constants import cross_lipschitz, leads
from jaxmargin.lipschitz.gradient_norms import GradientNorms
from jaxmargin.lipschitz.sampling import Sampling, default_chunk_size
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn

__all__ = ["BlockMaxima", "block_maxima"]


class BlockMaxima(NamedTuple):
    """The largest gradient norms in blocks of samples around one example, or around n stacked along the first axis.

    Attributes:
      maxima: [num_blocks, c] of the gradient norms of f_predicted - f_k, 0 at k = predicted.
      predicted: the predicted class.
      gaps: [c] f_predicted - f_k at the example.
    """

    maxima: jax.Array
    predicted: jax.Array
    gaps: jax.Array


def _of_batch(
    logits_fn: LogitsFn,
    key: jax.Array,
    batch: Batch,
    *,
    num_blocks: int,
    block_size: int,
    chunk_size: int | None,
    **options: Any,
) -> BlockMaxima:
    """``block_maxima`` of b examples, which share their samples."""
    checks.logits(logits_fn, batch.xs[0])
    checks.whole("num_blocks", num_blocks)
    checks.whole("block_size", block_size)
    if chunk_size is None:
        chunk_size = default_chunk_size(block_size, batch.xs[0].size, name="block_size")
    checks.whole("chunk_size", chunk_size)
    checks.divisible("block_size", block_size, "chunk_size", chunk_size)
    sampling = Sampling(num_samples=block_size, chunk_size=chunk_size, exact=True, **options)
    _, predicted, gaps = leads(logits_fn, batch.xs)

    def block(first: jax.Array) -> jax.Array:
        def later(norms: GradientNorms) -> GradientNorms:
            return norms._replace(perturbations=lambda indices: norms.perturbations(first + indices))

        found = cross_lipschitz(logits_fn, key, batch.xs, predicted, gaps, sampling, valid=batch.valid, view=later)
        return found.largest  # [b, c]

    maxima = jax.lax.map(block, jnp.arange(num_blocks) * block_size)  # [num_blocks, b, c]
    return BlockMaxima(jnp.moveaxis(maxima, 0, 1), predicted, gaps)


@batch_rule(_of_batch, batch_size=lambda: 16, divides_samples=True)
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
    box: Box | None = None,
    precision: str = "float32",
) -> BlockMaxima:
    """The largest gradient norm of every class in each of num_blocks blocks of samples, what ``clever`` is made from.

    Block j holds samples j * block_size, j * block_size + 1, ...: those of ``lipschitz_margin`` with the same key,
    whose constants (``exact=True``) are the largest of the blocks'.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key; all points measured with it share their samples.
      x: one example, [*d].
      y: its class, unused, there so that all measures are called alike.
      norm: the norm that measures the distance.
      radius: of the ball in which gradients are sampled.
      num_blocks: number of blocks.
      block_size: samples in a block.
      chunk_size: points held in memory at once, a divisor of block_size; None chooses one.
      box: (low, high) clips the sampled points to valid inputs, as CLEVER does.
      precision: of the products behind the gradients, as in ``jax.default_matmul_precision``.

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
    return single_example(
        _of_batch, logits_fn, key, x, y, norm=norm, radius=radius, num_blocks=num_blocks, block_size=block_size,
        chunk_size=chunk_size, box=box, precision=precision,
    )  # fmt: skip
