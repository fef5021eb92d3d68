"""Rows enough, and always as many: then the rounding of a row does not depend on how many others there are.

Bug: XLA's CPU backend compiles small matrix products (below 64 rows) and small loops (below 4,096 entries) in other
forms than large ones, which sum in another order, so that a point's last bits would depend on who is measured with it.
Shown by: ``python -m benchmarks.canary``, row "rows round alike".
Delete this file once that row says that any number of rows gives the same bits.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmargin.varying import axes_of, varying
from jaxmargin.xla_cpu.backend import on_cpu

__all__ = ["CONVOLVING_ROWS", "ROWS", "by_rows", "stable_rows"]

# Examples that a CPU takes side by side: about as fast as any more. A convolutional classifier is busy with fewer.
ROWS, CONVOLVING_ROWS = 128, 64


def by_rows(run: Callable[..., Any], examples: tuple[jax.Array, ...], count: jax.Array | int, rows: int) -> Any:
    """``run(*examples)``, on a CPU so many rows at a time, always as many: rounding then knows nothing of the others.

    Args:
      run: arrays [b, ...] -> arrays [b, ...], row by row.
      examples: arrays [b, ...], b a multiple of ``rows`` or smaller.
      count: rows from the front that matter; for those behind, anything may come out.
      rows: taken side by side.

    Returns:
      Arrays [b, ...].

    >>> import jax.numpy as jnp
    >>> by_rows(jnp.square, (jnp.arange(6),), 3, 2)
    Array([0, 1, 4, 9, 0, 0], dtype=int32)
    """
    size = len(examples[0])
    if not on_cpu() or size < rows:
        return run(*examples)

    def part(number: jax.Array) -> Any:
        mine = [jax.lax.dynamic_slice_in_dim(leaf, number * rows, rows) for leaf in examples]
        shapes = jax.eval_shape(run, *mine)
        nothing = jax.tree.map(lambda leaf: varying(jnp.zeros(leaf.shape, leaf.dtype), axes_of(leaf)), shapes)
        return jax.lax.cond(number * rows < count, run, lambda *_: nothing, *mine)

    found = jax.lax.map(part, jnp.arange(size // rows))
    return jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), found)


def stable_rows(width: int) -> int:
    """Rows from which on the rounding of a row does not depend on how many others are computed with it.

    Args:
      width: entries of the narrowest row.

    Returns:
      The number of rows.

    >>> stable_rows(784), stable_rows(10)
    (64, 410)
    """
    return max(64, -(-4096 // width))
