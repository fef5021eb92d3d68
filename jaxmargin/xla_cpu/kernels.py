"""Functions that convolve, compiled for a CPU without XLA's YNN kernels for convolutions.

Bug: those kernels run a convolution on one core, and some shapes eight times slower than XLA's own; matrix products are
faster with them, so they are turned off where something convolves, and only there. A version of XLA that does not
know the option has no such kernels.
Shown by: ``python -m benchmarks.canary``, row "YNN kernels".
Delete this file, and the second of ``over_batch``'s two steps, once that row says so.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxmargin import checks
from jaxmargin.xla_cpu.backend import on_cpu
from jaxmargin.xla_cpu.equations import convolves

__all__ = ["jit", "without_slow_kernels"]


def jit(function: Callable[..., Any], *, donate_argnums: int | tuple[int, ...] = ()) -> Callable[..., Any]:
    """``jax.jit``, on a CPU without the slow kernels where the function convolves and is called from the host.

    Args:
      function: of arrays in any structure, called without keywords.
      donate_argnums: as for ``jax.jit``.

    Returns:
      The compiled function. Inside of another ``jax.jit`` its caller's options hold.

    >>> double = jit(lambda x: 2 * x)
    >>> int(double(2))
    4
    """
    plain = jax.jit(function, donate_argnums=donate_argnums)
    options = without_slow_kernels()
    if not options:
        return plain
    chosen: list[Callable[..., Any]] = []  # at the first call from the host

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if not checks.concrete(*args):
            return plain(*args)
        if not chosen:
            slow = convolves(plain.trace(*args).jaxpr)
            chosen.append(jax.jit(function, donate_argnums=donate_argnums, compiler_options=options) if slow else plain)
        return chosen[0](*args)

    return run


@functools.cache
def without_slow_kernels() -> dict[str, str]:
    """The compiler options that turn the slow kernels off.

    Returns:
      The options; none where JAX's default backend is no CPU or its version of XLA does not know them.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if not on_cpu():
        return {}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # a version of XLA without this option
        return {}
    return options
