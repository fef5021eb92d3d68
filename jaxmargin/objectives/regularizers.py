"""The terms of eq. (4) of Wu and Yu beside the loss: the truncated margin and the orthogonality of the weights.

>>> import jax.numpy as jnp
>>> float(orthogonality({"kernel": jnp.eye(3)}))
0.0
"""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["orthogonality", "parseval_retraction", "ramp"]


def ramp(margin: jax.Array, tau: float) -> jax.Array:
    """[a]_0^tau, the margin a truncated to [0, tau] so that no outlier dominates the average.

    Args:
      margin: logit margin a, a scalar.
      tau: upper end, in logits.

    Returns:
      A scalar in [0, tau].

    Reference:
      Wu and Yu 2019, eq. (4).
    """
    return jnp.clip(margin, 0.0, tau)


def orthogonality(params: Any) -> jax.Array:
    """sum_l ||W_l W_l^T - I||_F^2 over all kernels, W_l of shape [out, in] ([out, kh kw in] of a convolution).

    The row Gram matrix W W^T and the column one W^T W differ in this sum by the constant out - in, so the smaller of
    the two is formed and the constant added; the sum is never below max(0, out - in).

    Args:
      params: a tree of arrays; every array of two or more axes counts as a kernel with its outputs on the last axis.

    Returns:
      A scalar >= 0.

    Reference:
      Wu and Yu 2019, eq. (4); Cisse et al. 2017, Parseval networks.
    """
    return sum((_departure(_matrix(kernel)) for kernel in _kernels(params)), start=jnp.zeros(()))


def parseval_retraction(params: Any, beta: float) -> Any:
    """W <- (1 + beta) W - beta W W^T W for every kernel, one step towards orthogonal rows or columns.

    Args:
      params: a tree of arrays, kernels as in ``orthogonality``.
      beta: step, 0 < beta <= 1/2.

    Returns:
      The tree with its kernels moved and everything else unchanged.

    Reference:
      Cisse et al. 2017, Parseval networks, section 4.2.
    """

    def retract(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return leaf
        w = _matrix(leaf)  # [in, out]
        cubed = w @ (w.T @ w) if w.shape[1] <= w.shape[0] else (w @ w.T) @ w
        return ((1 + beta) * w - beta * cubed).reshape(leaf.shape)

    return jax.tree.map(retract, params)


def _kernels(params: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]


def _matrix(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(-1, kernel.shape[-1])  # [in, out], the transpose of W


@jax.custom_jvp
def _departure(w: jax.Array) -> jax.Array:
    """||W W^T - I||_F^2; its derivative takes one product more, not the two of a differentiated Gram matrix."""
    return _departure_and_slope(w)[0]


@_departure.defjvp
def _departure_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    value, slope = _departure_and_slope(*primals)
    return value, jnp.sum(slope * tangents[0])


def _departure_and_slope(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, outputs = w.shape
    few = outputs <= inputs
    apart = (w.T @ w if few else w @ w.T) - jnp.eye(min(w.shape))
    return jnp.sum(apart**2) + max(0, outputs - inputs), 4 * (w @ apart if few else apart @ w)
