"""What a program is made of: its equations, those of the programs that it calls among them."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

__all__ = ["convolves", "equations"]


def equations(jaxpr: Jaxpr | ClosedJaxpr) -> Iterator[JaxprEqn]:
    """The equations of a program and, behind each, those of the programs that it calls, loops over or differentiates.

    Args:
      jaxpr: as ``jax.make_jaxpr`` or ``jax.jit(...).trace(...).jaxpr`` gives it.

    Returns:
      An iterator over the equations.

    >>> loop = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: 2 * x, x))(1.0)
    >>> [eqn.primitive.name for eqn in equations(loop) if eqn.primitive.name in ("scan", "mul")]
    ['scan', 'mul']
    """
    for eqn in jaxpr.eqns:
        yield eqn
        for called in jax.tree.leaves(eqn.params, is_leaf=_is_program):
            if _is_program(called):
                yield from equations(called)


def convolves(jaxpr: Jaxpr | ClosedJaxpr) -> bool:
    """Whether a program convolves.

    Args:
      jaxpr: the program.

    Returns:
      bool.

    >>> import jax.numpy as jnp
    >>> convolves(jax.make_jaxpr(lambda x: jnp.dot(x, x))(jnp.ones(3)))
    False
    """
    return any(eqn.primitive.name == "conv_general_dilated" for eqn in equations(jaxpr))


def _is_program(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)
