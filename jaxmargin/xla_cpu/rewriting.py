"""Anybody's network with convolutions and poolings whose gradients stay fast inside loops on a CPU.

What ``convolution`` does for our own networks is done here for all others, whichever library they were written with: a
function is traced, and its jaxpr run with those operations replaced whose gradients XLA's CPU compiler is slow on. Bug,
benchmark and end are those of ``convolution``; max pools: ``python -m benchmarks.canary``, row "max pool in a loop".
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jaxmargin.xla_cpu.backend import on_cpu
from jaxmargin.xla_cpu.convolution import conv_general_dilated, is_simple, is_vmapped

__all__ = ["loopable"]

_REMAT = {"checkpoint", "remat", "remat2"}
_CALLS = {"closed_call", "core_closed_call", "jit", "pjit"} | _REMAT  # equations that only call a jaxpr


def loopable(apply_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with gradients that are fast in loops on a CPU, where that is JAX's default backend.

    Replaced are image convolutions without upsampling or groups, in any layout, and max pools of windows that tile the
    image, also where ``jax.jit`` or ``jax.checkpoint`` wraps them. All else stays as it is; a function without them, or
    one that shows its ``layers`` as those of ``models`` do, is called as it is. Our own convolutions under ``jax.vmap``
    become one of all examples, whose kernel has one gradient and not one an example. Replaced convolutions have no
    forward-mode derivative, and run in the precision of their surroundings, which a CPU does not distinguish.

    Args:
      apply_fn: a function of arrays in any structure, such as (params, x) -> logits, called without keywords.

    Returns:
      The function of the same arguments, for use inside of ``jax.jit``.

    >>> import flax.linen as nn
    >>> layer, x = nn.Conv(2, (3, 3)), jnp.ones((1, 5, 5, 1))
    >>> params = layer.init(jax.random.key(0), x)
    >>> bool(jnp.allclose(loopable(layer.apply)(params, x), layer.apply(params, x), atol=1e-6))
    True
    """
    if getattr(apply_fn, "layers", None) or not on_cpu():
        return apply_fn

    @functools.wraps(apply_fn)
    def run(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(apply_fn, return_shape=True)(*args)
        if not _is_slow(closed.jaxpr):
            return apply_fn(*args)
        outputs = _run(closed.jaxpr, closed.consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


def _is_slow(jaxpr: Jaxpr) -> bool:
    return any(_replacement(eqn) is not None for eqn in jaxpr.eqns)


def _run(jaxpr: Jaxpr, consts: Sequence[Any], *args: Any) -> list[Any]:
    """The outputs of a jaxpr, its slow equations replaced."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        outputs = (_replacement(eqn) or _original(eqn))(*map(read, eqn.invars))
        values.update(zip(eqn.outvars, outputs if eqn.primitive.multiple_results else [outputs], strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _original(eqn: JaxprEqn) -> Callable[..., Any]:
    """An equation as it is, custom derivatives included."""
    bound: Any = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # older versions of JAX return a pair
    return functools.partial(eqn.primitive.bind, *functions, **params)


def _replacement(eqn: JaxprEqn) -> Callable[..., Any] | None:
    """The fast form of an equation that is slow, or that calls a jaxpr with one that is; None of all others."""
    name, params = eqn.primitive.name, eqn.params
    if name == "conv_general_dilated" and _is_fast(eqn.invars[0].aval, params):
        return functools.partial(_convolve, params)
    if name == "reduce_window_max" and _tiles(params):
        return functools.partial(_pool, params["window_dimensions"])
    if name == "custom_vjp_call" and is_vmapped(params["call_jaxpr"].jaxpr):
        return functools.partial(_run, params["call_jaxpr"].jaxpr, params["call_jaxpr"].consts)
    if name not in _CALLS:
        return None
    called = params["jaxpr" if "jaxpr" in params else "call_jaxpr"]
    jaxpr, consts = getattr(called, "jaxpr", called), getattr(called, "consts", ())  # those of remat come without
    if not _is_slow(jaxpr):
        return None
    run = functools.partial(_run, jaxpr, consts)
    return jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"]) if name in _REMAT else run


def _is_fast(images: Any, params: dict[str, Any]) -> bool:
    """Whether the fast path computes just this: a simple convolution of floating-point images into their own type."""
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    return floating and params["preferred_element_type"] in (None, images.dtype) and is_simple(images, **params)


def _convolve(params: dict[str, Any], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution in flax's layout, brought there from its own and back."""
    (batch, channel, *space), (out, into, *window), (out_batch, out_channel, *out_space) = params["dimension_numbers"]
    x, kernel = lax.transpose(x, (batch, *space, channel)), lax.transpose(kernel, (*window, into, out))
    layout = ("NHWC", "HWIO", "NHWC")
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    y = conv_general_dilated(x, kernel, strides, params["padding"], rhs_dilation=dilation, dimension_numbers=layout)
    return lax.transpose(y, np.argsort((out_batch, *out_space, out_channel)))


def _tiles(params: dict[str, Any]) -> bool:
    """Whether the windows of a pool lie side by side, without padding."""
    plain = {*params["base_dilation"], *params["window_dilation"]} == {1} and not any(map(any, params["padding"]))
    return plain and params["window_dimensions"] == params["window_strides"]


def _pool(window: Sequence[int], x: jax.Array) -> jax.Array:
    """The largest of each window, axis by axis as the larger of slices, whose gradient is a selection."""
    x = lax.slice(x, [0] * x.ndim, [size // step * step for size, step in zip(x.shape, window, strict=True)])
    for axis, step in reversed([*enumerate(window)]):  # the last axis first, as in _larger's order of equals
        blocks = x.reshape(*x.shape[:axis], x.shape[axis] // step, step, *x.shape[axis + 1 :])
        x = functools.reduce(_larger, [lax.index_in_dim(blocks, i, axis + 1, keepdims=False) for i in range(step)])
    return x


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger one, or NaN; the gradient of equals is that of the first, as in ``reduce_window``."""
    return jnp.where((a >= b) | (a != a), a, b)
