"""DeepFool: from one linearised boundary to the next."""

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.attacks.base import Attack, clip_to_box, target_of
from jaxmargin.margins import gap_over_slope
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn

__all__ = ["deepfool"]


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
    target = target_of(logits_fn, x, y, norm, box, num_steps=num_steps, candidates=candidates)
    checks.positive("overshoot", overshoot)
    x, logits_fn, num_classes = target.x, target.logits_fn, target.num_classes
    clip = clip_to_box(box)

    def step(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        t, offset, _ = state
        z = clip(x + (1 + overshoot) * offset)
        logits, pullback = jax.vjp(logits_fn, z)
        sizes = jnp.maximum(jnp.abs(logits[y]), jnp.abs(logits[classes]))
        gaps = (logits[y] - logits[classes] + target.rounding * sizes).astype(logits.dtype)  # [k]
        one_hot = jax.nn.one_hot(jnp.append(classes, y), num_classes, dtype=logits.dtype)
        normals = jax.vmap(lambda v: _inward(pullback(v)[0], z, box))(one_hot[:-1] - one_hot[-1][None])  # [k, *d]
        slopes = jax.vmap(norm.dual_size)(normals)
        # A tie that no step can break is no way out.
        ratios = jnp.where(slopes <= 0, jnp.inf, gap_over_slope(gaps, slopes))  # [k]
        nearest = jnp.argmin(ratios)
        hop = jnp.where(jnp.isfinite(ratios[nearest]), ratios[nearest] * (1 + 1e-4), 0.0)
        offset = offset + hop * norm.steepest(normals[nearest])
        return t + 1, offset, target.misclassified(logits_fn(clip(x + (1 + overshoot) * offset)))

    with jax.default_matmul_precision("float32"):
        logits = logits_fn(x)
        order = jnp.argsort(jnp.where(jnp.arange(num_classes) == y, jnp.inf, -logits))
        classes = order[: min(candidates, num_classes - 1)]
        begin = jnp.array(0), jnp.zeros_like(x), jnp.argmax(logits) != y
        _, offset, _ = jax.lax.while_loop(lambda state: (state[0] < num_steps) & ~state[2], step, begin)
        return target.outcome(clip(x + (1 + overshoot) * offset), norm)


def _inward(direction: jax.Array, z: jax.Array, box: Box | None) -> jax.Array:
    """The direction without the coordinates in which it leaves the box, where it would make no way."""
    if box is None:
        return direction
    low, high = box
    return jnp.where((z <= low) & (direction < 0) | (z >= high) & (direction > 0), 0.0, direction)
