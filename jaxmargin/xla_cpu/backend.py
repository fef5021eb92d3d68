"""Whether any of this is needed: the one place that asks for the backend."""

import jax

__all__ = ["on_cpu"]


def on_cpu() -> bool:
    """Whether JAX's default backend is a CPU.

    Returns:
      A bool.

    >>> on_cpu() == (jax.default_backend() == "cpu")
    True
    """
    return jax.default_backend() == "cpu"
