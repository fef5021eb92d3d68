"""Norms against their definitions: duality, nearest points, uniform samples."""

import functools
import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxmargin as jm
from jaxmargin.norms import radial

ORDERS = {"l2": (2, 2), "linf": (np.inf, 1), "l1": (1, np.inf)}  # of the norm and of its dual
names = pytest.mark.parametrize("name", ORDERS)

# Magnitudes whose squares float32 still holds.
numbers = st.floats(2**-20, 2**13, width=32) | st.floats(-(2**13), -(2**-20), width=32) | st.just(0.0)
vectors = hnp.arrays(np.float32, (6,), elements=numbers)
projections = {name: jax.jit(getattr(jm, name).project) for name in ORDERS}
examples = hypothesis.settings(max_examples=60, deadline=None)


@functools.cache
def samples(name, n=20_000):
    """Points of the unit ball in three dimensions, [n, 3]."""
    sample = jax.vmap(lambda key: norm_of(name).sample_ball(key, (3, 1)))
    return np.float64(sample(jax.random.split(jax.random.key(1), n))).reshape(n, 3)


def norm_of(name):
    return getattr(jm, name)


@names
def test_sizes_are_those_of_numpy_for_images(name):
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    size, dual = (np.linalg.norm(np.float64(x.ravel()), order) for order in ORDERS[name])
    np.testing.assert_allclose(norm_of(name).size(x), size, rtol=1e-6)
    np.testing.assert_allclose(norm_of(name).dual_size(x), dual, rtol=1e-6)


@names
@examples
@hypothesis.given(g=vectors)
def test_hoelder_equality_holds_along_the_steepest_direction(name, g):
    direction = np.float64(norm_of(name).steepest(jnp.asarray(g)))
    size, dual = ORDERS[name]
    np.testing.assert_allclose(direction @ np.float64(g), np.linalg.norm(np.float64(g), dual), rtol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(direction, size), float(g.any()), rtol=1e-6)


@names
def test_no_direction_of_the_ball_beats_the_dual_size(name):
    g = np.array([0.3, -1.2, 0.7])
    best = np.max(samples(name) @ g) / norm_of(name).dual_size(jnp.asarray(g))
    assert 0.9 < best <= 1 + 1e-6


@names
def test_steepest_of_an_image_keeps_its_shape(name):
    g = jnp.arange(24.0).reshape(2, 4, 3) - 7.5
    direction = norm_of(name).steepest(g)
    assert direction.shape == g.shape
    np.testing.assert_allclose(jnp.sum(direction * g), norm_of(name).dual_size(g), rtol=1e-6)


@names
def test_steepest_survives_gradients_whose_squares_underflow(name):
    g = jnp.array([3e-30, -4e-30])
    np.testing.assert_allclose(norm_of(name).size(norm_of(name).steepest(g)), 1.0, rtol=1e-6)


@names
@examples
@hypothesis.given(x=vectors, radius=st.floats(2**-10, 2**10, width=32))
def test_projection_is_the_nearest_point_of_the_ball(name, x, radius):
    # p is nearest to x in a convex set iff <x - p, u - p> <= 0 for all its u; over the ball, the largest <x - p, u> is
    # radius * ||x - p||_*.
    size, dual = ORDERS[name]
    p, x = np.float64(projections[name](jnp.asarray(x), radius)), np.float64(x)
    assert np.linalg.norm(p, size) <= radius * (1 + 1e-6) + 6e-7 * np.abs(x).max()
    rounding = 1e-6 * (np.abs(x).sum() + radius) * np.abs(x).sum()
    assert radius * np.linalg.norm(x - p, dual) <= (x - p) @ p + rounding


@names
def test_projection_beats_random_points_of_the_ball(name):
    x = np.array([2.0, -1.0, 0.3])
    nearest = np.linalg.norm(0.7 * samples(name) - x, axis=1).min()
    distance = np.linalg.norm(projections[name](jnp.asarray(x, jnp.float32), 0.7) - x)
    assert distance <= nearest < 1.1 * distance  # the second says that the points came close enough to tell


def projected_sizes(name, xs):
    """Sizes of the projections of xs [n, d] onto the ball of radius 0.3."""
    return np.linalg.norm(np.float64(jax.vmap(projections[name], (0, None))(xs, 0.3)), ORDERS[name][0], axis=1)


@names
def test_projection_of_near_points_lands_on_the_sphere(name, key):
    xs = jax.random.normal(key, (200, 7))
    xs = 0.5 * xs / jax.vmap(norm_of(name).size)(xs)[:, None]
    np.testing.assert_allclose(projected_sizes(name, xs), 0.3, rtol=1e-6)


