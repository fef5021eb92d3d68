"""MMA training: every example's own distance to the boundary is raised, up to d_max."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.attacks.adaptive_norm_pgd import LONGER, an_pgd
from jaxmargin.losses import cross_entropy, soft_logit_margin
from jaxmargin.norms import Norm, l2
from jaxmargin.objectives.objective import LogitsFn, Objective
from jaxmargin.types import Box

__all__ = ["mma"]


class _InnerResult(NamedTuple):
    x_adv: jax.Array  # on the boundary, or as near to it as AN-PGD came; x itself where it is wrong
    counts: jax.Array  # 0 where the boundary is farther away than d_max, else 1


def mma(
    *,
    norm: Norm = l2,
    d_max: float,
    min_epsilon: float | None = None,
    num_steps: int = 10,
    num_halvings: int = 10,
    clean_weight: float = 1 / 3,
    box: Box | None = None,
    reference: bool = False,
) -> Objective:
    """Max-margin adversarial training: cross-entropy on the boundary, where that is nearer than d_max.

    The step on  (1 - w) [x right and d(x) < d_max: CE(x + delta*); x wrong: CE(x)] + w CE(x)  with delta* the shortest
    perturbation that AN-PGD finds (``an_pgd``) moves the boundary away from x (Theorem 2.1). AN-PGD searches within
    max(min_epsilon, the distance found when the example came up last), which is the example_state. The boundary is that
    of the soft logit margin, never farther than the classifier's own.

    Args:
      norm: of the distance.
      d_max: distance up to which margins are raised, in input units.
      min_epsilon: the least radius of the search; None for d_max / 10.
      num_steps: steps of its PGD, 2.5 epsilon / num_steps long.
      num_halvings: bisection steps on the length of the perturbation, from 0 to 1.05 d_max.
      clean_weight: w, from 0 to below 1.
      box: (low, high) of valid inputs, such as (0, 1); None for none.
      reference: True keeps the habits of the authors' released code that ``an_pgd`` lists.

    Returns:
      Objective.

    Raises:
      ValueError: d_max, min_epsilon, num_steps or num_halvings not positive, min_epsilon above d_max, clean_weight
        outside [0, 1), an empty box.

    Reference:
      Ding et al. 2020, MMA Training, algorithms 1 and 2.

    >>> objective = mma(d_max=2.0, min_epsilon=0.5, num_steps=40, box=(0.0, 1.0))
    """
    checks.positive("d_max", d_max)
    least = d_max / 10 if min_epsilon is None else min_epsilon
    checks.positive("min_epsilon", least)
    if least > d_max:
        raise ValueError(f"min_epsilon={least} exceeds d_max={d_max}: the search would begin beyond its end")
    checks.whole("num_steps", num_steps)
    checks.whole("num_halvings", num_halvings)
    if not 0 <= clean_weight < 1:
        raise ValueError(f"clean_weight={clean_weight} must lie in [0, 1): at 1 no margin would be raised")
    checks.box(box)
    search: dict[str, Any] = dict(
        norm=norm, d_max=d_max, num_steps=num_steps, num_halvings=num_halvings, box=box, reference=reference
    )

    def inner_maximization(
        logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, example_state: jax.Array, step: jax.Array
    ) -> tuple[_InnerResult, jax.Array]:
        right = soft_logit_margin(logits_fn(x), y) > 0
        boundary = an_pgd(logits_fn, key, x, y, epsilon=jnp.maximum(example_state, least), **search)
        near = boundary.found & (boundary.distance < d_max)
        distance = jnp.where(boundary.found, boundary.distance, LONGER * d_max)
        inner_result = _InnerResult(jnp.where(right, boundary.x_adv, x), jnp.where(right, near, True))
        return inner_result, jnp.where(right, distance, 0.0).astype(example_state.dtype)

    def example_loss(logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, found: _InnerResult) -> jax.Array:
        margin_loss = found.counts * cross_entropy(logits_fn(found.x_adv), y)
        return (1 - clean_weight) * margin_loss + clean_weight * cross_entropy(logits_fn(x), y)

    return Objective(example_loss, inner_maximization=inner_maximization)
