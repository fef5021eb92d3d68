"""The terms of eq. (4) against their literal formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params

from jaxmargin import models
from jaxmargin.objectives import regularizers

pytestmark = pytest.mark.hurried

SHAPES = {"tall": (9, 4), "wide": (4, 9), "square": (5, 5), "conv": (3, 3, 2, 8), "narrow conv": (2, 3, 6, 4)}
kernels = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def kernel(shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def rows(leaf):
    """W of shape [out, in], or [out, kh kw in] of a convolution, in float64."""
    return np.float64(leaf).reshape(-1, leaf.shape[-1]).T


def literal(leaf):
    w = rows(leaf)
    return np.sum((w @ w.T - np.eye(len(w))) ** 2)


@kernels
def test_orthogonality_is_the_squared_distance_of_the_row_gram_from_the_identity(shape):
    w = kernel(shape)
    np.testing.assert_allclose(regularizers.orthogonality({"kernel": jnp.asarray(w)}), literal(w), rtol=1e-5)


@kernels
def test_orthogonality_has_the_literal_gradient(shape):
    w = kernel(shape)
    m = rows(w)
    expected = (4 * (m @ m.T - np.eye(len(m))) @ m).T.reshape(shape)
    gradient = jax.grad(regularizers.orthogonality)(jnp.asarray(w))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_orthogonality_adds_all_kernels_and_no_bias():
    params = random_params(models.cnn((8, 8, 1), 3, widths=(2, 3), hidden=5))
    expected = sum(literal(layer["kernel"]) for layer in params.values())
    np.testing.assert_allclose(jax.jit(regularizers.orthogonality)(params), expected, rtol=1e-5)


def test_orthogonal_columns_leave_the_floor_of_outputs_beyond_inputs():
    tall = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(7, 3)))[0], jnp.float32)  # [in, out]
    np.testing.assert_allclose(regularizers.orthogonality(tall), 0, atol=1e-10)
    np.testing.assert_allclose(regularizers.orthogonality(tall.T), 4, rtol=1e-6)


def test_orthogonality_of_no_kernels_is_zero():
    assert regularizers.orthogonality({"bias": jnp.ones(3)}) == 0


@kernels
def test_retraction_is_the_literal_parseval_step(shape):
    w, beta = kernel(shape), 0.1
    m = rows(w)
    expected = ((1 + beta) * m - beta * m @ m.T @ m).T.reshape(shape)
    moved = regularizers.parseval_retraction({"kernel": jnp.asarray(w)}, beta)["kernel"]
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_retraction_leaves_biases_alone():
    params = {"kernel": 2 * jnp.eye(3), "bias": jnp.arange(3.0)}
    moved = regularizers.parseval_retraction(params, 0.2)
    np.testing.assert_array_equal(moved["bias"], params["bias"])
    assert (moved["kernel"] != params["kernel"]).any()


def test_repeated_retraction_makes_rows_orthonormal():
    w = jnp.asarray(0.3 * kernel((9, 4)))
    for _ in range(200):
        w = regularizers.parseval_retraction(w, 0.2)
    np.testing.assert_allclose(rows(w) @ rows(w).T, np.eye(4), atol=1e-5)


def test_ramp_truncates_to_zero_and_tau():
    values = regularizers.ramp(jnp.array([-2.0, 0.0, 1.5, 5.0, 7.0]), 5.0)
    np.testing.assert_array_equal(values, [0, 0, 1.5, 5, 5])


def test_ramp_moves_only_points_between_zero_and_tau():
    slopes = jax.vmap(jax.grad(regularizers.ramp), (0, None))(jnp.array([-1.0, 2.0, 6.0]), 5.0)
    np.testing.assert_array_equal(slopes, [0, 1, 0])
