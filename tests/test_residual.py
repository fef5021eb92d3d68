"""The wide residual network against the same network by hand, in float64, and what its two modes promise."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params

from jaxmargin.models.model import BATCH
from jaxmargin.models.residual import wide_resnet

pytestmark = pytest.mark.hurried

MODEL = wide_resnet((8, 12, 3), 3, depth=10, width=1)
DEEPER = wide_resnet((8, 8, 1), 3, depth=16, width=2)  # a shortcut in the first group, and blocks without one
SIZES = {"depth 10, width 1": MODEL, "depth 16, width 2": DEEPER}
sizes = pytest.mark.parametrize("model", SIZES.values(), ids=SIZES)
KEY = jax.random.key(0)  # of training passes: nothing is drawn from it


@cache
def measured(model):
    """(params, xs) -> (logits, features)."""
    return jax.jit(
        jax.vmap(lambda params, x: (model.apply(params, x), model.features(params, x)), (None, 0), axis_name=BATCH)
    )


@cache
def observed(model):
    """(params, xs, key) -> (logits, params moved on)."""
    return jax.jit(jax.vmap(model.apply.observe, (None, 0, None), (0, None), axis_name=BATCH))


measure_one = jax.jit(MODEL.apply)
train = jax.jit(jax.vmap(MODEL.apply, (None, 0, None), axis_name=BATCH))
slopes = jax.jit(jax.grad(lambda params, xs: jnp.sum(train(params, xs, KEY) ** 2), (0, 1)))


def in_numpy(tree):
    """Where no operation is compiled."""
    return jax.tree.map(np.asarray, tree)


@cache
def params_of(model):
    """Random variables; the statistics are positive, as variances are."""
    params = in_numpy(random_params(model))
    return {**params, "batch_stats": jax.tree.map(lambda leaf: 0.5 + leaf**2, params["batch_stats"])}


def images(model=MODEL, n=5, seed=0):
    """[n, *d], the first two constant and nearly so: their deviations are below the floor."""
    xs = np.random.default_rng(seed).uniform(size=(n, *model.input_shape))
    xs[0], xs[1] = 0.3, 0.5 + 0.01 * xs[1]
    return np.float32(xs)


# By hand --------------------------------------------------------------------------------------------------------------


def conv(x, weights, stride):
    kernel = np.float64(weights["kernel"])
    pad = len(kernel) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwikl,klio->nhwo", windows, kernel)


def activate(x, weights, running, training, seen):
    """Batch norm and relu; ``seen`` collects the statistics of the batch in the order of the layers."""
    seen.append({"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))})
    mean, var = (np.float64((seen[-1] if training else running)[name]) for name in ("mean", "var"))
    return np.maximum((x - mean) / np.sqrt(var + 1e-5) * np.float64(weights["scale"]) + np.float64(weights["bias"]), 0)


def by_hand(params, xs, training=False):
    """(logits [n, c], features [n, p], statistics of the batch in the layout of the running ones)."""
    weights, running = params["params"], params["batch_stats"]
    blocks = sorted(name for name in weights if name.startswith("Block"))
    x, statistics = np.float64(xs), {}
    deviations = np.maximum(x.std((1, 2, 3), keepdims=True), 1 / np.sqrt(x[0].size))
    x = conv((x - x.mean((1, 2, 3), keepdims=True)) / deviations, weights["Conv_0"], 1)
    for name in blocks:
        stride, block, seen = 2 if name in ("Block_1_0", "Block_2_0") else 1, weights[name], []
        active = activate(x, block["BatchNorm_0"], running[name]["BatchNorm_0"], training, seen)
        inner = conv(active, block["Conv_0"], stride)
        inner = activate(inner, block["BatchNorm_1"], running[name]["BatchNorm_1"], training, seen)
        x = conv(inner, block["Conv_1"], 1) + (conv(active, block["Conv_2"], stride) if "Conv_2" in block else x)
        statistics[name] = {"BatchNorm_0": seen[0], "BatchNorm_1": seen[1]}
    seen = []
    x = activate(x, weights["BatchNorm_0"], running["BatchNorm_0"], training, seen).mean((1, 2))
    statistics["BatchNorm_0"] = seen[0]
    return x @ np.float64(weights["Dense_0"]["kernel"]) + np.float64(weights["Dense_0"]["bias"]), x, statistics


def assert_close(found, expected, tolerance=1e-5):
    """Within a part of the largest entry: sums of thousands of float32 terms, some of which cancel."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@sizes
