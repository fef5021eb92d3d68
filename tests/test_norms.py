"""Norms against their definitions: duality, nearest points, uniform samples."""

import functools
import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
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
examples = hypothesis.settings(max_examples=60, deadline=None)


def norm_of(name):
    return getattr(jm, name)


@functools.cache
def jitted(name, function):
    return jax.jit(getattr(norm_of(name), function))


@functools.cache
def mapped(name, function, axes=0):
    return jax.jit(jax.vmap(getattr(norm_of(name), function), axes))


@functools.cache
def sampled(sample, seed):
    """Points of the unit ball in three dimensions, [n + 1, 3], the last one with the key of the first."""
    bits = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), 20_000)))
    keys = jax.random.wrap_key_data(np.append(bits, bits[:1], axis=0))
    draw = jax.jit(jax.vmap(lambda key: sample(key, (3, 1))))
    return np.float64(draw(keys)).reshape(-1, 3)


def samples(name):
    return sampled(norm_of(name).sample_ball, 1)[:-1]


def projected(name, xs, radius):
    """Projections of xs [200, 7] onto a ball."""
    return np.asarray(mapped(name, "project", (0, None))(np.float32(xs), radius))


def normal():
    return np.random.default_rng(0).normal(size=(200, 7))


@names
def test_sizes_are_those_of_numpy_for_images(name):
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    size, dual = (np.linalg.norm(np.float64(x.ravel()), order) for order in ORDERS[name])
    np.testing.assert_allclose(jitted(name, "size")(x), size, rtol=1e-6)
    np.testing.assert_allclose(jitted(name, "dual_size")(x), dual, rtol=1e-6)


@names
@examples
@hypothesis.given(g=vectors)
def test_hoelder_equality_holds_along_the_steepest_direction(name, g):
    direction = np.float64(jitted(name, "steepest")(g))
    size, dual = ORDERS[name]
    np.testing.assert_allclose(direction @ np.float64(g), np.linalg.norm(np.float64(g), dual), rtol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(direction, size), float(g.any()), rtol=1e-6)


@names
def test_no_direction_of_the_ball_beats_the_dual_size(name):
    g = np.array([0.3, -1.2, 0.7])
    best = np.max(samples(name) @ g) / np.linalg.norm(g, ORDERS[name][1])
    assert 0.9 < best <= 1 + 1e-6


@names
def test_steepest_of_an_image_keeps_its_shape(name):
    g = np.arange(24, dtype=np.float32).reshape(2, 4, 3) - np.float32(7.5)
    direction = jitted(name, "steepest")(g)
    assert direction.shape == g.shape
    np.testing.assert_allclose(np.sum(direction * g), np.linalg.norm(g.ravel(), ORDERS[name][1]), rtol=1e-6)


@names
def test_steepest_survives_gradients_whose_squares_underflow(name):
    direction = np.float64(jitted(name, "steepest")(np.float32([3e-30, -4e-30, 0, 0, 0, 0])))
    np.testing.assert_allclose(np.linalg.norm(direction, ORDERS[name][0]), 1.0, rtol=1e-6)


@names
@examples
@hypothesis.given(x=vectors, radius=st.floats(2**-10, 2**10, width=32))
def test_projection_is_the_nearest_point_of_the_ball(name, x, radius):
    # p is nearest to x in a convex set iff <x - p, u - p> <= 0 for all its u; over the ball, the largest <x - p, u> is
    # radius * ||x - p||_*.
    size, dual = ORDERS[name]
    p, x = np.float64(jitted(name, "project")(x, radius)), np.float64(x)
    assert np.linalg.norm(p, size) <= radius * (1 + 1e-6) + 6e-7 * np.abs(x).max()
    rounding = 1e-6 * (np.abs(x).sum() + radius) * np.abs(x).sum()
    assert radius * np.linalg.norm(x - p, dual) <= (x - p) @ p + rounding


@names
def test_projection_beats_random_points_of_the_ball(name):
    x = np.array([2.0, -1.0, 0.3])
    nearest = np.linalg.norm(0.7 * samples(name) - x, axis=1).min()
    padded = np.pad(x[None], ((0, 199), (0, 4)))
    distance = np.linalg.norm((projected(name, padded, 0.7) - padded)[0])
    assert distance <= nearest < 1.1 * distance  # the second says that the points came close enough to tell


