"""The nearest misclassified input: the best that DDN, FMN and DeepFool find, drawn back to the boundary.

All of them measure lengths against the distance that they look for, so scaling the inputs scales the results.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmargin.attacks.base import Attack, bisect, clip_to_box, target_of
from jaxmargin.attacks.decoupled_direction_norm import ddn
from jaxmargin.attacks.deep_fool import deepfool
from jaxmargin.attacks.fast_minimum_norm import fmn
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn

__all__ = ["bisect_boundary", "minimum_norm"]

_HALVINGS = 20  # of a bisection: the boundary to a millionth of the segment


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
    target = target_of(logits_fn, x, y, norm, box, num_steps=num_steps)
    clip, x, x_adv = clip_to_box(box), target.x, jnp.asarray(x_adv).astype(target.x.dtype)

    def at(share: jax.Array) -> jax.Array:
        return jnp.where(share >= 1, x_adv, clip(x + share * (x_adv - x)))

    def beyond(z: jax.Array) -> jax.Array:
        return target.misclassified(target.logits_fn(z))

    wrong, one = jnp.argmax(target.logits_fn(x)) != y, target.begin(jnp.ones((), x.dtype))
    _, high = bisect(lambda share: beyond(at(share)), 0 * one, one, num_steps)
    nearer = jnp.where(wrong, x, at(high))
    return target.outcome(jnp.where(wrong | beyond(x_adv), nearer, x_adv), norm)
