"""Margins against closed forms, and what a set of them says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_linear

import jaxmargin as jm
from jaxmargin.certificates.rounding import double_precision

pytestmark = pytest.mark.hurried

NORMS = {"l2": (jm.l2, 2), "linf": (jm.linf, 1), "l1": (jm.l1, np.inf)}  # with the order of the dual
norms = pytest.mark.parametrize(("norm", "dual"), NORMS.values(), ids=NORMS)


def rounding(linear, margins, relative):
    """Relative to the margin; and to the logits, since their difference may cancel."""
    logits = np.abs(linear.xs @ linear.weights.T + linear.biases).max(1)
    return relative * (np.abs(margins) + logits / np.linalg.norm(linear.weights, axis=1).min())


@pytest.mark.parametrize(
    ("num_classes", "name"), [(2, "l2"), (3, "l2"), (10, "l2"), (1000, "l2"), (10, "linf"), (10, "l1")]
)
def test_linear_margin_is_the_closed_form(num_classes, name, key):
    linear, (norm, dual) = random_linear(num_classes), NORMS[name]
    run = jm.over_batch(jm.linear_margin, linear.apply, norm=norm, batch_size=64)
    margins = run(linear.params, key, jnp.asarray(linear.xs, jnp.float32), linear.ys)
    expected = linear.margins(dual)
    assert (np.abs(margins.margin - expected) <= rounding(linear, expected, 1e-6)).all()
    assert (expected < 0).any()
    assert not margins.capped.any()


@norms
def test_linear_margin_is_the_closed_form_to_the_last_digits_of_float64(norm, dual):
    linear = random_linear(10)
    with double_precision():
        logits_fn = functools.partial(linear.apply, (jnp.asarray(linear.weights), jnp.asarray(linear.biases)))
        measure = functools.partial(jm.linear_margin, logits_fn, jax.random.key(0), norm=norm)
        found = jax.jit(jax.vmap(measure))(jnp.asarray(linear.xs), jnp.asarray(linear.ys)).margin
    np.testing.assert_allclose(found, linear.margins(dual), rtol=1e-11)


@pytest.mark.parametrize(
    ("num_classes", "name"),
    [(2, "l2"), (10, "l2"), (120, "l2"), (3, "linf"), (10, "l1")],
)
def test_lipschitz_margin_of_a_linear_classifier_is_its_margin(num_classes, name, key):
    norm, dual = NORMS[name]
    linear = random_linear(num_classes)
    expected = linear.margins(dual)
    radius = 2 * np.abs(expected).max()
    run = jm.over_batch(jm.lipschitz_margin, linear.apply, norm=norm, radius=radius, num_samples=64, chunk_size=64)
    margins = run(linear.params, key, jnp.asarray(linear.xs, jnp.float32), linear.ys)
    assert (np.abs(margins.margin - expected) <= rounding(linear, expected, 1e-5)).all()
    assert not margins.capped.any()


def test_margins_beyond_the_radius_are_capped_at_it(linear, key):
    expected = linear.margins(2)
    radius = float(np.median(np.abs(expected)))
    run = jm.over_batch(jm.lipschitz_margin, linear.apply, radius=radius, num_samples=64)
    margins = run(linear.params, key, jnp.asarray(linear.xs, jnp.float32), linear.ys)
    clear = np.abs(np.abs(expected) - radius) > 1e-5
    np.testing.assert_array_equal(margins.capped[clear], (np.abs(expected) > radius)[clear])
    np.testing.assert_allclose(margins.margin, np.clip(expected, -radius, radius), rtol=1e-5, atol=1e-5)
    assert 0 < margins.capped.sum() < len(expected)


@jax.jit
def both(weights, x, y):
    """Margins of x -> W x by the exact and by the sampled way."""
    key_exact, key_sampled = jax.random.split(jax.random.key(0))
    exact = jm.linear_margin(lambda x: weights @ x, key_exact, x, y)
    return exact, jm.lipschitz_margin(lambda x: weights @ x, key_sampled, x, y, num_samples=64)


def test_the_sign_is_that_of_the_prediction_and_the_size_does_not_depend_on_the_label():
    weights, x = jnp.array([[1.0, 0.5], [-0.3, 2.0], [0.4, -1.0]]), jnp.array([0.2, 0.7])
    for right, *wrong in zip(*(both(weights, x, y) for y in (1, 0, 2)), strict=True):
        assert right.predicted == 1
        assert right.margin > 0
        assert [margins.margin for margins in wrong] == [-right.margin, -right.margin]


def test_a_tie_lies_on_the_boundary():
    for margins in both(jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), jnp.array([2.0, 2.0]), 0):
        assert margins.margin == 0


def test_a_tie_of_equal_classes_lies_on_the_boundary_too():
    for margins in both(jnp.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), jnp.array([2.0, 2.0]), 0):
        assert margins.margin == 0


def test_a_class_that_no_step_can_reach_is_infinitely_far_or_capped():
    weights = jnp.array([[1.0, 2.0], [1.0, 2.0]])

    @jax.jit
    def run(key):
        args = lambda x: weights @ x + jnp.array([1.0, 0.0]), key, jnp.zeros(2), 0  # noqa: E731
        return jm.linear_margin(*args), jm.lipschitz_margin(*args, radius=3.0, num_samples=64)

    exact, sampled = run(jax.random.key(0))
    assert exact.margin == np.inf
    assert not exact.capped
    assert sampled.margin == 3.0
    assert sampled.capped


def test_a_far_class_does_not_hide_the_near_one():
    for margins in both(jnp.array([[1.0, 0.0], [0.0, 0.0], [-9.0, 0.0]]), jnp.array([1.0, 0.0]), 0):
        np.testing.assert_allclose(margins.margin, 1.0, rtol=1e-6)
        np.testing.assert_allclose(margins.lipschitz, [0, 1, 10], rtol=1e-6)


def test_scaling_the_logits_moves_no_margin(tiny, key):
    def scaled(params, x):
        return params[0] * tiny.model.apply(params[1], x)

    run = jm.over_batch(jm.lipschitz_margin, scaled, radius=2.0, num_samples=64)
    once, often = (jax.jit(run)((scale, tiny.params), key, tiny.xs, tiny.ys) for scale in (1.0, 50.0))
    np.testing.assert_allclose(often.margin, once.margin, rtol=1e-4, atol=1e-6)


def test_margins_can_be_differentiated_by_the_weights(linear):
    weights, x = jnp.asarray(linear.weights, jnp.float32), jnp.asarray(linear.xs[1], jnp.float32)
    gradient = jax.jit(jax.grad(lambda w: jm.linear_margin(lambda x: w @ x, jax.random.key(0), x, 0).margin))(weights)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def as_margins(values, capped=None):
    values = jnp.asarray(values, jnp.float32)
    capped = jnp.zeros(len(values), bool) if capped is None else jnp.asarray(capped)
    return jm.Margins(values, jnp.zeros(len(values), int), capped, jnp.ones((len(values), 2)))


def test_a_summary_is_the_numpy_statistics():
    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    summary = jm.summarize(as_margins(values, values > 1))
    np.testing.assert_allclose(summary.minimum, values.min(), rtol=1e-6)
    np.testing.assert_allclose(summary.average, np.float64(values).mean(), rtol=1e-4)
    np.testing.assert_allclose(summary.average_unsigned, np.abs(np.float64(values)).mean(), rtol=1e-5)
    np.testing.assert_allclose(summary.accuracy, (values > 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(summary.capped_fraction, (values > 1).mean(), rtol=1e-6)


def test_a_summary_can_be_jitted():
    margins = as_margins([1.0, -2.0])
    jax.tree.map(np.testing.assert_array_equal, jax.jit(jm.summarize)(margins), jm.summarize(margins))


@pytest.mark.parametrize("margins", [as_margins([]), jm.Margins(*[jnp.zeros(())] * 4)], ids=["none", "one unstacked"])
def test_a_summary_of_nothing_is_refused(margins):
    with pytest.raises(ValueError, match=r"margins.margin has shape .*expected \[n\]"):
        jm.summarize(margins)


def test_a_histogram_counts_every_margin_once():
    values = np.random.default_rng(0).normal(size=300)
    counts, edges = jm.histogram(as_margins(values), 20)
    assert counts.sum() == 300
    assert len(counts) == 20
    np.testing.assert_allclose(edges[[0, -1]], [values.min(), values.max()], rtol=1e-6)
    np.testing.assert_allclose(np.diff(edges), np.ptp(values) / 20, rtol=1e-5)


def test_a_histogram_within_bounds_has_their_edges():
    counts, edges = jm.histogram(as_margins([-0.5, 0.1, 0.9, 3.0]), 2, (0.0, 1.0))
    np.testing.assert_array_equal(counts, [1, 1])
    np.testing.assert_allclose(edges, [0, 0.5, 1])


def test_a_histogram_refuses_infinite_margins_and_no_bins():
    with pytest.raises(ValueError, match="margins are not all finite.*drop"):
        jm.histogram(as_margins([1.0, np.inf]))
    with pytest.raises(ValueError, match="bins=0 must be a whole number of at least 1"):
        jm.histogram(as_margins([1.0]), 0)


def test_the_measures_take_a_key_a_point_and_a_label_by_position(linear, key):
    logits_fn = functools.partial(linear.apply, linear.params)
    x = jnp.asarray(linear.xs[0], jnp.float32)

    @jax.jit
    def run(key):
        by_name = jm.linear_margin(logits_fn=logits_fn, key=key, x=x, y=0)
        return by_name.margin, jm.linear_margin(logits_fn, jax.random.clone(key), x, 0).margin

    by_name, by_position = run(key)
    assert by_name == by_position
