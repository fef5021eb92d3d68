"""Losses of one example against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmargin import losses

pytestmark = pytest.mark.hurried

ALL = [losses.logit_margin, losses.soft_logit_margin, losses.cross_entropy, losses.dlr]
classes = pytest.mark.parametrize("num_classes", [2, 10, 1000])


def cases(num_classes, n=50):
    rng = np.random.default_rng(num_classes)
    return (rng.normal(size=(n, num_classes)) * 4).astype(np.float32), rng.integers(0, num_classes, n)


def each(loss, logits, ys):
    return np.asarray(jax.vmap(loss)(jnp.asarray(logits), jnp.asarray(ys)))


@classes
def test_logit_margin_is_the_gap_to_the_best_other_class(num_classes):
    logits, ys = cases(num_classes)
    gaps = [scores[y] - np.delete(scores, y).max() for scores, y in zip(logits, ys, strict=True)]
    np.testing.assert_array_equal(each(losses.logit_margin, logits, ys), gaps)
    assert min(gaps) < 0 < max(gaps) or num_classes == 1000


@classes
def test_logit_margin_is_positive_exactly_where_the_prediction_is_right(num_classes):
    logits, ys = cases(num_classes)
    ys[::2] = logits[::2].argmax(1)
    np.testing.assert_array_equal(each(losses.logit_margin, logits, ys) > 0, logits.argmax(1) == ys)


@classes
def test_cross_entropy_is_softplus_of_the_negative_soft_margin(num_classes):
    logits, ys = cases(num_classes)
    soft = np.float64(each(losses.soft_logit_margin, logits, ys))
    np.testing.assert_allclose(each(losses.cross_entropy, logits, ys), np.logaddexp(0, -soft), rtol=1e-5, atol=2e-6)


@classes
def test_soft_margin_lies_within_log_of_the_rivals_below_the_margin(num_classes):
    logits, ys = cases(num_classes)
    hard, soft = each(losses.logit_margin, logits, ys), each(losses.soft_logit_margin, logits, ys)
    rounding = 1e-6 * np.abs(logits).max()
    assert (soft <= hard + rounding).all()
    assert (hard <= soft + np.log(num_classes - 1) + rounding).all()


def test_soft_margin_of_two_classes_is_the_margin():
    logits, ys = cases(2)
    expected = each(losses.logit_margin, logits, ys)
    np.testing.assert_allclose(each(losses.soft_logit_margin, logits, ys), expected, rtol=1e-6, atol=1e-6)


def test_soft_margin_survives_huge_logits():
    value = losses.soft_logit_margin(jnp.array([1000.0, 900.0, -1000.0]), 0)
    np.testing.assert_allclose(value, 100.0, rtol=1e-6)


def test_dlr_is_the_margin_over_the_spread_of_the_three_largest():
    logits, ys = cases(10)
    ordered = -np.sort(-np.float64(logits), 1)
    expected = -each(losses.logit_margin, logits, ys) / (ordered[:, 0] - ordered[:, 2])
    np.testing.assert_allclose(each(losses.dlr, logits, ys), expected, rtol=1e-5)


def test_dlr_does_not_see_the_scale_or_the_offset_of_the_logits():
    logits, ys = cases(5)
    expected = each(losses.dlr, logits, ys)
    np.testing.assert_allclose(each(losses.dlr, 50 * logits + 3, ys), expected, rtol=1e-4, atol=1e-5)


def test_dlr_refuses_two_classes_and_names_the_remedy():
    with pytest.raises(ValueError, match=r"c=2.*three.*logit_margin"):
        losses.dlr(jnp.zeros(2), 0)


@pytest.mark.parametrize("loss", ALL)
def test_losses_are_differentiable_everywhere_even_at_ties(loss):
    for logits in (jnp.zeros(4), jnp.array([1.0, -2.0, 3.0, 3.0]), jnp.array([200.0, -200.0, 0.0, 1.0])):
        assert np.isfinite(jax.grad(loss)(logits, 1)).all()


def test_the_gradient_of_the_margin_pulls_the_class_up_and_its_best_rival_down():
    gradient = jax.grad(losses.logit_margin)(jnp.array([1.0, 4.0, 2.0, 3.0]), 2)
    np.testing.assert_array_equal(gradient, [0, -1, 1, 0])


def test_cross_entropy_saturates_in_float32_where_the_margin_does_not():
    logits = jnp.array([30.0, 0.0, 0.0])
    assert not jax.grad(losses.cross_entropy)(logits, 0)[0]  # 1 - p rounds to 0
    assert jax.grad(losses.logit_margin)(logits, 0)[0] == 1
    assert not jax.grad(losses.cross_entropy)(10 * logits, 0).any()


@pytest.mark.parametrize("loss", ALL)
def test_losses_take_traced_labels(loss):
    logits = jnp.array([0.3, 2.0, -1.0])
    np.testing.assert_allclose(jax.jit(loss)(logits, jnp.array(2)), loss(logits, 2), rtol=1e-6)
