"""The worst case over losses and restarts, and the queue that its searches wait in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Linear, random_linear

import jaxmargin as jm
from jaxmargin.attacks.work_queue import run_queue

pytestmark = pytest.mark.hurried


@functools.cache
def lifted(**options):
    return jm.over_batch(jm.worst_case, Linear.apply, **options)


def run(linear, key, **options):
    return lifted(**options)(linear.params, key, np.float32(linear.xs), linear.ys)


@pytest.mark.parametrize(
    ("num_classes", "norm", "dual"),
    [
        (2, jm.l2, 2),  # one loss less
        *(pytest.param(5, *norm, marks=pytest.mark.slow) for norm in ((jm.l2, 2), (jm.linf, 1), (jm.l1, np.inf))),
    ],
    ids=["two classes", "l2", "linf", "l1"],
)
def test_exactly_the_points_within_reach_are_found(num_classes, norm, dual, key):
    linear = random_linear(num_classes, n=60).right()
    distances = linear.margins(dual)
    epsilon = float(np.median(distances))
    found = run(linear, key, norm=norm, epsilon=epsilon, num_steps=60)
    clear = np.abs(distances / epsilon - 1) > 0.01
    assert clear.sum() > 50
    np.testing.assert_array_equal(found.found[clear], (distances < epsilon)[clear])
    lengths = np.asarray(jax.vmap(norm.size)(found.x_adv - np.float32(linear.xs)))
    assert (lengths <= epsilon * (1 + 1e-6)).all()
    np.testing.assert_array_equal(found.x_adv[~found.found], np.float32(linear.xs)[~found.found])


@pytest.mark.slow
def test_one_example_by_itself_gives_what_it_gives_in_a_batch(tiny, key):
    options = dict(epsilon=1.0, num_steps=20)
    x, y = tiny.xs[0], tiny.predicted[0]
    together = jm.over_batch(jm.worst_case, tiny.model.apply, **options)(tiny.params, key, x[None], y[None])
    measure = functools.partial(jm.worst_case, functools.partial(tiny.model.apply, tiny.params), **options)
    alone = jax.jit(measure)(jax.random.clone(key), x, y)
    assert alone.found == together.found[0]
    np.testing.assert_allclose(alone.x_adv, together.x_adv[0], atol=1e-5)


@pytest.mark.slow
def test_scaling_the_last_layer_moves_nothing(key):
    linear = random_linear(4, dimension=20, n=60).right()
    epsilon = float(np.median(linear.margins(2)))
    results = []
    for scale in (1.0, 1024.0):
        scaled = linear._replace(weights=linear.weights * scale, biases=linear.biases * scale)
        results.append(run(scaled, jax.random.clone(key), epsilon=epsilon, num_steps=40).found)
    assert 0 < results[0].sum() < 60
    np.testing.assert_array_equal(*results)


def test_a_loss_that_fails_is_made_up_for_by_the_next(key):
    linear = random_linear(3, n=30).right()
    linear = linear._replace(weights=linear.weights * 1000, biases=linear.biases * 1000)
    epsilon = float(1.05 * linear.margins(2).max())
    alone = run(linear, key, epsilon=epsilon, losses=("cross_entropy",), restarts=1, num_steps=30)
    assert alone.found.mean() < 0.9
    options = dict(epsilon=epsilon, losses=("cross_entropy", "logit_margin"), restarts=1, num_steps=30)
    assert run(linear, jax.random.clone(key), **options).found.all()


def test_a_gradient_that_is_not_a_number_is_refused(key):
    def broken(params, x):
        return jnp.stack([jnp.where(x[0] > 0, jnp.sqrt(x[0] - x[0]), 0.0) + 1.0 + x[0], x[1]])

    with pytest.raises(ValueError, match="NaN"):
        jm.over_batch(jm.worst_case, broken, epsilon=0.1, num_steps=5)({}, key, jnp.ones((3, 2)), np.zeros(3, int))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(epsilon=-1.0), "epsilon=-1.0 must be finite and greater than 0"),
        (dict(epsilon=1.0, losses=()), r"losses=\(\): pass a tuple of names"),
        (dict(epsilon=1.0, losses="dlr"), "losses='dlr': pass a tuple"),
        (dict(epsilon=1.0, losses=("margin",)), "losses='margin' is unknown: choose from"),
        (dict(epsilon=1.0, restarts=0), "restarts=0 must be a whole number"),
        (dict(), "worst_case needs the option epsilon"),
    ],
)
def test_bad_options_are_refused(options, message, linear, key):
    with pytest.raises(ValueError, match=message):
        run(linear, key, **options)


# Queue ----------------------------------------------------------------------------------------------------------------


def counted(lengths, workers):
    """Searches that take ``lengths`` steps each and record their index; also how many were begun before each."""
    lengths = jnp.asarray(lengths)

    def start(index, results):
        return index, jnp.zeros((), int), jnp.sum(results >= 0)

    def record(results, indices, states):
        return results.at[indices].set(states[2], mode="drop")

    return run_queue(
        start, lambda s: s[1] < lengths[s[0]], lambda s: (s[0], s[1] + 1, s[2]), record,
        jnp.full(len(lengths), -1), count=len(lengths), workers=workers,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 20])
def test_every_search_is_recorded_whatever_its_length(workers):
    over_before = np.asarray(counted([3, 0, 1, 7, 2, 0, 0, 4], workers))
    assert (over_before >= 0).all()  # recorded
    assert (np.diff(over_before) >= 0).all()  # begun in order
    if workers == 1:
        np.testing.assert_array_equal(over_before, np.arange(8))


def test_a_search_that_ends_makes_room_at_once():
    # Of two workers one is busy with the long search: the others pass through the second, one after another.
    np.testing.assert_array_equal(counted([100, 1, 1, 1, 1], 2), [0, 0, 1, 2, 3])
