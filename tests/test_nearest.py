"""Minimum-norm attacks against classifiers whose distances are known exactly."""

import functools
from typing import NamedTuple

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_linear

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


# All classifiers here are one function of six inputs, 12 hidden units and four classes: their programs are shared.
DIMENSION, HIDDEN, CLASSES = 6, 12, 4


class Net(NamedTuple):
    """V relu(W x + b) + a, with a root of infinite slope in class 0, at x[0] = cusp, where there is one."""

    hidden: np.ndarray
    hidden_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray
    root: float = 0.0
    cusp: float = 1e6

    @staticmethod
    def apply(params, x):
        logits = params.output @ jax.nn.relu(params.hidden @ x + params.hidden_bias) + params.output_bias
        return logits.at[0].add(params.root * jnp.sqrt(jnp.abs(x[0] - params.cusp)))

    @property
    def params(self):
        return jax.tree.map(jnp.float32, self)


def affine(linear):
    """W x + b, as W relu(x) - W relu(-x) + b: no sum has another term than W x."""
    identity = np.eye(DIMENSION)
    hidden, output = np.concatenate([identity, -identity]), np.concatenate([linear.weights, -linear.weights], 1)
    return Net(hidden, np.zeros(HIDDEN), output, linear.biases)


def padded(net):
    """A network of fewer inputs and hidden units among those of DIMENSION and HIDDEN, which are not connected."""
    hidden, dimension = net.hidden.shape
    inputs, units = (0, DIMENSION - dimension), (0, HIDDEN - hidden)
    output = np.pad(net.output, ((0, 0), units))
    return Net(np.pad(net.hidden, (units, inputs)), np.pad(net.hidden_bias, units), output, net.output_bias)


def steps(attack):
    return {} if attack is jm.deepfool else dict(num_steps=200)


@functools.cache
def lifted(attack):
    return jm.over_batch(attack, Net.apply, norm=jm.l2, **steps(attack))


@functools.cache
def mapped(attack, norm, box=None):
    """The attack itself, which takes half the time to compile."""

    def one(params, key, x, y):
        return attack(functools.partial(Net.apply, params), key, x, y, norm=norm, box=box, **steps(attack))

    return jax.jit(jax.vmap(one, (None, 0, 0, 0)))


def run(attack, linear, key, norm=jm.l2, box=None):
    """What the attack finds from the points of a linear classifier."""
    examples = np.float32(linear.xs), linear.ys
    if norm is jm.l2 and box is None:
        return lifted(attack)(affine(linear).params, key, *examples)
    return mapped(attack, norm, box)(affine(linear).params, jax.random.split(key, len(linear.xs)), *examples)


@norms
@pytest.mark.parametrize("name", ATTACKS)
def test_the_distance_of_a_linear_classifier_is_met_from_above(name, norm, order, dual, key):
    linear = random_linear(CLASSES).right()
    found = run(ATTACKS[name], linear, key, norm)
    distances = linear.margins(dual)
    assert found.found.all()
    lengths = np.linalg.norm(np.float64(found.x_adv) - linear.xs, order, axis=1)
    np.testing.assert_allclose(found.distance, lengths, rtol=1e-5)
    assert (lengths >= distances * (1 - 1e-5)).all()
    assert np.median(lengths / distances) <= 1 + LOOSE[name]


@pytest.mark.slow
def test_tiny_networks_are_broken_within_two_percent_of_the_exact_distance(key):
    rng, dimension, points = np.random.default_rng((2, 2)), 3, 4
    ratios = []
    for _ in range(20):
        net = exact.random_net(rng, 5, CLASSES, dimension)
        xs = np.float64(np.float32(rng.normal(size=(points, dimension))))
        ys = np.argmax(net.logits(xs), 1)
        wide = np.pad(np.float32(xs), ((0, 0), (0, DIMENSION - dimension)))
        found = lifted(jm.minimum_norm)(padded(net).params, jax.random.clone(key), wide, ys)
        distances = np.array([exact.distance(net, x) for x in xs])
        reachable = np.isfinite(distances)
        np.testing.assert_array_equal(np.asarray(found.found)[~reachable], False)
        ratios.extend(np.asarray(found.distance)[reachable] / distances[reachable])
    ratios = np.array(ratios)
    assert len(ratios) > 60
    assert (ratios >= 1 - 1e-4).all()
    assert np.median(ratios) < 1.02
    assert np.mean(ratios < 1.02) > 0.8


