"""Searches of different length side by side: one that ends makes room for the next.

Mapped over a batch, searches would all run until the last one ends. In a queue the cost is the sum of their lengths: an
attack spends its time on the examples that survive.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxmargin.varying import axes_of, varying

__all__ = ["run_queue"]

State = TypeVar("State")
Results = TypeVar("Results")
# (states [workers], their indices [workers], the index that waits first, results)
_Turn = tuple[Any, jax.Array, jax.Array, Any]


def run_queue(
    init: Callable[[jax.Array, Results], State],
    should_continue: Callable[[State], jax.Array],
    step: Callable[[State], State],
    record: Callable[[Results, jax.Array, State], Results],
    results: Results,
    *,
    count: int,
    workers: int,
) -> Results:
    """Runs the searches 0 to count - 1, begun in this order, ``workers`` of them under way at any time.

    Args:
      init: (index, results) -> the state of that search at its beginning; it may already be over, given the results.
      should_continue: state -> whether it is not over.
      step: state -> state, one step.
      record: (results, indices [workers], states [workers]) -> results, with what searches that are over have found; an
        index of count is nobody's and must change nothing.
      results: what there is before any search.
      count: number of searches.
      workers: number of searches side by side.

    Returns:
      The results.

    >>> import jax.numpy as jnp
    >>> record = lambda results, indices, states: results.at[indices].set(10 * states[1], mode="drop")
    >>> run_queue(lambda i, _: (i, 0 * i), lambda s: s[1] < s[0], lambda s: (s[0], s[1] + 1), record, jnp.zeros(5, int),
    ...     count=5, workers=2)
    Array([ 0, 10, 20, 30, 40], dtype=int32)
    """

    def begin(indices: jax.Array, results: Any) -> Any:
        return jax.vmap(lambda index: init(index, results))(jnp.minimum(indices, count - 1))

    def over(states: Any, indices: jax.Array) -> jax.Array:
        return ~jax.vmap(should_continue)(states) & (indices < count)

    def exchange(turn: _Turn) -> _Turn:
        states, indices, waiting, results = turn
        ended = over(states, indices)
        results = record(results, jnp.where(ended, indices, count), states)
        indices = jnp.where(ended, jnp.minimum(waiting + jnp.cumsum(ended) - 1, count), indices)
        fresh = begin(indices, results)
        states = jax.tree.map(lambda new, old: jnp.where(_like(ended, new), new, old), fresh, states)
        return states, indices, waiting + jnp.sum(ended), results

    def turn_over(turn: _Turn) -> _Turn:
        turn = jax.lax.cond(over(*turn[:2]).any(), exchange, lambda turn: turn, turn)
        return jax.vmap(step)(turn[0]), *turn[1:]

    indices = jnp.minimum(jnp.arange(workers), count)
    turn = begin(indices, results), indices, jnp.array(workers), results
    turn = varying(turn, axes_of(turn))
    found: Results = jax.lax.while_loop(lambda turn: (turn[1] < count).any(), turn_over, turn)[3]
    return found


def _like(flags: jax.Array, leaf: jax.Array) -> jax.Array:
    """flags [s] with as many axes as leaf [s, ...]."""
    return flags.reshape(-1, *(1,) * (leaf.ndim - 1))
