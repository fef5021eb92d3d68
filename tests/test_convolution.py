"""Our convolution and pooling against JAX's and flax's: values, gradients, and every transformation around them."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def ours(x, kernel, padding="SAME", strides=(1, 1), **options):
    return conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT, **options)


def theirs(x, kernel, padding="SAME", strides=(1, 1), **options):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT, **options)


def close(actual, expected):
    """Equal up to the rounding of sums of a few hundred float32 products."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), actual, expected)


def pull(convolution, x, kernel, padding, **options):
    """The value and, for one fixed cotangent, both gradients."""

    def run(x, kernel):
        out, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, padding, **options), x, kernel)
        return out, pullback(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    return jax.jit(run)(x, kernel)


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
    close(pull(ours, x, kernel, padding), pull(theirs, x, kernel, padding))


def test_float64_gradients_equal_those_of_jax_to_float64():
    padding = PADDINGS["uneven"]
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(array, jnp.float64) for array in arrays(*SHAPES["3 x 3"]))
        actual, expected = (pull(convolution, x, kernel, padding) for convolution in (ours, theirs))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), actual, expected)


def test_gradients_equal_central_differences():
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(array, jnp.float64) for array in arrays((1, 4, 4, 2), (3, 2, 2, 2)))

        def loss(x, kernel):
            return jnp.sum(jnp.sin(ours(x, kernel)))

        def slope(line):  # at 0, of a function of one number
            return (line(1e-5) - line(-1e-5)) / 2e-5

        dx, dk = (jnp.cos(jnp.arange(float(array.size))).reshape(array.shape) for array in (x, kernel))
        for_x, for_kernel = jax.grad(loss, (0, 1))(x, kernel)
        np.testing.assert_allclose(jnp.sum(for_x * dx), slope(lambda h: loss(x + h * dx, kernel)), rtol=1e-8)
        np.testing.assert_allclose(jnp.sum(for_kernel * dk), slope(lambda h: loss(x, kernel + h * dk)), rtol=1e-8)


def test_gradients_are_right_when_images_and_kernels_are_mapped():
    x, kernel = arrays((3, 2, 5, 5, 2), (3, 3, 3, 2, 2))

    def run(convolution):
        return jax.jit(jax.vmap(lambda x, kernel: pull(convolution, x, kernel, "SAME")))(x, kernel)

    close(run(ours), run(theirs))


def test_gradients_are_right_when_images_alone_are_mapped():
    x, kernel = arrays((4, 5, 5, 2), (3, 3, 2, 3))

    def gradient(convolution):
        def loss(x, kernel):
            return jnp.sum(jnp.tanh(convolution(x[None], kernel)))

        return jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (0, None)))(x, kernel)

    close(gradient(ours), gradient(theirs))


def test_gradients_are_right_inside_a_scan():
    x, kernel = arrays((3, 2, 5, 5, 2), (3, 3, 2, 2))

    def run(convolution):
        def step(kernel, x):
            gradient = jax.grad(lambda kernel: jnp.mean(convolution(x, kernel) ** 2))(kernel)
            return kernel - 0.1 * gradient, gradient

        return jax.jit(lambda kernel, x: jax.lax.scan(step, kernel, x))(kernel, x)

    close(run(ours), run(theirs))


@pytest.mark.parametrize(("size", "positions"), [(0, 8192), (1, 8192), (17, 1), (17, 40), (40, 50), (40, 8192)])
def test_gradients_are_right_for_any_number_of_images_and_groups_of_them(size, positions, monkeypatch):
    monkeypatch.setattr(convolution, "_FEW_POSITIONS", positions)
    x, kernel = arrays((size, 5, 5, 2), (3, 3, 2, 3))
    close(pull(ours, x, kernel, "VALID"), pull(theirs, x, kernel, "VALID"))


