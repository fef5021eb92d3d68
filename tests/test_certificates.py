"""Certificates against everything that could be closer; against distances that are known: test_certified_distances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params

import jaxmargin as jm
from jaxmargin import models
from jaxmargin.certificates.rounding import double_precision

pytestmark = pytest.mark.hurried

NORMS = {"l2": jm.l2, "linf": jm.linf, "l1": jm.l1}
CNN = models.lenet((8, 8, 1), 3, widths=(4, 8), hidden=16)
MLP = models.mlp((8, 8, 1), 3, hidden=32)
cases = pytest.mark.parametrize(
    ("model", "name"),
    [(MLP, "l2"), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((MLP, "linf"), (MLP, "l1"), (CNN, "l2")))],
    ids=["mlp l2", "mlp linf", "mlp l1", "cnn l2"],  # a cnn compiles slowly
)


@functools.cache
def digits_like(model):
    """Points of the network's shape with their predicted classes, about as many of each: the boundary is near."""
    params = jax.tree.map(np.asarray, random_params(model))
    xs = np.float32(np.random.default_rng(0).uniform(size=(12, *model.input_shape)))
    logits_of = jax.jit(jax.vmap(model.apply, (None, 0)))
    last = last_of(params)
    params = params | {last: params[last] | {"bias": params[last]["bias"] - np.mean(logits_of(params, xs), 0)}}
    return params, xs, np.argmax(logits_of(params, xs), 1)


def last_of(params):
    return f"Dense_{sum(name.startswith('Dense') for name in params) - 1}"


@functools.cache
def certified(model, **options):
    def one(params, key, x, y):
        return jm.certified_margin(functools.partial(model.apply, params), key, x, y, **options)

    return jax.jit(jax.vmap(one, (None, None, 0, 0)))


def _options(name):
    """None for the default, which other tests have compiled."""
    return {} if name == "l2" else {"norm": NORMS[name]}


# Everything that could be closer --------------------------------------------------------------------------------------


@cases
def test_no_attack_is_closer_than_a_certificate(model, name, key):
    norm = NORMS[name]
    params, xs, ys = digits_like(model)
    found = certified(model, **_options(name))(params, key, xs, ys)
    assert found.supported.all()
    assert (found.distance > 0).all()
    assert (found.relaxed > found.spectral).mean() > 0.5
    epsilon = {"l2": 2.0, "linf": 0.3, "l1": 10.0}[name]
    options = dict(norm=norm, epsilon=epsilon, step_size=epsilon / 20, num_steps=40, loss="logit_margin")

    def pgd(params, key, x, y):
        return jm.pgd(functools.partial(model.apply, params), key, x, y, **options)

    attack = jax.jit(jax.vmap(pgd, (None, None, 0, 0)))(params, key, xs, ys)
    assert attack.found.any()
    assert (attack.distance >= found.distance).all()


@cases
def test_the_class_is_the_same_all_over_the_certified_ball(model, name, key):
    norm = NORMS[name]
    params, xs, ys = digits_like(model)
    found = certified(model, **_options(name))(params, key, xs, ys)

    @jax.jit
    def classes(keys, x, distance):
        def at(key):
            offset = norm.sample_ball(key, model.input_shape)
            return jnp.argmax(model.apply(params, x + distance * offset / norm.size(offset)))

        return jax.vmap(at)(keys)

    for x, distance, y in zip(xs, found.distance, ys, strict=True):
        assert (classes(jax.random.split(jax.random.key(1), 400), x, distance) == y).all()


@pytest.mark.parametrize("model", [MLP, pytest.param(CNN, marks=pytest.mark.slow)], ids=["mlp", "cnn"])
def test_scaling_the_last_layer_moves_no_certificate(model, key):
    params, xs, ys = digits_like(model)
    last = last_of(params)
    reference = certified(model)(params, key, xs, ys)
    for scale in (0.25, 4.0, 64.0, 1024.0):  # powers of two: others would round the weights
        scaled = params | {last: jax.tree.map(lambda leaf: leaf * scale, params[last])}  # noqa: B023
        found = certified(model)(scaled, key, xs, ys)
        for name in ("distance", "spectral", "relaxed"):
            np.testing.assert_allclose(getattr(found, name), getattr(reference, name), rtol=2e-6)


@pytest.mark.slow
def test_more_steps_never_lower_a_certificate_and_a_larger_radius_hardly_does(key):
    params, xs, ys = digits_like(MLP)
    default, many = (certified(MLP, **steps)(params, key, xs, ys).relaxed for steps in ({}, dict(num_steps=16)))
    assert (default <= many).all()
    assert (default < many).any()
    np.testing.assert_allclose(default, many, rtol=2e-2)  # ten halvings of the logarithm of 5 over the first guess
    small = certified(MLP, radius=0.01)(params, key, xs, ys).relaxed
    assert (small <= 0.01).all()
    assert (small > 0.0099)[many > 0.01].all()


