"""Attacks against classifiers whose distance is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Linear, random_linear

import jaxmargin as jm

pytestmark = pytest.mark.hurried

NORMS = {"l2": (jm.l2, 2, 2), "linf": (jm.linf, np.inf, 1), "l1": (jm.l1, 1, np.inf)}  # orders of norm and dual
norms = pytest.mark.parametrize(("norm", "order", "dual"), NORMS.values(), ids=NORMS)


ROWS = 60


@functools.cache
def mapped(**options):
    """One program for equal options and shapes: radii, steps and classifiers are traced."""

    def one(params, epsilon, step_size, key, x, y):
        logits_fn = functools.partial(Linear.apply, params)
        return jm.pgd(logits_fn, key, x, y, epsilon=epsilon, step_size=step_size, **options)

    return jax.jit(jax.vmap(one, (None, None, None, 0, 0, 0)))


def attack(linear, key, *, norm=jm.l2, epsilon, step_size, num_steps=200, **options):
    """What is found from the points of a linear classifier, which take turns to fill ROWS."""
    n = len(linear.xs)
    rows, keys = np.arange(ROWS) % n, jax.random.split(key, ROWS)
    run = mapped(norm=norm, num_steps=num_steps, **options)
    examples = keys, np.float32(linear.xs[rows]), linear.ys[rows]
    found = run(linear.params, np.float32(epsilon), np.float32(step_size), *examples)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:n], found)


def sizes(linear, found, order):
    return np.linalg.norm(np.float64(found.x_adv) - linear.xs, order, axis=1)


@norms
def test_an_attack_finds_a_point_exactly_where_the_boundary_is_within_reach(norm, order, dual, key):
    linear = random_linear(2, n=60).right()  # two classes: the way to the boundary is the steepest one
    distances = linear.margins(dual)
    epsilon = float(np.median(distances))
    options = dict(norm=norm, epsilon=epsilon, step_size=epsilon / 40, num_steps=300, loss="logit_margin")
    found = attack(linear, key, **options)
    clear = np.abs(distances / epsilon - 1) > 0.05
    assert clear.sum() > 40
    np.testing.assert_array_equal(found.found[clear], (distances < epsilon)[clear])
    assert 0 < found.found.sum() < len(distances)


@norms
def test_what_is_found_lies_in_the_ball_and_the_box_beyond_the_exact_distance(norm, order, dual, key):
    linear = random_linear(4)
    linear = linear._replace(xs=np.float64(np.float32(1 / (1 + np.exp(-linear.xs))))).right()  # inside (0, 1)
    epsilon = float(np.median(linear.margins(dual)))
    options = dict(norm=norm, epsilon=epsilon, step_size=epsilon / 20, num_steps=80, box=(0.0, 1.0))
    found = attack(linear, key, **options)
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    assert (sizes(linear, found, order) <= epsilon * (1 + 1e-6) + 2e-7).all()  # x_adv itself is rounded
    assert 0 < found.found.sum() < 20
    assert (sizes(linear, found, order) >= linear.margins(dual) * (1 - 1e-5))[found.found].all()


def test_found_and_distance_say_what_the_classifier_says_of_x_adv(key):
    linear = random_linear(3, dimension=64, n=ROWS)
    found = attack(linear, key, epsilon=0.5, step_size=0.05)
    predicted = (np.float64(found.x_adv) @ linear.weights.T + linear.biases).argmax(1)
    np.testing.assert_array_equal(found.found, predicted != linear.ys)
    np.testing.assert_allclose(found.distance, np.where(found.found, sizes(linear, found, 2), np.inf), rtol=1e-5)
    assert 0 < found.found.sum() < ROWS


def test_a_saturated_cross_entropy_finds_nothing_where_the_margin_finds_all(key):
    linear = random_linear(3, dimension=64, n=60).right()
    distances = linear.margins(2)
    scaled = linear._replace(weights=linear.weights * 1000, biases=linear.biases * 1000)
    np.testing.assert_allclose(scaled.margins(2), distances)  # scaling the logits moves no boundary
    far = distances > distances.max() / 2  # a random start does not happen to cross the boundary
    scaled = scaled._replace(xs=scaled.xs[far], ys=scaled.ys[far])
    epsilon = float(1.2 * distances.max())
    options = dict(epsilon=epsilon, step_size=epsilon / 50)
    assert far.sum() >= 5
    assert not attack(scaled, key, loss="cross_entropy", **options).found.any()
    assert attack(scaled, jax.random.clone(key), loss="logit_margin", restarts=5, **options).found.all()


def test_only_the_last_iterate_counts_even_for_a_point_that_was_wrong(key):
    # Just wrong; starts beyond 0 are right, and the cross-entropy saturates there.
    xs, weights = np.zeros((ROWS, 64)), np.zeros((3, 64))
    xs[:, 0], weights[:, 0] = -0.01, [1000.0, -1000.0, 0.0]
    linear = Linear(weights, np.array([0.0, 0.0, -1e6]), xs, np.zeros(ROWS, int))
    found = attack(linear, key, epsilon=1.0, step_size=0.01)
    np.testing.assert_array_equal(found.found, found.x_adv[:, 0] < 0)
    assert 0 < found.found.sum() < ROWS


def test_dlr_raises_the_error_of_a_fresh_network(tiny, key):
    @jax.jit
    @jax.vmap
    def found(key, x, y):
        logits_fn = functools.partial(tiny.model.apply, tiny.params)
        return jm.pgd(logits_fn, key, x, y, epsilon=3.0, step_size=0.2, num_steps=40, loss="dlr").found

    # Nine points, each from five starts.
    keys, rows = jax.random.split(key, 45), np.arange(45) % 9
    assert found(keys, tiny.xs[rows], tiny.predicted[rows]).reshape(5, 9).any(0).mean() > 0.7


def test_dlr_refuses_two_classes(key):
    with pytest.raises(ValueError, match="dlr needs three"):
        attack(random_linear(2), key, epsilon=1.0, step_size=0.01, loss="dlr")


def test_one_key_gives_one_result_and_another_key_another():
    linear = random_linear(3, dimension=64, n=ROWS)
    first, again, other = (attack(linear, jax.random.key(seed), epsilon=0.5, step_size=1e-4) for seed in (5, 5, 6))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.x_adv != other.x_adv).all()


def test_the_start_is_drawn_from_the_box_and_pulled_into_the_ball(key):
    # No gradient, so that the attack stays where it starts.
    flat = Linear(np.zeros((4, 6)), np.array([2.0, 0.0, 0.0, 0.0]), np.full((ROWS, 6), 0.9), np.zeros(ROWS, int))
    found = attack(flat, key, epsilon=0.5, step_size=0.01, num_steps=80, box=(0.0, 1.0))
    starts = np.asarray(found.x_adv)
    assert np.linalg.norm(starts - 0.9, axis=1).max() <= 0.5 * (1 + 1e-6)
    assert starts.max() <= 1
    # A start in the ball would lie above and below x alike; one in the box lies below it in nine cases of ten.
    assert abs((starts < 0.9).mean() - 0.9) < 5 * np.sqrt(0.09 / starts.size)


def test_the_steps_follow_the_published_formula():
    weights, y, epsilon = np.float32([[1.0, -2.0, 0.5], [0.3, 0.0, -1.0]]), 0, 0.3
    x = jnp.array([0.2, 0.5, 0.9])

    @jax.jit
    @jax.vmap
    def iterates(key):
        options = dict(epsilon=epsilon, step_size=0.1, box=(0.0, 1.0))
        return [
            jm.pgd(lambda x: jnp.asarray(weights) @ x, jax.random.clone(key), x, y, num_steps=n, **options).x_adv
            for n in (1, 2)
        ]

    first, second = iterates(jax.random.split(jax.random.key(0), 30))
    for z, following in zip(np.float64(first), second, strict=True):
        logits = np.float64(weights) @ z
        p = np.exp(logits) / np.exp(logits).sum()
        gradient = (p - np.eye(2)[y]) @ np.float64(weights)
        z = np.clip(z + 0.1 * gradient / max(np.linalg.norm(gradient), 1e-6), 0, 1)
        offset = z - np.float64(x)
        expected = np.float64(x) + offset * min(1, epsilon / np.linalg.norm(offset))
        np.testing.assert_allclose(following, expected, atol=1e-6)


def test_a_gradient_below_the_floor_shortens_the_step(key):
    def after(slope, num_steps):
        return jm.pgd(
            lambda x: jnp.stack([0 * x[0], x[0]]), jax.random.clone(key), jnp.zeros(1), 0,
            epsilon=10.0, step_size=0.25, num_steps=num_steps, loss=lambda logits, y: slope * logits[1],
        ).x_adv  # fmt: skip

    lengths = jax.jit(jax.vmap(lambda slope: after(slope, 2) - after(slope, 1)))(np.float32([1.0, 1e-6, 1e-8, 0.0]))
    np.testing.assert_allclose(lengths[:, 0], [0.25, 0.25, 0.0025, 0.0], atol=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(epsilon=0.0), "epsilon=0.0 must be finite and greater than 0"),
        (dict(epsilon=float("inf")), "epsilon=inf must be finite"),
        (dict(epsilon=1.0, step_size=0.0), "step_size=0.0 must be finite and greater than 0"),
        (dict(epsilon=1.0, num_steps=0), "num_steps=0 must be a whole number of at least 1"),
        (dict(epsilon=1.0, loss="ce"), "loss='ce' is unknown: choose from cross_entropy, logit_margin, scaled_"),
        (dict(epsilon=1.0, box=(1.0, 0.0)), r"box=\(1.0, 0.0\) is empty.*low < high"),
    ],
)
def test_bad_options_are_refused(options, message, linear, key):
    with pytest.raises(ValueError, match=message):
        jm.pgd(functools.partial(linear.apply, linear.params), key, jnp.zeros(6), 0, **options)
