"""Certificates against distances that are known exactly: proofs rest on rounding, and are compiled as for users."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import distance, random_net
from helpers import random_linear
from nets import stacked

import jaxmargin as jm
from jaxmargin import models

NORMS = {"l2": (jm.l2, 2), "linf": (jm.linf, 1), "l1": (jm.l1, np.inf)}  # orders of the dual
HIDDEN = 5


@functools.cache
def measure(num_classes):
    """Certificates of n networks of one shape, each at its own points: (params [n], xs [n, m, 2])."""
    apply_fn = models.mlp((2,), num_classes, hidden=HIDDEN).apply

    def one(params, x):
        logits_fn = functools.partial(apply_fn, params)
        return jm.certified_margin(logits_fn, jax.random.key(0), x, 0, radius=20.0, num_steps=30)

    return jax.jit(jax.vmap(jax.vmap(one, (None, 0))))


def pairs(num_classes, n=60, m=2):
    """n random nets with m points each, (nets, xs [n, m, 2])."""
    rng = np.random.default_rng((3, num_classes))
    nets = [random_net(rng, HIDDEN, num_classes) for _ in range(n)]
    return nets, np.float32(rng.normal(size=(n, m, 2)) * 2)


@pytest.mark.parametrize(("num_classes", "name"), [(4, "l2"), (4, "linf"), (4, "l1"), (2, "l2")])
def test_an_affine_network_is_measured_exactly(num_classes, name, key):
    (norm, dual), linear = NORMS[name], random_linear(num_classes)
    params = {"Dense_0": {"kernel": linear.params[0].T, "bias": linear.params[1]}}
    apply_fn = models.linear((6,), num_classes).apply

    def one(params, x, y):
        return jm.certified_margin(functools.partial(apply_fn, params), key, x, y, norm=norm)

    found = jax.jit(jax.vmap(one, (None, 0, 0)))(params, np.float32(linear.xs), linear.ys)
    exact = np.abs(linear.margins(dual))
    assert found.distance.dtype == jnp.float32
    assert (np.float64(found.distance) <= exact).all()
    np.testing.assert_allclose(found.distance, exact, rtol=1e-6)
    np.testing.assert_array_equal(found.predicted, np.argmax(linear.xs @ linear.weights.T + linear.biases, 1))
    assert found.supported.all()


@pytest.mark.parametrize(
    "num_classes", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_no_certificate_is_beyond_the_exact_distance(num_classes):
    nets, xs = pairs(num_classes)
    exact = np.array([[distance(net, np.float64(x)) for x in points] for net, points in zip(nets, xs, strict=True)])
    found = measure(num_classes)(stacked(nets), xs)
    for bound in (found.distance, found.spectral, found.relaxed):
        assert (np.float64(bound) <= exact).all()
    assert (found.distance == np.maximum(found.spectral, found.relaxed)).all()
    finite = np.isfinite(exact) & (exact < 20)
    assert finite.mean() > 0.7
    assert np.median(found.relaxed[finite] / exact[finite]) > 0.7
    assert np.median(found.spectral[finite] / exact[finite]) > 0.1
    assert (found.distance > 0).all()


@pytest.mark.parametrize("scale", [2.0**-14, 2.0**14])
def test_huge_and_tiny_logits_are_certified_as_well(scale):
    nets, xs = pairs(3)
    scaled = [
        net._replace(output=net.output * scale, hidden=net.hidden * scale, hidden_bias=net.hidden_bias * scale,
                     output_bias=net.output_bias * scale**2)
        for net in nets
    ]  # fmt: skip
    found, expected = (measure(3)(stacked(each), xs) for each in (scaled, nets))
    np.testing.assert_array_equal(found.predicted, expected.predicted)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_far_from_the_origin_rounding_breaks_no_certificate():
    far = 2.0**13
    nets, xs = pairs(3)
    nets = [type(net)(*(np.round(part * 64) / 64 for part in net)) for net in nets]  # few bits: shifts are exact
    xs = np.float32(np.round(xs * 64) / 64)
    shifted = [net._replace(hidden_bias=net.hidden_bias - net.hidden @ [far, far]) for net in nets]
    exact = np.array([[distance(net, np.float64(x)) for x in points] for net, points in zip(nets, xs, strict=True)])
    here, there = measure(3)(stacked(nets), xs), measure(3)(stacked(shifted), np.float32(xs + far))
    assert (np.float64(xs + np.float32(far)) == np.float64(xs) + far).all()
    assert (np.float64(there.distance) <= exact).all()
    same = here.predicted == there.predicted  # the network itself is float32, and loses digits here
    assert same.mean() > 0.95
    np.testing.assert_allclose(there.distance[same], here.distance[same], rtol=1e-5)


def crown(net, x, radius):
    """Zhang et al. 2018 for one hidden layer in l2: the smallest lower bound of f_p - f_k on B(x, radius)."""
    p = np.argmax(net.logits(x[None])[0])
    value, reach = net.hidden @ x + net.hidden_bias, radius * np.linalg.norm(net.hidden, axis=1)
    low, high = value - reach, value + reach
    crossing = (low < 0) & (high > 0)
    upper = np.where(crossing, high / (high - low), low >= 0)
    lower = np.where(crossing, high > -low, low >= 0)
    bounds = []
    for k in set(range(len(net.output))) - {p}:
        v = net.output[p] - net.output[k]
        slope = v * np.where(v > 0, lower, upper)
        offset = np.sum(np.where((v < 0) & crossing, -v * upper * low, 0))
        constant = slope @ net.hidden_bias + offset + net.output_bias[p] - net.output_bias[k]
        gradient = slope @ net.hidden
        bounds.append(gradient @ x + constant - radius * np.linalg.norm(gradient))
    return min(bounds)


def test_one_hidden_layer_gets_the_bound_of_crown():
    nets, xs = pairs(3)
    found = measure(3)(stacked(nets), xs)
    for net, points, radii in zip(nets, np.float64(xs), np.float64(found.relaxed), strict=True):
        for x, radius in zip(points, radii, strict=True):
            assert crown(net, x, radius) > 0
            assert radius > 19.99 or crown(net, x, radius * 1.001) < 0
