"""Brackets: certified <= exact <= attacked, the estimate beside them."""

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_linear

import jaxmargin as jm

pytestmark = pytest.mark.hurried


def as_params(nets):
    """The weights of several tiny networks, stacked, as ``models.mlp`` has them."""
    hidden, hidden_bias, output, output_bias = (
        jnp.asarray(np.stack(leaves), jnp.float32) for leaves in zip(*nets, strict=True)
    )
    return {
        "Dense_0": {"kernel": hidden.swapaxes(1, 2), "bias": hidden_bias},
        "Dense_1": {"kernel": output.swapaxes(1, 2), "bias": output_bias},
    }


@pytest.mark.slow
@pytest.mark.parametrize(("dimension", "num_classes"), [(2, 2), (3, 5)])
def test_the_exact_distance_of_tiny_networks_lies_in_the_bracket(dimension, num_classes):
    n = 60
    rng = np.random.default_rng((dimension, num_classes))
    nets = [exact.random_net(rng, 5, num_classes, dimension) for _ in range(n)]
    model = jm.models.mlp((dimension,), num_classes, hidden=5)
    xs = rng.normal(size=(n, dimension)).astype(np.float32)

    def one(params, key, x):
        options = dict(num_samples=512, num_steps=150, radius=20.0)
        return jm.bracket(functools.partial(model.apply, params), key, x, 0, **options)

    found = jax.jit(jax.vmap(one))(as_params(nets), jax.random.split(jax.random.key(0), n), jnp.asarray(xs))
    distances = np.array([exact.distance(net, np.float64(x)) for net, x in zip(nets, xs, strict=True)])
    assert found.supported.all()
    assert (np.float64(found.certified) <= distances).all()
    assert (np.float64(found.attacked) >= distances * (1 - 1e-5) - 2e-6).all()  # float32 logits shift a boundary
    assert np.median(found.certified / np.minimum(distances, 20)) > 0.2
    np.testing.assert_array_equal(found.contradicts, found.estimated > found.attacked * (1 + 1e-4))


@pytest.mark.slow
def test_a_bracket_holds_what_its_parts_give(tiny, key):
    options = dict(num_samples=512, chunk_size=256)
    three = jm.over_batch(jm.bracket, tiny.model.apply, num_steps=40, **options)(tiny.params, key, tiny.xs, tiny.ys)
    key_estimate = jax.random.fold_in(jax.random.clone(key), 0)
    margins = jm.over_batch(jm.lipschitz_margin, tiny.model.apply, **options)(
        tiny.params, key_estimate, tiny.xs, tiny.ys
    )
    np.testing.assert_array_equal(three.estimated, np.abs(margins.margin))
    np.testing.assert_array_equal(three.predicted, margins.predicted)
    np.testing.assert_array_equal(three.capped, margins.capped)
    moved = jax.vmap(tiny.model.apply, (None, 0))(tiny.params, three.x_adv).argmax(1)
    assert (moved != three.predicted).all()
    lengths = np.linalg.norm((three.x_adv - tiny.xs).reshape(9, -1), axis=1)
    np.testing.assert_allclose(three.attacked, lengths, rtol=1e-5)
    assert (three.certified <= three.attacked).all()


def test_a_linear_classifier_has_one_distance(key):
    linear = random_linear(3)
    model = jm.models.linear((6,), 3)
    params = {"Dense_0": {"kernel": jnp.asarray(linear.weights.T, jnp.float32), "bias": linear.params[1]}}
    run = jm.over_batch(jm.bracket, model.apply, num_samples=64, num_steps=200, radius=50.0)
    three = run(params, key, jnp.asarray(linear.xs, jnp.float32), linear.ys)
    distances = np.abs(linear.margins(2))
    for found, slack in ((three.certified, 1e-4), (three.estimated, 1e-4), (three.attacked, 5e-3)):
        np.testing.assert_allclose(found, distances, rtol=slack)
    assert not three.contradicts.any()


def test_a_black_box_says_that_nothing_is_certified(linear, key):
    run = jm.over_batch(jm.bracket, linear.apply, num_samples=64, num_steps=20)
    three = run(linear.params, key, jnp.asarray(linear.xs, jnp.float32), linear.ys)
    assert not three.supported.any()
    np.testing.assert_array_equal(three.certified, 0)
    assert np.isfinite(three.attacked).all()


@pytest.mark.slow
def test_an_estimate_beyond_a_found_adversarial_contradicts_itself(key):
    """A spike that no sample of the ball meets: the sampled slopes miss it, the attack starts beside it."""

    def spiked(params, x):
        return jnp.stack([1.0 - 40 * jax.nn.relu(x[0] - 0.01) + 40 * jax.nn.relu(x[0] - 0.2), 0 * x[0]])

    xs = jnp.concatenate([jnp.full((4, 1), 0.02), jnp.zeros((4, 39))], 1)
    three = jm.over_batch(jm.bracket, spiked, num_samples=4, radius=50.0)({}, key, xs, np.zeros(4, int))
    exact_distance = (1 - 40 * 0.01) / 40
    assert (three.attacked < 1.1 * exact_distance).all()
    assert three.contradicts.all()
