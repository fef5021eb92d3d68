"""Convolutions whose gradients stay fast inside loops on a CPU.

Bug: XLA's CPU compiler rewrites convolutions into their fast form outside of loops only; inside ``lax.scan`` or
``lax.map`` the transposed layouts that autodiff makes for their gradients run 10 to 60 times slower (jax-ml/jax#12868,
open since 2022).
Shown by: ``python -m benchmarks.canary``, rows "gradients in a loop".
Delete this file and ``rewriting`` once plain flax is as fast there.

Here both gradients are written out in a form that is fast everywhere: the input's as a plain convolution with the
flipped kernel, the kernel's as one in which the output's gradient is the kernel, a few images at a time. The
convolution itself is XLA's, but for images smaller than the kernel, on which XLA's is 5 to 15 times slower than a
product of patches.

>>> import flax.linen as nn
>>> layer = nn.Conv(32, (3, 3), conv_general_dilated=conv_general_dilated)   # any flax network, ours or yours
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr

from jaxmargin.xla_cpu.backend import on_cpu

__all__ = ["conv_general_dilated", "is_simple", "is_vmapped", "max_pool"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Positions of g, over all its images, that one convolution makes a kernel gradient of: so few stay in the cache.
_FEW_POSITIONS = 8192
# Up to so many channels the gradient of an image is faster as a matrix product than as a convolution.
_FEW_CHANNELS = 3

Pair = tuple[int, int]
Pads = tuple[Pair, ...]


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, *, dimension_numbers: Any = None, **others: Any
) -> jax.Array:
    """``jax.lax.conv_general_dilated`` with gradients that are fast in loops, for flax's ``conv_general_dilated=``.

    Image convolutions in flax's layout, without upsampling and groups, take the fast path; all others go to JAX as they
    are, and all of them where JAX's default backend is not a CPU. The fast path has no forward-mode derivative (it is a
    ``custom_vjp``).

    Args:
      lhs: images [n, h, w, i].
      rhs: kernel [kh, kw, i, o].
      window_strides: steps of the window.
      padding: "SAME", "VALID" or two (low, high) pairs.
      dimension_numbers: the layout, as flax passes it.
      **others: further arguments of JAX's function.

    Returns:
      Images [n, h', w', o].
    """
    wishes = others.get("precision"), others.get("preferred_element_type")
    fast = on_cpu() and wishes == (None, None) and is_simple(lhs, padding=padding, **others)
    if not fast or not _in_flax_layout(lhs, rhs, dimension_numbers):
        options = others | {"dimension_numbers": dimension_numbers}
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    strides, dilation = _pair(window_strides), _pair(others.get("rhs_dilation") or (1, 1))
    if isinstance(padding, str):
        window = [(size - 1) * d + 1 for size, d in zip(rhs.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], window, strides, padding)
    return _conv(lhs, rhs, strides, tuple(map(_pair, padding)), dilation)


def is_simple(
    images: Any,
    *,
    padding: Any,
    lhs_dilation: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    **others: Any,
) -> bool:
    """Whether the fast path can compute a convolution: of images, without upsampling, groups or cropping.

    Args:
      images: an array of them or its shape, in any layout.
      padding: as in ``jax.lax.conv_general_dilated``, and so are the others.
      lhs_dilation: of the images.
      feature_group_count: groups of channels.
      batch_group_count: groups of images.
      **others: what does not matter for it.

    Returns:
      bool.
    """
    del others
    steps = [*(lhs_dilation or ()), feature_group_count, batch_group_count]
    pads = () if isinstance(padding, str) else padding
    return images.ndim == 4 and all(step == 1 for step in steps) and all(low >= 0 <= high for low, high in pads)


def is_vmapped(jaxpr: Jaxpr) -> bool:
    """Whether a ``custom_vjp`` is the convolution of this file with its images, but not its kernel, under ``jax.vmap``.

    Args:
      jaxpr: what the ``custom_vjp`` calls.

    Returns:
      bool.
    """
    ours = any(eqn.params.get("name") == "_plain" for eqn in jaxpr.eqns)
    arguments: list[Any] = [atom.aval for atom in jaxpr.invars]
    return ours and [argument.ndim > 4 for argument in arguments] == [True, False]


def _in_flax_layout(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any) -> bool:
    layouts = [lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers) for numbers in (dimension_numbers, _LAYOUT)]
    return layouts[0] == layouts[1]


def _pair(numbers: Any) -> Pair:
    first, second = numbers
    return int(first), int(second)


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2 x 2 block, odd edges dropped: a max of four slices, whose gradient is four selections.

    Args:
      x: [..., h, w, channels].

    Returns:
      [..., h // 2, w // 2, channels].
    """
    *batch, height, width, channels = x.shape
    x = x[..., : height // 2 * 2, : width // 2 * 2, :].reshape(*batch, height // 2, 2, width // 2, 2, channels)
    top, bottom = x[..., 0, :, :, :], x[..., 1, :, :, :]
    return jnp.maximum(jnp.maximum(top[..., 0, :], top[..., 1, :]), jnp.maximum(bottom[..., 0, :], bottom[..., 1, :]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair) -> jax.Array:
    y: jax.Array = _plain(x, kernel, strides, pads, (1, 1), dilation)
    return y


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _plain(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, spread: Pair, dilation: Pair) -> jax.Array:
    """The convolution itself, in the form that is fast for its sizes; jitted, so that ``is_vmapped`` sees its name."""
    too_small = kernel.shape[0] > x.shape[1] or kernel.shape[1] > x.shape[2]
    if too_small and strides == spread == dilation == (1, 1):
        return _of_patches(x, kernel, pads)
    return _convolved(x, kernel, strides, pads, spread, dilation)


def _of_patches(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """One product of all patches with the kernel."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = (x.shape[i + 1] - kernel.shape[i] + 1 for i in range(2))
    patches = [x[:, i : i + height, j : j + width] for i, j in np.ndindex(kernel.shape[:2])]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[3])


def _convolved(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, spread: Pair, dilation: Pair) -> jax.Array:
    """XLA's convolution, never without padding: unpadded ones go to a kernel eight times slower."""

    def convolve(pads: Pads) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, strides, pads, spread, dilation, dimension_numbers=_LAYOUT)

    if any(map(any, pads)):
        return convolve(pads)
    return convolve(((0, strides[0]), (0, 0)))[:, :-1]  # a step further down than asked


def _forward(x: jax.Array, kernel: jax.Array, *options: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, *options), (x, kernel)


def _backward(
    strides: Pair, pads: Pads, dilation: Pair, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    options = strides, pads, dilation
    return _input_gradient(x.shape, kernel, g, *options), _kernel_gradient(x, kernel.shape, g, *options)


def _input_gradient(
    shape: tuple[int, ...], kernel: jax.Array, g: jax.Array, strides: Pair, pads: Pads, dilation: Pair
) -> jax.Array:
    """The convolution of g, spread by the strides, with the kernel flipped in space and transposed in its channels."""
    full: list[Pair] = []
    for i in range(2):
        before = (kernel.shape[i] - 1) * dilation[i] - pads[i][0]
        full.append((before, shape[i + 1] - 1 - (g.shape[i + 1] - 1) * strides[i] + pads[i][0]))
    if shape[3] <= _FEW_CHANNELS and strides == dilation == (1, 1):
        return _as_product(kernel, g, full)
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    gradient: jax.Array = _plain(g, flipped, (1, 1), tuple(full), strides, dilation)
    return gradient


def _as_product(kernel: jax.Array, g: jax.Array, full: list[Pair]) -> jax.Array:
    """The same for stride 1 as one matrix product, its columns shifted to their places in the window and added up."""
    product = jnp.einsum("nhwo,ijco->nhwijc", g, kernel)
    (top, bottom), (left, right) = full
    top, left = top - kernel.shape[0] + 1, left - kernel.shape[1] + 1

    def place(i: int, j: int) -> jax.Array:
        edges = [(0, 0, 0), (top + i, bottom - i, 0), (left + j, right - j, 0), (0, 0, 0)]
        return lax.pad(product[:, :, :, i, j], jnp.zeros((), product.dtype), edges)

    return functools.reduce(jnp.add, [place(*position) for position in np.ndindex(kernel.shape[:2])])


def _kernel_gradient(
    x: jax.Array, shape: tuple[int, ...], g: jax.Array, strides: Pair, pads: Pads, dilation: Pair
) -> jax.Array:
    """The convolution of x with g, its positions, channels and images in each other's place, a few images at a time."""
    groups = max(1, min(len(x), -(-g[..., 0].size // _FEW_POSITIONS)))
    few = max(1, -(-len(x) // groups))
    groups = max(1, -(-len(x) // few))
    missing = (0, groups * few - len(x))  # the last group is filled up with zeros
    x, g = jnp.pad(x, (missing, *pads, (0, 0))), jnp.pad(g, (missing, (0, 0), (0, 0), (0, 0)))
    rows, columns = ((g.shape[i + 1] - 1) * strides[i] + (shape[i] - 1) * dilation[i] + 1 for i in range(2))
    x = x[:, :rows, :columns]  # all that any window reads

    def group(number: jax.Array | int) -> jax.Array:
        images, g_few = (lax.dynamic_slice_in_dim(array, number * few, few) for array in (x, g))
        images, g_few = lax.optimization_barrier((images.transpose(3, 1, 2, 0), g_few.transpose(1, 2, 0, 3)))
        return lax.conv_general_dilated(  # [i, kh, kw, o]
            images, g_few, dilation, "VALID", rhs_dilation=strides, dimension_numbers=_LAYOUT
        )

    total: jax.Array = lax.fori_loop(1, groups, lambda number, total: total + group(number), group(0))
    return total.transpose(1, 2, 0, 3)


_conv.defvjp(_forward, _backward)
