"""Training on the worst inputs of a ball of fixed size: adversarial training and TRADES."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.attacks.base import random_start
from jaxmargin.attacks.projected_gradient_descent import ascend
from jaxmargin.losses import cross_entropy
from jaxmargin.norms import Norm, l2
from jaxmargin.objectives.objective import LogitsFn, Objective
from jaxmargin.types import Box

__all__ = ["adversarial", "trades"]

Epsilon = float | Callable[[jax.Array], jax.Array]

# Standard deviation of the noise that TRADES starts from: at x itself the divergence has no gradient.
_NOISE = 1e-3


def adversarial(
    *, norm: Norm = l2, epsilon: Epsilon, num_steps: int = 10, step_size: float | None = None, box: Box | None = None
) -> Objective:
    """Adversarial training: cross-entropy at the last iterate of PGD on it, from a random start.

    Args:
      norm: of the ball.
      epsilon: its radius in input units, or a schedule: optimiser step -> radius, such as optax's.
      num_steps: steps of PGD.
      step_size: their length, in input units; None for 2.5 epsilon / num_steps.
      box: (low, high) of valid inputs, such as (0, 1); None for none.

    Returns:
      Objective.

    Raises:
      ValueError: epsilon, num_steps or step_size not positive, an empty box.

    Reference:
      Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks.

    >>> objective = adversarial(epsilon=1.0, box=(0.0, 1.0))
    """
    radius, length = _sizes(epsilon, num_steps, step_size, box)

    def inner_maximization(
        logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, example_state: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        size = radius(step)
        start = random_start(key, x, norm, size)
        loss = lambda z: cross_entropy(logits_fn(z), y)  # noqa: E731
        options: dict[str, Any] = dict(norm=norm, step_size=length(size), num_steps=num_steps, box=box)
        return ascend(loss, start, x, epsilon=size, **options), example_state

    def example_loss(logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, x_adv: jax.Array) -> jax.Array:
        return cross_entropy(logits_fn(x_adv), y)

    return Objective(example_loss, inner_maximization=inner_maximization)


def trades(
    *,
    norm: Norm = l2,
    epsilon: Epsilon,
    beta: float = 6.0,
    num_steps: int = 10,
    step_size: float | None = None,
    box: Box | None = None,
) -> Objective:
    """TRADES: cross-entropy + beta max_{||x' - x|| <= epsilon} KL(p(x) || p(x')).

    Args:
      norm: of the ball.
      epsilon: its radius in input units, or a schedule: optimiser step -> radius, such as optax's.
      beta: weight of the divergence.
      num_steps: steps of PGD on it, from x and a little noise.
      step_size: their length, in input units; None for 2.5 epsilon / num_steps.
      box: (low, high) of valid inputs, such as (0, 1); None for none.

    Returns:
      Objective.

    Raises:
      ValueError: epsilon, beta, num_steps or step_size not positive, an empty box.

    Reference:
      Zhang et al. 2019, Theoretically Principled Trade-off between Robustness and Accuracy.

    >>> objective = trades(epsilon=1.0, beta=6.0, box=(0.0, 1.0))
    """
    radius, length = _sizes(epsilon, num_steps, step_size, box)
    checks.positive("beta", beta)

    def inner_maximization(
        logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, example_state: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        size = radius(step)
        start = x + _NOISE * jax.random.normal(key, x.shape, x.dtype)
        logits = logits_fn(x)
        options: dict[str, Any] = dict(norm=norm, step_size=length(size), num_steps=num_steps, box=box)
        return ascend(lambda z: _divergence(logits, logits_fn(z)), start, x, epsilon=size, **options), example_state

    def example_loss(logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, x_adv: jax.Array) -> jax.Array:
        logits = logits_fn(x)
        return cross_entropy(logits, y) + beta * _divergence(logits, logits_fn(x_adv))

    return Objective(example_loss, inner_maximization=inner_maximization)


def _sizes(
    epsilon: Epsilon, num_steps: int, step_size: float | None, box: Box | None
) -> tuple[Callable[[jax.Array], Any], Callable[[Any], Any]]:
    """The radius at an optimiser step, and the length of an attack's step within a radius."""
    if not callable(epsilon):
        checks.positive("epsilon", epsilon)
    checks.whole("num_steps", num_steps)
    checks.box(box)
    if step_size is not None:
        checks.positive("step_size", step_size)
    radius: Callable[[jax.Array], Any] = epsilon if callable(epsilon) else lambda step: epsilon
    return radius, lambda size: 2.5 * size / num_steps if step_size is None else step_size


def _divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
    """KL(softmax(logits) || softmax(others))."""
    here, there = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
    return jnp.sum(jnp.exp(here) * (here - there))
