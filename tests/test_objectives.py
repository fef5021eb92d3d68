"""Training objectives against eq. (4), term by term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmargin import objectives

pytestmark = pytest.mark.hurried

TAU = 2.0
LOGITS = {  # class 0 is the label: wrong, right within the ramp, right beyond it
    "wrong": np.array([0.5, 1.7, -1.0]),
    "right": np.array([2.0, 1.2, 0.4]),
    "far": np.array([5.0, 1.0, -3.0]),
}
logits = pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
KERNEL = np.array([[1.0, 0.5, 0.0], [-1.0, 2.0, 0.3]], np.float32)


def literal(form, a, example_state):
    """The margin term and its slope in the margin a."""
    inside = 0 < a < TAU
    return {
        "ramp": (-np.clip(a, 0, TAU), -float(inside)),
        "hinge": (max(0, TAU - a), -float(a < TAU)),
        "wrong_ramp": (np.clip(-a, 0, TAU), -float(-TAU < a < 0)),
        "dc": (max(0, TAU - a) + example_state * a, example_state - float(a < TAU)),
    }[form]


def value_and_gradient(objective, scores, state=0.0):
    def loss(scores):
        return objective.example_loss(lambda x: scores + 0 * x, jax.random.key(0), jnp.zeros(3), 0, jnp.asarray(state))

    return jax.value_and_grad(loss)(jnp.asarray(scores, jnp.float32))


def cross_entropy(scores):
    p = np.exp(scores - scores.max())
    p /= p.sum()
    return -np.log(p[0]), p - np.eye(3)[0]


@logits
@pytest.mark.parametrize("form", ["ramp", "hinge", "wrong_ramp", "dc"])
@pytest.mark.parametrize("example_state", [0.0, 1.0])
def test_each_form_adds_its_term_to_the_cross_entropy(form, logits, example_state):
    value, gradient = value_and_gradient(objectives.amr(0.3, tau=TAU, form=form), logits, example_state)
    a = logits[0] - logits[1]
    term, slope = literal(form, a, example_state)
    loss, loss_gradient = cross_entropy(logits)
    np.testing.assert_allclose(value, loss + 0.3 * term, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, loss_gradient + 0.3 * slope * np.array([1, -1, 0]), rtol=1e-5, atol=1e-6)


@logits
@pytest.mark.parametrize("objective", [objectives.standard(), objectives.lcr(), objectives.lcr(0.1, retraction=True)])
def test_standard_training_and_lcr_cost_the_cross_entropy_an_example(objective, logits):
    value, gradient = value_and_gradient(objective, logits)
    np.testing.assert_allclose(value, cross_entropy(logits)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, cross_entropy(logits)[1], rtol=1e-5, atol=1e-6)


def test_dc_with_a_fresh_memory_is_the_ramp_in_value_and_slope():
    # tau - [a]_0^tau = max(0, tau - a) - max(0, -a), and the tangent of the second part touches it where it was taken.
    ramp, dc = (objectives.margin_term(form, TAU) for form in ("ramp", "dc"))
    for a in (-3.0, -0.5, 0.7, 1.9, 4.0):
        wrong = jnp.float32(a < 0)
        np.testing.assert_allclose(dc(jnp.float32(a), wrong), TAU + ramp(jnp.float32(a), wrong), rtol=1e-6)
        assert jax.grad(dc)(jnp.float32(a), wrong) == jax.grad(ramp)(jnp.float32(a), wrong)


def test_dc_never_lies_below_the_ramp_it_majorises():
    a = jnp.linspace(-4, 6, 101)
    ramp, dc = (objectives.margin_term(form, TAU) for form in ("ramp", "dc"))
    for wrong in (0.0, 1.0):
        assert (dc(a, wrong) >= TAU + ramp(a, wrong) - 1e-6).all()


def test_dc_refreshes_its_memory_with_the_points_that_are_wrong_now():
    refresh = objectives.amr(form="dc").refresh
    states = [refresh(lambda x, scores=scores: jnp.asarray(scores), jnp.zeros(3), 0) for scores in LOGITS.values()]
    np.testing.assert_array_equal(states, [1, 0, 0])


@pytest.mark.parametrize("form", ["ramp", "hinge", "wrong_ramp"])
def test_the_other_forms_need_no_memory(form):
    assert objectives.amr(form=form).refresh is None


@pytest.mark.parametrize("objective", [objectives.lcr(0.25), objectives.amr(beta=0.25)], ids=["lcr", "amr"])
def test_the_penalty_is_beta_times_the_distance_from_orthogonality(objective):
    w = np.float64(KERNEL.T)
    expected = 0.25 * np.sum((w @ w.T - np.eye(3)) ** 2)
    params = {"kernel": jnp.asarray(KERNEL), "bias": jnp.ones(3)}
    np.testing.assert_allclose(objective.penalty(params), expected, rtol=1e-6)
    np.testing.assert_array_equal(objective.retract(KERNEL), KERNEL)


def test_the_retraction_takes_the_place_of_the_penalty():
    objective = objectives.lcr(0.25, retraction=True)
    w = np.float64(KERNEL.T)
    expected = 1.25 * w - 0.25 * w @ w.T @ w
    assert objective.penalty(KERNEL) == 0
    np.testing.assert_allclose(objective.retract(jnp.asarray(KERNEL)).T, expected, rtol=1e-5, atol=1e-6)


def test_standard_training_has_neither_penalty_nor_retraction_nor_memory():
    objective = objectives.standard()
    assert objective.penalty(KERNEL) == 0
    np.testing.assert_array_equal(objective.retract(KERNEL), KERNEL)
    assert objective.refresh is None


def test_an_infinite_tau_is_refused_with_its_reason():
    with pytest.raises(ValueError, match=r"tau=inf .*without a lower bound.*1 / \(1 \+ lam\) = 0.909.*finite"):
        objectives.amr(lam=0.1, tau=float("inf"))


def test_the_reason_holds_the_objective_has_no_lower_bound_without_truncation():
    a, lam = np.linspace(5, 500, 100), 0.1
    untruncated = np.logaddexp(0, -a) - lam * a
    assert (np.diff(untruncated) < 0).all()
    assert untruncated[-1] < -49


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (objectives.lcr, dict(beta=0.0), "beta=0.0 must be finite and greater than 0"),
        (objectives.lcr, dict(beta=0.6, retraction=True), "beta=0.6 overshoots.*at most 0.5"),
        (objectives.lcr, dict(beta=-0.1, retraction=True), "beta=-0.1 must be"),
        (objectives.amr, dict(lam=0.0), "lam=0.0 must be finite and greater than 0"),
        (objectives.amr, dict(lam=float("nan")), "lam=nan must be"),
        (objectives.amr, dict(beta=-1.0), "beta=-1.0 must be"),
        (objectives.amr, dict(tau=0.0), "tau=0.0 must be"),
        (objectives.amr, dict(tau=-float("inf")), "tau=-inf"),
        (objectives.amr, dict(form="relu"), "form='relu' is unknown: choose from ramp, hinge, wrong_ramp, dc"),
        (objectives.margin_term, dict(form="relu", tau=1.0), "form='relu' is unknown"),
    ],
)
def test_bad_options_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_half_is_the_largest_retraction_step():
    assert objectives.lcr(0.5, retraction=True).retract(jnp.eye(2)).shape == (2, 2)


def test_an_infinite_tau_of_numpy_is_refused_for_the_same_reason():
    with pytest.raises(ValueError, match="without a lower bound"):
        objectives.amr(tau=np.float32("inf"))