def test_gradients_are_right_inside_of_shard_map():
    x, kernel = arrays((20, 5, 5, 2), (1, 3, 3, 2, 3))

    def gradients(x, kernels, convolution=ours):
        return jax.grad(lambda x, kernel: jnp.sin(convolution(x, kernel, "VALID")).sum(), argnums=(0, 1))(x, kernels[0])

    split, auto = jax.sharding.PartitionSpec("points"), (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("points",), axis_types=auto)
    shared = jax.shard_map(gradients, mesh=mesh, in_specs=split, out_specs=split)
    close(shared(x, kernel), gradients(x, kernel, theirs))


@pytest.mark.parametrize("padding", ["VALID", "SAME", "SAME_LOWER", "uneven", "wide"])
@pytest.mark.parametrize(
    "options", [{"strides": (2, 2)}, {"strides": (1, 3), "rhs_dilation": (2, 1)}, {"rhs_dilation": (1, 2)}]
)
def test_steps_and_spread_kernels_have_the_gradients_of_jax(options, padding, monkeypatch):
    monkeypatch.setattr(convolution, "_FEW_POSITIONS", 40)  # one or two images at a time
    x, kernel = arrays((3, 8, 7, 3), (3, 2, 3, 4))
    close(*(pull(run, x, kernel, PADDINGS[padding], **options) for run in (ours, theirs)))


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
    close(pull(ours, x, kernel, **options), pull(theirs, x, kernel, **options))


def test_other_layouts_go_to_jax():
    x, kernel = arrays((2, 3, 6, 6), (4, 3, 3, 3))
    kernel = kernel[..., :2]  # 3 x 2, so that SAME pads both axes differently
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME")
    np.testing.assert_array_equal(conv_general_dilated(x, kernel, (1, 1), "SAME"), expected)


@pytest.mark.parametrize("spatial", [1, 3])
def test_convolutions_of_sequences_and_volumes_go_to_jax(spatial, key):
    x = jnp.ones((1, *(4,) * spatial, 2))
    layer = nn.Conv(3, (2,) * spatial)
    params = layer.init(key, x)
    layer_of_ours = nn.Conv(3, (2,) * spatial, conv_general_dilated=conv_general_dilated)
    np.testing.assert_array_equal(layer_of_ours.apply(params, x), layer.apply(params, x))


def test_the_wanted_result_type_is_kept():
    x, kernel = (array.astype(jnp.bfloat16) for array in arrays((1, 4, 4, 2), (3, 3, 2, 2)))
    assert ours(x, kernel, preferred_element_type=jnp.float32).dtype == jnp.float32


def test_negative_pads_crop_as_in_jax():
    x, kernel = arrays((1, 5, 5, 2), (2, 2, 2, 2))
    close(pull(ours, x, kernel, ((-1, 0), (0, 1))), pull(theirs, x, kernel, ((-1, 0), (0, 1))))


def test_a_flax_layer_gives_the_same_with_either_convolution(key):
    x = arrays((2, 7, 6, 3))[0]
    plain = nn.Conv(4, (3, 3))
    params = plain.init(key, x)
    fast = nn.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated)

    def gradient(layer):
        return jax.grad(lambda params: jnp.sum(jnp.tanh(layer.apply(params, x))))(params)

    close(fast.apply(params, x), plain.apply(params, x))
    close(gradient(fast), gradient(plain))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3), (3, 2)])
def test_max_pool_equals_that_of_flax_and_so_does_its_gradient(size):
    x = jnp.asarray(np.random.default_rng(1).permutation(2 * 3 * np.prod(size)).reshape(2, *size, 3), jnp.float32)

    def run(pool):
        out, pullback = jax.vjp(pool, x)
        return out, pullback(1 + out)

    actual, expected = run(max_pool), run(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)  # no ties: all values differ


def test_max_pool_takes_one_image_or_many():
    x = arrays((3, 4, 5, 2))[0]
    np.testing.assert_array_equal(jax.vmap(max_pool)(x), max_pool(x))


def test_max_pool_splits_the_gradient_of_a_tie_and_loses_none():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(jnp.zeros((4, 4, 1)))
    np.testing.assert_allclose(gradient.sum(), 4.0)
