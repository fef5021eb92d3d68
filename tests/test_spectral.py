"""Certified spectral norms against the singular values of the matrices themselves, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

import jaxmargin as jm
from jaxmargin import models
from jaxmargin.certificates.spectral import spectral_norms
from jaxmargin.layers import Layer, shapes_of

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # where no bit matters


def conv_matrix(kernel, shape, padding):
    """The matrix of a convolution, entry by entry."""
    rows, columns, into, out = kernel.shape
    pads = [(size - 1) // 2 if padding == "SAME" else 0 for size in (rows, columns)]
    after = shapes_of([Layer("conv", kernel, padding=padding)], shape)[-1]
    matrix = np.zeros((*after, *shape))
    for h, w, i, j in np.ndindex(*after[:2], rows, columns):
        y, x = h + i - pads[0], w + j - pads[1]
        if 0 <= y < shape[0] and 0 <= x < shape[1]:
            matrix[h, w, :, y, x, :] += kernel[i, j].T
    return matrix.reshape(np.prod(after), np.prod(shape))


def kernel_of(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def norm_of(matrix):
    """The largest singular value: of the Gram matrix to the last digits too, and ten times sooner."""
    matrix = np.asarray(matrix, np.float64)
    return np.sqrt(max(np.linalg.eigvalsh(matrix.T @ matrix)[-1], 0.0))


@functools.partial(jax.jit, static_argnames=("kind", "shape", "padding"))
def bound_of(kernel, shape, kind="dense", padding=None):
    (bound,) = spectral_norms([Layer(kind, kernel, padding=padding)], shape)
    return bound


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (3, 7), (200, 90), (50, 50)])
def test_the_norm_of_a_dense_layer_is_bounded_closely(shape):
    kernel = kernel_of(*shape)
    bound = np.float64(bound_of(kernel, shape[:1]))
    assert norm_of(kernel) <= bound <= norm_of(kernel) * (1.0001 + np.log(min(shape)) / 2048)


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e4, 1e12])
def test_equal_singular_values_are_the_hardest_case_and_sizes_do_not_matter(scale):
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 50)))[0]
    kernel = np.float32(scale * orthogonal)
    bound = np.float64(bound_of(kernel, (50,)))
    assert norm_of(kernel) <= bound <= norm_of(kernel) * (1.0001 + np.log(50) / 2048)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("image", "window", "channels"),
    [((5, 7), (3, 3), (2, 3)), ((6, 6), (2, 4), (3, 2)), ((4, 3), (1, 3), (2, 2))],
)
def test_the_norm_of_a_convolution_is_bounded(image, window, channels, padding):
    kernel = kernel_of(*window, *channels)
    matrix = conv_matrix(kernel, (*image, channels[0]), padding)
    bound = np.float64(bound_of(kernel, (*image, channels[0]), "conv", padding))
    assert norm_of(matrix) <= bound < norm_of(matrix) * 1.6


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_on_a_larger_image_the_torus_is_close_to_the_zero_padded_image(padding):
    kernel = kernel_of(3, 3, 2, 3)
    matrix = conv_matrix(kernel, (18, 18, 2), padding)
    bound = np.float64(bound_of(kernel, (18, 18, 2), "conv", padding))
    (norm,) = svds(csr_matrix(matrix), 1, v0=np.ones(min(matrix.shape)), return_singular_vectors=False)
    assert norm <= bound < norm * 1.04


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_the_matrix_of_the_tests_is_the_convolution_of_the_models(padding):
    kernel, x = kernel_of(3, 2, 2, 3), kernel_of(6, 5, 2, seed=1)
    y = jax.lax.conv_general_dilated(
        x[None], kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    np.testing.assert_allclose(conv_matrix(kernel, x.shape, padding) @ x.ravel(), y.ravel(), atol=1e-5)


def test_a_convolution_that_only_shifts_has_norm_one():
    kernel = np.zeros((3, 3, 2, 3), np.float32)
    kernel[2, 0] = np.eye(2, 3)
    for padding in ("SAME", "VALID"):
        assert 1 <= bound_of(kernel, (18, 18, 2), "conv", padding) < 1.002


@pytest.mark.slow
def test_the_lipschitz_constant_is_the_product_and_bounds_every_slope():
    model, shape = models.lenet((16, 16, 1), 3, widths=(4, 8), hidden=16), (16, 16, 1)
    params = jax.tree.map(np.asarray, random_params(model))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        return jm.lipschitz_bound(functools.partial(model.apply, params), shape)

    bound = run(params)
    layers = model.layers(params)
    norms = [
        norm_of(conv_matrix(layer.kernel, before, layer.padding) if layer.kind == "conv" else layer.kernel)
        for layer, before in zip(layers, shapes_of(layers, shape), strict=False)
        if layer.kernel is not None
    ]
    assert bound.dtype == jnp.float32
    assert len(norms) == 4
    assert np.prod(norms) <= bound < np.prod(norms) * 1.5
    xs = np.float32(np.random.default_rng(0).normal(size=(50, *shape)))
    jacobians = jax.jit(jax.vmap(jax.jacrev(model.apply, 1), (None, 0)), compiler_options=QUICK)
    slopes = jacobians(params, xs).reshape(50, 3, 256)
    assert np.linalg.norm(slopes, 2, (1, 2)).max() <= bound


def test_a_black_box_has_an_infinite_bound():
    assert jm.lipschitz_bound(lambda x: x, (3,)) == np.inf


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([Layer("attention")], (3,)),
        ([Layer("dense", np.ones((3, 2)))], (4,)),
        ([Layer("dense", np.ones((3, 2)))], (4, 3)),
        ([Layer("conv", np.ones((3, 3, 1, 1)), padding="CIRCULAR")], (5, 5, 1)),
        ([Layer("conv", np.ones((3, 3, 1, 1)), padding="VALID")], (5, 2, 1)),
        ([Layer("max_pool")], (1, 4, 1)),
    ],
)
def test_layers_that_are_not_known_or_do_not_fit_are_refused(layers, shape):
    assert shapes_of(layers, shape) is None
    with pytest.raises(ValueError, match="not known"):
        spectral_norms(layers, shape)
