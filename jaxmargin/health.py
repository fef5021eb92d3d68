"""Measuring the signs that a robustness measured by attacks is not there, for ``flags`` to judge."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin import checks, losses
from jaxmargin.attacks import Attack, minimum_norm, pgd, square, worst_case
from jaxmargin.batching.measurement import Measurement, over_batch
from jaxmargin.flags import Flag, layer_cake, margins_capped, plateau, rises, weak_loss
from jaxmargin.margins import Margins
from jaxmargin.norms import Norm, l1, l2
from jaxmargin.types import ApplyFn, Array, Box, LogitsFn, Measure, Result

__all__ = ["health_check", "saturation"]


# Below this length the published attack no longer steps at full length; see ``attacks.pgd``.
_FLOOR = 1e-6


def saturation(apply_fn: ApplyFn, params: Any, xs: Array, ys: Array) -> tuple[Flag, Flag]:
    """Whether the gradients that attacks follow are there.

    Args:
      apply_fn: (params, x [*d]) -> logits [c].
      params: its parameters.
      xs: [n, *d] inputs.
      ys: [n] classes.

    Returns:
      Flags "saturated loss", of the cross-entropy, and "zero gradients", of the logit margin.

    Raises:
      ValueError: see ``over_batch``.

    >>> import jax.numpy as jnp
    >>> w, xs = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[1.0, 0.5], [-2.0, 0.0]])
    >>> [flag.value for flag in saturation(lambda w, x: 50 * w @ x, w, xs, jnp.array([0, 0]))]
    [0.5, 0.0]
    """
    sizes = _lifted(_gradient_sizes, apply_fn)(params, jax.random.key(0), xs, ys)  # draws nothing
    small = (sizes.cross_entropy < _FLOOR) & (sizes.logit_margin >= _FLOOR)
    return (
        Flag.judge(
            "saturated loss", float(jnp.mean(small)), 0.02,
            "share of inputs where the cross-entropy's gradient is below 1e-6 and the logit margin's is not",
            "attack the logit margin or a scaled cross-entropy",
            len(ys),
        ),
        _zero_gradients(float(jnp.mean(sizes.logit_margin == 0)), len(ys)),
    )  # fmt: skip


def _zero_gradients(share: float, n: int) -> Flag:
    return Flag.judge(
        "zero gradients", share, 0.0,
        "share of inputs where the gradient of the logit margin is zero, or there is none",
        "look for rounding, arg max, saturated units, loops or callbacks in the classifier; attack without gradients"
        " (square)",
        n,
    )  # fmt: skip


def _has_gradients(apply_fn: ApplyFn, params: Any, x: jax.Array) -> bool:
    """Whether JAX can differentiate the classifier backwards."""
    try:
        jax.eval_shape(jax.grad(lambda x: jnp.sum(apply_fn(params, x))), x)
    except (NotImplementedError, TypeError, ValueError):
        return False
    return True


def health_check(
    apply_fn: ApplyFn,
    params: Any,
    xs: Array,
    ys: Array,
    *,
    key: jax.Array | None = None,
    norm: Norm = l2,
    box: Box | None = None,
    epsilons: Sequence[float] | None = None,
    num_steps: int = 100,
    margins: Margins | None = None,
) -> tuple[Flag, ...]:
    """Looks for the signs of gradient masking and of failing attacks on a classifier.

    Args:
      apply_fn: (params, x [*d]) -> logits [c].
      params: its parameters.
      xs: [n, *d] inputs.
      ys: [n] classes.
      key: a PRNG key for the attacks; None takes a fixed one.
      norm: of the attacks.
      box: (low, high) of valid inputs; None for none.
      epsilons: rising radii of the attacks; None takes the quartiles and the 95th percentile of the distances that
        ``minimum_norm`` finds, or as many shares of what the inputs span where it finds none.
      num_steps: steps of every attack.
      margins: Margins of the same classifier, to look at how many of them were cut at the radius; None leaves that out.

    Returns:
      Flags, raised or not. Without gradients nothing is attacked, and the last flag is "zero gradients"; a square
      attack, for "gradients mislead", there is on vectors and images, and not in l1.

    Raises:
      ValueError: xs and ys that do not fit, labels outside of the classes, epsilons that do not rise.

    Reference:
      Athalye et al. 2018; Carlini et al. 2019, On evaluating adversarial robustness; Croce and Hein 2020.

    >>> import jax, jax.numpy as jnp
    >>> w, xs = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[1.0, 0.5], [-2.0, 0.0], [0.5, 1.0]])
    >>> flags = health_check(lambda w, x: 50 * w @ x, w, xs, jnp.array([0, 1, 0]), num_steps=20)
    >>> [flag.name for flag in flags if flag.raised][:1]
    ['saturated loss']
    """
    checks.examples(xs, ys)
    checks.box(box)
    if epsilons is not None and not all(near < far for near, far in zip((0.0, *epsilons), epsilons, strict=False)):
        raise ValueError(f"epsilons={epsilons} must rise from above 0")
    key = jax.random.key(0) if key is None else key
    xs, ys = jnp.asarray(xs), jnp.asarray(ys)
    flags = [_outside(xs, box), *_scores(apply_fn, params, xs)]
    if flags[0].raised:
        box = None
    if flags[2].raised:
        apply_fn = _logarithm(apply_fn)
    if not _has_gradients(apply_fn, params, xs[0]):
        return (*flags, _zero_gradients(1.0, len(xs)))
    flags += saturation(apply_fn, params, xs, ys)
    flags += _attacks(apply_fn, params, key, xs, ys, norm, box, epsilons, num_steps)
    if margins is not None:
        flags.append(margins_capped(margins.capped))
    return tuple(flags)


def _outside(xs: jax.Array, box: Box | None) -> Flag:
    share = 0.0 if box is None else float(jnp.mean((xs < box[0]) | (xs > box[1])))
    return Flag.judge(
        "inputs outside the box", share, 0.0,
        "share of input values outside the box",
        "scale the inputs or pass their box; the attacks here were run without one",
    )  # fmt: skip


def _scores(apply_fn: ApplyFn, params: Any, xs: jax.Array) -> list[Flag]:
    """Compiles twice: randomness that a trace has frozen differs between the two."""
    first, second = (jax.jit(lambda params, xs: jax.lax.map(lambda x: apply_fn(params, x), xs)) for _ in range(2))
    one, two = first(params, xs), second(params, xs)  # [n, c]
    three = jnp.stack([jnp.asarray(apply_fn(params, x)) for x in xs[:2]])
    compiled = jnp.maximum(jnp.max(jnp.abs(one - two)), jnp.max(jnp.abs(one - first(params, xs))))
    rounding = 1e-3 * float(jnp.max(jnp.abs(one)) + 1e-30)  # eager and compiled code round differently
    change = max(float(compiled), float(jnp.max(jnp.abs(three - one[:2]))) - rounding)
    return [
        Flag.judge(
            "forward pass not repeatable", change, 0.0,
            "largest change of a logit when the same input is classified again",
            "switch dropout and noise off, or attack the expectation over the randomness",
        ),
        Flag.judge(
            "probabilities as logits", float(jnp.mean(checks.distributions(one))), 0.5,
            "share of examples whose scores are not negative and sum to 1",
            "return the scores before the softmax, which flattens gradients; the attacks here took the logarithm",
        )._replace(n=len(xs)),
    ]  # fmt: skip


@functools.lru_cache(maxsize=8)
def _logarithm(apply_fn: ApplyFn) -> ApplyFn:
    """Of probabilities, which are logits; the same function for the same classifier."""
    return lambda params, x: jnp.log(jnp.maximum(apply_fn(params, x), 1e-30))


@functools.lru_cache(maxsize=32)
def _lifted(measure: Measure[Result], apply_fn: ApplyFn, **options: Any) -> Measurement[Result]:
    """The same for the same classifier and options: other parameters compile nothing."""
    return over_batch(measure, apply_fn, **options)


class _GradientSizes(NamedTuple):
    cross_entropy: jax.Array
    logit_margin: jax.Array


def _gradient_sizes(logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array) -> _GradientSizes:
    """Lengths of the gradients of two losses."""
    logits, pullback = jax.vjp(logits_fn, x)
    both = losses.cross_entropy, losses.logit_margin
    return _GradientSizes(*(l2.size(pullback(jax.grad(loss)(logits, y))[0]) for loss in both))


def _attacks(
    apply_fn: ApplyFn,
    params: Any,
    key: jax.Array,
    xs: jax.Array,
    ys: jax.Array,
    norm: Norm,
    box: Box | None,
    epsilons: Sequence[float] | None,
    num_steps: int,
) -> list[Flag]:
    options: dict[str, Any] = dict(norm=norm, box=None if box is None else tuple(map(float, box)))
    keys = iter(jax.random.split(key, 3 + 2 * (4 if epsilons is None else len(epsilons))))
    nearest = _lifted(minimum_norm, apply_fn, num_steps=num_steps, **options)(params, next(keys), xs, ys)
    distances = np.asarray(nearest.distance)
    clean = float(np.mean(distances > 0))
    epsilons = _radii(distances, xs, norm) if epsilons is None else epsilons
    far = 10 * float(epsilons[-1])

    def survivors(run: Measurement[Attack], **values: float) -> np.ndarray:
        return ~np.asarray(run(params, next(keys), xs, ys, **values).found)

    def published(epsilon: float) -> float:
        return float(survivors(ascent, epsilon=epsilon, step_size=2.5 * epsilon / num_steps).mean())

    ascent = _lifted(pgd, apply_fn, num_steps=num_steps, **options)
    worst = _lifted(worst_case, apply_fn, num_steps=num_steps, **options)
    robust = [published(epsilon) for epsilon in epsilons]
    survived = [survivors(worst, epsilon=epsilon) & (distances > epsilon) for epsilon in epsilons]
    flags = [
        Flag.judge(
            "unbounded attack", published(far), 0.0,
            f"accuracy under PGD on the cross-entropy at ten times the last epsilon ({far:g})",
            "a ball that large holds other classes: the attack fails, do not report its accuracy",
            len(xs),
        ),
        plateau(epsilons, clean, robust, n=len(xs)),
        rises(epsilons, robust, n=len(xs)),
        weak_loss(robust, [float(one.mean()) for one in survived], n=len(xs)),
        layer_cake(epsilons, robust, distances),
    ]  # fmt: skip
    if norm is not l1 and xs.ndim <= 4:  # what the square attack takes: images
        middle = len(epsilons) // 2
        search = _lifted(square, apply_fn, num_queries=5 * num_steps, **options)
        flags.append(_misled(survived[middle] & ~survivors(search, epsilon=epsilons[middle])))
    return flags


def _radii(distances: np.ndarray, xs: jax.Array, norm: Norm) -> list[float]:
    """Quartiles and 95th percentile of the distances of points that are right, or shares of what the inputs span."""
    shares = (0.25, 0.5, 0.75, 0.95)
    right = distances[(distances > 0) & np.isfinite(distances)]
    radii = [float(np.quantile(right, share)) for share in shares] if len(right) else []
    if len(set(radii)) == len(shares):
        return radii
    span = float(norm.size(jnp.max(xs, 0) - jnp.min(xs, 0))) or 1.0
    return [share * span for share in shares]


def _misled(missed: np.ndarray) -> Flag:
    return Flag.judge(
        "gradients mislead", float(missed.mean()), 0.01,
        "share of points that the square attack, without gradients, breaks and no attack with gradients does",
        "do not trust attacks with gradients on this classifier",
        len(missed),
    )  # fmt: skip
