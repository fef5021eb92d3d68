"""Losses of one example: (logits [c], y) -> scalar. A logit margin is positive where the prediction is right.

>>> import jax.numpy as jnp
>>> from jaxmargin import losses
>>> float(losses.logit_margin(jnp.array([1.0, 3.0, 2.5]), 1))
0.5
"""

import jax
import jax.numpy as jnp
import optax

__all__ = ["cross_entropy", "dlr", "logit_margin", "scaled_cross_entropy", "soft_logit_margin", "targeted_dlr"]


def logit_margin(logits: jax.Array, y: jax.Array) -> jax.Array:
    """f_y - max_{k != y} f_k, positive where the prediction is right.

    Args:
      logits: [c], c >= 2.
      y: integer class in [0, c).

    Returns:
      The margin in logits, a scalar.
    """
    return logits[y] - jnp.max(_without(logits, y))


def soft_logit_margin(logits: jax.Array, y: jax.Array) -> jax.Array:
    """f_y - log sum_{k != y} exp f_k, never above ``logit_margin``; cross-entropy is softplus of its negative.

    Args:
      logits: [c], c >= 2.
      y: integer class in [0, c).

    Returns:
      A scalar.

    Reference:
      Ding et al. 2020, MMA Training, section 2 (there with the opposite sign).
    """
    return logits[y] - jax.nn.logsumexp(_without(logits, y))


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """-log softmax(logits)_y; in float32 its gradient is exactly zero once the margin passes about 17, see ``attacks``.

    Args:
      logits: [c].
      y: integer class in [0, c).

    Returns:
      A scalar >= 0, in nats.
    """
    loss: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return loss


def scaled_cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy of the logits divided by the gap between their two largest, which cannot saturate.

    The gap counts as a constant, so that the gradient is the cross-entropy's at a temperature that fits the point.

    Args:
      logits: [c], c >= 2.
      y: integer class in [0, c).

    Returns:
      A scalar >= 0, in nats.
    """
    top = jax.lax.top_k(logits, 2)[0]
    gap = jax.lax.stop_gradient(jnp.maximum(top[0] - top[1], 1e-12))
    return cross_entropy((logits - top[0]) / gap, y)


def dlr(logits: jax.Array, y: jax.Array) -> jax.Array:
    """-(f_y - max_{k != y} f_k) / (f_(1) - f_(3)): the margin relative to the spread of the three largest logits.

    Args:
      logits: [c], c >= 3.
      y: integer class in [0, c).

    Returns:
      A scalar, unchanged when the logits are scaled or shifted.

    Raises:
      ValueError: fewer than three classes.

    Reference:
      Croce and Hein 2020, Reliable evaluation of adversarial robustness, eq. (5).
    """
    if logits.shape[0] < 3:
        raise ValueError(f"logits have c={logits.shape[0]} classes: dlr needs three; use logit_margin below that")
    top = jax.lax.top_k(logits, 3)[0]
    return -logit_margin(logits, y) / (top[0] - top[2] + 1e-12)


def targeted_dlr(logits: jax.Array, y: jax.Array, target: jax.Array) -> jax.Array:
    """-(f_y - f_target) / (f_(1) - (f_(3) + f_(4)) / 2): ``dlr`` towards one class.

    Args:
      logits: [c], c >= 4.
      y: integer class in [0, c).
      target: integer class in [0, c), another one.

    Returns:
      A scalar, unchanged when the logits are scaled or shifted.

    Raises:
      ValueError: fewer than four classes.

    Reference:
      Croce and Hein 2020, Reliable evaluation of adversarial robustness, eq. (7).
    """
    if logits.shape[0] < 4:
        raise ValueError(f"logits have c={logits.shape[0]} classes: targeted_dlr needs four; use logit_margin below")
    top = jax.lax.top_k(logits, 4)[0]
    return -(logits[y] - logits[target]) / (top[0] - (top[2] + top[3]) / 2 + 1e-12)


def _without(logits: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(jnp.arange(logits.shape[0]) == y, -jnp.inf, logits)
