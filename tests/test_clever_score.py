"""Ends of laws that were drawn from, ends that must not be believed, and CLEVER scores of known slopes."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import genextreme

import jaxmargin as jm
from jaxmargin.lipschitz.clever_score import REACH, _cost, endpoint

pytestmark = pytest.mark.hurried

SERIES, BLOCKS = 40, 50


def drawn(shape, end=10.0, scale=0.5):
    """[series, blocks] maxima in float32, as they are measured; those of a positive shape end at ``end``."""
    location = end - scale / shape if shape > 0 else end
    law = genextreme(shape, location, scale)
    return np.float32(law.rvs((SERIES, BLOCKS), random_state=np.random.default_rng(1)))


def ends(series):
    """(values, fallbacks) of each series of maxima."""
    found = [endpoint(maxima) for maxima in series]
    return np.array([end.value for end in found]), np.array([end.fallback for end in found])


@functools.cache
def ends_of(shape):
    return ends(drawn(shape))


# Fits -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [0.3, 0.6])
def test_the_end_of_a_reverse_weibull_law_is_found_again(shape):
    series, (values, fallbacks) = drawn(shape), ends_of(shape)
    assert abs(np.median(values) / 10 - 1) < 0.02
    assert abs(np.median(values) - 10) < abs(np.median(series.max(1)) - 10)  # nearer than the largest maximum
    assert fallbacks.mean() <= 0.1


def test_a_law_without_an_end_falls_back_to_the_largest_maximum():
    series, (values, fallbacks) = drawn(-0.4), ends_of(-0.4)
    assert fallbacks.mean() > 0.95
    np.testing.assert_array_equal(values[fallbacks], series.max(1)[fallbacks])


def test_a_law_at_the_edge_of_having_an_end_falls_back_often_and_is_never_far_off():
    # Half of the fits to a Gumbel law must come out with some small positive shape, and so an end.
    series, (values, fallbacks) = drawn(0.0), ends_of(0.0)
    assert fallbacks.mean() > 0.5
    assert (values <= series.max(1) + REACH * np.ptp(series, 1)).all()


def test_maxima_that_pile_up_at_their_end_fall_back_to_it():
    series = 10 - np.random.default_rng(0).weibull(0.3, (20, BLOCKS))  # an infinite density at 10: shape 1 / 0.3
    values, _ = ends(series)
    np.testing.assert_allclose(values, 10, atol=1e-3)


@pytest.mark.parametrize("shape", [0.3, 0.0, -0.4])
def test_an_end_is_never_below_what_was_seen(shape):
    values, _ = ends_of(shape)
    assert (np.float32(values) >= drawn(shape).max(1)).all()


@pytest.mark.parametrize("maxima", [np.full(50, 3.0), np.zeros(50), 3 + np.arange(50) * 1e-9], ids=["3", "0", "nearly"])
def test_equal_maxima_have_no_law(maxima):
    assert endpoint(maxima) == (maxima.max(), True)


@pytest.mark.parametrize(("odd", "value"), [(np.nan, np.nan), (np.inf, np.inf)])
def test_maxima_that_are_not_finite_are_not_swallowed(odd, value):
    found = endpoint(np.append(drawn(0.3)[0], odd))
    np.testing.assert_equal(found.value, value)
    assert found.fallback


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_units_do_not_matter(factor):
    for maxima in drawn(0.3)[:5]:
        np.testing.assert_allclose(endpoint(factor * maxima).value, factor * endpoint(maxima).value, rtol=1e-3)


@pytest.mark.parametrize("maxima", [np.arange(9.0), np.ones((3, 50))], ids=["nine", "stacked"])
def test_maxima_that_are_too_few_or_stacked_are_refused(maxima):
    with pytest.raises(ValueError, match=r"maxima have shape .*expected \[b\], b >= 10"):
        endpoint(maxima)


@pytest.mark.parametrize("shape", [0.3, 0.7, 0.0, -0.4])
def test_the_likelihood_is_that_of_scipy(shape):
    maxima = genextreme(shape, 9.0, 0.5).rvs(50, random_state=0)
    for scale in (0.5, 0.6):  # a larger scale keeps all maxima inside of the law
        expected = genextreme.nnlf((shape, 9.0, scale), maxima)
        np.testing.assert_allclose(_cost((shape, 9.0, np.log(scale)), maxima), expected)


def test_a_law_that_ends_below_a_maximum_is_impossible():
    assert _cost((0.5, 0.0, 0.0), np.array([0.0, 2.5])) == np.inf  # ends at 2


# Scores ---------------------------------------------------------------------------------------------------------------


def measured(n=20, num_classes=6, seed=0):
    """Block maxima of n examples with classes of unlike slopes and gaps, class 0 predicted."""
    rng = np.random.default_rng(seed)
    ends = rng.uniform(1, 4, (n, 1, num_classes))
    maxima = ends - 0.05 * ends * rng.weibull(3.0, (n, BLOCKS, num_classes))
    gaps = rng.uniform(0.2, 2, (n, num_classes))
    maxima[:, :, 0], gaps[:, 0] = 0, 0
    return jm.BlockMaxima(jnp.float32(maxima), jnp.zeros(n, int), jnp.float32(gaps))


def test_fitting_only_what_can_decide_gives_the_scores_of_fitting_all():
    blocks, ys = measured(10), np.arange(10) % 2
    constants = [[endpoint(blocks.maxima[i, :, k]).value for k in range(1, 6)] for i in range(10)]
    distances = np.min(np.asarray(blocks.gaps)[:, 1:] / np.array(constants), 1)
    radius = float(np.median(distances))  # lies between two of them
    found = jm.clever(blocks, ys, radius=radius)
    expected = np.minimum(distances, radius)
    np.testing.assert_allclose(found.margin, np.where(ys == 0, expected, -expected), rtol=1e-6)
    np.testing.assert_array_equal(found.capped, distances >= radius)
    assert found.capped.sum() == 5
    assert (found.fitted | found.fallback).sum() < 20  # of 50


def test_a_score_lies_below_the_margin_of_the_largest_slopes():
    blocks = measured()
    found = jm.clever(blocks, np.zeros(20, int), radius=5.0)
    largest = np.asarray(blocks.maxima).max(1)
    plain = np.min(np.asarray(blocks.gaps)[:, 1:] / largest[:, 1:], 1)
    assert (found.lipschitz >= largest).all()
    assert (found.lipschitz[found.fitted] > largest[found.fitted]).all()
    np.testing.assert_array_equal(found.lipschitz[~found.fitted], largest[~found.fitted])
    assert (found.margin <= plain * (1 + 1e-6)).all()
    assert (found.margin < plain).mean() > 0.9


def test_scores_are_summarised_like_margins():
    found = jm.clever(measured(), np.arange(20) % 2, radius=5.0)
    summary = jm.summarize(found)
    np.testing.assert_allclose(summary.average_unsigned, np.abs(found.margin).mean(), rtol=1e-6)
    np.testing.assert_allclose(summary.accuracy, 0.5)
    assert jm.histogram(found, 5)[0].sum() == 20


def test_a_tie_scores_zero_and_a_class_without_slope_is_never_reached():
    blocks = measured(2, 2)
    tied = blocks._replace(gaps=jnp.zeros((2, 2)))
    assert (jm.clever(tied, np.zeros(2, int), radius=5.0).margin == 0).all()
    flat = blocks._replace(maxima=jnp.zeros((2, BLOCKS, 2)))
    found = jm.clever(flat, np.zeros(2, int), radius=5.0)
    assert (found.margin == 5).all()
    assert found.capped.all()


@pytest.mark.parametrize(("odd", "margin"), [(np.nan, np.nan), (np.inf, 0.0)])
def test_a_slope_that_is_not_finite_is_not_swallowed(odd, margin):
    blocks = measured(3)
    found = jm.clever(blocks._replace(maxima=blocks.maxima.at[1, 7, 4].set(odd)), np.zeros(3, int), radius=5.0)
    np.testing.assert_equal(found.margin[1], np.float32(margin))
    assert (found.margin[[0, 2]] > 0).all()


@pytest.mark.parametrize(
    ("change", "ys", "radius", "message"),
    [
        (lambda blocks: blocks, [0, 0], 0.0, "radius=0.0 must be"),
        (lambda blocks: blocks, [0], 5.0, r"ys has shape \(1,\): expected \(2,\)"),
        (lambda blocks: jm.BlockMaxima(*(a[0] for a in blocks)), 0, 5.0, r"shape .*expected \[n, num_blocks, c\]"),
        (lambda blocks: blocks._replace(maxima=blocks.maxima[:, :9]), [0, 0], 5.0, "9 blocks: .*at least 10"),
    ],
    ids=["radius", "labels", "one example", "few blocks"],
)
def test_bad_arguments_are_refused_with_their_value(change, ys, radius, message):
    with pytest.raises(ValueError, match=message):
        jm.clever(change(measured(2)), ys, radius=radius)
