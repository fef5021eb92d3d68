"""Training: an epoch is what a loop of steps would be, the last partial batch counts, and divergence is told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import random_params

from jaxmargin import models, objectives
from jaxmargin.lab.training import DivergedError, TrainState, evaluator, fit, init_state, train_epoch
from jaxmargin.losses import cross_entropy
from jaxmargin.objectives.augmentation import crop_and_flip
from jaxmargin.objectives.regularizers import orthogonality

pytestmark = pytest.mark.hurried

SCALE, SHAPE = 16.0, (8, 8, 1)


@functools.cache
def points():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 17, (70, *SHAPE), dtype=np.uint8), rng.integers(0, 10, 70, dtype=np.int32)
    return jnp.asarray(images), jnp.asarray(labels)


@pytest.fixture(name="data")
def _data():
    return points()


STANDARD = objectives.standard()


@functools.cache
def linear():
    """The model that most tests train, and where they start."""
    model = models.linear(SHAPE)
    return model, random_params(model)


def start(optimizer, model=None):
    params = linear()[1] if model is None else random_params(model)
    return init_state(params, optimizer, jax.random.key(1), 70)


@functools.cache
def logits_of(model):
    return jax.jit(jax.vmap(model.apply, (None, 0)))


@functools.cache
def trained(objective, batch_size=70, model=None):
    """One epoch's (state, values)."""
    optimizer = optax.sgd(0.1)
    apply_fn = (linear()[0] if model is None else model).apply
    epoch = train_epoch(apply_fn, objective, optimizer, batch_size=batch_size, scale=SCALE)
    return epoch(start(optimizer, model), *points())


def test_one_batch_of_everything_is_one_gradient_step_on_the_mean(data):
    model, before = linear()
    state, values = trained(STANDARD)

    @jax.jit
    @jax.value_and_grad
    def mean(params):
        logits = jax.vmap(functools.partial(model.apply, params))(data[0] / SCALE)
        return jnp.mean(jax.vmap(cross_entropy)(logits, data[1]))

    value, gradient = jax.tree.map(np.asarray, mean(before))
    expected = jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * g, before, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, expected)
    np.testing.assert_allclose(values, [value], rtol=1e-6)


def test_the_last_partial_batch_is_a_step_of_its_own_with_its_own_mean(data):
    state, values = trained(STANDARD, 32)
    assert values.shape == (3,) and int(state.step) == 3  # 32 + 32 + 6
    padded, _ = trained(STANDARD, 128)  # one step, padded with 58 rows of weight 0
    whole, _ = trained(STANDARD)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), padded.params, whole.params)


def test_the_penalty_is_added_once_a_step_and_not_averaged(data):
    _, before = linear()
    _, plain = trained(STANDARD)
    _, penalised = trained(objectives.lcr(beta=0.01))
    np.testing.assert_allclose(penalised - plain, [0.01 * jax.jit(orthogonality)(before)], rtol=1e-5)


def test_the_retraction_moves_the_kernels_after_the_step(data):
    plain, _ = trained(STANDARD)
    retracted, _ = trained(objectives.lcr(0.1, retraction=True))
    w = np.asarray(plain.params["Dense_0"]["kernel"], np.float64)
    np.testing.assert_allclose(retracted.params["Dense_0"]["kernel"], 1.1 * w - 0.1 * w @ w.T @ w, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(retracted.params["Dense_0"]["bias"], plain.params["Dense_0"]["bias"])


def test_every_epoch_shuffles_anew_and_the_same_key_repeats_it(data):
    (model, _), optimizer = linear(), optax.sgd(0.1)
    epoch = train_epoch(model.apply, STANDARD, optimizer, batch_size=10, scale=SCALE)
    once, first = epoch(start(optimizer), *data)
    again, repeated = epoch(start(optimizer), *data)
    np.testing.assert_array_equal(first, repeated)
    jax.tree.map(np.testing.assert_array_equal, once.params, again.params)
    _, second = epoch(once._replace(params=random_params(model)), *data)
    assert not np.array_equal(first, second)


def test_dc_remembers_who_was_wrong_before_the_epoch(data):
    _, dc = trained(objectives.amr(form="dc"))
    _, hinge = trained(objectives.amr(form="hinge"))
    model, params = linear()
    logits, ys = np.asarray(logits_of(model)(params, data[0] / SCALE)), np.asarray(data[1])
    right = logits[np.arange(70), ys]
    rival = np.max(np.where(np.arange(10) == ys[:, None], -np.inf, logits), 1)
    np.testing.assert_allclose(dc - hinge, [0.1 * np.mean(np.minimum(right - rival, 0.0))], rtol=1e-3)


def test_evaluation_is_the_mean_over_the_whole_split(data):
    model = models.mlp(SHAPE, hidden=16)
    params = random_params(model)
    loss, error = evaluator(model.apply, scale=SCALE)(params, *data)
    logits = np.asarray(logits_of(model)(params, data[0] / SCALE))
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(70), data[1]]
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(error, np.mean(np.argmax(logits, 1) != data[1]), rtol=1e-6)


