"""A classifier on a line: how the margin of a point moves when its loss is lowered at one place or another.

With two classes the logit margin loss L(s) = f_other - f_y at a distance s to the right of the point is their soft one
too. It is zero at the boundary, s = d. One step of gradient descent on L(s) moves the boundary, to first order in its
length r, by r <g(d), g(s)> / (|g(s)| |L'(d)|), g the gradient in the parameters. At s = d it surely moves away, and no
other step of that length moves it as far; elsewhere the sign is that of the inner product (Ding et al. 2020, MMA
Training, theorem 2.1 and figure 2).

>>> result = measure(loss, classifier(), points=5)
>>> bool(result.margins_at[1] > result.margin > result.margins_at[0])
True
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxmargin import checks, losses

__all__ = ["Steps", "Params", "classifier", "logits", "loss", "margin", "measure"]

LossFn = Callable[[Any, jax.Array], jax.Array]

# To first order, lowering the loss at the point itself lowers the margin under each of the seeds 0 to 99; under 15 of
# them, this one too, the loss rises all the way.
SEED, HIDDEN, STEEPNESS = 21, 12, 3.0
XS, YS = (0.0, 0.25, 0.5, 0.75, 1.25, 1.5, 1.75, 2.0), (0, 0, 0, 0, 1, 1, 1, 1)
TRAINING_STEPS, TRAINING_RATE = 400, 0.1
SCANNED, HALVINGS = 4001, 30  # places of the scan for the boundary, and halvings of its interval


class Params(NamedTuple):
    """A hidden layer of tanh units on one input, and two logits."""

    weights: jax.Array  # [h]
    biases: jax.Array  # [h]
    out_weights: jax.Array  # [2, h]
    out_biases: jax.Array  # [2]


class Steps(NamedTuple):
    """The loss and the margin of a point, before and after one step of descent on the loss at a distance from it."""

    xs: jax.Array  # [m] distances from the point
    before: jax.Array  # [m] the loss there
    places: jax.Array  # [p] where a step is taken whose loss is kept
    after: jax.Array  # [p, m] the loss after each of these steps
    margins_at: jax.Array  # [p] the margin after each of these steps
    margin: jax.Array  # before any step
    locations: jax.Array  # [k] where a step is taken
    margins: jax.Array  # [k] the margin after each step, infinite where no boundary is left within reach
    first_order: jax.Array  # [k] the same as theory has it for short steps


def logits(params: Params, x: jax.Array) -> jax.Array:
    """The two logits of a number x.

    Args:
      params: From ``classifier``.
      x: A scalar.

    Returns:
      [2].
    """
    return params.out_weights @ jnp.tanh(params.weights * x + params.biases) + params.out_biases


def loss(params: Params, x: jax.Array) -> jax.Array:
    """The logit margin loss of class 0 at x: negative where the prediction is right, 0 at the boundary.

    Args:
      params: From ``classifier``.
      x: A scalar; the point of class 0 that the margins are measured from is 0, so that x is also the distance.

    Returns:
      A scalar.
    """
    return -losses.logit_margin(logits(params, x), jnp.array(0))


def classifier() -> Params:
    """Trains the network by cross-entropy on eight points: class 0 from 0 to 0.75, class 1 from 1.25 to 2.

    The units start with their bends spread over [0, 1], ahead of the point at 0, and all rise.

    Returns:
      The parameters, the same at every call.
    """
    bends, out = jax.random.split(jax.random.key(SEED))
    biases = -STEEPNESS * jax.random.uniform(bends, (HIDDEN,))
    out_weights = jax.random.normal(out, (2, HIDDEN)) / math.sqrt(HIDDEN)
    start = Params(jnp.full(HIDDEN, STEEPNESS), biases, out_weights, jnp.zeros(2))
    xs, ys = jnp.array(XS), jnp.array(YS)

    def objective(params: Params) -> jax.Array:
        return jnp.mean(jax.vmap(lambda x, y: losses.cross_entropy(logits(params, x), y))(xs, ys))

    def step(params: Params, _: None) -> tuple[Params, None]:
        return jax.tree.map(lambda a, slope: a - TRAINING_RATE * slope, params, jax.grad(objective)(params)), None

    return jax.lax.scan(step, start, None, length=TRAINING_STEPS)[0]


def margin(loss_fn: LossFn, params: Any, *, reach: float = 4.0) -> jax.Array:
    """The distance of the first place to the right where the loss is not negative: a scan, then bisection.

    Args:
      loss_fn: (params, s) -> the loss at the distance s from the point.
      params: A tree of arrays.
      reach: How far to look.

    Returns:
      The margin, to rounding; 0 for a point that is classified wrongly, infinite without a boundary within reach.
    """
    grid = jnp.linspace(0.0, reach, SCANNED)
    wrong = jax.vmap(lambda s: loss_fn(params, s))(grid) >= 0  # [SCANNED]
    first = jnp.argmax(wrong)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        beyond = loss_fn(params, middle) >= 0
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    _, boundary = jax.lax.fori_loop(0, HALVINGS, halve, (grid[jnp.maximum(first - 1, 0)], grid[first]))
    return jnp.where(jnp.any(wrong), boundary, jnp.inf)


def measure(
    loss_fn: LossFn,
    params: Any,
    *,
    length: float = 0.5,
    places: Sequence[float] = (0.0, 1.0, 1.7),
    points: int = 201,
    reach: float = 4.0,
) -> Steps:
    """Takes one step of gradient descent on the loss at each of many distances, and finds the margin after each.

    Args:
      loss_fn: (params, s) -> the loss at the distance s from the point, below 0 up to the boundary.
      params: A tree of arrays.
      length: Of every step, in the Euclidean norm of all parameters.
      places: The steps whose loss is kept, in margins: 0 is the point itself and 1 its boundary.
      points: Of the curves, from 0 to twice the margin.
      reach: How far to look for a boundary.

    Returns:
      A ``Steps`` with m = k = ``points``.

    Raises:
      ValueError: A length that is not positive, less than two points, no places, a point that is classified wrongly, or
        no boundary within reach.
    """
    checks.positive("length", length)
    checks.positive("reach", reach)
    checks.whole("points", points, least=2)
    if not len(places):
        raise ValueError("places is empty: pass at least one, in margins, such as 1.0 for the boundary")
    distance = margin(loss_fn, params, reach=reach)
    if not 0 < distance < jnp.inf:
        raise ValueError(f"margin={distance}: the point must be classified rightly and its boundary within {reach=}")
    flat, restore = ravel_pytree(params)

    def loss_of(parameters: jax.Array, s: jax.Array) -> jax.Array:
        return loss_fn(restore(parameters), s)

    def direction(s: jax.Array) -> jax.Array:
        gradient: jax.Array = jax.grad(loss_of)(flat, s)
        return gradient / jnp.maximum(jnp.linalg.norm(gradient), 1e-30)

    def stepped(s: jax.Array) -> tuple[jax.Array, jax.Array]:
        after = flat - length * direction(s)
        return after, margin(loss_of, after, reach=reach)

    xs = jnp.linspace(0.0, 2.0, points) * distance
    wheres = jnp.array(places) * distance
    parameters, margins = jax.jit(jax.vmap(stepped))(jnp.concatenate([wheres, xs]))
    before, *after = (jax.vmap(loss_of, (None, 0))(row, xs) for row in (flat, *parameters[: len(places)]))
    slopes = jax.grad(loss_of, (0, 1))(flat, distance)
    first_order = distance + length * jax.vmap(direction)(xs) @ slopes[0] / jnp.abs(slopes[1])
    kept, swept = margins[: len(places)], margins[len(places) :]
    return Steps(xs, before, wheres, jnp.stack(after), kept, distance, xs, swept, first_order)
