"""Attacks that look for the nearest misclassified input: DDN, FMN, DeepFool, and the best of them.

All of them measure lengths against the distance that they look for, so scaling the inputs scales the results.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.attacks.base import Attack, Box, bisect, inside, loss_named, misses, outcome, refuse
from jaxmargin.losses import logit_margin
from jaxmargin.margins import gap_over_slope
from jaxmargin.norms import Norm, l2

__all__ = ["bisect_boundary", "ddn", "deepfool", "fmn", "minimum_norm"]

LogitsFn = Callable[[jax.Array], jax.Array]

_HALVINGS = 20  # of a bisection: the boundary to a millionth of the segment


class _Nearest(NamedTuple):
    """The search of DDN and FMN: offset and epsilon of the iterate, and the nearest misclassified offset so far."""

    offset: jax.Array
    epsilon: jax.Array
    best: jax.Array
    distance: jax.Array  # of best, infinite as long as there is none


def ddn(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    num_steps: int = 500,
    gamma: float = 0.05,
    loss: str | Callable[[jax.Array, jax.Array], jax.Array] = "scaled_cross_entropy",
    box: Box | None = None,
) -> Attack:
    """Decoupled direction and norm: steps on a sphere that shrinks where the iterate is misclassified and else grows.

    offset <- epsilon * v / ||v|| with v = offset + a * epsilon * g / |g|, a falling from 1 to 0.01 along a cosine, and
    epsilon <- (1 -+ gamma) epsilon. The first epsilon is the logit margin over its slope.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key, for a direction where the gradient vanishes.
      x: one example, [*d].
      y: its class.
      norm: of the distance; l2 in the paper.
      num_steps: number of steps.
      gamma: by how much the sphere shrinks or grows, in (0, 1).
      loss: as in ``pgd``.
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack; where nothing is found, x_adv = x. An example that is wrong from the start is at distance 0.

    Raises:
      ValueError: num_steps not positive, gamma outside (0, 1), an unknown loss, a box that is empty or does not hold x.

    Reference:
      Rony et al. 2019, Decoupling direction and norm, algorithm 1 (there with steps of absolute length).

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> attack = ddn(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0)  # the exact distance is 1
    >>> 1.0 <= float(attack.distance) < 1.01
    True
    """
    refuse(logits_fn, x, y, box, num_steps=num_steps)
    _fraction("gamma", gamma)
    loss_fn, clip = loss_named(loss), inside(box)

    def step(t: jax.Array, search: _Nearest, away: jax.Array) -> _Nearest:
        logits, gradient = _gradient(logits_fn, loss_fn, clip(x + search.offset), y)
        lost = misses(logits, y)
        search = _kept(search, lost, norm)
        epsilon = search.epsilon * jnp.where(lost, 1 - gamma, 1 + gamma)
        ahead = search.offset + _cosine(1.0, 0.01, t / num_steps) * epsilon * _direction(norm, gradient, away)
        size = norm.size(ahead)
        offset = ahead * jnp.where(size > 0, epsilon / jnp.where(size > 0, size, 1.0), 0.0)
        return search._replace(offset=clip(x + offset) - x, epsilon=epsilon)

    return _searched(logits_fn, key, x, y, norm, box, step, num_steps)


def fmn(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    num_steps: int = 500,
    gamma: float = 0.05,
    box: Box | None = None,
) -> Attack:
    """Fast minimum norm: descent on the logit margin inside a ball whose radius follows the boundary.

    As long as nothing is found, epsilon is (1 + gamma) times the offset's length plus the logit margin over its slope;
    from then on it shrinks by gamma where the iterate is misclassified and else grows. gamma falls to a fiftieth of its
    first value and the step from epsilon to epsilon / 100, along a cosine.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key, for a direction where the gradient vanishes.
      x: one example, [*d].
      y: its class.
      norm: of the distance: l2, linf or l1.
      num_steps: number of steps.
      gamma: by how much the ball shrinks or grows at first, in (0, 1).
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack; where nothing is found, x_adv = x. An example that is wrong from the start is at distance 0.

    Raises:
      ValueError: num_steps not positive, gamma outside (0, 1), a box that is empty or does not hold x.

    Reference:
      Pintor et al. 2021, Fast minimum-norm adversarial attacks, algorithm 1 (there with steps of absolute length).

    >>> import jax, jax.numpy as jnp, jaxmargin as jm
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> attack = fmn(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0, norm=jm.linf)  # exactly 5 / 7
    >>> 5 / 7 <= float(attack.distance) < 0.72
    True
    """
    refuse(logits_fn, x, y, box, num_steps=num_steps)
    _fraction("gamma", gamma)
    clip = inside(box)

    def step(t: jax.Array, search: _Nearest, away: jax.Array) -> _Nearest:
        logits, gradient = _gradient(logits_fn, _negative_margin, clip(x + search.offset), y)
        lost = misses(logits, y)
        search = _kept(search, lost, norm)
        rate = _cosine(gamma, gamma / 50, t / num_steps)
        jump = norm.size(search.offset) + _first_order(logits, y, gradient, norm, search.epsilon)
        jump = jnp.minimum(jump, _farthest(x, norm, box))
        near = (1 + rate) * jnp.where(jnp.isinf(search.distance), jump, search.epsilon)
        epsilon = jnp.where(lost, jnp.minimum(search.epsilon * (1 - rate), search.distance), near)
        length = _cosine(1.0, 0.01, t / num_steps)
        ahead = search.offset + length * epsilon * _direction(norm, gradient, away, 0.2 * length)
        return search._replace(offset=clip(x + norm.project(ahead, epsilon)) - x, epsilon=epsilon)

    return _searched(logits_fn, key, x, y, norm, box, step, num_steps)


def deepfool(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    num_steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    box: Box | None = None,
) -> Attack:
    """DeepFool: steps onto the nearest boundary of the linearised classifier until the prediction changes.

    At the edge of the box only the directions that stay in it count.

    Args:
      logits_fn: x -> logits [c].
      key: unused, there so that all attacks are called alike.
      x: one example, [*d].
      y: its class.
      norm: of the distance.
      num_steps: the most steps.
      overshoot: how far beyond the boundary, relative to the offset.
      candidates: number of classes, those of the largest logits at x, whose boundaries are looked at.
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack; where nothing is found, x_adv is the last iterate.

    Raises:
      ValueError: num_steps, overshoot or candidates not positive, a box that is empty or does not hold x.

    Reference:
      Moosavi-Dezfooli et al. 2016, algorithm 2.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> round(float(deepfool(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0).distance), 2)
    1.02
    """
    num_classes = refuse(logits_fn, x, y, box, num_steps=num_steps, candidates=candidates)
    checks.positive("overshoot", overshoot)
    clip = inside(box)

    def step(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        t, offset, _ = state
        z = clip(x + (1 + overshoot) * offset)
        logits, pullback = jax.vjp(logits_fn, z)
        gaps = logits[y] - logits[rivals]  # [k]
        one_hot = jax.nn.one_hot(jnp.append(rivals, y), num_classes, dtype=logits.dtype)
        normals = jax.vmap(lambda v: _inward(pullback(v)[0], z, box))(one_hot[:-1] - one_hot[-1][None])  # [k, *d]
        slopes = jax.vmap(norm.dual_size)(normals)
        # A tie that no step can break is no way out.
        ratios = jnp.where(slopes <= 0, jnp.inf, gap_over_slope(gaps, slopes))  # [k]
        nearest = jnp.argmin(ratios)
        hop = jnp.where(jnp.isfinite(ratios[nearest]), ratios[nearest] * (1 + 1e-4), 0.0)
        offset = offset + hop * norm.steepest(normals[nearest])
        return t + 1, offset, misses(logits_fn(clip(x + (1 + overshoot) * offset)), y)

    with jax.default_matmul_precision("float32"):
        logits = logits_fn(x)
        order = jnp.argsort(jnp.where(jnp.arange(num_classes) == y, jnp.inf, -logits))
        rivals = order[: min(candidates, num_classes - 1)]
        begin = jnp.array(0), jnp.zeros_like(x), misses(logits, y)
        _, offset, _ = jax.lax.while_loop(lambda state: (state[0] < num_steps) & ~state[2], step, begin)
        return outcome(logits_fn, x, y, clip(x + (1 + overshoot) * offset), norm)


def minimum_norm(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    num_steps: int = 500,
    box: Box | None = None,
) -> Attack:
    """The nearest misclassified input that DDN, FMN and DeepFool find, drawn back to the boundary by bisection.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key.
      x: one example, [*d].
      y: its class; with the predicted class the distance is that to the decision boundary.
      norm: of the distance: l2, linf or l1.
      num_steps: steps of DDN and of FMN.
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack: distance is an upper bound of the true one, infinite where nothing was found, 0 where x itself is wrong.

    Raises:
      ValueError: num_steps not positive, a box that is empty or does not hold x.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> attack = minimum_norm(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0, num_steps=100)
    >>> 1.0 <= float(attack.distance) < 1.0001
    True
    """
    key_ddn, key_fmn, key_fool = jax.random.split(key, 3)
    options: dict[str, Any] = dict(norm=norm, box=box)
    found = [
        ddn(logits_fn, key_ddn, x, y, num_steps=num_steps, **options),
        fmn(logits_fn, key_fmn, x, y, num_steps=num_steps, **options),
        deepfool(logits_fn, key_fool, x, y, **options),
    ]
    all_found: Attack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    nearest = jnp.argmin(all_found.distance)  # a NaN is the smallest to argmin, and so comes through
    best: Attack = jax.tree.map(lambda leaf: leaf[nearest], all_found)
    with jax.default_matmul_precision("float32"):
        return bisect_boundary(logits_fn, x, y, best.x_adv, norm=norm, box=box)


def bisect_boundary(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    x_adv: jax.Array,
    *,
    norm: Norm = l2,
    num_steps: int = _HALVINGS,
    box: Box | None = None,
) -> Attack:
    """Draws a misclassified input towards x, along the segment between them, as far as it stays misclassified.

    Args:
      logits_fn: x -> logits [c].
      x: one example, [*d].
      y: its class.
      x_adv: [*d] where to begin.
      norm: of the distance.
      num_steps: halvings of the segment.
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack, x_adv itself where that is not misclassified.

    Raises:
      ValueError: num_steps not positive.

    >>> import jax.numpy as jnp
    >>> found = bisect_boundary(lambda x: jnp.stack([1.0, x[0]]), jnp.zeros(1), 0, jnp.array([4.0]))
    >>> 1.0 < float(found.distance) < 1.00001
    True
    """
    checks.whole("num_steps", num_steps)
    clip = inside(box)

    def at(share: jax.Array) -> jax.Array:
        return jnp.where(share >= 1, x_adv, clip(x + share * (x_adv - x)))

    wrong, one = misses(logits_fn(x), y), jnp.ones((), x.dtype)
    _, high = bisect(lambda share: misses(logits_fn(at(share)), y), 0 * one, one, num_steps)
    nearer = jnp.where(wrong, x, at(high))
    return outcome(logits_fn, x, y, jnp.where(wrong | misses(logits_fn(x_adv), y), nearer, x_adv), norm)


def _searched(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    norm: Norm,
    box: Box | None,
    step: Callable[[jax.Array, _Nearest, jax.Array], _Nearest],
    num_steps: int,
) -> Attack:
    """Repeats a step from x on; looks at the last iterate too."""
    clip = inside(box)
    with jax.default_matmul_precision("float32"):
        away = norm.sample_ball(key, x.shape).astype(x.dtype)
        away = away / norm.size(away)
        logits, gradient = _gradient(logits_fn, _negative_margin, x, y)
        epsilon = _first_order(logits, y, gradient, norm, norm.size(jnp.ones_like(x)))
        epsilon = jnp.minimum(epsilon, _farthest(x, norm, box)).astype(x.dtype)
        search = _Nearest(jnp.zeros_like(x), epsilon, jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype))
        search = jax.lax.fori_loop(0, num_steps, lambda t, search: step(t, search, away), search)
        search = _kept(search, misses(logits_fn(clip(x + search.offset)), y), norm)
        broken = ~jnp.isfinite(search.offset).all()  # a gradient that was not finite must not be passed over
        return outcome(logits_fn, x, y, jnp.where(broken, jnp.nan, clip(x + search.best)), norm)


def _farthest(x: jax.Array, norm: Norm, box: Box | None) -> jax.Array | float:
    """The distance to the farthest corner of the box."""
    return jnp.inf if box is None else norm.size(jnp.maximum(x - box[0], box[1] - x))


def _inward(direction: jax.Array, z: jax.Array, box: Box | None) -> jax.Array:
    """The direction without the coordinates in which it leaves the box, where it would make no way."""
    if box is None:
        return direction
    low, high = box
    return jnp.where((z <= low) & (direction < 0) | (z >= high) & (direction > 0), 0.0, direction)


def _negative_margin(logits: jax.Array, y: jax.Array) -> jax.Array:
    return -logit_margin(logits, y)


def _gradient(logits_fn: LogitsFn, loss_fn: Callable, z: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits, pullback = jax.vjp(logits_fn, z)
    return logits, pullback(jax.grad(loss_fn)(logits, y))[0]


def _kept(search: _Nearest, lost: jax.Array, norm: Norm) -> _Nearest:
    """The search with its iterate kept where it is misclassified and nearer than all before."""
    size = norm.size(search.offset)
    better = lost & (size < search.distance)
    return search._replace(
        best=jnp.where(better, search.offset, search.best), distance=jnp.where(better, size, search.distance)
    )


def _first_order(logits: jax.Array, y: jax.Array, gradient: jax.Array, norm: Norm, far: jax.Array) -> jax.Array:
    """The distance at which the linearised margin reaches 0; ``far`` where it is flat."""
    slope = norm.dual_size(gradient)
    return jnp.where(slope <= 0, far, gap_over_slope(logit_margin(logits, y), slope))


def _direction(norm: Norm, gradient: jax.Array, away: jax.Array, share: jax.Array | float = 0.0) -> jax.Array:
    return jnp.where(norm.dual_size(gradient) > 0, norm.spread(gradient, share), away)


def _cosine(first: float, last: float, progress: jax.Array) -> jax.Array:
    return last + (first - last) * (1 + jnp.cos(jnp.pi * progress)) / 2


def _fraction(name: str, value: float) -> None:
    checks.positive(name, value)
    if checks.concrete(value) and not value < 1:
        raise ValueError(f"{name}={value} must be below 1: it is the share by which a radius changes")
