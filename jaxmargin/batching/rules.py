"""How a measure takes a batch of examples together, where that is better than each by itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks

__all__ = ["Together"]


class Together(NamedTuple):
    """What ``over_batch`` finds as the attribute ``together`` of such a measure.

    Attributes:
      run: (logits_fn, key, indices [b], xs [b, *d], ys [b], asked [b], **options) -> the measure's NamedTuple with
        fields of length b; where ``asked`` is False anything may come out. It gets every option of the measure.
      batch_size: () -> examples in a batch unless the caller says otherwise.
      divides_samples: whether it takes ``axis_name``, a mapped axis whose devices share the samples of an example.
      rows: on a CPU a batch is a multiple of so many examples, which ``run`` takes side by side (``chunks.by_rows``).
    """

    run: Callable[..., Any]
    batch_size: Callable[[], int]
    divides_samples: bool = False
    rows: int = 1

    def alone(
        self, logits_fn: Callable[[jax.Array], jax.Array], key: jax.Array, x: jax.Array, y: jax.Array, **options: Any
    ) -> Any:
        """The measure of one example, as a batch of one."""
        checks.example(x)
        checks.label(y)
        one = jnp.asarray(x)[None], jnp.asarray(y)[None], jnp.ones(1, bool)
        measured = self.run(logits_fn, key, jnp.zeros(1, int), *one, **options)
        return jax.tree.map(lambda leaf: leaf[0], measured)
