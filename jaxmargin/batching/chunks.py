"""Many examples a few at a time: for the same rounding whoever else is measured, and to hold memory in check."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["CONVOLVING_ROWS", "ROWS", "by_rows", "in_chunks"]

# Examples that a CPU takes side by side: about as fast as any more. A convolutional classifier is busy with fewer.
ROWS, CONVOLVING_ROWS = 128, 64


def by_rows(run: Callable[..., Any], examples: tuple[jax.Array, ...], count: jax.Array | int, rows: int) -> Any:
    """``run(*examples)``, on a CPU so many rows at a time, always as many: rounding then knows nothing of the others.

    XLA's CPU backend sums in another order for other numbers of rows; see ``lipschitz.sampling.stable_rows``.

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
    if jax.default_backend() != "cpu" or size < rows:
        return run(*examples)

    def part(number: jax.Array) -> Any:
        mine = [jax.lax.dynamic_slice_in_dim(leaf, number * rows, rows) for leaf in examples]
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run, *mine))
        return jax.lax.cond(number * rows < count, run, lambda *_: nothing, *mine)

    found = jax.lax.map(part, jnp.arange(size // rows))
    return jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), found)


def in_chunks(
    one: Callable[..., Any], size: int, context: Callable[[], AbstractContextManager[Any]]
) -> Callable[..., Any]:
    """A function that maps a few examples at a time when ``vmap`` maps it over many.

    Only the innermost ``vmap`` becomes a loop; what it does not map is not copied. The result has no derivative.

    Args:
      one: arrays -> arrays, for one example.
      size: of a chunk.
      context: entered whenever the loop is traced, which may be after the caller's own has ended.

    Returns:
      ``one``, for positional arrays.

    >>> import contextlib, jax.numpy as jnp
    >>> jax.vmap(in_chunks(jnp.square, 2, contextlib.nullcontext))(jnp.arange(3))
    Array([0, 1, 4], dtype=int32)
    """
    run = jax.custom_batching.custom_vmap(one)

    def loop(axis_size: int, batched: Sequence[bool], *args: jax.Array) -> tuple[Any, Any]:
        length = min(size, axis_size)
        rows = np.arange(-(-axis_size // length) * length).reshape(-1, length)  # [chunks, length]
        rows = np.minimum(rows, axis_size - 1)  # the last example fills its chunk up

        def chunk(parts: list[jax.Array]) -> Any:
            mine = iter(parts)
            full = [next(mine) if moves else arg for arg, moves in zip(args, batched, strict=True)]
            return jax.vmap(one, [0 if moves else None for moves in batched])(*full)

        with context():
            moving = [arg[rows] for arg, moves in zip(args, batched, strict=True) if moves]
            found = jax.lax.map(chunk, moving)
            found = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:axis_size], found)
        return found, jax.tree.map(lambda _: True, found)

    run.def_vmap(loop)
    return run
