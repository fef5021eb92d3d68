"""What functions look like here: the contracts that a user's own code meets, and that a type checker holds it to.

>>> import jax.numpy as jnp
>>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
>>> logits_fn: LogitsFn = lambda x: w @ x
>>> apply_fn: ApplyFn = lambda params, x: params @ x
"""

from typing import Any, Protocol, Self, TypeVar

import jax
import numpy as np

__all__ = ["ApplyFn", "Array", "Box", "Finding", "LogitsFn", "Measure", "Result"]

# What lies on a device or beside it.
Array = jax.Array | np.ndarray

# (low, high) of valid inputs.
Box = tuple[float, float]

Result = TypeVar("Result")
_Measured = TypeVar("_Measured", covariant=True)


class LogitsFn(Protocol):
    """A classifier of one example: x [*d] -> logits [c], c >= 2, deterministic, input normalisation inside.

    Logits are floating-point scores before any softmax; the prediction is their arg max.
    """

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """The logits [c] of one example x [*d]."""
        ...


class ApplyFn(Protocol):
    """A classifier with its parameters apart: (params, x [*d]) -> logits [c]; partial application gives a LogitsFn.

    params may be any tree of arrays; what is not an array belongs into the function.
    """

    def __call__(self, params: Any, x: jax.Array, /) -> jax.Array:
        """The logits [c] of one example x [*d]."""
        ...

    def __hash__(self) -> int:
        """The same for the same function: what is compiled for it is kept."""
        ...


class Measure(Protocol[_Measured]):
    """What ``over_batch`` lifts: a function of one example (logits_fn, key, x [*d], y, *, options) -> NamedTuple.

    It knows no batch axis; key is its own, y an integer class. Options are keywords. Failure is a field of the result
    (found=False, distance=inf), not an exception: it runs inside of ``jit`` and ``vmap``.
    """

    def __call__(
        self, logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, /, *args: Any, **options: Any
    ) -> _Measured:
        """The result of one example."""
        ...


class Finding(Protocol):
    """A result that claims that inputs are misclassified; ``over_batch`` holds it against apply_fn as it was given."""

    @property
    def x_adv(self) -> jax.Array:
        """[n, *d] the inputs."""
        ...

    def claimed(self, ys: Any, /) -> tuple[Any, Any]:
        """Of which examples [n] it is claimed, and the classes [n] that x_adv then does not have."""
        ...

    def revised(self, x_adv: Any, moved: Any, distance: Any, /) -> Self:
        """The result with other inputs and distances [n] where moved; an infinite distance is one not found."""
        ...
