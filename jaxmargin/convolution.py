"""Convolutions whose gradients stay fast inside loops on a CPU.

XLA's CPU compiler rewrites convolutions into their fast form outside of loops only; inside ``lax.scan`` or ``lax.map``
the transposed layouts that autodiff makes for their gradients run 10 to 60 times slower (jax-ml/jax#12868). Here both
gradients are written out in a form that is fast everywhere: the input's as a plain convolution with the flipped kernel,
the kernel's as one matrix product per kernel position.

>>> import flax.linen as nn
>>> layer = nn.Conv(32, (3, 3), conv_general_dilated=conv_general_dilated)   # any flax network, ours or yours
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["conv_general_dilated", "max_pool"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], tuple[int, int]]


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, *, dimension_numbers: Any = None, **others: Any
) -> jax.Array:
    """``jax.lax.conv_general_dilated`` with gradients that are fast in loops, for flax's ``conv_general_dilated=``.

    Stride-1 image convolutions in flax's layout take the fast path; all others go to JAX as they are. The fast path has
    no forward-mode derivative (it is a ``custom_vjp``).

    Args:
      lhs: images [n, h, w, i].
      rhs: kernel [kh, kw, i, o].
      window_strides: steps of the window, (1, 1) for the fast path.
      padding: "SAME", "VALID" or two (low, high) pairs.
      dimension_numbers: the layout, as flax passes it.
      **others: further arguments of JAX's function.

    Returns:
      Images [n, h', w', o].
    """
    if lhs.ndim == 4 and _is_simple(lhs, rhs, window_strides, padding, dimension_numbers, others):
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], (1, 1), padding)
        return _conv(lhs, rhs, tuple((int(low), int(high)) for low, high in padding))
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, dimension_numbers=dimension_numbers, **others)


def _is_simple(
    lhs: jax.Array, rhs: jax.Array, strides: Any, padding: Any, dimension_numbers: Any, others: dict[str, Any]
) -> bool:
    """Whether the fast path computes just this: flax's layout, stride 1, no dilation, groups, cropping or options."""
    layouts = [lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers) for numbers in (dimension_numbers, _LAYOUT)]
    steps = [*strides, *(others.get("lhs_dilation") or ()), *(others.get("rhs_dilation") or ())]
    steps += [others.get("feature_group_count", 1), others.get("batch_group_count", 1)]
    wishes = [others.get("precision"), others.get("preferred_element_type")]
    plain_pads = isinstance(padding, str) or all(low >= 0 and high >= 0 for low, high in padding)
    return layouts[0] == layouts[1] and all(s == 1 for s in steps) and plain_pads and wishes == [None, None]


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
    return jnp.maximum(
        jnp.maximum(top[..., 0, :], top[..., 1, :]), jnp.maximum(bottom[..., 0, :], bottom[..., 1, :])
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    return _plain(x, kernel, pads)


def _plain(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """The convolution itself, on a CPU never without padding: unpadded ones go to a kernel eight times slower."""
    (top, bottom), sides = pads
    if jax.default_backend() != "cpu" or any((top, bottom, *sides)):
        return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=_LAYOUT)
    longer = lax.conv_general_dilated(x, kernel, (1, 1), ((0, 1), sides), dimension_numbers=_LAYOUT)
    return longer[:, :-1]


def _forward(x: jax.Array, kernel: jax.Array, pads: Pads) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, pads), (x, kernel)


def _backward(pads: Pads, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _input_gradient(kernel, g, pads), _kernel_gradient(x, kernel, g, pads)


def _input_gradient(kernel: jax.Array, g: jax.Array, pads: Pads) -> jax.Array:
    """The convolution of g with the kernel flipped in space and transposed in its channels."""
    full = ((size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape, pads, strict=False))
    return _plain(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), tuple(full))


def _kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, pads: Pads) -> jax.Array:
    """Entry (i, j) is the matrix product of x shifted by (i, j) with g, over all images and positions."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = g.shape[1:3]
    shifts = [[x[:, i : i + height, j : j + width] for j in range(kernel.shape[1])] for i in range(kernel.shape[0])]
    return jnp.stack([jnp.stack([jnp.einsum("nhwi,nhwo->io", x_ij, g) for x_ij in row]) for row in shifts])


_conv.defvjp(_forward, _backward)
