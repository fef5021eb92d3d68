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
      example_loss: (logits_fn, key, x [*d], y, inner_result) -> scalar, averaged over the batch; inner_result is what
        ``inner_maximization`` found for the example, or its example_state where there is none.
      penalty: params -> scalar, added once a step.
      retract: params -> params, applied after each step.
      refresh: (logits_fn, x, y) -> example_state, a scalar an example, computed over the whole training set before each
        epoch with the parameters of that moment; None where the loss needs none (it then begins at 0).
      inner_maximization: (logits_fn, key, x, y, example_state, step) -> (inner_result, example_state), the search of a
        step at the parameters before it, as when measuring (no dropout, running statistics): no gradient flows through
        it; the state it returns is kept for the next time that the example comes up. None where there is none.
    """

    example_loss: Callable[[LogitsFn, jax.Array, jax.Array, jax.Array, Any], jax.Array]
    penalty: Callable[[Any], jax.Array] = _free
    retract: Callable[[Any], Any] = _keep
    refresh: Callable[[LogitsFn, jax.Array, jax.Array], jax.Array] | None = None
    inner_maximization: Callable[..., tuple[Any, jax.Array]] | None = None
