"""Adversarial training and TRADES: their inner maxima on linear classifiers, where they are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmargin as jm
from jaxmargin import objectives
from jaxmargin.lab.training import init_state, train_epoch

pytestmark = pytest.mark.hurried

W = np.float32([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
X = np.float32([0.2, 0.1, 0.4])
BOX = (-1.0, 1.0)  # too far from X to matter
BUILDS = {"adversarial": objectives.adversarial, "trades": objectives.trades}
NORMS = {"l2": (2, 2), "linf": (np.inf, 1)}  # orders of norm and dual
builds = pytest.mark.parametrize("build", BUILDS)
both_norms = pytest.mark.parametrize("name", NORMS)


def logits_fn(x):
    return jnp.asarray(W) @ x


@functools.cache
def compiled(build, name):
    """One program a search: its radius is the step, so that a schedule gives it."""
    objective = BUILDS[build](norm=getattr(jm, name), epsilon=lambda step: 0.01 * step, num_steps=60, box=BOX)

    def search(key, x, step):
        example = (key, x, jnp.array(0))
        x_adv, example_state = objective.inner_maximization(logits_fn, *example, jnp.array(7.0), step)
        return x_adv, example_state, objective.example_loss(logits_fn, *example, x_adv)

    return jax.jit(jax.vmap(search, (0, None, None)))


def search(build, name, step, x=X):
    """Where the search ends from five starts, and the loss there, at the radius of step / 100."""
    x_adv, example_state, loss = compiled(build, name)(jax.random.split(jax.random.key(0), 5), x, np.int32(step))
    assert (example_state == 7.0).all()  # of no concern to these objectives
    return np.asarray(x_adv), np.asarray(loss)


def sizes(x_adv, name, x=X):
    return np.linalg.norm(x_adv - x, NORMS[name][0], axis=1)


@both_norms
def test_the_adversarial_loss_of_a_linear_classifier_is_that_of_the_margin_less_epsilon(name):
    _, loss = search("adversarial", name, 30)
    worst = np.logaddexp(0, -(W[0] @ X - 0.3 * np.linalg.norm(W[0], NORMS[name][1])))
    np.testing.assert_allclose(loss, worst, rtol=0.02)
    assert (loss <= worst * (1 + 1e-5)).all()


@both_norms
@builds
def test_the_search_stays_in_the_ball_and_the_box(build, name):
    x = np.float32([-0.8, 0.9, 0.4])  # both edges are in the way down the weights
    x_adv, _ = search(build, name, 50, x)
    assert (sizes(x_adv, name, x) <= 0.5).all()
    assert (np.abs(x_adv) <= 1).all()
    assert (sizes(x_adv, name, x) > 0.3).all()  # and moves
    if build == "adversarial":
        assert (np.abs(x_adv).max(1) > 0.99).all()  # it would go to 1.2 and beyond


@builds
def test_a_schedule_gives_the_radius_of_a_step(build):
    for step in (10, 25, 40):
        np.testing.assert_allclose(sizes(search(build, "l2", step)[0], "l2"), step / 100, rtol=1e-4)


@builds
def test_a_fixed_radius_is_that_of_every_step(build):
    search = jax.jit(functools.partial(BUILDS[build](epsilon=0.3).inner_maximization, logits_fn))
    for step in (0, 100):
        x_adv, _ = search(jax.random.key(0), X, jnp.array(0), jnp.array(0.0), step)
        np.testing.assert_allclose(np.linalg.norm(x_adv - X), 0.3, rtol=1e-4)


@builds
def test_step_size_is_the_length_of_a_step(build):
    @jax.jit
    def after(step_size):
        objective = BUILDS[build](epsilon=10.0, num_steps=1, step_size=step_size)
        return objective.inner_maximization(logits_fn, jax.random.key(0), X, jnp.array(0), jnp.array(0.0), 0)[0]

    far, near = after(jnp.float32(0.25)), after(jnp.float32(1e-6))  # from one start
    np.testing.assert_allclose(np.linalg.norm(far - near), 0.25, rtol=0.05)


def test_trades_adds_the_divergence_of_the_two_predictions():
    x_adv, loss = search("trades", "l2", 50)
    p, q = (1 / (1 + np.exp([-margin, margin])) for margin in (np.float64(W[0] @ X), np.float64(x_adv @ W[0])))
    divergence = np.sum(p[:, None] * np.log(p[:, None] / q), 0)
    assert (divergence > 0.05).all()
    np.testing.assert_allclose(loss, -np.log(p[0]) + 6.0 * divergence, rtol=1e-4)


def test_the_divergence_is_raised_to_the_balls_end_along_the_weights():
    offsets = search("trades", "l2", 50)[0] - X
    np.testing.assert_allclose(np.abs(offsets @ W[0]), 0.5 * np.linalg.norm(W[0]), rtol=0.01)


def test_both_train_a_network_to_stand_more_than_standard_training():
    """Two features: a strong one that a ball of radius 0.5 wipes out, and a weak one that it does not."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    sign = 2.0 * y - 1
    strong, weak = 0.3 * sign + 0.05 * rng.normal(size=400), 2.0 * sign * (rng.random(400) < 0.9)
    xs = np.float32(np.stack([strong, weak], 1))
    apply_fn = lambda w, x, key=None: w @ x  # noqa: E731
    shares = {}
    for name, objective in {
        "std": objectives.standard(),
        "adversarial": objectives.adversarial(norm=jm.linf, epsilon=0.5),
        "trades": objectives.trades(norm=jm.linf, epsilon=0.5),
    }.items():
        optimizer = optax.sgd(0.5)
        epoch = train_epoch(apply_fn, objective, optimizer, batch_size=50, scale=1.0)
        state = init_state(jnp.zeros((2, 2)), optimizer, jax.random.key(0), 400)
        for _ in range(10):
            state, _ = epoch(state, jnp.asarray(xs), jnp.asarray(y))
        weights = np.abs(np.asarray(state.params[1] - state.params[0]))
        shares[name] = weights[0] / weights.sum()
    assert shares["std"] > 0.25  # relies on the strong feature as well
    assert shares["adversarial"] < 0.5 * shares["std"]
    assert shares["trades"] < 0.5 * shares["std"]


@builds
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(epsilon=0.0), "epsilon=0.0 must be"),
        (dict(num_steps=0), "num_steps=0"),
        (dict(step_size=-1.0), "step_size=-1.0 must be"),
        (dict(box=(1.0, 0.0)), "box"),
    ],
)
def test_bad_options_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        BUILDS[build](**dict(epsilon=1.0) | options)


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="beta=0.0 must be"):
        objectives.trades(epsilon=1.0, beta=0.0)
