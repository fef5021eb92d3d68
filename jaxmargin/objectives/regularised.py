"""The objectives of Wu and Yu 2019: cross-entropy, Lipschitz constant and average margin regularisation."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.losses import cross_entropy, logit_margin
from jaxmargin.objectives.objective import LogitsFn, Objective
from jaxmargin.objectives.regularizers import orthogonality, parseval_retraction, ramp

__all__ = ["amr", "lcr", "margin_term", "standard"]


def standard() -> Objective:
    """Mean cross-entropy.

    Returns:
      Objective.
    """
    return Objective(_cross_entropy)


def lcr(beta: float = 1e-3, *, retraction: bool = False) -> Objective:
    """Lipschitz constant regularisation: cross-entropy + beta sum_l ||W_l W_l^T - I||_F^2.

    Args:
      beta: weight of the penalty, or step of the retraction.
      retraction: True moves the kernels by W <- (1 + beta) W - beta W W^T W after each step instead of the penalty.

    Returns:
      Objective.

    Raises:
      ValueError: beta <= 0, or above 1/2 with the retraction, where it would overshoot.

    Reference:
      Cisse et al. 2017; Wu and Yu 2019, appendix A.
    """
    checks.positive("beta", beta)
    if not retraction:
        return Objective(_cross_entropy, penalty=_orthogonal(beta))
    if beta > 0.5:
        raise ValueError(f"beta={beta} overshoots as a retraction step: pass at most 0.5")
    return Objective(_cross_entropy, retract=functools.partial(parseval_retraction, beta=beta))


def amr(lam: float = 0.1, beta: float = 1e-3, tau: float = 5.0, *, form: str = "ramp") -> Objective:
    """Average margin regularisation: cross-entropy - lam [a]_0^tau + beta sum_l ||W_l W_l^T - I||_F^2, a logit margin.

    Args:
      lam: weight of the margin term.
      beta: weight of the orthogonality penalty.
      tau: logit margin up to which the average is raised, finite.
      form: of the margin term, see ``margin_term``.

    Returns:
      Objective.

    Raises:
      ValueError: lam, beta or tau not positive, an unknown form, tau infinite: the loss -log p - lam a then has no
        lower bound once some class has probability above 1 / (1 + lam).

    Reference:
      Wu and Yu 2019, eq. (4).
    """
    checks.positive("lam", lam)
    checks.positive("beta", beta)
    if math.isinf(tau):
        raise ValueError(
            f"tau={tau} leaves the objective without a lower bound: once a class has probability above 1 / (1 + lam) ="
            f" {1 / (1 + lam):.3f}, larger logits always pay; pass a finite tau"
        )
    checks.positive("tau", tau)
    term = margin_term(form, tau)

    def example_loss(logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, state: jax.Array) -> jax.Array:
        logits = logits_fn(x)
        return cross_entropy(logits, y) + lam * term(logit_margin(logits, y), state)

    return Objective(example_loss, _orthogonal(beta), refresh=_was_wrong if form == "dc" else None)


def margin_term(form: str, tau: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The margin term of eq. (4) in one of the forms it may have had, as (margin a, was_wrong) -> scalar to minimise.

    ``ramp`` is -[a]_0^tau, as printed; ``hinge`` is max(0, tau - a), which also pushes misclassified points;
    ``wrong_ramp`` is [-a]_0^tau, which pushes only those; ``dc`` writes the ramp as a difference of convex functions,
    tau - [a]_0^tau = max(0, tau - a) - max(0, -a), and replaces the second by its tangent, refreshed each epoch: hinge
    + a where the point was wrong.

    Args:
      form: "ramp", "hinge", "wrong_ramp" or "dc".
      tau: truncation, in logits.

    Returns:
      The term.

    Raises:
      ValueError: an unknown form.
    """
    forms: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        "ramp": lambda a, was_wrong: -ramp(a, tau),
        "hinge": lambda a, was_wrong: jnp.maximum(0.0, tau - a),
        "wrong_ramp": lambda a, was_wrong: ramp(-a, tau),
        "dc": lambda a, was_wrong: jnp.maximum(0.0, tau - a) + was_wrong * a,
    }
    checks.one_of("form", form, forms)
    return forms[form]


def _cross_entropy(logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, state: jax.Array) -> jax.Array:
    return cross_entropy(logits_fn(x), y)


def _orthogonal(beta: float) -> Callable[[Any], jax.Array]:
    return lambda params: beta * orthogonality(params)


def _was_wrong(logits_fn: LogitsFn, x: jax.Array, y: jax.Array) -> jax.Array:
    return (logit_margin(logits_fn(x), y) < 0).astype(jnp.float32)