def test_measuring_is_the_network_by_hand(model):
    params, xs = params_of(model), images(model)
    logits, features, _ = by_hand(params, xs)
    found = measured(model)(params, xs)
    assert_close(found[0], logits)
    assert_close(found[1], features)


@sizes
def test_training_normalises_by_the_batch_and_moves_the_statistics_a_tenth_of_the_way_to_it(model):
    params, xs = params_of(model), images(model)
    logits, moved = observed(model)(params, xs, KEY)
    expected, _, statistics = by_hand(params, xs, training=True)
    assert np.abs(expected - by_hand(params, xs)[0]).max() > 0.1 * np.abs(expected).max()
    assert_close(logits, expected)
    assert set(moved) == set(params)
    jax.tree.map(np.testing.assert_array_equal, moved["params"], params["params"])
    tenth = jax.tree.map(lambda old, new: 0.9 * np.float64(old) + 0.1 * new, params["batch_stats"], statistics)
    jax.tree.map(assert_close, moved["batch_stats"], tenth)


# The architecture -----------------------------------------------------------------------------------------------------


def count_by_hand(depth, width, channels, num_classes):
    """3x3 stem; per block two norms (scale, bias) and two 3x3 convolutions; shortcuts; last norm; dense."""
    total, before = 9 * channels * 16, 16
    for after in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            total += 2 * before + 9 * before * after + 2 * after + 9 * after * after
            total += before * after if before != after else 0
            before = after
    return total + 2 * before + before * num_classes + num_classes


@pytest.mark.parametrize(
    ("depth", "width", "num_classes", "count"),
    [(10, 1, 10, 77_850), (10, 1, 100, 83_700), (28, 10, 10, 36_479_194)],
)
def test_parameter_counts(depth, width, num_classes, count, key):
    model = wide_resnet((32, 32, 3), num_classes, depth=depth, width=width)
    shapes = jax.eval_shape(model.init, key)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    assert count_by_hand(depth, width, 3, num_classes) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}


def test_the_default_is_wrn_28_4(key):
    model = wide_resnet((32, 32, 3))
    shapes = jax.eval_shape(model.init, key)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 5_849_050
    assert count_by_hand(28, 4, 3, 10) == 5_849_050
    kernels = [leaf for leaf in jax.tree.leaves(shapes["params"]) if leaf.ndim == 4]
    assert sum(kernel.shape[:2] == (3, 3) for kernel in kernels) == 25
    assert sum(kernel.shape[:2] == (1, 1) for kernel in kernels) == 3
    x = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    assert jax.eval_shape(model.apply, shapes, x).shape == (10,)
    assert jax.eval_shape(model.features, shapes, x).shape == (256,)
    assert (model.layers, model.apply.layers, model.input_shape, model.num_classes) == (None, None, (32, 32, 3), 10)


@pytest.fixture(scope="module")
def fresh():
    """The smallest network as ``init`` makes it, twice from one key and once from another."""
    init = jax.jit(MODEL.init)
    return [in_numpy(init(jax.random.key(seed, impl="rbg"))) for seed in (0, 0, 1)]  # rbg compiles fast


def named(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(tree)}  # fmt: skip


