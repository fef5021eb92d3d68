import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose, assert_array_equal

from jaxmargin import losses
from runs.mma import toy_classifier as under_test

pytestmark = pytest.mark.hurried


@pytest.fixture(scope="module")
def params():
    return under_test.classifier()


@pytest.fixture(scope="module")
def result(params):
    return under_test.measure(under_test.loss, params, points=41)


@pytest.fixture(scope="module")
def short(params):
    """The same with steps so short that the second order is below a percent."""
    return under_test.measure(under_test.loss, params, points=41, length=0.01)


def line(params, s):
    """A loss whose margin is b / w."""
    w, b = params
    return w * s - b


def curve_of(params, xs):
    return jax.vmap(lambda x: under_test.loss(params, x))(xs)


def slopes(params, s):
    """(gradient in the parameters [n], slope in the input)."""
    in_params, in_input = jax.grad(under_test.loss, (0, 1))(params, jnp.asarray(s, jnp.float32))
    return ravel_pytree(in_params)[0], in_input


def test_the_classifier_is_right_on_its_points_and_has_one_boundary(params):
    signs = np.sign(curve_of(params, jnp.array(under_test.XS)))
    assert_array_equal(signs, np.where(np.array(under_test.YS) == 0, -1, 1))
    assert np.all(np.diff(np.sign(curve_of(params, jnp.linspace(-4.0, 4.0, 4001)))) >= 0)


def test_the_loss_rises_up_to_beyond_the_boundary(result):
    assert np.all(np.diff(result.before) > 0)


def test_the_soft_loss_of_two_classes_is_the_same(params):
    for x in (0.0, 0.9, 2.0):
        logits = under_test.logits(params, jnp.float32(x))
        soft = -losses.soft_logit_margin(logits, jnp.array(0))
        assert_allclose(under_test.loss(params, jnp.float32(x)), soft, rtol=1e-6)


def test_margins_are_zeros_of_the_loss(params, result):
    loss, slope = under_test.loss(params, result.margin), slopes(params, result.margin)[1]
    assert slope > 0
    assert abs(loss / slope) < 1e-6  # how far the zero is, in units of input
    for place, margin in zip(result.places, result.margins_at, strict=True):
        direction = slopes(params, place)[0]
        flat, restore = ravel_pytree(params)
        stepped = restore(flat - 0.5 * direction / jnp.linalg.norm(direction))
        assert abs(under_test.loss(stepped, margin) / slopes(stepped, margin)[1]) < 2e-6


def test_the_kept_curves_are_the_loss_and_cross_zero_at_their_margins(params, result):
    assert_allclose(result.before, curve_of(params, result.xs), rtol=1e-5, atol=1e-5)
    for curve, margin in zip(result.after, result.margins_at, strict=True):
        first = np.argmax(curve >= 0)
        assert result.xs[first - 1] < margin <= result.xs[first]


def test_each_kept_step_lowers_the_loss_where_it_is_taken(result):
    for place, curve in zip(result.places, result.after, strict=True):
        assert np.interp(place, result.xs, curve) < np.interp(place, result.xs, result.before) - 0.5


def test_at_the_boundary_the_margin_grows_by_the_formula_of_the_theorem(params, short):
    gradient, slope = slopes(params, short.margin)
    step = 0.01 / jnp.linalg.norm(gradient)  # eta, of a step of length 0.01
    expected = step / jnp.abs(slope) * jnp.sum(gradient**2)
    change = short.margins_at[1] - short.margin
    assert change > 0
    assert_allclose(change, expected, rtol=0.02)


def test_everywhere_the_margin_moves_to_first_order(short):
    scale = float(np.max(short.first_order - short.margin))
    assert_allclose(short.margins, short.first_order, atol=0.02 * scale)


def test_to_first_order_no_step_beats_the_one_at_the_boundary(result):
    assert_allclose(result.locations[np.argmax(result.first_order)], result.margin, rtol=1e-6)


def test_the_picture_shows_both_cases(result, short):
    for measured in (result, short):
        at_the_point, at_the_boundary, beyond = measured.margins_at - measured.margin
        assert at_the_point < -0.2 * at_the_boundary < 0
        assert 0 < beyond < 0.8 * at_the_boundary


def test_a_straight_loss_has_the_margins_of_the_closed_form():
    w, b, length = 2.0, 3.0, 0.1
    measured = under_test.measure(line, (jnp.float32(w), jnp.float32(b)), length=length, points=9)
    s = np.linspace(0.0, 2.0, 9) * b / w
    size = np.sqrt(s**2 + 1)  # of the gradient (s, -1)
    assert_allclose(measured.margin, b / w, rtol=1e-6)
    assert_allclose(measured.locations, s, rtol=1e-6)
    assert_allclose(measured.margins, (b + length / size) / (w - length * s / size), rtol=1e-6)
    assert_allclose(measured.first_order - b / w, length * (b / w * s + 1) / (size * w), rtol=2e-5)
    assert_allclose(measured.before, w * s - b, atol=1e-5)


def test_a_margin_is_the_first_of_several_zeros():
    assert_allclose(under_test.margin(lambda p, s: jnp.sin(6 * s + p), jnp.float32(-1.0)), 1 / 6, rtol=1e-6)


@pytest.mark.parametrize("b, expected", [(-1.0, 0.0), (100.0, np.inf)])
def test_margins_without_a_boundary(b, expected):
    assert under_test.margin(line, (jnp.float32(1.0), jnp.float32(b))) == expected


@pytest.mark.parametrize(
    "params, options, match",
    [
        ((1.0, -1.0), {}, "margin=0.0: the point must be classified rightly"),
        ((1.0, 9.0), {}, "margin=inf: .*reach=4.0"),
        ((1.0, 1.0), {"length": 0.0}, "length=0.0"),
        ((1.0, 1.0), {"reach": -1.0}, "reach=-1.0"),
        ((1.0, 1.0), {"points": 1}, "points=1"),
        ((1.0, 1.0), {"places": ()}, "places is empty"),
    ],
)
def test_what_cannot_be_measured_is_named(params, options, match):
    with pytest.raises(ValueError, match=match):
        under_test.measure(line, tuple(map(jnp.float32, params)), **options)


def test_the_experiment_is_the_same_at_every_call(params):
    for one, other in zip(params, under_test.classifier(), strict=True):
        assert_array_equal(one, other)
