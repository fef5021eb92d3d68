"""The radial margin against brute force and enumeration, block maxima against the constants of ``lipschitz_margin``."""

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import paraboloid, random_linear, tiny_mlp
from nets import RADIUS, nets_of

import jaxmargin as jm
from jaxmargin import models
from jaxmargin.norms import radial

pytestmark = pytest.mark.hurried

NORMS = {"l2": (jm.l2, 2), "linf": (jm.linf, 1), "l1": (jm.l1, np.inf)}  # with the order of the dual
norms = pytest.mark.parametrize(("norm", "dual"), NORMS.values(), ids=NORMS)


# Classifiers with known margins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_classes", "name"), [(2, "l2"), (3, "linf"), (10, "l1")])
def test_all_estimates_of_a_linear_classifier_are_its_margins(num_classes, name, key):
    norm, dual = NORMS[name]
    linear = random_linear(num_classes)
    xs, expected = jnp.asarray(linear.xs, jnp.float32), linear.margins(dual)
    radius = float(np.median(np.abs(expected)))
    expected = np.clip(expected, -radius, radius)
    options = dict(norm=norm, radius=radius)
    radial_of_all = jm.over_batch(jm.radial_margin, linear.apply, num_samples=64, **options)
    maxima_of_all = jm.over_batch(jm.block_maxima, linear.apply, num_blocks=10, block_size=64, **options)

    @jax.jit
    def run(params, key, xs, ys):
        return radial_of_all(params, key, xs, ys), maxima_of_all(params, jax.random.clone(key), xs, ys)

    near, blocks = run(linear.params, key, xs, linear.ys)
    scores = jm.clever(blocks, linear.ys, radius=radius)
    for found in (near, scores):
        np.testing.assert_allclose(found.margin, expected, rtol=1e-5, atol=1e-5)
        assert 0 < found.capped.sum() < len(xs)
    assert not scores.fitted.any()  # all slopes are equal


def test_an_affine_network_needs_one_sample(linear, key):
    model, predicted = models.linear((6,), 3), np.argmax(linear.logits, 1)
    weights, biases = linear.params
    arguments = {"Dense_0": {"kernel": weights.T, "bias": biases}}, key, np.float32(linear.xs), linear.ys
    near = jm.over_batch(jm.radial_margin, model.apply, radius=50.0)(*arguments)
    np.testing.assert_allclose(near.margin, linear.margins(2), rtol=1e-5, atol=1e-6)
    assert (near.samples == 1).all()
    blocks = jm.over_batch(jm.block_maxima, model.apply, radius=50.0)(*arguments)
    slopes = np.linalg.norm(linear.weights[predicted][:, None] - linear.weights, axis=2)
    np.testing.assert_allclose(np.asarray(blocks.maxima).max(1), slopes, rtol=1e-5)


def test_ties_lie_on_the_boundary(key):
    weights, x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), jnp.array([2.0, 2.0])

    @jax.jit
    def run(key):
        near = jm.radial_margin(lambda x: weights @ x, key, x, 0, num_samples=64)
        return near, jm.block_maxima(lambda x: weights @ x, jax.random.clone(key), x, 0, num_blocks=10, block_size=64)

    near, blocks = run(key)
    assert near.margin == 0
    stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], blocks)
    assert jm.clever(stacked, [0], radius=5.0).margin == 0


def test_the_end_of_the_slopes_of_a_paraboloid_is_its_slope_on_the_sphere(key):
    # In d dimensions the largest slopes follow a reverse Weibull law of shape 2 / (d + 1).
    xs = np.random.default_rng(0).normal(size=(16, 8))
    xs = jnp.asarray(5 * xs / np.linalg.norm(xs, axis=1, keepdims=True), jnp.float32)
    run = jm.over_batch(jm.block_maxima, lambda _, x: paraboloid(x), radius=2.0, num_blocks=100, block_size=64)
    blocks = run(None, key, xs, np.zeros(16, int))
    constants = jm.clever(blocks, np.zeros(16, int), radius=100.0).lipschitz[:, 1]
    largest = np.asarray(blocks.maxima).max(1)[:, 1]
    assert (largest < 7).all()  # |x| + radius
    assert np.abs(np.median(constants) - 7) < 0.5 * np.abs(np.median(largest) - 7)


# The radial margin ----------------------------------------------------------------------------------------------------


