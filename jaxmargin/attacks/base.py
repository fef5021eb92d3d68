"""What all attacks share: their result, the losses they raise, and the set they may search."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxmargin import checks, losses
from jaxmargin.norms import Norm
from jaxmargin.types import Array, Box, LogitsFn
from jaxmargin.varying import axes_of, varying
from jaxmargin.xla_cpu.equations import equations

__all__ = [
    "LOSSES", "Attack", "Loss", "Target", "bisect", "clip_to_box", "loss_named", "project_to_ball", "random_start",
    "target_of",
]  # fmt: skip

Loss = Callable[[jax.Array, jax.Array], jax.Array]

# What an attack raises: (logits [c], y) -> scalar.
LOSSES: dict[str, Loss] = {
    "cross_entropy": losses.cross_entropy,
    "logit_margin": lambda logits, y: -losses.logit_margin(logits, y),
    "scaled_cross_entropy": losses.scaled_cross_entropy,
    "dlr": losses.dlr,
}


Search = TypeVar("Search")


class Attack(NamedTuple):
    """What an attack found for one example, or for n stacked along the first axis.

    Attributes:
      x_adv: the perturbed input, [*d], inside the ball and, where x is, the box.
      found: True where x_adv is classified as something other than y.
      distance: ||x_adv - x|| where found, infinity elsewhere.
    """

    x_adv: jax.Array
    found: jax.Array
    distance: jax.Array

    def claimed(self, ys: Array) -> tuple[Array, Array]:
        """Which inputs are found, [n], and the classes that they do not have."""
        return self.found, ys

    def revised(self, x_adv: Array, moved: Array, distance: Array) -> "Attack":
        """The attack with other inputs and distances where moved, [n]."""
        distance = jnp.where(moved, distance, self.distance)
        return Attack(jnp.asarray(x_adv), jnp.where(moved, jnp.isfinite(distance), self.found), distance)


class Target(NamedTuple):
    """What an attack attacks: a classifier and an example of it, in a precision that searches can work in.

    Attributes:
      logits_fn: z [*d] -> logits [c] at z as the example's own dtype holds it.
      x: [*d] the example.
      y: its class.
      dtype: of the example and of what is found, before it was widened to single precision.
      num_classes: c.
      rounding: the error of a logit, relative to its size, that another way to compute it may make: eagerly or
        compiled, alone or in a batch.
      axes: of shard_map, over which the logits vary.
    """

    logits_fn: LogitsFn
    x: jax.Array
    y: jax.Array
    dtype: jnp.dtype
    num_classes: int
    rounding: float
    axes: frozenset[str]

    def begin(self, search: Search) -> Search:
        """What a search begins with, to be handed to a loop; see ``varying``."""
        return varying(search, self.axes | axes_of(self.x, self.y))

    @property
    def horizon(self) -> float:
        """A distance that the example's dtype holds, and nothing that is searched for lies beyond."""
        largest = float(jnp.finfo(self.dtype).max)
        return float(largest**0.8)

    def margin(self, logits: jax.Array, share: float = 1.0) -> jax.Array:
        """The logit margin and what rounding may add to it: negative where the prediction is not y, however computed.

        Args:
          logits: [c].
          share: of the rounding.

        Returns:
          A scalar.
        """
        margin, own = losses.logit_margin(logits, self.y), logits[self.y]
        size = jnp.maximum(jnp.abs(own - margin), jnp.abs(own))  # of the two logits that are compared
        return (margin + share * self.rounding * size).astype(logits.dtype)

    def misclassified(self, logits: jax.Array, share: float = 1.0) -> jax.Array:
        """Whether the prediction is not y, by more than rounding.

        Args:
          logits: [c].
          share: of the rounding.

        Returns:
          A bool.
        """
        return self.margin(logits, share) < 0

    def value_and_gradient(self, loss: Callable[[jax.Array], Any], z: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        """Logits, a loss of them and its gradient, by one pass forwards and one backwards.

        Args:
          loss: logits [c] -> scalar.
          z: [*d] where.

        Returns:
          (logits [c], the loss, its gradient [*d]).
        """
        logits, pullback = jax.vjp(self.logits_fn, z)
        value, slope = jax.value_and_grad(loss)(logits)
        # Back through the network go numbers of size 1, which half precision holds too.
        size = jnp.max(jnp.abs(slope))
        size = jnp.where(size > 0, jnp.exp2(jnp.floor(jnp.log2(jnp.where(size > 0, size, 1.0)))), 1.0)
        return logits, value, pullback(slope / size)[0] * size

    def projection(self, norm: Norm, epsilon: float | jax.Array, box: Box | None) -> Callable[[jax.Array], jax.Array]:
        """The projection onto what the ball and the box hold of the example's own dtype; see ``project_to_ball``."""
        return project_to_ball(self.x, norm, epsilon, box, dtype=self.dtype)

    def outcome(self, x_adv: jax.Array, norm: Norm) -> Attack:
        """The result that x_adv makes: found where it is x, classified as another class, or another input, clearly so.

        Args:
          x_adv: [*d].
          norm: of the distance.

        Returns:
          Attack, its distance NaN where the logits are not finite.
        """
        x_adv = x_adv.astype(self.dtype).astype(self.x.dtype)
        logits = self.logits_fn(x_adv)
        # Half of the rounding that searches allow for: what they found holds here too.
        same = jnp.argmax(logits) != self.y
        found = jnp.where((x_adv == self.x).all(), same, self.misclassified(logits, 0.5))
        distance = jnp.where(found, norm.size(x_adv - self.x), jnp.inf)
        return Attack(x_adv.astype(self.dtype), found, jnp.where(jnp.isfinite(logits).all(), distance, jnp.nan))


def target_of(logits_fn: LogitsFn, x: jax.Array, y: jax.Array, norm: Norm, box: Box | None, **counts: int) -> Target:
    """Looks at a classifier and an example, and refuses bad input to an attack.

    Args:
      logits_fn: x -> logits [c].
      x: one example, [*d].
      y: its class.
      norm: of distances.
      box: (low, high) of valid inputs or None.
      **counts: options that are whole numbers of at least 1.

    Returns:
      Target.

    Raises:
      ValueError: any of them.
    """
    checks.example(x)
    checks.label(y)
    checks.norm(norm)
    checks.box(box)
    checks.in_box("x", x, box)
    for name, count in counts.items():
        checks.whole(name, count)
    x = jnp.asarray(x)
    program, logits = jax.make_jaxpr(logits_fn, return_shape=True)(x)
    kinds = {out.aval.dtype for eqn in equations(program) for out in eqn.outvars if hasattr(out.aval, "dtype")}
    coarsest = max(float(jnp.finfo(kind).eps) for kind in kinds | {logits.dtype} if jnp.issubdtype(kind, jnp.floating))
    num_classes = checks.logits_like(logits, jnp.shape(x))
    checks.class_of("y", y, num_classes)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return Target(
        lambda z: logits_fn(z.astype(x.dtype)).astype(wide),
        x.astype(wide),
        y,
        x.dtype,
        num_classes,
        # Half precision is rounded once a layer, single precision once a term.
        coarsest * (32 if coarsest < 1e-6 else 8),
        axes_of(program.out_avals),
    )


def loss_named(loss: str | Loss) -> Loss:
    """The loss of that name, or the function itself.

    Args:
      loss: a name in LOSSES, or a function (logits [c], y) -> scalar.

    Returns:
      The function.

    Raises:
      ValueError: an unknown name.
    """
    if callable(loss):
        return loss
    checks.one_of("loss", loss, LOSSES)
    return LOSSES[loss]


def clip_to_box(box: Box | None) -> Callable[[jax.Array], jax.Array]:
    """The projection onto the box.

    Args:
      box: (low, high) of valid inputs; None for all.

    Returns:
      z [*d] -> [*d].
    """
    if box is None:
        return lambda z: z
    low, high = box
    return lambda z: jnp.clip(z, low, high)


def project_to_ball(
    x: jax.Array, norm: Norm, epsilon: float | jax.Array, box: Box | None, *, dtype: jnp.dtype | None = None
) -> Callable[[jax.Array], jax.Array]:
    """The projection onto the box, then onto the ball around x, which stays in the box where x is.

    Args:
      x: [*d] the centre.
      norm: the norm of the ball.
      epsilon: its radius.
      box: (low, high) of valid inputs; None for all.
      dtype: whose numbers the result is made of; None for that of x.

    Returns:
      z [*d] -> [*d], not farther from x than epsilon after rounding either.
    """
    clip, grid = clip_to_box(box), x.dtype if dtype is None else dtype

    def project(z: jax.Array) -> jax.Array:
        offset = norm.project(clip(z) - x, epsilon)
        z = clip((x + offset).astype(grid))
        # The sum is rounded and may lie farther out than the offset: one step of the grid back towards x.
        back = jnp.nextafter(z, x.astype(grid)).astype(x.dtype)
        z = z.astype(x.dtype)
        return jnp.where(jnp.abs(z - x) > jnp.abs(offset), back, z)

    return project


def random_start(key: jax.Array, x: jax.Array, norm: Norm, epsilon: float | jax.Array) -> jax.Array:
    """A point drawn uniformly from a ball.

    Args:
      key: a PRNG key.
      x: [*d] the centre.
      norm: of the ball.
      epsilon: its radius.

    Returns:
      [*d], in no box yet.
    """
    return x + epsilon * norm.sample_ball(key, x.shape).astype(x.dtype)


def bisect(
    beyond: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Halves an interval again and again, keeping the half where something begins.

    Args:
      beyond: a number -> whether it has begun there; False at low and True at high, or neither moves.
      low: lower end.
      high: upper end.
      num_steps: halvings.

    Returns:
      (low, high).

    >>> [float(end) for end in bisect(lambda z: z * z > 2, jnp.array(0.0), jnp.array(2.0), 4)]
    [1.375, 1.5]
    """

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        over = beyond(middle)
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    ends: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(0, num_steps, halve, (low, high))
    return ends
