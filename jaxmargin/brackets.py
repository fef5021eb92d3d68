"""Three answers for every point: a certified lower bound, an estimate, and the distance of a found adversarial."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin.attacks import Attack, minimum_norm
from jaxmargin.batching.rules import Batch, batch_rule, single_example
from jaxmargin.certificates.certificate import Certificate, certified_margin
from jaxmargin.lipschitz.sampled_margin import margins_of_batch
from jaxmargin.lipschitz.sampling import Sampling
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Array, Box, LogitsFn
from jaxmargin.xla_cpu.rows import CONVOLVING_ROWS, by_rows

__all__ = ["Bracket", "bracket", "contradicts"]


# What float32 leaves open, relative to a distance and at inputs of size 1: no contradiction is claimed within it.
_RELATIVE, _ABSOLUTE = 1e-4, 2e-6


class Bracket(NamedTuple):
    """Distances of one example, or of n, to where the prediction changes, in input units and without sign.

    Attributes:
      certified: no change nearer than this, proven; 0 where nothing is known (see ``supported``).
      estimated: the sampled Lipschitz margin, neither bound.
      attacked: a change was found at this distance; infinite where none was found.
      contradicts: True where the estimate exceeds the attack's distance and so cannot be right.
      predicted: the predicted class; the signed margin is negative where it is not y.
      capped: True where the estimate reached the radius of the ball.
      supported: False where the classifier shows no layers that can be certified.
      x_adv: the input that the attack found, [*d].
    """

    certified: jax.Array
    estimated: jax.Array
    attacked: jax.Array
    contradicts: jax.Array
    predicted: jax.Array
    capped: jax.Array
    supported: jax.Array
    x_adv: jax.Array

    def claimed(self, ys: Array) -> tuple[Array, Array]:
        """Which inputs are found, [n], and the classes that they do not have."""
        return jnp.isfinite(self.attacked), self.predicted

    def revised(self, x_adv: Array, moved: Array, distance: Array) -> "Bracket":
        """The bracket with other inputs and distances of the attack where moved, [n]."""
        attacked = jnp.where(moved, distance, self.attacked)
        contradicted = contradicts(self.estimated, attacked)
        return self._replace(x_adv=jnp.asarray(x_adv), attacked=attacked, contradicts=contradicted)


def _of_batch(
    logits_fn: LogitsFn,
    key: jax.Array,
    batch: Batch,
    *,
    norm: Norm,
    radius: float,
    num_steps: int,
    box: Box | None,
    **options: Any,
) -> Bracket:
    """``bracket`` of b examples, whose estimates share their samples."""
    key_estimate, key_attack = (jax.random.fold_in(key, use) for use in range(2))  # each batch gets the same key
    estimate = margins_of_batch(logits_fn, key_estimate, batch, Sampling(norm, radius, **options))

    def others(index: jax.Array, x: jax.Array, predicted: jax.Array) -> tuple[Attack, Certificate]:
        key_example = jax.random.fold_in(key_attack, index)
        attack = minimum_norm(logits_fn, key_example, x, predicted, norm=norm, num_steps=num_steps, box=box)
        return attack, certified_margin(logits_fn, key_example, x, predicted, norm=norm, radius=radius)

    examples = batch.indices, batch.xs, estimate.predicted
    attack, certificate = by_rows(jax.vmap(others), examples, jnp.sum(batch.valid), CONVOLVING_ROWS)
    estimated = jnp.abs(estimate.margin)
    return Bracket(
        certified=certificate.distance,
        estimated=estimated,
        attacked=attack.distance,
        contradicts=contradicts(estimated, attack.distance),
        predicted=estimate.predicted,
        capped=estimate.capped,
        supported=certificate.supported,
        x_adv=attack.x_adv,
    )


@batch_rule(_of_batch, batch_size=lambda: 64, rows=CONVOLVING_ROWS)
def bracket(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    radius: float = 5.0,
    num_samples: int = 51_200,
    chunk_size: int | None = None,
    exact: bool = False,
    num_steps: int = 500,
    box: Box | None = None,
) -> Bracket:
    """certified <= true distance <= attacked, and the estimate of the same distance beside them.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key; the estimate takes ``fold_in(key, 0)`` and the attack ``fold_in(key, 1)``.
      x: one example, [*d].
      y: its class, which does not matter: all three distances are those to another prediction.
      norm: the norm that measures the distance.
      radius: of the ball in which slopes are sampled, and the largest certified or estimated distance.
      num_samples: samples of the estimate.
      chunk_size: samples held in memory at once; None chooses.
      exact: whether all classes see all samples, as in ``lipschitz_margin``.
      num_steps: steps of ``minimum_norm``.
      box: (low, high) of valid inputs, which the attack keeps to; certificate and estimate know no box.

    Returns:
      Bracket.

    Raises:
      ValueError: see ``lipschitz_margin``, ``minimum_norm`` and ``certified_margin``.

    >>> import functools, jax, jax.numpy as jnp, jaxmargin as jm
    >>> model = jm.models.linear((2,), 2)
    >>> params = {"Dense_0": {"kernel": jnp.array([[3.0, 0.0], [4.0, 0.0]]), "bias": jnp.zeros(2)}}
    >>> logits_fn = functools.partial(model.apply, params)
    >>> three = bracket(logits_fn, jax.random.key(0), jnp.array([1.0, 0.5]), 0, num_samples=64, num_steps=20)
    >>> [round(float(distance), 3) for distance in three[:3]], bool(three.contradicts)
    ([1.0, 1.0, 1.0], False)
    """
    return single_example(
        _of_batch, logits_fn, key, x, y, norm=norm, radius=radius, num_samples=num_samples, chunk_size=chunk_size,
        exact=exact, num_steps=num_steps, box=box,
    )  # fmt: skip


def contradicts(estimated: Any, attacked: Any) -> Any:
    """Whether an estimated distance exceeds that of a misclassified input by more than float32 leaves open.

    Args:
      estimated: distances, [n] or one.
      attacked: distances of misclassified inputs, likewise.

    Returns:
      Bools, likewise.
    """
    return estimated > attacked * (1 + _RELATIVE) + _ABSOLUTE
