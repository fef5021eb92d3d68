"""Many examples a few at a time, to hold memory in check."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

__all__ = ["in_chunks"]


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
