"""Arithmetic for bounds that must hold in spite of rounding: double precision, and roundings to the safe side.

Bounds are worked out in float64 whatever the precision around them, widened by what float64 can have lost, and rounded
to the caller's precision downwards (distances) or upwards (slopes).
"""

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["EPSILON", "above", "below", "double_precision", "rounding_error"]

# Twice the unit roundoff of float64.
EPSILON = 2.0**-52
# One step of float32, relative, and two for the rounding to the nearest that comes after it.
_STEP = 2.0**-22
# Within these, float32 has its full precision.
_SMALLEST, _LARGEST = 1e-37, 3e38


def double_precision() -> AbstractContextManager[Any]:
    """A context in which 64-bit types exist, inside of ``jit`` and ``vmap`` too.

    Returns:
      The context manager; arrays made in it keep their type outside.

    >>> with double_precision():
    ...     print(jnp.ones(1).astype(jnp.float64).dtype)
    float64
    """
    enable: Any = getattr(jax, "enable_x64", None)
    if enable is None:  # before jax 0.8
        from jax.experimental import enable_x64 as enable  # type: ignore[attr-defined, no-redef]
    context: AbstractContextManager[Any] = enable(True)
    return context


def rounding_error(terms: int) -> float:
    """What a sum of products can lose to rounding, in any order of summation, relative to the sum of their sizes.

    Args:
      terms: number of products.

    Returns:
      At least 4 (terms + 16) u with u the unit roundoff of float64, which leaves room for a few operations more.

    >>> rounding_error(1000) < 1e-12
    True
    """
    return 2 * (terms + 16) * EPSILON


def below(value: jax.Array, dtype: Any) -> jax.Array:
    """A number >= 0 rounded downwards.

    Args:
      value: a float64 number, or infinity.
      dtype: of the result; below float64 it is rounded to float32.

    Returns:
      A number that is not larger; 0 where float32 has no full precision.
    """
    value = jnp.where(jnp.isinf(value), value, jnp.minimum(value * (1 - _STEP), _LARGEST))
    return jnp.where(value < _SMALLEST, 0.0, value).astype(dtype)


def above(value: jax.Array, dtype: Any) -> jax.Array:
    """A number >= 0 rounded upwards.

    Args:
      value: a float64 number, or infinity.
      dtype: of the result; below float64 it is rounded to float32.

    Returns:
      A number that is not smaller.
    """
    value = jnp.where(value > _LARGEST, jnp.inf, value * (1 + _STEP))
    return jnp.where(value > 0, jnp.maximum(value, _SMALLEST), value).astype(dtype)