# Corners -------------------------------------------------------------------------------------------------------------


def test_a_label_does_not_matter(key):
    params, xs, ys = digits_like(MLP)
    first, second = (certified(MLP)(params, key, xs, labels) for labels in (ys, (ys + 1) % 3))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_black_box_and_an_unknown_norm_are_not_supported(key):
    params, xs, ys = digits_like(MLP)
    boxed = jm.over_batch(jm.certified_margin, lambda params, x: MLP.apply(params, x))(params, key, xs, ys)
    other = certified(MLP, norm=jm.l2._replace(size=lambda x: 2 * jm.l2.size(x)))(params, key, xs, ys)
    for found in (boxed, other):
        assert not found.supported.any()
        assert (found.distance == 0).all()
        assert (found.spectral == 0).all()
        assert (found.relaxed == 0).all()
        np.testing.assert_array_equal(found.predicted, ys)


def test_constant_logits_are_infinitely_far_from_any_boundary_and_a_tie_is_on_it(key):
    params, xs, ys = digits_like(MLP)
    flat = jax.tree.map(np.zeros_like, params)
    apart = {**flat, "Dense_1": {**flat["Dense_1"], "bias": np.float32([0.0, 1.0, 0.5])}}
    assert (certified(MLP)(flat, key, xs, ys).distance == 0).all()
    found = certified(MLP)(apart, key, xs, ys)
    assert (found.distance == np.inf).all()
    assert (found.predicted == 1).all()


def spoiled(leaf, bad):
    leaf = np.array(leaf)
    leaf[..., 0] = bad
    return leaf


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("layer", ["Conv_0", "Conv_1", "Dense_0", "Dense_1"])
def test_weights_that_are_not_finite_give_nan(layer, bad, key):
    params, xs, ys = digits_like(CNN)
    for part in ("kernel", "bias"):
        broken = params | {layer: params[layer] | {part: spoiled(params[layer][part], bad)}}
        found = certified(CNN)(broken, key, xs, ys)
        assert np.isnan(found.distance).all()


@pytest.mark.slow
def test_float64_stays_inside(key):
    params, xs, ys = digits_like(MLP)
    logits_fn = functools.partial(MLP.apply, params)
    for x in (xs[0], jnp.asarray(xs[0]), np.float64(xs[0])):
        found = jm.certified_margin(logits_fn, key, x, 0)
        assert found.distance.dtype == jnp.float32
        assert found.predicted.dtype == jnp.int32
    assert jnp.ones(1).dtype == jnp.float32
    with double_precision():
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        found = jm.certified_margin(functools.partial(MLP.apply, double), key, jnp.asarray(np.float64(xs[0])), 0)
    assert found.distance.dtype == jnp.float64
    np.testing.assert_allclose(found.distance, certified(MLP)(params, key, xs, ys).distance[0], rtol=1e-5)


def test_what_depends_on_the_weights_alone_is_worked_out_once_for_all_examples(key):
    params, xs, ys = digits_like(CNN)
    program = str(certified(CNN).trace(params, key, xs, ys).jaxpr)
    # Of the first convolution, 1 x 4 channels at the 12 x 7 frequencies of its torus.
    assert "f64[84,1,1]" in program
    assert "f64[12,84,1,1]" not in program


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_steps=0), "num_steps=0 must be a whole number"),
        (dict(num_steps=2.0), "num_steps=2.0 must be a whole number"),
        (dict(radius=0.0), "radius=0.0 must be finite"),
        (dict(radius=np.inf), "radius=inf must be finite"),
    ],
)
def test_bad_options_are_refused(options, message, key):
    params, xs, ys = digits_like(MLP)
    with pytest.raises(ValueError, match=message):
        jm.over_batch(jm.certified_margin, MLP.apply, **options)(params, key, xs, ys)


def test_over_a_batch_and_in_chunks_of_it_nothing_changes(key):
    params, xs, ys = digits_like(MLP)
    run = jm.over_batch(jm.certified_margin, MLP.apply, batch_size=64)
    many = run(params, key, np.tile(xs, (6, 1, 1, 1)), np.tile(ys, 6))
    for one, other in zip(many, certified(MLP)(params, key, xs, ys), strict=True):
        np.testing.assert_allclose(one, np.tile(other, 6), rtol=1e-6)
    with pytest.raises(ValueError, match="NaN"):
        run(jax.tree.map(lambda leaf: leaf * np.nan, params), key, xs, ys)