@attacks
def test_scaling_inputs_or_logits_scales_or_keeps_the_distances(attack, key):
    rng = np.random.default_rng(7)
    shapes = (HIDDEN, DIMENSION), (HIDDEN,), (CLASSES, HIDDEN), (CLASSES,)
    net, xs = Net(*(rng.normal(size=shape) for shape in shapes)), np.float32(rng.normal(size=(20, DIMENSION)))
    ys = np.argmax(np.maximum(xs @ net.hidden.T + net.hidden_bias, 0) @ net.output.T + net.output_bias, 1)
    scaled = net._replace(hidden=net.hidden / 16, output=64 * net.output, output_bias=64 * net.output_bias)
    measure = lifted(attack)  # powers of two: the same bits
    plain, wide = measure(net.params, key, xs, ys), measure(scaled.params, jax.random.clone(key), 16 * xs, ys)
    assert plain.found.all()
    np.testing.assert_allclose(wide.distance, 16 * plain.distance, rtol=1e-4)


@attacks
def test_a_wrong_example_is_at_distance_zero_where_it_is(attack, key):
    right = random_linear(CLASSES).right()
    wrong = right._replace(ys=(right.ys + 1) % 4)
    found = run(attack, wrong, key)
    assert found.found.all()
    np.testing.assert_array_equal(found.distance, 0)
    np.testing.assert_array_equal(found.x_adv, np.float32(wrong.xs))


@attacks
def test_nothing_to_find_is_an_infinite_distance(attack, key):
    linear = random_linear(CLASSES)
    flat = linear._replace(weights=0 * linear.weights, biases=np.eye(4)[0], ys=0 * linear.ys)
    found = run(attack, flat, key)
    assert not found.found.any()
    assert np.isinf(found.distance).all()
    assert np.isfinite(found.x_adv).all()


@attacks
def test_what_is_found_lies_in_the_box(attack, key):
    linear = random_linear(CLASSES)
    linear = linear._replace(xs=np.float64(np.float32(1 / (1 + np.exp(-linear.xs))))).right()
    found = run(attack, linear, key, box=(0.0, 1.0))
    assert found.found.mean() > 0.5
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1


@attacks
def test_a_gradient_that_is_not_a_number_is_refused_and_not_passed_over(attack, key):
    linear = random_linear(CLASSES).right()
    broken = affine(linear)._replace(root=1.0, cusp=linear.xs[1, 0])
    with pytest.raises(ValueError, match="example 1 is NaN"):
        lifted(attack)(broken.params, key, np.float32(linear.xs), linear.ys)


def test_bisection_stops_at_the_boundary_and_leaves_what_is_no_adversarial():
    @jax.jit
    @jax.vmap
    def drawn_back(share):
        step = lambda x: jnp.array([share, 0.0]) + jnp.array([0.0, 1.0]) * x[0]  # noqa: E731
        return bisect_boundary(step, jnp.zeros(3), 0, jnp.ones(3), norm=jm.linf)

    shares = np.float32([0.1, 0.5, 0.9, 2.0])
    found = drawn_back(shares)
    np.testing.assert_array_equal(found.found, [True, True, True, False])
    assert (shares[:3] < found.distance[:3]).all()
    rounding = 32 * np.finfo(np.float32).eps  # beyond which an input is found
    assert (found.distance[:3] < shares[:3] * (1 + rounding) + 1e-6).all()
    assert np.isinf(found.distance[3])
    np.testing.assert_array_equal(found.x_adv[3], 1)


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
