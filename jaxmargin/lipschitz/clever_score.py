"""CLEVER on the host: the law of the largest slopes, fitted by maximum likelihood, tells how steep it can get.

The largest of many samples of a distribution that ends somewhere follows a reverse Weibull law, the generalised extreme
value law of positive shape (in scipy's sign): F(z) = exp(-(1 - c (z - m) / s)^(1/c)), which ends at m + s / c. Fitted
to a few dozen maxima its shape is uncertain by about 0.1, so a far endpoint tells little: none is believed that lies
further above the largest maximum than ``REACH`` times their range, as where the shape is below about 0.03.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmargin import checks
from jaxmargin.lipschitz.blocks import BlockMaxima
from jaxmargin.margins import gap_over_slope

__all__ = ["REACH", "Clever", "Endpoint", "clever", "endpoint"]

# The highest endpoint that is believed, in ranges of the maxima above the largest of them.
REACH = 5.0

# Maxima to fit three parameters to.
_FEWEST = 10

# Shapes that fits start from; the likelihood may have more than one peak.
_STARTS = 0.1, 0.4

# A range below this share of the largest maximum is rounding.
_ROUNDING = 1e-6


class Clever(NamedTuple):
    """CLEVER scores of n examples; ``summarize`` and ``histogram`` take them as they take Margins.

    The fallback rate is ``fallback.sum() / (fitted | fallback).sum()``.

    Attributes:
      margin: [n] signed scores in input units, > 0 only where the prediction is right.
      predicted: [n] the predicted classes.
      capped: [n] True where the score reached the radius of the ball.
      lipschitz: [n, c] constants of f_predicted - f_k, 0 at k = predicted: endpoints of fits, or the largest slopes.
      fitted: [n, c] True where the constant is the endpoint of a fit.
      fallback: [n, c] True where a fit gave no endpoint to be believed, so that the largest slope stands.
    """

    margin: np.ndarray
    predicted: np.ndarray
    capped: np.ndarray
    lipschitz: np.ndarray
    fitted: np.ndarray
    fallback: np.ndarray


class Endpoint(NamedTuple):
    """Where a distribution ends.

    Attributes:
      value: the endpoint, never below the largest maximum.
      fallback: whether that largest maximum has to stand for it.
    """

    value: float
    fallback: bool


def clever(maxima: BlockMaxima, ys: Any, *, radius: float) -> Clever:
    """CLEVER: sign * min{ min_{k != p} (f_p - f_k)(x) / L_k, radius }, L_k where the law of the slopes ends.

    Runs on the host, some 10 to 30 ms a fit. Only classes that can decide are fitted: a constant lies between the
    largest slope and the highest endpoint that would be believed, so that the others cannot.

    Args:
      maxima: of n examples, as ``over_batch`` returns, from at least ten blocks.
      ys: [n] their classes.
      radius: of the ball that they were sampled in, and the largest score that can come out.

    Returns:
      Clever.

    Raises:
      ValueError: one example that is not stacked, labels that are not [n], fewer than ten blocks, radius <= 0.

    Reference:
      Weng et al. 2018, "Evaluating the robustness of neural networks: an extreme value theory approach", algorithm 1.

    >>> import jax, jax.numpy as jnp, jaxmargin as jm
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> run = jm.over_batch(jm.block_maxima, lambda w, x: w @ x, num_blocks=10, block_size=64)
    >>> xs, ys = jnp.array([[1.0, 0.5], [-2.0, 0.0]]), jnp.array([0, 0])
    >>> scores = clever(run(w, jax.random.key(0), xs, ys), ys, radius=5.0)
    >>> scores.margin, scores.fallback[0]  # slopes that are all equal have no law
    (array([ 1. , -1.2], dtype=float32), array([False,  True]))
    """
    slopes, predicted, gaps = (np.asarray(field) for field in maxima)  # [n, num_blocks, c], [n], [n, c]
    ys = np.asarray(ys)
    _check(slopes, predicted, ys, radius)
    others = np.arange(slopes.shape[2]) != predicted[:, None]  # [n, c]
    constants = slopes.max(1)  # [n, c], NaN of any NaN
    with np.errstate(invalid="ignore"):  # infinity less infinity
        ceiling = constants + REACH * np.ptp(slopes, 1)
    now = np.minimum(_distances(gaps, constants, others).min(1), radius)  # [n]
    deciding = others & (_distances(gaps, ceiling, others) <= now[:, None])  # [n, c]
    fallback = np.zeros_like(others)
    for i, k in np.argwhere(deciding):
        constants[i, k], fallback[i, k] = endpoint(slopes[i, :, k])
    distance = _distances(gaps, constants, others).min(1)
    capped = distance >= radius
    margin = np.where(capped, radius, distance).astype(distance.dtype)
    signed = np.where(predicted == ys, margin, -margin)
    return Clever(signed, predicted, capped, constants, deciding & ~fallback, fallback)


def endpoint(maxima: np.ndarray) -> Endpoint:
    """The right end of a generalised extreme value law, fitted to maxima by maximum likelihood.

    Args:
      maxima: [b] largest values of b blocks of samples, b >= 10.

    Returns:
      Endpoint. It falls back where all maxima are equal or some are not finite, and where the fit fails, has no end
      (shape <= 0), no peak of the likelihood (shape >= 1), or an end outside of [largest, largest + REACH * range].

    Raises:
      ValueError: fewer than ten maxima.

    Reference:
      Smith 1985, "Maximum likelihood estimation in a class of nonregular cases", Biometrika 72, on the shapes.

    >>> import scipy.stats
    >>> maxima = scipy.stats.genextreme(0.3, loc=10).rvs(500, random_state=0)
    >>> value, fallback = endpoint(maxima)
    >>> round(value / (10 + 1 / 0.3), 1), fallback
    (1.0, False)
    """
    maxima = np.asarray(maxima, np.float64)
    if maxima.ndim != 1 or len(maxima) < _FEWEST:
        raise ValueError(f"maxima have shape {maxima.shape}: expected [b], b >= {_FEWEST}, to fit three parameters to")
    largest = float(np.max(maxima))  # NaN of any NaN
    spread = float(np.ptp(maxima)) if np.isfinite(maxima).all() else 0.0
    if not spread > _ROUNDING * abs(largest):
        return Endpoint(largest, True)
    mean, deviation = np.mean(maxima), np.std(maxima)
    value = float(mean + deviation * _standard_end((maxima - mean) / deviation))
    return Endpoint(value, False) if largest <= value <= largest + REACH * spread else Endpoint(largest, True)


def _standard_end(maxima: np.ndarray) -> float:
    """Where the most likely law of maxima [b] of mean 0 and deviation 1 ends; NaN if nowhere."""
    from scipy.optimize import minimize  # here, since they take longer to load than the rest of the core
    from scipy.stats import genextreme

    best, found = np.inf, np.nan
    for start in _STARTS:
        mean, variance = genextreme.stats(start, moments="mv")
        scale = 1 / np.sqrt(variance)
        first = start, -mean * scale, np.log(scale)
        with np.errstate(all="ignore"):  # a simplex of infinite costs
            fit = minimize(_cost, first, (maxima,), method="Nelder-Mead", options=dict(maxfev=600))
        if fit.fun < best:  # from shape 1 on the likelihood has no limit as the end nears the largest
            shape, location, log_scale = fit.x
            ends = fit.success and 0 < shape < 1
            best, found = fit.fun, location + np.exp(log_scale) / shape if ends else np.nan
    return float(found)


def _cost(law: np.ndarray, maxima: np.ndarray) -> float:
    """Minus the log likelihood of (shape, location, log of the scale); scipy's is the same, several times slower."""
    shape, location, log_scale = law
    y = (maxima - location) * np.exp(-log_scale)
    inside = 1 - shape * y
    if not (inside > 0).all():
        return np.inf
    logs = np.log(inside)
    powers = logs / shape if abs(shape) > 1e-9 else -y  # a Gumbel law at 0
    return float(len(maxima) * log_scale + np.sum(np.exp(powers) - powers + logs))


def _check(slopes: np.ndarray, predicted: np.ndarray, ys: np.ndarray, radius: float) -> None:
    checks.positive("radius", radius)
    if slopes.ndim != 3:
        raise ValueError(f"maxima.maxima has shape {slopes.shape}: expected [n, num_blocks, c], as over_batch returns")
    if ys.shape != predicted.shape:
        raise ValueError(f"ys has shape {ys.shape}: expected {predicted.shape}, the class of each example")
    if slopes.shape[1] < _FEWEST:
        raise ValueError(f"maxima come from {slopes.shape[1]} blocks: sample num_blocks of at least {_FEWEST}")


def _distances(gaps: np.ndarray, constants: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[n, c] the distances at which classes could catch up; infinite for the predicted one itself."""
    return np.where(others, np.asarray(gap_over_slope(jnp.asarray(gaps), jnp.asarray(constants))), np.inf)
