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
from jaxmargin.losses import cross_entropy

pytestmark = pytest.mark.hurried

W = np.float32([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
X, Y = np.float32([0.8, 0.1, 0.4]), np.array(0)
NORMS = {"l2": (jm.l2, 2), "linf": (jm.linf, 1)}
both_norms = pytest.mark.parametrize(("norm", "dual"), NORMS.values(), ids=NORMS)


def logits_fn(x):
    return jnp.asarray(W) @ x


def search(objective, step=0, seed=0):
    found, example_state = objective.inner_maximization(
        logits_fn, jax.random.key(seed), jnp.asarray(X), jnp.asarray(Y), jnp.array(7.0), jnp.array(step)
    )
    assert example_state == 7.0  # of no concern to these objectives
    return found


def loss(objective, x_adv):
    return objective.example_loss(logits_fn, jax.random.key(1), jnp.asarray(X), jnp.asarray(Y), x_adv)


@both_norms
def test_the_adversarial_loss_of_a_linear_classifier_is_that_of_the_margin_less_epsilon(norm, dual):
    objective = objectives.adversarial(norm=norm, epsilon=0.3, num_steps=60)
    worst = W[0] @ X - 0.3 * np.linalg.norm(W[0], dual)
    np.testing.assert_allclose(loss(objective, search(objective)), np.logaddexp(0, -worst), rtol=0.02)
    assert loss(objective, search(objective)) <= np.logaddexp(0, -worst) * (1 + 1e-5)


@both_norms
@pytest.mark.parametrize("build", [objectives.adversarial, objectives.trades])
def test_the_search_stays_in_the_ball_and_the_box(build, norm, dual):
    x_adv = search(build(norm=norm, epsilon=0.5, box=(0.0, 1.0)))
    assert norm.size(x_adv - X) <= 0.5
    assert (x_adv >= 0).all() and (x_adv <= 1).all()
    assert norm.size(x_adv - X) > 0.3  # and moves


@pytest.mark.parametrize("build", [objectives.adversarial, objectives.trades])
def test_a_schedule_gives_the_radius_of_a_step(build):
    objective = build(epsilon=optax.linear_schedule(0.1, 0.4, 100), num_steps=60)
    for step, radius in ((0, 0.1), (50, 0.25), (200, 0.4)):
        np.testing.assert_allclose(np.linalg.norm(search(objective, step) - X), radius, rtol=1e-4)


@pytest.mark.parametrize("build", [objectives.adversarial, objectives.trades])
def test_step_size_is_the_length_of_a_step(build):
    far, near = (search(build(epsilon=10.0, num_steps=1, step_size=size)) for size in (0.25, 1e-6))  # one start
    np.testing.assert_allclose(np.linalg.norm(far - near), 0.25, rtol=0.05)


def test_trades_adds_the_divergence_of_the_two_predictions():
    objective = objectives.trades(epsilon=0.5, beta=6.0, num_steps=40)
    x_adv = search(objective)
    p, q = (np.asarray(jax.nn.softmax(logits_fn(z)), np.float64) for z in (jnp.asarray(X), x_adv))
    divergence = np.sum(p * np.log(p / q))
    assert divergence > 0.05
    expected = cross_entropy(logits_fn(jnp.asarray(X)), Y) + 6.0 * divergence
    np.testing.assert_allclose(loss(objective, x_adv), expected, rtol=1e-4)


def test_the_divergence_is_raised_to_the_balls_end_along_the_weights():
    x_adv = search(objectives.trades(epsilon=0.5, num_steps=60))
    offset = np.asarray(x_adv - X)
    np.testing.assert_allclose(abs(offset @ W[0]), 0.5 * np.linalg.norm(W[0]), rtol=0.01)


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


@pytest.mark.parametrize("build", [objectives.adversarial, objectives.trades])
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
        build(**dict(epsilon=1.0) | options)


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="beta=0.0 must be"):
        objectives.trades(epsilon=1.0, beta=0.0)


def test_the_objectives_work_under_vmap_and_jit(key):
    objective = objectives.adversarial(epsilon=0.3)
    run = jax.jit(jax.vmap(functools.partial(objective.inner_maximization, logits_fn), (0, 0, 0, 0, None)))
    xs, ys = jax.random.uniform(key, (5, 3)), jnp.zeros(5, int)
    x_adv, _ = run(jax.random.split(jax.random.key(1), 5), xs, ys, jnp.zeros(5), jnp.array(0))
    np.testing.assert_allclose(jnp.linalg.norm(x_adv - xs, axis=1), 0.3, rtol=1e-4)