def test_convolutions_start_normal_by_their_outputs(fresh):
    kernels = [leaf for leaf in named(fresh[0]["params"]).values() if leaf.ndim == 4]
    assert len(kernels) == 9
    for kernel in kernels:
        scaled = kernel.ravel() * np.sqrt(np.prod(kernel.shape[:2]) * kernel.shape[3] / 2)
        assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)
        assert abs(np.mean(scaled**2) - 1) < 5 * np.sqrt(2 / scaled.size)
    everything = np.concatenate([kernel.ravel() / kernel.std() for kernel in kernels])
    assert abs(np.mean(everything**4) - 3) < 5 * np.sqrt(96 / everything.size)  # the tails of a normal, not cut


def test_the_dense_layer_starts_uniform_within_one_over_the_root_of_fan_in(fresh):
    kernel = np.asarray(fresh[0]["params"]["Dense_0"]["kernel"]) * np.sqrt(64)
    assert 0.9 < np.abs(kernel).max() <= 1 + 1e-6
    assert abs(np.mean(kernel**2) - 1 / 3) < 5 * np.sqrt(4 / 45 / kernel.size)


def test_norms_start_as_the_identity_and_biases_at_zero(fresh):
    start = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
    leaves = {name: leaf for name, leaf in named(fresh[0]).items() if leaf.ndim == 1}
    assert len(leaves) == 7 * 4 + 1
    for name, leaf in leaves.items():
        assert (leaf == start[name.split("/")[-1]]).all()


def test_initialisation_is_a_function_of_its_key(fresh):
    first, again, other = fresh
    jax.tree.map(np.testing.assert_array_equal, first, again)
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    assert all((a != b).all() for a, b in pairs if a.ndim > 1)


# The modes ------------------------------------------------------------------------------------------------------------


def test_measuring_looks_at_one_example_alone():
    params, xs = params_of(MODEL), images()
    batch, _ = measured(MODEL)(params, xs)
    np.testing.assert_array_equal(batch, measured(MODEL)(params, xs)[0])
    for x, logits in zip(xs, batch, strict=True):
        assert_close(measure_one(params, x), logits)
    others, _ = measured(MODEL)(params, np.concatenate([xs[:2], images(seed=1)[2:]]))
    assert_close(others[:2], batch[:2])
    assert (others[2:] != batch[2:]).all()


def test_training_looks_at_the_whole_batch_and_not_at_its_key():
    params, xs = params_of(MODEL), images()
    logits = train(params, xs, KEY)
    assert_close(logits, observed(MODEL)(params, xs, KEY)[0])
    np.testing.assert_array_equal(logits, train(params, xs, jax.random.key(1)))
    others = train(params, np.concatenate([xs[:2], images(seed=1)[2:]]), KEY)
    assert (logits[:2] != others[:2]).all()


def test_statistics_have_no_slopes_in_training_and_weights_do():
    gradient, _ = in_numpy(slopes(params_of(MODEL), images()))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient["batch_stats"]))
    assert all(np.isfinite(leaf).all() and (leaf != 0).any() for leaf in jax.tree.leaves(gradient["params"]))


# The standardisation --------------------------------------------------------------------------------------------------


def test_brightness_and_contrast_do_not_matter():
    params, x = params_of(MODEL), images()[2]
    logits = measure_one(params, x)
    for scale, shift in [(0.5, 0.1), (3.0, -1.0), (255.0, 0.0)]:
        assert_close(measure_one(params, scale * x + shift), logits, 1e-4)
    for other in (-x, 0.1 * x):  # the deviation of the second is below the floor
        assert np.abs(measure_one(params, other) - logits).max() > 0.01 * np.abs(logits).max()


def test_bytes_are_read_as_numbers():
    params, x = params_of(MODEL), np.random.default_rng(0).integers(0, 256, MODEL.input_shape, np.uint8)
    np.testing.assert_array_equal(measure_one(params, x), measure_one(params, jnp.asarray(x, jnp.float32)))


