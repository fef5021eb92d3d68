"""Searches of different length side by side: one that ends makes room for the next.

Mapped over a batch, searches would all run until the last one ends. In slots the cost is the sum of their lengths: an
attack spends its time on the examples that survive.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["in_slots"]


def in_slots(
    start: Callable[[jax.Array, Any], Any],
    goes_on: Callable[[Any], jax.Array],
    advance: Callable[[Any], Any],
    record: Callable[[Any, jax.Array, Any], Any],
    results: Any,
    *,
    count: int,
    slots: int,
) -> Any:
    """Runs the searches 0 to count - 1, begun in this order, ``slots`` of them under way at any time.

    Args:
      start: (index, results) -> the state of that search at its beginning; it may already be over, given the results.
      goes_on: state -> whether it is not over.
      advance: state -> state, one step.
      record: (results, indices [slots], states [slots]) -> results, with what searches that are over have found; an
        index of count is nobody's and must change nothing.
      results: what there is before any search.
      count: number of searches.
      slots: number of searches side by side.

    Returns:
      The results.

    >>> import jax.numpy as jnp
    >>> record = lambda results, indices, states: results.at[indices].set(10 * states[1], mode="drop")
    >>> in_slots(lambda i, _: (i, 0 * i), lambda s: s[1] < s[0], lambda s: (s[0], s[1] + 1), record, jnp.zeros(5, int),
    ...     count=5, slots=2)
    Array([ 0, 10, 20, 30, 40], dtype=int32)
    """

    def begin(indices: jax.Array, results: Any) -> Any:
        return jax.vmap(lambda index: start(index, results))(jnp.minimum(indices, count - 1))

    def over(states: Any, indices: jax.Array) -> jax.Array:
        return ~jax.vmap(goes_on)(states) & (indices < count)

    def exchange(turn: tuple) -> tuple:
        states, indices, waiting, results = turn
        ended = over(states, indices)
        results = record(results, jnp.where(ended, indices, count), states)
        indices = jnp.where(ended, jnp.minimum(waiting + jnp.cumsum(ended) - 1, count), indices)
        fresh = begin(indices, results)
        states = jax.tree.map(lambda new, old: jnp.where(_like(ended, new), new, old), fresh, states)
        return states, indices, waiting + jnp.sum(ended), results

    def turn_over(turn: tuple) -> tuple:
        turn = jax.lax.cond(over(*turn[:2]).any(), exchange, lambda turn: turn, turn)
        return jax.vmap(advance)(turn[0]), *turn[1:]

    indices = jnp.minimum(jnp.arange(slots), count)
    turn = begin(indices, results), indices, jnp.array(slots), results
    return jax.lax.while_loop(lambda turn: (turn[1] < count).any(), turn_over, turn)[3]


def _like(flags: jax.Array, leaf: jax.Array) -> jax.Array:
    """flags [s] with as many axes as leaf [s, ...]."""
    return flags.reshape(-1, *(1,) * (leaf.ndim - 1))
