"""Intervals and lines on a ball against the network at many of its points, all in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params

import jaxmargin as jm
from jaxmargin import models
from jaxmargin.certificates.crown import backward_bound, intervals, reaches
from jaxmargin.certificates.rounding import above, below, double_precision
from jaxmargin.certificates.spectral import norms_in_double

norms = pytest.mark.parametrize("name", ["l2", "linf", "l1"])
NETWORKS = {
    "cnn": models.cnn((9, 7, 1), 3, widths=(3, 4), hidden=8),  # pools leave rows and columns over
    "mlp": models.mlp((8, 8, 1), 3, hidden=12),
}
CASES = [("l2", "mlp"), ("linf", "mlp"), ("l1", "mlp"), ("l2", "cnn")]  # a cnn compiles slowly
cases = pytest.mark.parametrize(
    ("name", "network"), [pytest.param(*case, marks=pytest.mark.slow if case[1] == "cnn" else ()) for case in CASES]
)


def step(layer, z):
    """A layer at points [n, *units], with nothing but numpy."""
    if layer.kind == "flatten":
        return z.reshape(len(z), -1)
    if layer.kind == "relu":
        return np.maximum(z, 0)
    if layer.kind == "max_pool":
        h, w = z.shape[1] // 2, z.shape[2] // 2
        return z[:, : 2 * h, : 2 * w].reshape(len(z), h, 2, w, 2, -1).max((2, 4))
    kernel, bias = np.float64(layer.kernel), np.float64(layer.bias)
    if layer.kind == "dense":
        return z @ kernel + bias
    assert layer.padding == "SAME"
    z = np.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(z, (3, 3), (1, 2))  # [n, h, w, i, 3, 3]
    return np.einsum("nhwiab,abio->nhwo", windows, kernel) + bias


def activations(layers, zs):
    """Units before each layer and after the last one, each [n, *units]."""
    found = [np.float64(zs)]
    for layer in layers:
        found.append(step(layer, found[-1]))
    return found


def ball_points(name, x, radius, rng, n=1500):
    """Points of the ball, most of them on its surface: random ones, corners, and single coordinates."""
    d = x.size
    inside = {"l2": rng.normal(size=(n, d)), "linf": rng.uniform(-1, 1, (n, d)), "l1": rng.laplace(size=(n, d))}[name]
    order = {"l2": 2, "linf": np.inf, "l1": 1}[name]
    corners = rng.choice([-1.0, 1.0], (n, d))
    axes = np.vstack([np.eye(d), -np.eye(d)])
    points = np.vstack([inside, corners, axes])
    return x + radius * (points / np.linalg.norm(points, order, axis=1, keepdims=True)).reshape(-1, *x.shape)


def bounded(network, name, x, radius, rows):
    """(layers, intervals, line) of a random network."""
    params = random_params(NETWORKS[network])
    bounds, line = jax.tree.map(np.asarray, _bounded(network, name)(params, x, radius, rows))
    return NETWORKS[network].layers(params), bounds, line


@functools.cache
def _bounded(network, name):
    model, norm = NETWORKS[network], getattr(jm, name)

    @jax.jit
    def run(params, x, radius, rows):
        layers = model.layers(params)
        with double_precision():
            spectral = norms_in_double(layers, model.input_shape)
            double = [layer._replace(**cast(layer)) for layer in layers]
            in_l2 = 1.0 if name != "linf" else np.sqrt(x.size)
            x, radius, v = (jnp.asarray(part).astype(jnp.float64) for part in (x, radius, rows))
            at_x = intervals(double, x, 0.0)
            bounds = intervals(double, x, radius, reaches(double, spectral, norm, in_l2), at_x)
            return bounds, backward_bound(double, bounds, v)

    return run


def cast(layer):
    weights = {"kernel": layer.kernel, "bias": layer.bias}
    return {name: leaf if leaf is None else leaf.astype(jnp.float64) for name, leaf in weights.items()}


ROWS = np.float32([[1, -1, 0], [0, 1, -1], [1, 1, -2]])


@cases
def test_intervals_and_lines_hold_at_every_point_of_the_ball(name, network):
    rng = np.random.default_rng(0)
    x = np.float32(rng.uniform(size=NETWORKS[network].input_shape))
    least = np.inf
    for radius in np.float32([0.0, 0.05, 0.3, 2.0]) * (8 if name == "l1" else 0.2 if name == "linf" else 1):
        layers, bounds, bound = bounded(network, name, x, radius, ROWS)
        assert bound.coefficients.dtype == np.float64
        zs = ball_points(name, np.float64(x), radius, rng)
        down = bound.coefficients.reshape(3, -1)  # the points where the bounds are lowest
        zs = np.vstack([zs, np.float64(x) - radius * np.stack([steepest(name, g).reshape(x.shape) for g in down])])
        units = activations(layers, zs)
        for before, z in zip(bounds, units, strict=True):
            assert (before.low <= z).all()
            assert (z <= before.high).all()
        values = zs.reshape(len(zs), -1) @ down.T + bound.offset  # [n, m]
        gaps = units[-1] @ ROWS.T - values
        assert (gaps >= -1e-9 * bound.size).all()  # what rounding may take is subtracted by the caller
        least = min(least, gaps.min())
    assert least < 1e-6  # at radius 0 the lines touch


def steepest(name, g):
    with double_precision():
        return np.asarray(getattr(jm, name).steepest(jnp.asarray(g)))


@cases
def test_intervals_grow_with_the_radius(name, network):
    x = np.float32(np.random.default_rng(1).uniform(size=NETWORKS[network].input_shape))
    inner, outer = (bounded(network, name, x, np.float32(radius), ROWS)[1] for radius in (0.1, 0.11))
    for small, large in zip(inner, outer, strict=True):
        assert (large.low <= small.low).all()
        assert (small.high <= large.high).all()
    assert (outer[-1].high - outer[-1].low > inner[-1].high - inner[-1].low).all()


@norms
def test_the_first_layer_with_weights_is_bounded_exactly(name):
    x = np.float32(np.random.default_rng(2).uniform(size=(8, 8, 1)))
    layers, bounds, _ = bounded("mlp", name, x, np.float32(0.25), ROWS)
    dual = {"l2": 2, "linf": 1, "l1": np.inf}[name]
    reach = 0.25 * np.linalg.norm(np.float64(layers[1].kernel), dual, axis=0)
    value = activations(layers, x[None])[2][0]
    np.testing.assert_allclose(bounds[2].low, value - reach, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(bounds[2].high, value + reach, rtol=1e-12, atol=1e-12)


def test_in_l2_the_reach_of_the_spectral_norms_is_much_tighter_than_interval_arithmetic():
    x = np.float32(np.random.default_rng(3).uniform(size=(9, 7, 1)))
    layers, bounds, _ = bounded("cnn", "l2", x, np.float32(0.05), ROWS)
    with double_precision():
        double = [layer._replace(**cast(layer)) for layer in layers]
        plain = jax.jit(lambda x: intervals(double, x, 0.05))(jnp.asarray(np.float64(x)))
        plain = jax.tree.map(np.asarray, plain)
    wide, narrow = (np.mean(found[-1].high - found[-1].low) for found in (plain, bounds))
    assert narrow < wide / 2


def test_rounding_goes_to_the_safe_side():
    values = np.random.default_rng(0).uniform(1e-3, 1e3, 1000) * 10.0 ** np.arange(-30, 30, 0.06)
    values = np.append(values, [0.0, np.inf, 1e-300, 1e-40, 3.4e38, 1e300])
    with double_precision():
        lower, upper = (np.asarray(f(jnp.asarray(values), jnp.float32)) for f in (below, above))
    assert lower.dtype == upper.dtype == np.float32
    assert (np.float64(lower) <= values).all()
    assert (np.float64(upper) >= values).all()
    ordinary = (values > 1e-36) & (values < 1e38)
    np.testing.assert_allclose(lower[ordinary], values[ordinary], rtol=1e-6)
    np.testing.assert_allclose(upper[ordinary], values[ordinary], rtol=1e-6)
    assert upper[values == 0] == lower[values == 0] == 0
    assert upper[values == np.inf] == lower[values == np.inf] == np.inf
