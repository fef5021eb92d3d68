"""The worst case over losses and restarts, and the queue that its searches wait in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_linear

import jaxmargin as jm
from jaxmargin.attacks.work_queue import run_queue

pytestmark = pytest.mark.hurried


def logits_of(params, x):
    """The linear classifier of params[:2]; where params[2] is 0 and not 1, its gradient is no number."""
    weights, biases, sound = params
    return (weights @ x + biases).at[0].add(jnp.sqrt(sound + (x[0] - x[0])) - 1)


@functools.cache
def lifted(norm=jm.l2, num_steps=60, **options):
    """One program for equal options and shapes: radii and classifiers are traced."""
    return jm.over_batch(jm.worst_case, logits_of, norm=norm, num_steps=num_steps, **options)


def params_of(linear, scale=1.0, sound=1.0):
    return (*(jnp.float32(scale * array) for array in (linear.weights, linear.biases)), jnp.float32(sound))


def run(linear, key, norm=jm.l2, *, epsilon, scale=1.0, sound=1.0, **options):
    examples = np.float32(linear.xs), linear.ys
    return lifted(norm, **options)(params_of(linear, scale, sound), key, *examples, epsilon=epsilon)


@pytest.mark.parametrize(
    ("num_classes", "norm", "dual"),
    [
        (2, jm.l2, 2),  # one loss less
        *(pytest.param(5, *norm, marks=pytest.mark.slow) for norm in ((jm.linf, 1), (jm.l1, np.inf))),
    ],
    ids=["two classes, l2", "linf", "l1"],
)
def test_exactly_the_points_within_reach_are_found(num_classes, norm, dual, key):
    linear = random_linear(num_classes, n=60).right()
    distances = linear.margins(dual)
    epsilon = float(np.median(distances))
    found = run(linear, key, norm, epsilon=epsilon)
    clear = np.abs(distances / epsilon - 1) > 0.01
    assert clear.sum() > 50
    np.testing.assert_array_equal(found.found[clear], (distances < epsilon)[clear])
    lengths = np.linalg.norm(np.float64(found.x_adv) - linear.xs, {2: 2, 1: np.inf, np.inf: 1}[dual], axis=1)
    assert (lengths <= epsilon * (1 + 1e-6)).all()
    np.testing.assert_array_equal(found.x_adv[~found.found], np.float32(linear.xs)[~found.found])


@pytest.mark.slow
def test_one_example_by_itself_gives_what_it_gives_in_a_batch(key):
    linear = random_linear(5, n=60).right()
    distances = linear.margins(1)
    epsilon = float(np.median(distances))

    @jax.jit
    def measure(key, x, y):
        logits_fn = functools.partial(logits_of, params_of(linear))
        return jm.worst_case(logits_fn, key, x, y, norm=jm.linf, epsilon=epsilon, num_steps=60)

    nearest, farthest = np.argmin(distances), np.argmax(distances)
    for example, found in ((nearest, True), (farthest, False)):
        rows = np.append(example, np.delete(np.arange(60), example))  # the first of a batch has the key of one alone
        first = linear._replace(xs=linear.xs[rows], ys=linear.ys[rows])
        together = run(first, jax.random.clone(key), jm.linf, epsilon=epsilon)
        alone = measure(jax.random.clone(key), np.float32(first.xs[0]), first.ys[0])
        assert alone.found == together.found[0] == found
        np.testing.assert_allclose(alone.x_adv, together.x_adv[0], atol=1e-5)


@pytest.mark.slow
def test_scaling_the_last_layer_moves_nothing(key):
    linear = random_linear(5, n=60).right()
    epsilon = float(np.median(linear.margins(1)))
    plain, scaled = (
        run(linear, jax.random.clone(key), jm.linf, epsilon=epsilon, scale=scale).found for scale in (1.0, 1024.0)
    )
    assert 0 < plain.sum() < 60
    np.testing.assert_array_equal(plain, scaled)


def test_a_loss_that_fails_is_made_up_for_by_the_next(key):
    linear = random_linear(3, n=30).right()
    epsilon = float(1.05 * linear.margins(2).max())

    @jax.jit
    @jax.vmap
    def alone(key, x, y):
        logits_fn = functools.partial(logits_of, params_of(linear, scale=1000))
        return jm.apgd(logits_fn, key, x, y, epsilon=epsilon, num_steps=30, loss="cross_entropy").found

    assert alone(jax.random.split(key, 30), np.float32(linear.xs), linear.ys).mean() < 0.9
    options = dict(losses=("cross_entropy", "logit_margin"), restarts=1, num_steps=30)
    assert run(linear, jax.random.clone(key), epsilon=epsilon, scale=1000, **options).found.all()


def test_a_gradient_that_is_not_a_number_is_refused(key):
    with pytest.raises(ValueError, match="NaN"):
        run(random_linear(2, n=60).right(), key, epsilon=0.1, sound=0.0)


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
    measure = jm.over_batch(jm.worst_case, linear.apply, **options)
    with pytest.raises(ValueError, match=message):
        measure(linear.params, key, np.float32(linear.xs), linear.ys)


# Queue ----------------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=1)
def counted(lengths, workers):
    """Searches that take ``lengths`` steps each and record their index; also how many were begun before each."""

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
    over_before = np.asarray(counted(jnp.array([3, 0, 1, 7, 2, 0, 0, 4]), workers))
    assert (over_before >= 0).all()  # recorded
    assert (np.diff(over_before) >= 0).all()  # begun in order
    if workers == 1:
        np.testing.assert_array_equal(over_before, np.arange(8))


def test_a_search_that_ends_makes_room_at_once():
    # Of two workers one is busy with the long search: the others pass through the second, one after another.
    np.testing.assert_array_equal(counted(jnp.array([100, 1, 1, 1, 1, 1, 1, 1]), 2), [0, 0, 1, 2, 3, 4, 5, 6])
