"""Any network as ``apply_fn(params, x) -> logits [c]`` for one example x.

Equinox needs no adapter: ``params, static = eqx.partition(net, eqx.is_inexact_array)`` and
``apply_fn = lambda params, x: eqx.combine(params, static)(x)``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["ensemble", "from_batched", "from_linen", "from_nnx"]

ApplyFn = Callable[[Any, jax.Array], jax.Array]


def from_batched(batched_fn: Callable[..., Any]) -> ApplyFn:
    """Turns f(params, xs [n, *d]) -> logits [n, c] into a function of one example.

    Args:
      batched_fn: the batched classifier, deterministic, with its input normalisation inside.

    Returns:
      apply_fn(params, x [*d]) -> logits [c].

    >>> import jax.numpy as jnp
    >>> apply_fn = from_batched(lambda w, xs: xs @ w)
    >>> apply_fn(jnp.ones((4, 3)), jnp.ones(4)).shape
    (3,)
    """

    def apply_fn(params: Any, x: jax.Array) -> jax.Array:
        logits = batched_fn(params, x[None])
        if not hasattr(logits, "shape"):
            raise ValueError(
                f"the batched classifier returns a {type(logits).__name__} and not an array of logits [n, c]: return"
                " the logits alone, as in from_batched(lambda params, xs: f(params, xs)[0])"
            )
        one: jax.Array = logits[0]
        return one

    return apply_fn


def from_linen(module: Any, **options: Any) -> ApplyFn:
    """Turns a batched flax.linen module into a function of its variables and one example.

    Args:
      module: a ``flax.linen.Module`` that maps [n, *d] to [n, c].
      **options: further arguments of its call, such as ``train=False``.

    Returns:
      apply_fn(variables, x [*d]) -> logits [c], where variables is what ``module.init`` returned (``{"params": ...}``).

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> module = nn.Dense(3)
    >>> variables = module.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> from_linen(module)(variables, jnp.ones(4)).shape
    (3,)
    """
    return from_batched(lambda variables, xs: module.apply(variables, xs, **options))


def from_nnx(net: Any) -> tuple[ApplyFn, Any]:
    """Splits a batched flax.nnx module into a function of one example and its state.

    Args:
      net: an ``flax.nnx.Module`` that maps [n, *d] to [n, c], in evaluation mode (``net.eval()`` switches dropout and
        batch statistics off).

    Returns:
      (apply_fn, params): apply_fn(params, x [*d]) -> logits [c], params every variable of the module.

    >>> from flax import nnx; import jax.numpy as jnp
    >>> apply_fn, params = from_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    >>> apply_fn(params, jnp.ones(4)).shape
    (3,)
    """
    from flax import nnx

    graph, state = nnx.split(net)
    return from_batched(lambda params, xs: nnx.merge(graph, params)(xs)), state


def ensemble(apply_fn: ApplyFn) -> ApplyFn:
    """Several trained networks as one classifier that averages their probabilities (soft voting).

    Args:
      apply_fn: (params, x [*d]) -> logits [c], the network that all have in common.

    Returns:
      (params, x) -> logits [c], the logarithms of the mean probabilities; params are a list of the members' parameters.

    Raises:
      ValueError: when called with no members.

    Reference:
      Ding et al. 2020, MMA Training, section 4 (PGD-ens).

    >>> import jax.numpy as jnp
    >>> vote = ensemble(lambda w, x: w * x)
    >>> jnp.exp(vote([1.0, -1.0], jnp.array([2.0, 0.0])))
    Array([0.5, 0.5], dtype=float32)
    """

    def apply(params: Any, x: jax.Array) -> jax.Array:
        if not params:
            raise ValueError("params is empty: pass the parameters of at least one member")
        members = [jax.nn.log_softmax(apply_fn(member, x)) for member in params]
        return jax.nn.logsumexp(jnp.stack(members), axis=0) - jnp.log(float(len(members)))

    return apply
