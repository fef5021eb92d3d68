"""Minimum-norm attacks against classifiers whose distances are known exactly."""

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Linear, random_linear

import jaxmargin as jm
from jaxmargin.attacks import bisect_boundary

pytestmark = pytest.mark.hurried

NORMS = {"l2": (jm.l2, 2, 2), "linf": (jm.linf, np.inf, 1), "l1": (jm.l1, 1, np.inf)}  # orders of norm and dual
norms = pytest.mark.parametrize(("norm", "order", "dual"), NORMS.values(), ids=NORMS)
ATTACKS = {"ddn": jm.ddn, "fmn": jm.fmn, "deepfool": jm.deepfool, "minimum_norm": jm.minimum_norm}
attacks = pytest.mark.parametrize(
    "attack", [jm.ddn, jm.fmn, jm.deepfool, pytest.param(jm.minimum_norm, marks=pytest.mark.slow)], ids=ATTACKS
)
# How far above the exact distance the median of each may lie, where the boundary is a plane.
LOOSE = {"ddn": 0.02, "fmn": 0.02, "deepfool": 0.021, "minimum_norm": 1e-4}


def relu_net(params, x):
    hidden, hidden_bias, output, output_bias = params
    return output @ jax.nn.relu(hidden @ x + hidden_bias) + output_bias


@functools.cache
def lifted(attack, **options):
    return jm.over_batch(attack, Linear.apply, **options)


def run(attack, linear, key, norm=jm.l2, **options):
    """What the attack finds from the points of a linear classifier; four classes in l2 are compiled once."""
    steps = {} if attack is jm.deepfool else dict(num_steps=200)
    found = lifted(attack, norm=norm, **steps, **options)
    return found(linear.params, key, np.float32(linear.xs), linear.ys)


@norms
@pytest.mark.parametrize("name", ATTACKS)
def test_the_distance_of_a_linear_classifier_is_met_from_above(name, norm, order, dual, key):
    linear = random_linear(4).right()
    found = run(ATTACKS[name], linear, key, norm)
    distances = linear.margins(dual)
    assert found.found.all()
    lengths = np.linalg.norm(np.float64(found.x_adv) - linear.xs, order, axis=1)
    np.testing.assert_allclose(found.distance, lengths, rtol=1e-5)
    assert (lengths >= distances * (1 - 1e-5)).all()
    assert np.median(lengths / distances) <= 1 + LOOSE[name]


@pytest.mark.slow
@pytest.mark.parametrize(("dimension", "num_classes"), [(2, 2), (3, 5)])
def test_tiny_networks_are_broken_within_two_percent_of_the_exact_distance(dimension, num_classes):
    rng, n = np.random.default_rng((dimension, num_classes)), 80
    nets = [exact.random_net(rng, 5, num_classes, dimension) for _ in range(n)]
    params = tuple(np.float32(np.stack(leaves)) for leaves in zip(*nets, strict=True))
    xs = np.float64(np.float32(rng.normal(size=(n, dimension))))
    ys = np.array([np.argmax(net.logits(x[None])[0]) for net, x in zip(nets, xs, strict=True)])

    def one(params, key, x, y):
        return jm.minimum_norm(functools.partial(relu_net, params), key, x, y, num_steps=300)

    found = jax.jit(jax.vmap(one))(params, jax.random.split(jax.random.key(dimension), n), np.float32(xs), ys)
    distances = np.array([exact.distance(net, x) for net, x in zip(nets, xs, strict=True)])
    reachable = np.isfinite(distances)
    np.testing.assert_array_equal(np.asarray(found.found)[~reachable], False)
    ratios = np.asarray(found.distance)[reachable] / distances[reachable]
    assert len(ratios) > 60
    assert (ratios >= 1 - 1e-4).all()
    assert np.median(ratios) < 1.02
    assert np.mean(ratios < 1.02) > 0.8


