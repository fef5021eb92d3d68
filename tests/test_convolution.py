"""Our convolution and pooling against JAX's and flax's: values, gradients, and every transformation around them."""

import functools
import itertools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params as random_params_of

from jaxmargin.certificates.rounding import double_precision
from jaxmargin.xla_cpu import convolution
from jaxmargin.xla_cpu.convolution import conv_general_dilated, max_pool

pytestmark = pytest.mark.hurried

LAYOUT = ("NHWC", "HWIO", "NHWC")
PADDINGS = {
    "VALID": "VALID",
    "SAME": "SAME",
    "SAME_LOWER": "SAME_LOWER",
    "even": ((1, 1), (2, 2)),
    "uneven": ((2, 0), (1, 3)),
    "wide": ((4, 5), (3, 4)),  # beyond the kernel
}
SHAPES = {  # of images and kernel
    "3 x 3": ((2, 6, 7, 3), (3, 3, 3, 4)),
    "even kernel": ((1, 5, 6, 2), (2, 4, 2, 3)),
    "one channel": ((3, 5, 5, 1), (3, 2, 1, 1)),
    "1 x 1": ((2, 4, 4, 3), (1, 1, 3, 2)),
    "kernel beyond the image": ((2, 3, 4, 2), (5, 5, 2, 3)),
}


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def random_params(module, x):
    return random_params_of(types.SimpleNamespace(init=lambda key: module.init(key, x)))


def ours(x, kernel, padding="SAME", strides=(1, 1), **options):
    return conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT, **options)


def theirs(x, kernel, padding="SAME", strides=(1, 1), **options):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT, **options)


CONVOLUTIONS = conv_general_dilated, jax.lax.conv_general_dilated


