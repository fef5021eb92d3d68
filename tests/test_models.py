"""The papers' networks: sizes, initialisation, dropout, and what each function promises about the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params

from jaxmargin import models

pytestmark = pytest.mark.hurried

SMALL = {
    "linear": models.linear((5, 4, 1), 3),
    "mlp": models.mlp((5, 4, 1), 3, hidden=7),
    "cnn SAME": models.cnn((9, 8, 2), 3, widths=(3, 4), hidden=6),
    "cnn VALID": models.cnn((16, 17, 1), 3, widths=(2, 3), hidden=5, padding="VALID"),
    "lenet": models.lenet((9, 8, 2), 3, widths=(3, 4), hidden=6),
}
PAPER = {
    "linear": (models.linear((28, 28, 1)), 7_850),
    "mlp": (models.mlp((28, 28, 1)), 814_090),
    "cnn": (models.cnn((28, 28, 1)), 312_202),
    "lenet": (models.lenet((28, 28, 1)), 3_274_634),
    "linear CIFAR": (models.linear((32, 32, 3)), 30_730),
    "mlp CIFAR": (models.mlp((32, 32, 3)), 3_157_002),
    "cnn CIFAR": (models.cnn((32, 32, 3)), 1_147_978),
}
small = pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)


def point(model, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=model.input_shape), jnp.float32)


def walk(layers, x):
    """The network by hand, in float64."""
    x = np.float64(x)
    for layer in layers:
        match layer.kind:
            case "flatten":
                x = x.ravel()
            case "relu":
                x = np.maximum(x, 0)
            case "dense":
                x = x @ np.float64(layer.kernel) + np.float64(layer.bias)
            case "max_pool":
                h, w, c = x.shape
                x = x[: h // 2 * 2, : w // 2 * 2].reshape(h // 2, 2, w // 2, 2, c).max((1, 3))
            case "conv":
                window = layer.kernel.shape[:2]
                if layer.padding == "SAME":
                    x = np.pad(x, (*((size // 2, size // 2) for size in window), (0, 0)))
                windows = np.lib.stride_tricks.sliding_window_view(x, window, (0, 1))  # [h, w, i, kh, kw]
                x = np.einsum("hwikl,klio->hwo", windows, np.float64(layer.kernel)) + np.float64(layer.bias)
            case "dropout":
                pass
            case _:
                raise AssertionError(layer.kind)
    return x


@pytest.mark.parametrize(("model", "count"), PAPER.values(), ids=PAPER)
def test_parameter_counts_are_the_published_ones(model, count, key):
    shapes = jax.eval_shape(model.init, key)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.fixture(scope="module")
def fresh():
    """The small cnn as ``init`` makes it, twice from one key and once from another."""
    init = jax.jit(SMALL["cnn SAME"].init)
    return [init(jax.random.key(seed, impl="rbg")) for seed in (0, 0, 1)]  # rbg compiles fast


def assert_uniform(leaf, fan_in):
    scaled = np.asarray(leaf).ravel() * np.sqrt(fan_in)
    assert np.abs(scaled).max() <= 1 + 1e-6
    assert abs(scaled.mean()) < 5 * np.sqrt(1 / 3 / scaled.size)
    assert abs(np.mean(scaled**2) - 1 / 3) < 5 * np.sqrt(4 / 45 / scaled.size)


def test_weights_and_biases_start_uniform_within_one_over_the_root_of_fan_in(fresh):
    for layer in fresh[0].values():
        fan_in = np.prod(layer["kernel"].shape[:-1])
        assert_uniform(layer["kernel"], fan_in)
        assert_uniform(layer["bias"], fan_in)


def test_many_weights_fill_the_bounds(key):
    params = PAPER["linear"][0].init(key)["Dense_0"]
    assert_uniform(params["kernel"], 784)
    assert np.abs(params["kernel"]).max() > 0.999 / 28


def test_no_two_arrays_start_alike(fresh):
    starts = {tuple(np.asarray(leaf).ravel()[:2] / np.abs(leaf).max()) for leaf in jax.tree.leaves(fresh[0])}
    assert len(starts) == len(jax.tree.leaves(fresh[0]))


def test_initialisation_is_a_function_of_its_key(fresh):
    first, again, other = fresh
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert all((a != b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))


@small
def test_walking_the_layers_by_hand_gives_the_logits(model):
    params, x = random_params(model), point(model)
    np.testing.assert_allclose(model.apply(params, x), walk(model.layers(params), x), rtol=1e-5, atol=1e-6)


@small
def test_the_last_dense_layer_on_the_features_gives_the_logits(model):
    params, x = random_params(model), point(model)
    *before, last = model.layers(params)
    features = model.features(params, x)
    np.testing.assert_allclose(features, walk(before, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features @ last.kernel + last.bias, model.apply(params, x), rtol=1e-5, atol=1e-6)


def test_features_of_the_mnist_cnn_are_the_second_200_units(key):
    model = PAPER["cnn"][0]
    shapes = jax.eval_shape(model.init, key)
    features = jax.eval_shape(model.features, shapes, jax.ShapeDtypeStruct(model.input_shape, jnp.float32))
    assert features.shape == (200,)


def test_layers_come_in_the_order_of_the_paper(key):
    model = PAPER["cnn"][0]
    layers = jax.eval_shape(lambda key: [layer.kernel for layer in model.layers(model.init(key))], key)
    widths = [kernel.shape[-1] for kernel in layers if kernel is not None]
    assert widths == [32, 32, 64, 64, 200, 200, 10]


@pytest.mark.parametrize("build", [models.linear, models.mlp, models.cnn])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_any_number_of_classes_from_two_on(build, num_classes, key):
    model = build((8, 8, 1), num_classes)
    shapes = jax.eval_shape(model.init, key)
    logits = jax.eval_shape(model.apply, shapes, jax.ShapeDtypeStruct((8, 8, 1), jnp.float32))
    assert logits.shape == (num_classes,)
    assert model.num_classes == num_classes


@pytest.mark.parametrize("build", [models.linear, models.mlp, models.cnn])
@pytest.mark.parametrize("num_classes", [1, 0, 2.5, True])
def test_fewer_than_two_classes_are_refused(build, num_classes):
    with pytest.raises(ValueError, match="num_classes.*at least 2"):
        build((8, 8, 1), num_classes)


def test_dropout_is_off_without_a_key():
    plain, dropping = (models.cnn((8, 8, 1), 3, widths=(2, 2), hidden=40, dropout=rate) for rate in (0.0, 0.5))
    params, x = random_params(plain), point(plain)
    np.testing.assert_array_equal(plain.apply(params, x), dropping.apply(params, x))


def test_dropout_is_on_with_a_key_and_a_function_of_it():
    model = models.cnn((8, 8, 1), 3, widths=(2, 2), hidden=40, dropout=0.5)
    params, x = random_params(model), point(model)
    first, again, other = (model.apply(params, x, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    assert (first != model.apply(params, x)).all()


def test_dropout_follows_each_dense_relu_and_nothing_else():
    model = models.cnn((8, 8, 1), 3, widths=(2, 2), hidden=4, dropout=0.5)
    kinds = [layer.kind for layer in model.layers(random_params(model))]
    assert kinds[-7:] == ["dense", "relu", "dropout", "dense", "relu", "dropout", "dense"]
    assert kinds.count("dropout") == 2
    model = models.cnn((8, 8, 1), 3, widths=(2, 2), hidden=4, dropout=(0.5, 0.0))
    kinds = [layer.kind for layer in model.layers(model.init(jax.random.key(0)))]
    assert kinds[-6:] == ["dense", "relu", "dropout", "dense", "relu", "dense"]


def test_a_key_changes_nothing_without_dropout():
    model = SMALL["mlp"]
    params, x = random_params(model), point(model)
    np.testing.assert_array_equal(model.apply(params, x, jax.random.key(3)), model.apply(params, x))


@small
def test_a_wrong_input_shape_is_refused_with_both_shapes(model):
    params = random_params(model)
    batch = jnp.zeros((2, *model.input_shape))
    for function in (model.apply, model.features):
        with pytest.raises(ValueError, match=r"x has shape \(2, .*vmap"):
            function(params, batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(input_shape=(784,)), r"input_shape=\(784,\) is not \(height, width, channels\)"),
        (dict(input_shape=(3, 8, 1)), r"input_shape=\(3, 8, 1\) is too small.*SAME"),
        (dict(input_shape=(8, 8, 1), padding="VALID"), r"input_shape=\(8, 8, 1\) is too small.*VALID"),
        (dict(input_shape=(28, 28, 1), padding="FULL"), r"padding='FULL' is unknown: choose from SAME, VALID"),
        (dict(input_shape=(28, 28, 1), dropout=1.0), r"dropout=1.0 must lie in \[0, 1\)"),
        (dict(input_shape=(28, 28, 1), dropout=-0.1), r"dropout=-0.1 must lie in \[0, 1\)"),
        (dict(input_shape=(28, 28, 1), dropout=(0.5,)), r"dropout=\(0.5,\) must lie in .* one for each of the two"),
    ],
)
def test_a_cnn_that_cannot_be_built_says_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.cnn(**arguments)


@pytest.mark.parametrize("hidden", [0, -1, 1.5])
def test_an_mlp_needs_a_whole_width(hidden):
    with pytest.raises(ValueError, match="hidden.*whole number of at least 1"):
        models.mlp((4,), hidden=hidden)


@pytest.mark.parametrize("size", [(4, 4, 1), (5, 15, 3)])
def test_the_smallest_images_still_work(size):
    model = models.cnn(size, 2, widths=(2, 2), hidden=3)
    assert np.isfinite(model.apply(random_params(model), point(model))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(hidden=0), "hidden=0"), (dict(widths=(0, 4)), "widths=0"), (dict(widths=()), "is not a pair")],
)
def test_sizes_of_nothing_are_refused_and_do_not_mean_the_default(options, message):
    with pytest.raises(ValueError, match=message):
        models.cnn((8, 8, 1), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(input_shape=(784,)), r"input_shape=\(784,\) is not \(height, width, channels\) of at least 4 x 4"),
        (dict(input_shape=(3, 8, 1)), r"input_shape=\(3, 8, 1\) is not .*4 x 4"),
        (dict(input_shape=(8, 8, 1), widths=(4,)), r"widths=\(4,\) is not a pair"),
        (dict(input_shape=(8, 8, 1), hidden=0), "hidden=0"),
    ],
)
def test_a_lenet_that_cannot_be_built_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        models.lenet(**options)