def brute_force(logits_fn, key, xs, norm, box, num_samples=1024, radius=2.0):
    """The radial bounds [n] by trying all radii, and the bounds from all of their samples at the largest."""

    @jax.jit
    def seen(x):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_samples))
        offsets = radius * jax.vmap(lambda key: radial(norm).sample_ball(key, x.shape))(keys)
        points = jax.vmap(lambda u: x + u)(offsets.at[0].set(0))
        points = points if box is None else jnp.clip(points, *box)
        logits = logits_fn(x)
        p = jnp.argmax(logits)

        def slopes(z):
            jacobian = jax.jacrev(logits_fn)(z)  # [c, *d]
            return jax.vmap(lambda row: norm.dual_size(jacobian[p] - row))(jacobian)

        return jax.vmap(lambda z: norm.size(z - x))(points), p, logits[p] - logits, jax.vmap(slopes)(points)

    def best_and_plain(x):
        lengths, p, gaps, slopes = map(np.asarray, seen(x))  # [s], [], [c], [s, c]
        others = np.arange(len(gaps)) != p

        def bound(distance):
            largest = slopes[lengths < distance].max(0)
            return min((gaps[others] / largest[others]).min(), distance)

        return max(bound(distance) for distance in {*lengths[1:], radius}), bound(radius)

    return np.array([best_and_plain(x) for x in xs]).T


def radial_margins_of(norm, box=None, **mode):
    """(params, key, xs, ys) -> Margins of 1,024 samples: four times the pilot where rivals alone are followed."""
    options = dict(norm=norm, radius=2.0, num_samples=1024, chunk_size=64, box=box)
    return jm.over_batch(jm.radial_margin, tiny_mlp().model.apply, **options, **mode)


exact_l2, following_l2 = radial_margins_of(jm.l2), radial_margins_of(jm.l2, exact=False)


@pytest.mark.parametrize(
    ("norm", "box"),
    [pytest.param(jm.l2, None, marks=pytest.mark.slow), (jm.linf, None), (jm.l1, (-0.5, 1.0))],
    ids=["l2", "linf", "boxed l1"],
)
def test_a_radial_margin_is_the_best_over_all_radii(norm, box, tiny, key):
    xs = tiny.xs if box is None else np.clip(tiny.xs, *box)
    logits_fn = functools.partial(tiny.model.apply, tiny.params)
    best, plain = brute_force(logits_fn, key, xs, norm, box)
    for run in (exact_l2, following_l2) if norm is jm.l2 else (radial_margins_of(norm, box),):
        np.testing.assert_allclose(np.abs(run(tiny.params, key, xs, tiny.ys).margin), best, rtol=2e-5)
    assert (best >= plain).all()  # never looser
    assert (best > 1.01 * plain).any()  # or the test would not tell them apart


def test_a_steep_place_farther_than_the_boundary_does_not_matter(key):
    def steep_from(where):
        return lambda x: jnp.stack([1 - x[0] - 9 * jax.nn.relu(x[0] - where), 0 * x[0]])

    @functools.partial(jax.jit, static_argnums=0)
    def margin(measure, where, key):
        return measure(steep_from(where), key, jnp.zeros(1), 0, num_samples=4096, exact=True).margin

    for measure, expected in ((jm.lipschitz_margin, 0.1), (jm.radial_margin, 1.0)):
        np.testing.assert_allclose(margin(measure, 1.5, jax.random.clone(key)), expected, rtol=1e-5)
    assert 0.5 < margin(jm.radial_margin, 0.5, jax.random.clone(key)) < 0.51  # the ball that just misses it


class Radial:
    """What enumeration and 4,096 radial samples say about tiny ReLU networks of one number of classes."""

    def __init__(self, num_classes):
        self.nets = nets_of(num_classes)
        pairs = list(zip(self.nets.nets, self.nets.xs, strict=True))
        self.bounds = np.array([exact.radial_bound(net, x, RADIUS) for net, x in pairs])
        self.margins = self.nets.sampled(4096, measure=jm.radial_margin).margin


@functools.cache
def radial_of(num_classes):
    return Radial(num_classes)


nets = pytest.mark.parametrize("num_classes", [2, 5])


@pytest.mark.slow
@nets
def test_the_exact_radial_bound_lies_between_the_plain_one_and_the_distance(num_classes):
    found = radial_of(num_classes)
    assert (found.bounds >= found.nets.bounds).all()
    assert (found.bounds <= found.nets.distances * (1 + 1e-9)).all()
    assert (found.bounds > 1.01 * found.nets.bounds).mean() > 0.1  # or the two would be one


