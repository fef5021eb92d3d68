"""Fisher consistency: which margin terms keep the best binary decision, tested on the package's own terms.

C(a) = eta l(a) + (1 - eta) l(-a) with l(a) = log(1 + exp(-a)) + lam psi(a) is minimised on a fine grid in float64.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmargin.certificates.rounding import double_precision
from jaxmargin.objectives import margin_term

pytestmark = pytest.mark.hurried

STEP = 1e-3
GRID = np.round(np.arange(-9.0, 9.0 + STEP / 2, STEP), 6)
LAMBDAS = [0.1, 0.5, 2.0]
TAUS = [0.5, 2.0, 5.0]
ETAS = [0.03, 0.2, 0.4, 0.48, 0.52, 0.56, 0.6, 0.75, 0.9, 0.99]


def logit(p):
    return np.log(p / (1 - p))


def risk(form, eta, lam, tau):
    """C on the grid."""
    with double_precision():
        psi = np.array([margin_term(form, tau)(jnp.asarray(a), 0.0) for a in (GRID, -GRID)])
    logistic = np.logaddexp(0, [-GRID, GRID])
    return eta * (logistic[0] + lam * psi[0]) + (1 - eta) * (logistic[1] + lam * psi[1])


def minimiser(form, eta, lam, tau):
    return GRID[np.argmin(risk(form, eta, lam, tau))]


def closed_form(eta, lam, tau):
    """The minimiser with the ramp, from eta > 1/2 by symmetry."""
    if eta < 0.5:
        return -closed_form(1 - eta, lam, tau)
    s = eta * (1 + lam)
    return logit(s) if s < 1 and logit(s) < tau else max(tau, logit(eta))


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("tau", TAUS)
def test_with_the_ramp_the_minimiser_is_the_closed_form_and_has_the_sign_of_the_better_class(lam, tau):
    for eta in ETAS:
        found = minimiser("ramp", eta, lam, tau)
        assert abs(found - closed_form(eta, lam, tau)) <= STEP
        assert np.sign(found) == np.sign(2 * eta - 1)


def test_the_grid_of_cases_meets_every_branch_of_the_closed_form():
    branches = set()
    for eta, lam, tau in itertools.product([eta for eta in ETAS if eta > 0.5], LAMBDAS, TAUS):
        a = closed_form(eta, lam, tau)
        branches.add("tau" if a == tau else "logit(eta)" if a == logit(eta) else "logit(s)")
    assert branches == {"tau", "logit(eta)", "logit(s)"}


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("form", ["ramp", "wrong_ramp"])
def test_beyond_the_range_of_ties_both_ramps_choose_the_better_class(form, lam):
    edge = (lam + 0.5) / (1 + lam)
    for eta in (edge + 0.02, (1 + edge) / 2):
        assert minimiser(form, eta, lam, 5.0) > 0
        assert minimiser(form, 1 - eta, lam, 5.0) < 0


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_the_wrong_ramp_ties_where_the_better_class_is_not_much_better(lam, share):
    eta = 0.5 + share * ((lam + 0.5) / (1 + lam) - 0.5)
    assert minimiser("wrong_ramp", eta, lam, 5.0) == 0
    assert minimiser("wrong_ramp", 1 - eta, lam, 5.0) == 0
    assert minimiser("ramp", eta, lam, 5.0) > 0  # where the ramp decides


def test_the_wrong_ramp_ties_up_to_the_published_edge_and_no_further():
    lam = 0.5
    edge = (lam + 0.5) / (1 + lam)
    assert minimiser("wrong_ramp", edge - 1e-3, lam, 5.0) == 0
    assert minimiser("wrong_ramp", edge + 2e-3, lam, 5.0) > 0


@pytest.mark.parametrize("lam", LAMBDAS)
def test_a_convex_hinge_is_consistent_too(lam):
    for eta in ETAS:
        assert np.sign(minimiser("hinge", eta, lam, 2.0)) == np.sign(2 * eta - 1)