@names
def test_projection_of_far_points_lands_on_the_sphere(name, key):
    xs = 10 * jax.random.normal(key, (200, 7))
    np.testing.assert_allclose(projected_sizes(name, xs), 0.3, rtol=1e-6)


@names
def test_projection_is_idempotent(name, key):
    once = norm_of(name).project(5 * jax.random.normal(key, (4, 3)), 1.5)
    np.testing.assert_allclose(norm_of(name).project(once, 1.5), once, rtol=1e-6, atol=1e-7)


@names
def test_projection_leaves_the_inside_alone(name):
    x = jnp.array([[0.1, -0.2], [0.0, 0.3]])
    np.testing.assert_array_equal(norm_of(name).project(x, 0.7), x)


@names
def test_samples_lie_in_the_ball_and_are_uniform_in_radius(name):
    r, d = np.linalg.norm(samples(name), ORDERS[name][0], axis=1), 3
    assert r.max() <= 1 + 1e-6
    for k in (1, 2, 5):  # E[r^k] = d / (d + k)
        variance = d / (d + 2 * k) - (d / (d + k)) ** 2
        assert abs(np.mean(r**k) - d / (d + k)) < 5 * np.sqrt(variance / len(r))
    assert scipy.stats.kstest(r**d, "uniform").pvalue > 1e-3


@names
def test_samples_have_the_second_moments_of_the_uniform_ball(name):
    (n, d), points = samples(name).shape, samples(name)
    second = {"l2": 1 / (d + 2), "linf": 1 / 3, "l1": 2 / ((d + 1) * (d + 2))}[name]
    errors = 5 * np.sqrt(np.var(points**2, axis=0) / n)
    assert (np.abs(np.mean(points**2, axis=0) - second) < errors).all()
    assert (np.abs(np.mean(points, axis=0)) < 5 * np.sqrt(second / n)).all()
    for i, j in itertools.combinations(range(d), 2):
        assert abs(np.mean(points[:, i] * points[:, j])) < 5 * second / np.sqrt(n)


@names
def test_radial_samples_are_uniform_in_size_and_in_the_directions_of_the_ball(name):
    norm, n, d = radial(norm_of(name)), 20_000, 3
    points = np.float64(jax.vmap(lambda key: norm.sample_ball(key, (d,)))(jax.random.split(jax.random.key(2), n)))
    r = np.linalg.norm(points, ORDERS[name][0], axis=1)
    assert scipy.stats.kstest(r, "uniform").pvalue > 1e-3
    ball = np.linalg.norm(samples(name), ORDERS[name][0], axis=1)
    first, other = points[:, 0] / r, samples(name)[:, 0] / ball
    assert scipy.stats.ks_2samp(first, other).pvalue > 1e-3
    assert scipy.stats.ks_2samp(first[r < 0.5], first[r > 0.5]).pvalue > 1e-3
    assert norm.dual_size is norm_of(name).dual_size


@names
def test_one_key_gives_one_sample(name, key):
    first, again, other = (norm_of(name).sample_ball(jax.random.fold_in(key, i), (5,)) for i in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@names
@pytest.mark.parametrize("function", ["size", "dual_size"])
def test_gradients_of_sizes_are_finite_at_zero(name, function):
    gradient = jax.grad(getattr(norm_of(name), function))(jnp.zeros((2, 2)))
    assert np.isfinite(gradient).all()


@names
def test_gradients_of_sizes_are_the_dual_steepest_direction(name):
    x, dual = jnp.array([3.0, -4.0, 1.0]), {"l2": "l2", "linf": "l1", "l1": "linf"}[name]
    np.testing.assert_allclose(jax.grad(norm_of(name).size)(x), norm_of(dual).steepest(x), rtol=1e-6)


@names
@pytest.mark.parametrize("function", ["size", "dual_size"])
def test_the_size_of_nan_is_nan(name, function):
    assert np.isnan(getattr(norm_of(name), function)(jnp.array([1.0, jnp.nan])))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["l2", "linf", "l1"])
def test_a_spread_step_climbs_within_the_unit_ball(name, share):
    norm, rng = getattr(jm, name), np.random.default_rng(0)
    for _ in range(20):
        g = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
        u = norm.spread(g, share)
        np.testing.assert_allclose(norm.size(u), 1, rtol=1e-6)
        assert jnp.sum(u * g) > 0
        assert jnp.mean(u != 0) >= min(share, 1)
        if share == 0 or name != "l1":
            np.testing.assert_array_equal(u, norm.steepest(g))
        else:  # the largest entries move
            assert jnp.abs(g)[u != 0].min() >= jnp.abs(g)[u == 0].max(initial=0)
    assert not norm.spread(jnp.zeros((2, 3)), share).any()