def test_slopes_at_constant_images_are_finite():
    params, constants = params_of(MODEL), np.full((5, *MODEL.input_shape), 0.3, np.float32)
    constants[0] = 0
    gradient = jax.jit(jax.grad(lambda x: MODEL.apply(params, x)[0]))
    for x in constants[:2]:
        found = np.asarray(gradient(x))
        assert np.isfinite(found).all()
        assert (found != 0).any()
    for xs in (constants, images()):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(in_numpy(slopes(params, xs))))


# Low precision --------------------------------------------------------------------------------------------------------


def test_bfloat16_gives_float32_logits_near_those_of_float32():
    half = wide_resnet(MODEL.input_shape, 3, depth=10, width=1, dtype=jnp.bfloat16)
    params, xs = params_of(MODEL), images()
    shapes, expected_shapes = jax.eval_shape(half.init, KEY), jax.eval_shape(MODEL.init, KEY)
    assert jax.tree.leaves(shapes) == jax.tree.leaves(expected_shapes)
    assert [leaf.dtype for leaf in jax.eval_shape(measured(half), params, xs)] == [jnp.float32] * 2
    (logits, moved), (expected, moved_expected) = (observed(model)(params, xs, KEY) for model in (half, MODEL))
    assert logits.dtype == jnp.float32
    assert 1e-4 < np.abs(logits - expected).max() / np.abs(expected).max() < 0.05
    for found, exact in zip(jax.tree.leaves(moved), jax.tree.leaves(moved_expected), strict=True):
        assert found.dtype == jnp.float32
        assert_close(found, exact, 0.02)


def test_bfloat16_reaches_every_convolution(key):
    half = wide_resnet((8, 8, 3), depth=10, width=1, dtype=jnp.bfloat16)
    program = jax.jit(half.apply).lower(jax.eval_shape(half.init, key), jnp.zeros((8, 8, 3))).as_text()
    types = [line.rsplit("x", 1)[1] for line in program.splitlines() if "stablehlo.convolution" in line]
    assert len(types) > 0
    assert {name.split(">")[0] for name in types} == {"bf16"}


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(input_shape=(3072,)), r"input_shape=\(3072,\) is not \(height, width, channels\) of at least 8 x 8"),
        (dict(input_shape=(4, 8, 3)), r"input_shape=\(4, 8, 3\) is not"),
        (dict(input_shape=(8, 30, 3)), r"input_shape=\(8, 30, 3\) is not .*multiples of 4"),
        (dict(depth=27), r"depth=27 is not 6 n \+ 4"),
        (dict(depth=4), r"depth=4 is not 6 n \+ 4"),
        (dict(depth=28.0), "depth=28.0 must be a whole number"),
        (dict(width=0), "width=0 must be a whole number of at least 1"),
        (dict(width=1.5), "width=1.5 must be a whole number of at least 1"),
        (dict(num_classes=1), "num_classes=1 must be a whole number of at least 2"),
        (dict(dtype=jnp.int8), "dtype=.*int8.* is no floating-point type"),
    ],
)
def test_a_network_that_cannot_be_built_says_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        wide_resnet(**{"input_shape": (8, 8, 3), **arguments})


def test_a_wrong_input_shape_is_refused_with_both_shapes():
    for function in (MODEL.apply, MODEL.features):
        with pytest.raises(ValueError, match=r"x has shape \(2, 8, 12, 3\), expected one example \(8, 12, 3\): vmap"):
            function(params_of(MODEL), jnp.zeros((2, 8, 12, 3)))


def test_training_without_a_batch_is_refused():
    unnamed = jax.vmap(MODEL.apply, (None, 0, None))
    for function, x in [(MODEL.apply, images()[0]), (MODEL.apply.observe, images()[0]), (unnamed, images())]:
        with pytest.raises(ValueError, match="vmap it with axis_name=BATCH"):
            function(params_of(MODEL), x, KEY)
