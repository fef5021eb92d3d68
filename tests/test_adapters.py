"""Any network as a function of its parameters and one example."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmargin as jm

pytestmark = pytest.mark.hurried


class Net(nn.Module):
    """A batched linen network whose call takes an option."""

    @nn.compact
    def __call__(self, xs, *, train):
        xs = nn.relu(nn.Dense(5)(xs))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(xs))


@pytest.fixture
def xs():
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)


def test_from_batched_gives_each_row_of_the_batch(xs):
    def batched(params, xs):
        return jnp.tanh(xs @ params["w"])

    params = {"w": jnp.cos(jnp.arange(12.0)).reshape(4, 3)}
    rows = jax.vmap(jm.from_batched(batched), (None, 0))(params, xs)
    np.testing.assert_allclose(rows, batched(params, xs), rtol=1e-6)


def test_from_linen_gives_each_row_and_passes_options_on(xs, key):
    net = Net()
    variables = net.init(key, xs, train=True)
    rows = jax.vmap(jm.from_linen(net, train=False), (None, 0))(variables, xs)
    np.testing.assert_allclose(rows, net.apply(variables, xs, train=False), rtol=1e-5, atol=1e-6)


def test_from_nnx_gives_each_row(xs):
    net = nnx.Sequential(nnx.Linear(4, 5, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(5, 3, rngs=nnx.Rngs(1)))
    apply_fn, params = jm.from_nnx(net)
    rows = jax.vmap(apply_fn, (None, 0))(params, xs)
    np.testing.assert_allclose(rows, net(xs), rtol=1e-5, atol=1e-6)


def test_from_nnx_measures_a_network_with_dropout_and_batch_statistics_in_evaluation_mode(xs, key):
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.norm = nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, xs):
            return self.dropout(self.norm(self.linear(xs)))

    net = Block(nnx.Rngs(0))
    net.eval()
    apply_fn, params = jm.from_nnx(net)
    np.testing.assert_allclose(jax.vmap(apply_fn, (None, 0))(params, xs), net(xs), rtol=1e-5, atol=1e-6)
    assert jm.over_batch(jm.linear_margin, apply_fn)(params, key, xs, jnp.zeros(6, int)).margin.shape == (6,)


def test_an_nnx_network_is_measured_with_other_parameters_too(xs, key):
    apply_fn, params = jm.from_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    ys = jnp.zeros(6, int)
    run = jm.over_batch(jm.linear_margin, apply_fn)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    once, twice = run(params, key, xs, ys), run(doubled, key, xs, ys)
    np.testing.assert_allclose(twice.lipschitz, 2 * once.lipschitz, rtol=1e-6)
    np.testing.assert_allclose(twice.margin, once.margin, rtol=1e-5)


def test_all_adapters_agree_on_one_dense_layer(xs, key):
    layer = nn.Dense(3)
    variables = layer.init(key, xs)
    net = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    net.kernel[...], net.bias[...] = variables["params"]["kernel"], variables["params"]["bias"]
    apply_nnx, params = jm.from_nnx(net)
    expected = jm.from_batched(layer.apply)(variables, xs[0])
    np.testing.assert_allclose(jm.from_linen(layer)(variables, xs[0]), expected, rtol=1e-6)
    np.testing.assert_allclose(apply_nnx(params, xs[0]), expected, rtol=1e-6)


def test_an_ensemble_averages_probabilities(xs, key):
    apply_fn = lambda w, x: w @ x  # noqa: E731
    members = [jax.random.normal(one, (3, 4)) for one in jax.random.split(key, 4)]
    vote = jm.ensemble(apply_fn)
    probabilities = np.mean([jax.nn.softmax(xs @ w.T) for w in members], 0)
    np.testing.assert_allclose(jax.vmap(lambda x: jax.nn.softmax(vote(members, x)))(xs), probabilities, rtol=1e-5)
    np.testing.assert_allclose(vote(members[:1], xs[0]), jax.nn.log_softmax(members[0] @ xs[0]), rtol=1e-6)


def test_an_ensemble_is_measured_like_any_network(xs, key):
    members = [jax.random.normal(one, (3, 4)) for one in jax.random.split(key, 2)]
    vote = jm.ensemble(lambda w, x: w @ x)
    ys = jnp.argmax(jax.vmap(vote, (None, 0))(members, xs), 1)
    found = jm.over_batch(jm.minimum_norm, vote, num_steps=50)(members, key, xs, ys)
    assert found.found.all() and (found.distance > 0).all()


def test_an_ensemble_of_nobody_is_refused():
    with pytest.raises(ValueError, match="params is empty.*at least one member"):
        jm.ensemble(lambda w, x: w @ x)([], jnp.ones(3))