@pytest.mark.slow
@nets
def test_sampled_radial_margins_never_fall_below_the_exact_radial_bound(num_classes):
    found = radial_of(num_classes)
    logits, constants = found.nets.logits, found.nets.constants
    rounding = 1e-5 * np.abs(logits).max(1) / np.maximum(constants.max(1), 0.1) + 1e-6
    assert (found.margins >= found.bounds * (1 - 1e-6) - rounding).all()


@pytest.mark.slow
def test_with_many_samples_in_the_plane_radial_margins_are_nearly_always_the_exact_bound():
    over = np.concatenate([radial_of(c).margins - radial_of(c).bounds for c in (2, 5)])
    assert np.mean(over < 0.01) > 0.95
    beyond = [radial_of(c).margins > radial_of(c).nets.distances * (1 + 1e-4) for c in (2, 5)]
    assert np.mean(beyond) < 0.02


@pytest.mark.slow
def test_following_rivals_finds_no_smaller_radial_margin_and_nearly_always_the_same(tiny, key):
    # Slopes cut by their distance grow unlike those that the foresight was made for: hence exact by default.
    xs = np.float32(np.random.default_rng(0).normal(size=(96, *tiny.xs.shape[1:])))
    runs = exact_l2, following_l2
    default, rivals = (run(tiny.params, jax.random.clone(key), xs, np.zeros(96, int)) for run in runs)
    larger = np.abs(rivals.margin) - np.abs(default.margin)
    assert (larger >= 0).all()
    assert (larger == 0).mean() > 0.95
    assert (default.rivals == 3).all()
    assert (default.samples == 1024).all()
    assert rivals.rivals.mean() < 2


# Promises of every measure --------------------------------------------------------------------------------------------


def undefined_below_zero(_, x):
    return jnp.stack([jnp.sqrt(x[0]), x[1]])


@pytest.mark.parametrize("measure", [jm.radial_margin, jm.block_maxima])
def test_nan_is_not_swallowed(measure, key):
    x = jnp.array([1.0, 0.0])
    sizes = dict(num_samples=640) if measure is jm.radial_margin else dict(num_blocks=10, block_size=64)
    found = jax.jit(lambda key: measure(lambda x: undefined_below_zero(None, x), key, x, 0, radius=2.0, **sizes))(key)
    if measure is jm.radial_margin:
        assert np.isnan(found.margin)
    else:
        stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], found)
        assert np.isnan(jm.clever(stacked, [0], radius=2.0).margin[0])


def test_exact_radial_mode_has_a_gradient_in_the_parameters(tiny, key):
    @jax.jit
    @jax.grad
    def slope(params):
        logits_fn = functools.partial(tiny.model.apply, params)
        return jm.radial_margin(logits_fn, key, tiny.xs[0], 0, radius=2.0, num_samples=128, exact=True).margin

    leaves = jax.tree.leaves(slope(tiny.params))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(np.abs(leaf).max() > 0 for leaf in leaves)


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        (jm.radial_margin, dict(radius=0.0), "radius=0.0 must be"),
        (jm.radial_margin, dict(num_samples=100, chunk_size=64), "num_samples=100 is not a multiple of chunk_size=64"),
        (jm.radial_margin, dict(box=(1.0, 0.0)), "box"),
        (jm.radial_margin, dict(precision="double"), "precision='double' is unknown"),
        (jm.block_maxima, dict(radius=-1.0), "radius=-1.0 must be"),
        (jm.block_maxima, dict(num_blocks=0), "num_blocks=0 must be a whole number of at least 1"),
        (jm.block_maxima, dict(block_size=0), "block_size=0 must be a whole number"),
        (jm.block_maxima, dict(chunk_size=0), "chunk_size=0 must be a whole number"),
        (jm.block_maxima, dict(block_size=100, chunk_size=64), "block_size=100 is not a multiple of chunk_size=64"),
        (jm.block_maxima, dict(block_size=1021), r"block_size=1021 has no divisor .* pass block_size=\d+"),
    ],
)
def test_bad_options_are_refused_with_their_value(measure, options, message, key):
    with pytest.raises(ValueError, match=message):
        measure(lambda x: x, key, jnp.zeros(2), 0, **options)


@pytest.mark.parametrize("measure", [jm.radial_margin, jm.block_maxima])
def test_bad_examples_are_refused(measure, key):
    with pytest.raises(ValueError, match="x has dtype int32"):
        measure(lambda x: x, key, jnp.zeros(2, int), 0)
    with pytest.raises(ValueError, match="one integer class"):
        measure(lambda x: x, key, jnp.zeros(2), 0.5)
    with pytest.raises(ValueError, match=r"logits have shape \(2, 2\)"):
        measure(lambda x: jnp.outer(x, x), key, jnp.zeros(2), 0)
