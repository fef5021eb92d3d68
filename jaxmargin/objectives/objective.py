"""What an objective is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["LogitsFn", "Objective"]

LogitsFn = Callable[[jax.Array], jax.Array]


def _free(params: Any) -> jax.Array:
    return jnp.zeros(())


def _keep(params: Any) -> Any:
    return params


class Objective(NamedTuple):
    """What training minimises: mean_i example_loss_i + penalty(params), and what else happens in a step.

    Attributes:
      example_loss: (logits_fn, key, x [*d], y, given) -> scalar, averaged over the batch; given is what ``prepare``
        found for the example, or its memory where nothing is prepared.
      penalty: params -> scalar, added once a step.
      retract: params -> params, applied after each step.
      refresh: (logits_fn, x, y) -> memory, a scalar an example, computed over the whole training set before each epoch
        with the parameters of that moment; None where the loss needs none (memory then begins at 0).
      prepare: (logits_fn, key, x, y, memory, step) -> (given, memory), the inner search of a step at the parameters
        before it, as when measuring (no dropout, running statistics): no gradient flows through it, and the memory it
        returns is kept for the next time that the example comes up. None where there is nothing to search.
    """

    example_loss: Callable[[LogitsFn, jax.Array, jax.Array, jax.Array, Any], jax.Array]
    penalty: Callable[[Any], jax.Array] = _free
    retract: Callable[[Any], Any] = _keep
    refresh: Callable[[LogitsFn, jax.Array, jax.Array], jax.Array] | None = None
    prepare: Callable[..., tuple[Any, jax.Array]] | None = None