def test_dropout_acts_in_training_only(data):
    model = models.cnn(SHAPE, widths=(2, 2), hidden=8, dropout=0.5)
    _, first = trained(STANDARD, model=model)
    loss, _ = evaluator(model.apply, scale=SCALE)(random_params(model), *data)
    assert abs(float(first[0]) - float(loss)) > 1e-6


def test_a_diverging_loss_names_its_step(data):
    (model, _), optimizer = linear(), optax.sgd(0.1)
    epoch = train_epoch(model.apply, STANDARD, optimizer, batch_size=10, scale=SCALE)
    poisoned = objectives.Objective(lambda logits_fn, key, x, y, example_state: jnp.nan * logits_fn(x)[0])
    bad = train_epoch(model.apply, poisoned, optimizer, batch_size=10, scale=SCALE)
    with pytest.raises(DivergedError, match=r"step 8 \(epoch 2\)"):
        for number, _, _ in fit(
            lambda s, *d: (epoch if int(s.step) < 7 else bad)(s, *d), start(optimizer), *data, epochs=3
        ):
            assert number == 1


def test_the_state_is_data_only():
    assert TrainState._fields == ("params", "opt_state", "key", "step", "example_state")


def test_parts_of_epochs_add_up_to_epochs(data):
    (model, _), optimizer, objective = linear(), optax.sgd(0.1, momentum=0.9), objectives.amr(form="dc")
    options = dict(batch_size=16, scale=SCALE)  # five steps an epoch, the last of 6 images
    whole = train_epoch(model.apply, objective, optimizer, **options)
    part = train_epoch(model.apply, objective, optimizer, **options, num_steps=3)
    state, values = start(optimizer), []
    for _ in range(3):
        state, found = whole(state, *data)
        values.append(found)
    other, others = start(optimizer), []
    for _ in range(5):
        other, found = part(other, *data)
        others.append(found)
    np.testing.assert_allclose(np.concatenate(others), np.concatenate(values), rtol=1e-5)
    assert int(state.step) == int(other.step) == 15
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, other.params)


def test_images_are_augmented_anew_at_each_step(data):
    (model, _), optimizer = linear(), optax.sgd(0.0)
    seen = functools.partial(train_epoch, model.apply, STANDARD, optimizer, batch_size=70, scale=SCALE)
    plain, shifted = seen(), seen(augment=crop_and_flip)
    state, values = plain(start(optimizer), *data)
    _, again = plain(state, *data)
    np.testing.assert_allclose(values, again, rtol=1e-5)
    state, values = shifted(start(optimizer), *data)
    _, again = shifted(state, *data)
    assert abs(float(values[0] - again[0])) > 1e-4
    _, repeated = shifted(start(optimizer), *data)
    np.testing.assert_array_equal(values, repeated)


@pytest.mark.slow
def test_batch_normalisation_averages_over_the_batch_and_weight_decay_leaves_its_statistics_alone(data):
    images, labels = data[0][:8], data[1][:8]
    model = models.wide_resnet(SHAPE, depth=10, width=1)
    optimizer = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
    epoch = train_epoch(model.apply, STANDARD, optimizer, batch_size=8, scale=SCALE)
    before = jax.tree.map(np.asarray, random_params(model))
    before["batch_stats"] = jax.tree.map(lambda leaf: 0.5 + leaf**2, before["batch_stats"])  # variances are positive
    state = jax.jit(lambda params: init_state(params, optimizer, jax.random.key(1), 8))(before)
    state, values = epoch(state, images, labels)

    @jax.jit
    def run(params, xs, key):
        observe = jax.vmap(model.apply.observe, (None, 0, None), (0, None), axis_name=models.BATCH)
        logits, moved = observe(params, xs, key)
        return jnp.mean(jax.vmap(cross_entropy)(logits, labels)), moved

    value, expected = run(before, images / SCALE, jax.random.key(2))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(values, [value])
    jax.tree.map(close, state.params["batch_stats"], expected["batch_stats"])
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.params, before)
    assert max(jax.tree.leaves(moved["batch_stats"])) > 0.01
    assert max(jax.tree.leaves(moved["params"])) > 0.01
