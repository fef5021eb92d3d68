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
from jaxmargin.objectives.augmentation import crop_and_flip
from jaxmargin.objectives.regularizers import orthogonality

pytestmark = pytest.mark.hurried

SCALE, SHAPE = 16.0, (8, 8, 1)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 17, (70, *SHAPE), dtype=np.uint8), rng.integers(0, 10, 70, dtype=np.int32)
    return jnp.asarray(images), jnp.asarray(labels)


def start(model, optimizer):
    return init_state(model.init(jax.random.key(0)), optimizer, jax.random.key(1), 70)


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
    poisoned = objectives.Objective(lambda logits_fn, key, x, y, example_state: jnp.nan * logits_fn(x)[0])
    bad = train_epoch(model.apply, poisoned, optimizer, batch_size=10, scale=SCALE)
    with pytest.raises(DivergedError, match=r"step 8 \(epoch 2\)"):
        for number, _, _ in fit(
            lambda s, *d: (epoch if int(s.step) < 7 else bad)(s, *d), start(model, optimizer), *data, epochs=3
        ):
            assert number == 1


def test_the_state_is_data_only():
    assert TrainState._fields == ("params", "opt_state", "key", "step", "example_state")


def test_parts_of_epochs_add_up_to_epochs(data):
    model, optimizer, objective = models.linear(SHAPE), optax.sgd(0.1, momentum=0.9), objectives.amr(form="dc")
    options = dict(batch_size=16, scale=SCALE)  # five steps an epoch, the last of 6 images
    whole = train_epoch(model.apply, objective, optimizer, **options)
    part = train_epoch(model.apply, objective, optimizer, **options, num_steps=3)
    state, values = start(model, optimizer), []
    for _ in range(3):
        state, found = whole(state, *data)
        values.append(found)
    other, others = start(model, optimizer), []
    for _ in range(5):
        other, found = part(other, *data)
        others.append(found)
    np.testing.assert_allclose(np.concatenate(others), np.concatenate(values), rtol=1e-5)
    assert int(state.step) == int(other.step) == 15
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, other.params)


def test_images_are_augmented_anew_at_each_step(data):
    model, optimizer = models.linear(SHAPE), optax.sgd(0.0)
    seen = functools.partial(train_epoch, model.apply, objectives.standard(), optimizer, batch_size=70, scale=SCALE)
    plain, shifted = seen(), seen(augment=crop_and_flip)
    state, values = plain(start(model, optimizer), *data)
    _, again = plain(state, *data)
    np.testing.assert_allclose(values, again, rtol=1e-5)
    state, values = shifted(start(model, optimizer), *data)
    _, again = shifted(state, *data)
    assert abs(float(values[0] - again[0])) > 1e-4
    _, repeated = shifted(start(model, optimizer), *data)
    np.testing.assert_array_equal(values, repeated)


@pytest.mark.slow
def test_batch_normalisation_averages_over_the_batch_and_weight_decay_leaves_its_statistics_alone(data):
    images, labels = data[0][:8], data[1][:8]
    model = models.wide_resnet(SHAPE, depth=10, width=1)
    optimizer = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
    epoch = train_epoch(model.apply, objectives.standard(), optimizer, batch_size=8, scale=SCALE)
    before = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0, impl="rbg")))
    state = init_state(jax.tree.map(jnp.asarray, before), optimizer, jax.random.key(1), 8)
    state, values = epoch(state, images, labels)
    run = jax.jit(jax.vmap(model.apply.observe, (None, 0, None), (0, None), axis_name=models.BATCH))
    logits, expected = run(before, images / SCALE, jax.random.key(2))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(values, [jnp.mean(jax.vmap(cross_entropy)(logits, labels))])
    jax.tree.map(close, state.params["batch_stats"], expected["batch_stats"])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, before)
    assert max(jax.tree.leaves(moved["batch_stats"])) > 0.01
    assert max(jax.tree.leaves(moved["params"])) > 0.01
