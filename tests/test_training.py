"""Training: an epoch is what a loop of steps would be, the last partial batch counts, and divergence is told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmargin import models, objectives
from jaxmargin.lab.training import DivergedError, TrainState, evaluator, fit, init_state, train_epoch
from jaxmargin.losses import cross_entropy
from jaxmargin.regularizers import orthogonality

SCALE, SHAPE = 16.0, (8, 8, 1)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 17, (70, *SHAPE), dtype=np.uint8), rng.integers(0, 10, 70, dtype=np.int32)
    return jnp.asarray(images), jnp.asarray(labels)


def start(model, optimizer):
    return init_state(model.init(jax.random.key(0)), optimizer, jax.random.key(1))


def run(objective, data, *, batch_size, rate=0.1, model=None):
    model, optimizer = model or models.linear(SHAPE), optax.sgd(rate)
    epoch = train_epoch(model.apply, objective, optimizer, batch_size=batch_size, scale=SCALE)
    return epoch(start(model, optimizer), *data)


def test_one_batch_of_everything_is_one_gradient_step_on_the_mean(data):
    model = models.linear(SHAPE)
    before = model.init(jax.random.key(0))
    state, values = run(objectives.standard(), data, batch_size=70)

    def mean(params):
        logits = jax.vmap(functools.partial(model.apply, params))(data[0] / SCALE)
        return jnp.mean(jax.vmap(cross_entropy)(logits, data[1]))

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before, jax.grad(mean)(before))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, expected)
    np.testing.assert_allclose(values, [mean(before)], rtol=1e-6)


def test_the_last_partial_batch_is_a_step_of_its_own_with_its_own_mean(data):
    state, values = run(objectives.standard(), data, batch_size=32)
    assert values.shape == (3,) and int(state.step) == 3  # 32 + 32 + 6
    padded, _ = run(objectives.standard(), data, batch_size=128)  # one step, padded with 58 rows of weight 0
    whole, _ = run(objectives.standard(), data, batch_size=70)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), padded.params, whole.params)


def test_the_penalty_is_added_once_a_step_and_not_averaged(data):
    before = models.linear(SHAPE).init(jax.random.key(0))
    _, plain = run(objectives.standard(), data, batch_size=70)
    _, penalised = run(objectives.lcr(beta=0.01), data, batch_size=70)
    np.testing.assert_allclose(penalised - plain, [0.01 * orthogonality(before)], rtol=1e-5)


def test_the_retraction_moves_the_kernels_after_the_step(data):
    plain, _ = run(objectives.standard(), data, batch_size=70)
    retracted, _ = run(objectives.lcr(0.1, retraction=True), data, batch_size=70)
    w = np.asarray(plain.params["Dense_0"]["kernel"], np.float64)
    np.testing.assert_allclose(retracted.params["Dense_0"]["kernel"], 1.1 * w - 0.1 * w @ w.T @ w, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(retracted.params["Dense_0"]["bias"], plain.params["Dense_0"]["bias"])


def test_every_epoch_shuffles_anew_and_the_same_key_repeats_it(data):
    model, optimizer = models.linear(SHAPE), optax.sgd(0.1)
    epoch = train_epoch(model.apply, objectives.standard(), optimizer, batch_size=10, scale=SCALE)
    once, first = epoch(start(model, optimizer), *data)
    again, repeated = epoch(start(model, optimizer), *data)
    np.testing.assert_array_equal(first, repeated)
    jax.tree.map(np.testing.assert_array_equal, once.params, again.params)
    _, second = epoch(once._replace(params=model.init(jax.random.key(0))), *data)
    assert not np.array_equal(first, second)


def test_dc_remembers_who_was_wrong_before_the_epoch(data):
    seen = objectives.amr(form="dc")
    _, dc = run(seen, data, batch_size=70)
    _, hinge = run(objectives.amr(form="hinge"), data, batch_size=70)
    model = models.linear(SHAPE)
    logits = jax.vmap(functools.partial(model.apply, model.init(jax.random.key(0))))(data[0] / SCALE)
    right = jnp.take_along_axis(logits, data[1][:, None], 1)[:, 0]
    rival = jnp.max(jnp.where(jnp.arange(10)[None] == data[1][:, None], -jnp.inf, logits), 1)
    np.testing.assert_allclose(dc - hinge, [0.1 * jnp.mean(jnp.minimum(right - rival, 0.0))], rtol=1e-3)


def test_evaluation_is_the_mean_over_the_whole_split(data):
    model = models.mlp(SHAPE, hidden=16)
    params = model.init(jax.random.key(3))
    loss, error = evaluator(model.apply, scale=SCALE)(params, *data)
    logits = jax.vmap(functools.partial(model.apply, params))(data[0] / SCALE)
    np.testing.assert_allclose(loss, jnp.mean(jax.vmap(cross_entropy)(logits, data[1])), rtol=1e-6)
    np.testing.assert_allclose(error, np.mean(np.argmax(logits, 1) != data[1]), rtol=1e-6)


def test_dropout_acts_in_training_only(data):
    model = models.cnn(SHAPE, widths=(2, 2), hidden=8, dropout=0.5)
    _, first = run(objectives.standard(), data, batch_size=70, model=model)
    loss, _ = evaluator(model.apply, scale=SCALE)(model.init(jax.random.key(0)), *data)
    assert abs(float(first[0]) - float(loss)) > 1e-6


def test_a_diverging_loss_names_its_step(data):
    model, optimizer = models.linear(SHAPE), optax.sgd(1.0)
    epoch = train_epoch(model.apply, objectives.standard(), optimizer, batch_size=10, scale=SCALE)
    poisoned = objectives.Objective(lambda logits_fn, key, x, y, memory: jnp.nan * logits_fn(x)[0])
    bad = train_epoch(model.apply, poisoned, optimizer, batch_size=10, scale=SCALE)
    with pytest.raises(DivergedError, match=r"step 8 \(epoch 2\)"):
        for number, _, _ in fit(
            lambda s, *d: (epoch if int(s.step) < 7 else bad)(s, *d), start(model, optimizer), *data, epochs=3
        ):
            assert number == 1


def test_the_state_is_data_only():
    assert TrainState._fields == ("params", "opt_state", "key", "step")