def close(actual, expected):
    """Equal up to the rounding of sums of a few hundred float32 products."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), actual, expected)


def pull(convolution, x, kernel, padding, **options):
    """The value and, for one fixed cotangent, both gradients."""
    out, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, padding, **options), x, kernel)
    return out, pullback(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


def both(run, *args):
    """What ``run`` makes of our convolution and of theirs, in one program."""
    return jax.jit(lambda *args: (run(ours, *args), run(theirs, *args)))(*args)


def pulled(x, kernel, padding, **options):
    return both(lambda convolution, x, kernel: pull(convolution, x, kernel, padding, **options), x, kernel)


@pytest.mark.parametrize(
    ("shape", "padding"),
    [
        *itertools.product(["3 x 3"], PADDINGS),
        *itertools.product(["even kernel"], ["SAME", "SAME_LOWER"]),
        *itertools.product(["one channel", "1 x 1"], ["SAME"]),
        *itertools.product(["kernel beyond the image"], ["SAME", "wide"]),
    ],
)
def test_value_and_both_gradients_equal_those_of_jax(shape, padding):
    (x, kernel), padding = arrays(*SHAPES[shape]), PADDINGS[padding]
    close(*pulled(x, kernel, padding))


def test_float64_gradients_equal_those_of_jax_to_float64():
    padding = PADDINGS["uneven"]
    with double_precision():
        x, kernel = (jnp.asarray(array, jnp.float64) for array in arrays(*SHAPES["3 x 3"]))
        actual, expected = pulled(x, kernel, padding)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), actual, expected)


def test_gradients_equal_central_differences():
    with double_precision():
        x, kernel = (jnp.asarray(array, jnp.float64) for array in arrays((1, 4, 4, 2), (3, 2, 2, 2)))

        def loss(x, kernel):
            return jnp.sum(jnp.sin(ours(x, kernel)))

        dx, dk = (np.cos(np.arange(float(array.size))).reshape(array.shape) for array in (x, kernel))

        @jax.jit
        def run(x, kernel):
            ends = [(loss(x + h * dx, kernel), loss(x, kernel + h * dk)) for h in (1e-5, -1e-5)]
            return jax.grad(loss, (0, 1))(x, kernel), ends

        gradients, (ahead, behind) = run(x, kernel)
        for gradient, d, after, before in zip(gradients, (dx, dk), ahead, behind, strict=True):
            np.testing.assert_allclose(np.sum(gradient * d), (after - before) / 2e-5, rtol=1e-8)


def test_gradients_are_right_when_images_and_kernels_are_mapped():
    x, kernel = arrays((3, 2, 5, 5, 2), (3, 3, 3, 2, 2))

    def run(convolution, x, kernel):
        return jax.vmap(lambda x, kernel: pull(convolution, x, kernel, "SAME"))(x, kernel)

    close(*both(run, x, kernel))


def test_gradients_are_right_when_images_alone_are_mapped():
    x, kernel = arrays((4, 5, 5, 2), (3, 3, 2, 3))

    def gradient(convolution, x, kernel):
        def loss(x, kernel):
            return jnp.sum(jnp.tanh(convolution(x[None], kernel)))

        return jax.vmap(jax.grad(loss, (0, 1)), (0, None))(x, kernel)

    close(*both(gradient, x, kernel))


def test_gradients_are_right_inside_a_scan():
    x, kernel = arrays((3, 2, 5, 5, 2), (3, 3, 2, 2))

    def run(convolution, x, kernel):
        def step(kernel, x):
            gradient = jax.grad(lambda kernel: jnp.mean(convolution(x, kernel) ** 2))(kernel)
            return kernel - 0.1 * gradient, gradient

        return jax.lax.scan(step, kernel, x)

    close(*both(run, x, kernel))


@pytest.mark.parametrize(("size", "positions"), [(0, 8192), (1, 8192), (17, 1), (17, 40), (40, 50), (40, 8192)])
def test_gradients_are_right_for_any_number_of_images_and_groups_of_them(size, positions, monkeypatch):
    monkeypatch.setattr(convolution, "_FEW_POSITIONS", positions)
    x, kernel = arrays((size, 5, 5, 2), (3, 3, 2, 3))
    close(*pulled(x, kernel, "VALID"))


def test_gradients_are_right_inside_of_shard_map():
    x, kernel = arrays((20, 5, 5, 2), (1, 3, 3, 2, 3))

    def gradients(x, kernels, convolution=ours):
        return jax.grad(lambda x, kernel: jnp.sin(convolution(x, kernel, "VALID")).sum(), argnums=(0, 1))(x, kernels[0])

    split, auto = jax.sharding.PartitionSpec("points"), (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("points",), axis_types=auto)
    shared = jax.shard_map(gradients, mesh=mesh, in_specs=split, out_specs=split)
    close(*jax.jit(lambda x, kernel: (shared(x, kernel), gradients(x, kernel, theirs)))(x, kernel))


STEPS, SPREAD, BOTH = {"strides": (2, 2)}, {"rhs_dilation": (1, 2)}, {"strides": (1, 3), "rhs_dilation": (2, 1)}


@pytest.mark.parametrize(
    ("options", "padding"),
    [
        *itertools.product([BOTH], ["VALID", "SAME", "SAME_LOWER", "uneven", "wide"]),
        *itertools.product([STEPS], ["VALID", "SAME", "SAME_LOWER"]),
        *itertools.product([SPREAD], ["SAME", "uneven"]),
    ],
)
def test_steps_and_spread_kernels_have_the_gradients_of_jax(options, padding, monkeypatch):
    monkeypatch.setattr(convolution, "_FEW_POSITIONS", 40)  # one or two images at a time
    x, kernel = arrays((3, 8, 7, 3), (3, 2, 3, 4))
    close(*pulled(x, kernel, PADDINGS[padding], **options))


@pytest.mark.parametrize(
    "options",
    [
        {"lhs_dilation": (2, 1)},
        {"feature_group_count": 2},
        {"batch_group_count": 2},
    ],
    ids=lambda options: " ".join(options),
)
def test_other_convolutions_go_to_jax(options):
    x, kernel = arrays((2, 6, 6, 4), (3, 3, 2 if "feature_group_count" in options else 4, 4))
    options = {"padding": ((1, 1), (1, 1)), **options}
    close(*pulled(x, kernel, **options))


def test_other_layouts_go_to_jax():
    x, kernel = arrays((2, 3, 6, 6), (4, 3, 3, 3))
    kernel = kernel[..., :2]  # 3 x 2, so that SAME pads both axes differently
    runs = [jax.jit(lambda x, kernel, run=run: run(x, kernel, (1, 1), "SAME")) for run in CONVOLUTIONS]
    np.testing.assert_array_equal(*(run(x, kernel) for run in runs))


@pytest.mark.parametrize("spatial", [1, 3])
def test_convolutions_of_sequences_and_volumes_go_to_jax(spatial):
    x, layer = jnp.ones((1, *(4,) * spatial, 2)), functools.partial(nn.Conv, 3, (2,) * spatial)
    params = random_params(layer(), x)
    runs = [jax.jit(layer(conv_general_dilated=run).apply) for run in CONVOLUTIONS]
    np.testing.assert_array_equal(*(run(params, x) for run in runs))


def test_the_wanted_result_type_is_kept():
    x, kernel = (array.astype(jnp.bfloat16) for array in arrays((1, 4, 4, 2), (3, 3, 2, 2)))
    wanted = functools.partial(ours, preferred_element_type=jnp.float32)
    assert jax.eval_shape(wanted, x, kernel).dtype == jnp.float32


def test_negative_pads_crop_as_in_jax():
    x, kernel = arrays((1, 5, 5, 2), (2, 2, 2, 2))
    close(*pulled(x, kernel, ((-1, 0), (0, 1))))


def test_a_flax_layer_gives_the_same_with_either_convolution():
    x = arrays((2, 7, 6, 3))[0]
    ours, theirs = (nn.Conv(4, (3, 3), conv_general_dilated=run) for run in CONVOLUTIONS)

    def gradient(layer, params):
        out, pullback = jax.vjp(lambda params: jnp.tanh(layer.apply(params, x)), params)
        return out, pullback(jnp.ones_like(out))

    params = random_params(ours, x)
    close(*jax.jit(lambda params: (gradient(ours, params), gradient(theirs, params)))(params))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3), (3, 2)])
def test_max_pool_equals_that_of_flax_and_so_does_its_gradient(size):
    theirs = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
    x = jnp.asarray(np.random.default_rng(1).permutation(2 * 3 * np.prod(size)).reshape(2, *size, 3), jnp.float32)

    def run(pool, x):
        out, pullback = jax.vjp(pool, x)
        return out, pullback(1 + out)

    actual, expected = jax.jit(lambda x: [run(pool, x) for pool in (max_pool, theirs)])(x)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)  # no ties: all values differ


def test_max_pool_takes_one_image_or_many():
    x = arrays((3, 4, 5, 2))[0]
    np.testing.assert_array_equal(*jax.jit(lambda x: (jax.vmap(max_pool)(x), max_pool(x)))(x))


def test_max_pool_splits_the_gradient_of_a_tie_and_loses_none():
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x))))(np.zeros((4, 4, 1), np.float32))
    np.testing.assert_allclose(gradient.sum(), 4.0)