@attacks
def test_scaling_inputs_or_logits_scales_or_keeps_the_distances(attack, tiny, key):
    def scaled(params, x):
        logits, inputs, params = params
        return logits * tiny.model.apply(params, x * inputs)

    run = jm.over_batch(attack, scaled)
    plain, wide = (  # powers of two: the same bits
        run((logits, 1 / inputs, tiny.params), jax.random.clone(key), inputs * np.asarray(tiny.xs), tiny.predicted)
        for logits, inputs in ((np.float32(1), np.float32(1)), (np.float32(64), np.float32(16)))
    )
    assert plain.found.all()
    np.testing.assert_allclose(wide.distance, 16 * plain.distance, rtol=1e-4)


@attacks
def test_a_wrong_example_is_at_distance_zero_where_it_is(attack, key):
    right = random_linear(4).right()
    wrong = right._replace(ys=(right.ys + 1) % 4)
    found = run(attack, wrong, key)
    assert found.found.all()
    np.testing.assert_array_equal(found.distance, 0)
    np.testing.assert_array_equal(found.x_adv, np.float32(wrong.xs))


@attacks
def test_nothing_to_find_is_an_infinite_distance(attack, key):
    linear = random_linear(4)
    flat = linear._replace(weights=0 * linear.weights, biases=np.eye(4)[0], ys=0 * linear.ys)
    found = run(attack, flat, key)
    assert not found.found.any()
    assert np.isinf(found.distance).all()
    assert np.isfinite(found.x_adv).all()


@attacks
def test_what_is_found_lies_in_the_box(attack, key):
    linear = random_linear(4)
    linear = linear._replace(xs=np.float64(np.float32(1 / (1 + np.exp(-linear.xs))))).right()
    found = run(attack, linear, key, box=(0.0, 1.0))
    assert found.found.mean() > 0.5
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1


@attacks
def test_a_gradient_that_is_not_a_number_is_refused_and_not_passed_over(attack, key):
    def broken(params, x):
        return jnp.stack([jnp.sqrt(jnp.abs(x[0])) + 1.0, x[1]])  # infinite slope at 0

    with pytest.raises(ValueError, match="example 1 is NaN"):
        jm.over_batch(attack, broken)({}, key, jnp.array([[1.0, 0.0], [0.0, 0.0]]), np.zeros(2, int))


def test_bisection_stops_at_the_boundary_and_leaves_what_is_no_adversarial():
    def step_at(share):
        return lambda x: jnp.array([share, 0.0]) + jnp.array([0.0, 1.0]) * x[0]

    for share in (0.1, 0.5, 0.9):
        found = bisect_boundary(step_at(share), jnp.zeros(3), 0, jnp.ones(3), norm=jm.linf)
        assert found.found
        assert share < found.distance < share + 2e-6
    left = bisect_boundary(step_at(2.0), jnp.zeros(3), 0, jnp.ones(3))
    assert not left.found
    assert np.isinf(left.distance)
    np.testing.assert_array_equal(left.x_adv, 1)


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (jm.ddn, dict(num_steps=0), "num_steps=0 must be a whole number"),
        (jm.fmn, dict(gamma=1.5), "gamma=1.5 must be below 1"),
        (jm.ddn, dict(gamma=0.0), "gamma=0.0 must be finite and greater than 0"),
        (jm.deepfool, dict(overshoot=-1.0), "overshoot=-1.0 must be finite"),
        (jm.deepfool, dict(candidates=0), "candidates=0 must be a whole number"),
        (jm.minimum_norm, dict(box=(0.5, 1.0)), r"x spans \[0, 0\], outside box=\(0.5, 1.0\): scale the inputs"),
        (jm.ddn, dict(loss="ce"), "loss='ce' is unknown: choose from"),
    ],
)
def test_bad_options_are_refused(attack, options, message, linear, key):
    with pytest.raises(ValueError, match=message):
        attack(functools.partial(linear.apply, linear.params), key, jnp.zeros(6), 0, **options)