@names
def test_projection_of_near_and_of_far_points_lands_on_the_sphere(name):
    order = ORDERS[name][0]
    near = 0.5 * normal() / np.linalg.norm(normal(), order, axis=1, keepdims=True)
    for xs in (near, 10 * normal()):
        sizes = np.linalg.norm(np.float64(projected(name, xs, 0.3)), order, axis=1)
        np.testing.assert_allclose(sizes, 0.3, rtol=1e-6)


@names
def test_projection_is_idempotent(name):
    once = projected(name, 5 * normal(), 1.5)
    np.testing.assert_allclose(projected(name, once, 1.5), once, rtol=1e-6, atol=1e-7)


@names
def test_projection_leaves_the_inside_alone(name):
    xs = np.float32(0.69 * normal() / np.linalg.norm(normal(), ORDERS[name][0], axis=1, keepdims=True))
    np.testing.assert_array_equal(projected(name, xs, 0.7), xs)


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
    norm = radial(norm_of(name))
    points = sampled(norm.sample_ball, 2)[:-1]
    r = np.linalg.norm(points, ORDERS[name][0], axis=1)
    assert scipy.stats.kstest(r, "uniform").pvalue > 1e-3
    ball = np.linalg.norm(samples(name), ORDERS[name][0], axis=1)
    first, other = points[:, 0] / r, samples(name)[:, 0] / ball
    assert scipy.stats.ks_2samp(first, other).pvalue > 1e-3
    assert scipy.stats.ks_2samp(first[r < 0.5], first[r > 0.5]).pvalue > 1e-3
    assert norm.dual_size is norm_of(name).dual_size


@names
def test_one_key_gives_one_sample(name):
    first, *others, again = sampled(norm_of(name).sample_ball, 1)
    np.testing.assert_array_equal(first, again)
    assert (first != others[:100]).all()


@names
@pytest.mark.parametrize("function", ["size", "dual_size"])
def test_gradients_of_sizes_are_finite_at_zero_and_the_dual_steepest_direction_elsewhere(name, function):
    gradient = jax.jit(jax.vmap(jax.grad(getattr(norm_of(name), function))))
    at_zero, elsewhere = gradient(np.float32([[0.0, 0.0, 0.0], [3.0, -4.0, 1.0]]))
    assert np.isfinite(at_zero).all()
    dual = {2: np.float32([3, -4, 1]) / np.sqrt(26), 1: [1, -1, 1], np.inf: [0, -1, 0]}
    np.testing.assert_allclose(elsewhere, dual[ORDERS[name][function == "dual_size"]], rtol=1e-6)


@names
@pytest.mark.parametrize("function", ["size", "dual_size"])
def test_the_size_of_nan_is_nan(name, function):
    x = np.ones((5, 4, 3), np.float32)
    x[1, 2, 1] = np.nan
    assert np.isnan(jitted(name, function)(x))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@names
def test_a_spread_step_climbs_within_the_unit_ball(name, share):
    gs = np.float32(np.random.default_rng(0).normal(size=(21, 4, 5)))
    gs[-1] = 0
    spread = mapped(name, "spread", (0, None))
    us, steepest = np.asarray(spread(gs, share)), np.asarray(mapped(name, "steepest")(gs))
    assert not us[-1].any()
    for g, u, steep in zip(gs[:-1], us, steepest, strict=False):
        np.testing.assert_allclose(np.linalg.norm(u.ravel(), ORDERS[name][0]), 1, rtol=1e-6)
        assert np.sum(u * g) > 0
        assert np.mean(u != 0) >= share
        if share == 0 or name != "l1":
            np.testing.assert_array_equal(u, steep)
        else:  # the largest entries move
            assert np.abs(g)[u != 0].min() >= np.abs(g)[u == 0].max(initial=0)


@names
def test_the_size_of_what_a_compiler_knows_to_be_zero_is_zero(name):
    def size(x):
        return norm_of(name).size(jax.grad(lambda z: jax.numpy.round(z).sum())(x))

    sizes = jax.jit(jax.vmap(size))(np.ones((3, 25), np.float32))
    np.testing.assert_array_equal(sizes, 0)
