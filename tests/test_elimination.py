"""Following only the classes that can win: the same margins as with all of them, for less, and flagged where unsure."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params
from nets import nets_of

import jaxmargin as jm
from jaxmargin import models
from jaxmargin.certificates.rounding import double_precision
from jaxmargin.lipschitz.constants import cross_lipschitz, leads
from jaxmargin.lipschitz.elimination import PILOT, PILOT_OF_MANY
from jaxmargin.lipschitz.sampling import Sampling

pytestmark = pytest.mark.hurried

MODEL = models.mlp((6, 5), 10, hidden=64)


POINTS, RADIUS = 30, 2.0


@functools.partial(jax.jit, static_argnames=("norm", "num_samples", "chunk_size", "box", "exact", "precision"))
def measured(params, key, xs, ys, radius, tolerance, **options):
    run = jm.over_batch(jm.lipschitz_margin, MODEL.apply, radius=radius, tolerance=tolerance, **options)
    return run(params, key, xs, ys)


@functools.cache
def found(radius=RADIUS, tolerance=None, num_samples=8192, **options):
    """Margins of thirty points of a random network of ten classes; other radii and tolerances share a program."""
    rng = np.random.default_rng(3)
    xs, ys = rng.normal(size=(POINTS, 6, 5)).astype(np.float32), rng.integers(0, 10, POINTS)
    key = jax.random.key(0)
    return measured(random_params(MODEL), key, xs, ys, radius, tolerance, num_samples=num_samples, **options)


# The same margins -----------------------------------------------------------------------------------------------------


def test_following_the_rivals_gives_the_margins_of_all_classes():
    rivals, exact = found(), found(exact=True)
    np.testing.assert_array_equal(rivals.margin, exact.margin)
    assert (exact.rivals == 9).all()
    assert (rivals.rivals >= 1).all()
    assert rivals.rivals.mean() < 3
    assert (rivals.lipschitz <= exact.lipschitz).all()
    assert (rivals.lipschitz < exact.lipschitz).any()


@pytest.mark.slow
def test_rivals_decide_the_margins_of_tiny_networks_too():
    exact, default = nets_of(5).sampled(4096), nets_of(5).sampled(4096, exact=False)
    np.testing.assert_array_equal(default.margin, exact.margin)
    assert (default.rivals < exact.rivals).sum() > 50


@pytest.mark.parametrize("num_samples", [PILOT // 4, pytest.param(PILOT + 1, marks=pytest.mark.slow)])
def test_any_number_of_samples_will_do(num_samples):
    options = dict(num_samples=num_samples, chunk_size=num_samples)
    rivals, exact = found(**options), found(exact=True, **options)
    np.testing.assert_array_equal(rivals.margin, exact.margin)
    assert (rivals.samples == num_samples).all()


@pytest.mark.slow
def test_other_norms_and_boxes_are_followed_alike():
    options = dict(norm=jm.linf, box=(-4.0, 4.0), num_samples=2048)
    np.testing.assert_array_equal(found(**options).margin, found(exact=True, **options).margin)


@pytest.mark.slow
def test_where_float64_is_on_the_same_is_found(key):
    with double_precision():
        model = models.mlp((4, 3), 4, hidden=16)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
        logits_fn = functools.partial(model.apply, random_params(model))

        @functools.partial(jax.jit, static_argnums=1)
        def margin(key, exact):
            return jm.lipschitz_margin(logits_fn, key, x, 0, num_samples=1024, radius=2.0, exact=exact).margin

        assert margin(key, False) == margin(jax.random.clone(key), True)


# For less -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_many_classes_only_the_rivals_see_all_samples_and_the_margins_are_those_of_all(key):
    num_classes, num_samples = 120, 4096
    model = models.mlp((4, 3), num_classes, hidden=32)
    logits_fn = functools.partial(model.apply, random_params(model))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 3)), jnp.float32)

    @jax.jit
    def run(key, xs):
        _, predicted, gaps = leads(logits_fn, xs)

        def constants(exact):
            sampling = Sampling(radius=2.0, num_samples=num_samples, exact=exact)
            return cross_lipschitz(logits_fn, jax.random.clone(key), xs, predicted, gaps, sampling)

        return predicted, gaps, constants(False), constants(True)

    predicted, gaps, default, exact = jax.tree.map(np.asarray, run(key, xs))
    seen = default.seen
    assert (seen >= PILOT_OF_MANY).all()
    assert (seen[np.arange(8), predicted] == num_samples).all()  # the reference itself costs nothing
    assert default.flagged.mean() < 0.5  # these are finished with all classes
    assert (np.sum(seen == num_samples, 1) - 1 < 6)[~default.flagged].all()
    assert np.mean(seen[~default.flagged]) < 4 * PILOT_OF_MANY
    others = np.arange(num_classes) != predicted[:, None]
    margins = [
        np.divide(gaps, largest, out=np.full_like(gaps, 2.0), where=others).min(1)
        for largest in (default.largest, exact.largest)
    ]
    np.testing.assert_array_equal(*margins)
    assert (margins[0] < 2.0).all()


@pytest.mark.slow
def test_a_point_whose_margin_is_capped_is_settled_early():
    margins = found(radius=0.02)
    capped = np.asarray(margins.capped)
    assert capped.mean() > 0.5
    assert (margins.samples[capped] < 8192).all()
    np.testing.assert_array_equal(np.abs(margins.margin[capped]), np.float32(0.02))


# Flags ----------------------------------------------------------------------------------------------------------------


def surprising(x, gap):
    """Class 1 is the rival, ten times as steep in one sample of ten thousand; class 2, behind by gap, rises alike."""
    z = x[0]
    sliver = jnp.clip((z - 0.7) * 1000, 0.0, 1.0) * 0.01  # slope 10 on an interval of 1e-3
    return jnp.stack([1.0 + z + 0.05 * z * z + sliver, jnp.zeros(()), 1.0 - gap + 0.9 * z])


@functools.partial(jax.jit, static_argnames="exact")
def surprised(gap, exact=False):
    sizes = dict(radius=5.0, num_samples=32_768, exact=exact)
    return jm.lipschitz_margin(lambda x: surprising(x, gap), jax.random.key(6), jnp.zeros(1), 0, **sizes)


@pytest.mark.parametrize(("gap", "flagged"), [(0.9, True), (1000.0, False)])
def test_a_class_left_behind_that_comes_too_close_is_flagged_and_run_to_the_end(gap, flagged):
    margins, exact = surprised(gap), surprised(gap, exact=True)
    assert margins.lipschitz[1] > 10  # the sliver was found, after the pilot
    assert margins.flagged == flagged
    assert margins.rivals == (2 if flagged else 1)
    assert margins.margin == exact.margin
    assert not exact.flagged
    if flagged:
        np.testing.assert_array_equal(margins.lipschitz, exact.lipschitz)
        np.testing.assert_allclose(exact.margin, gap / exact.lipschitz[2])  # without the flag it would be class 1's


# Stopping when it is settled ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tolerance_stops_the_sampling_and_says_where():
    whole, rough, fine = found(), found(tolerance=0.05), found(tolerance=0.002)
    for margins, tolerance in ((rough, 0.05), (fine, 0.002)):
        settled = margins.samples < 8192
        assert (margins.remainder[settled] <= tolerance).all()
        moved = np.abs(margins.margin) - np.abs(whole.margin)
        assert (moved >= 0).all()
        assert (moved <= margins.remainder + 1e-6).mean() > 0.96
    assert rough.samples.mean() < fine.samples.mean() <= whole.samples.mean()
    assert (np.asarray(whole.samples) == 8192).all()
    assert (rough.samples < 8192).any()


def test_without_a_tolerance_nothing_remains():
    assert (found().remainder == 0).all()
    assert (found(exact=True).remainder == 0).all()


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_a_tolerance_that_is_none_is_refused(tolerance, key):
    with pytest.raises(ValueError, match="tolerance="):
        jm.lipschitz_margin(lambda x: x, key, jnp.zeros(2), 0, tolerance=tolerance)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision='double' is unknown: choose from float32"):
        found(precision="double")


# Derivatives ----------------------------------------------------------------------------------------------------------


def test_exact_mode_has_a_gradient_in_the_parameters(key):
    model = models.mlp((4, 3), 4, hidden=16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)

    @jax.jit
    @jax.value_and_grad
    def margin(params, key):
        logits_fn = functools.partial(model.apply, params)
        return jm.lipschitz_margin(logits_fn, key, x, 0, radius=2.0, num_samples=128, chunk_size=64, exact=True).margin

    params, direction = (jax.tree.map(np.asarray, random_params(model, seed)) for seed in (0, 1))
    value, gradient = margin(params, key)
    step = np.float32(1e-3)
    ahead, behind = (
        margin(jax.tree.map(lambda p, d: p + s * d, params, direction), jax.random.clone(key))[0]  # noqa: B023
        for s in (step, -step)
    )
    slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=0.05, atol=1e-3)
    assert abs(slope) > 0.01
