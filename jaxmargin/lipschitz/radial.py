"""The sampled Lipschitz margin of the best radius: a steep place matters only if it is nearer than the boundary."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmargin.batching.rules import Batch, batch_rule, single_example
from jaxmargin.lipschitz.gradient_norms import GradientNorms
from jaxmargin.lipschitz.sampled_margin import margins_of_batch
from jaxmargin.lipschitz.sampling import Sampling
from jaxmargin.margins import Margins
from jaxmargin.norms import Norm, l2, radial
from jaxmargin.types import Box, LogitsFn

__all__ = ["radial_margin"]


def _of_batch(logits_fn: LogitsFn, key: jax.Array, batch: Batch, **options: Any) -> Margins:
    """``radial_margin`` of b examples, which share their samples."""
    sampling = Sampling(**options)

    def view(norms: GradientNorms) -> GradientNorms:
        return _within_reach(norms, logits_fn, sampling.norm, sampling.box)

    return margins_of_batch(logits_fn, key, batch, sampling._replace(norm=radial(sampling.norm)), view=view)


@batch_rule(_of_batch, batch_size=lambda: 16, divides_samples=True)
def radial_margin(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    radius: float = 5.0,
    num_samples: int = 51_200,
    chunk_size: int | None = None,
    box: Box | None = None,
    exact: bool = True,
    precision: str = "float32",
) -> Margins:
    """The sampled Lipschitz margin of the best radius: sign * max_{R <= radius} min{ min_{k != p} gap_k / L_k(R), R }.

    gap_k = (f_p - f_k)(x), and L_k(R) is the largest gradient norm at samples nearer than R. Samples are
    ``norms.radial``, all distances alike, and the first one is x itself. A sample at distance r and of gradient norm s
    bounds the distance at which class k catches up by max(r, gap_k / s), since radii up to r do not meet it; so no
    radius need be tried: the largest min(s, gap_k / r) of the samples is a constant L_k that gives the same. Never less
    than the bound from all of the samples at R = radius.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key; all points measured with it share their samples.
      x: one example, [*d].
      y: its class.
      norm: the norm that measures the distance.
      radius: the largest distance of a sample, and the largest margin that can come out.
      num_samples: number of sampled points.
      chunk_size: points held in memory at once, a divisor of num_samples; None chooses one.
      box: (low, high) clips the sampled points to valid inputs.
      exact: whether all classes see all samples. False follows only those that seem able to decide, several times
        faster; but norms cut by their distances grow unlike those that ``elimination`` foresees, so that the margin
        can come out larger (by 3 % at one of 225 points of tiny networks).
      precision: of the products behind the gradients, as in ``jax.default_matmul_precision``.

    Returns:
      Margins of one example: lipschitz holds the smallest constants L_k that no sample nearer than gap_k / L_k exceeds,
      so that margin, capped and the other fields follow from them as in ``lipschitz_margin``.

    Raises:
      ValueError: as ``lipschitz_margin``.

    Reference:
      Hein and Andriushchenko 2017, theorem 2.1, with its maximum over the radius.

    >>> import jax, jax.numpy as jnp
    >>> from jaxmargin.lipschitz import lipschitz_margin
    >>> steep_at_2 = lambda x: jnp.stack([1 - x[0] - 9 * jax.nn.relu(x[0] - 2), 0 * x[0]])
    >>> for measure in (lipschitz_margin, radial_margin):
    ...     print(measure(steep_at_2, jax.random.key(0), jnp.zeros(1), 0, num_samples=1024).margin)
    0.1
    1.0
    """
    return single_example(
        _of_batch, logits_fn, key, x, y, norm=norm, radius=radius, num_samples=num_samples, chunk_size=chunk_size,
        box=box, exact=exact, precision=precision,
    )  # fmt: skip


def _within_reach(norms: GradientNorms, logits_fn: LogitsFn, norm: Norm, box: Box | None) -> GradientNorms:
    """min(gradient norm, gap / distance of the sample) in place of norms, the first sample moved to the centre."""

    @jax.vmap
    def moved(index: jax.Array, leaf: jax.Array) -> jax.Array:
        return jnp.where(index > 0, leaf, 0.0)

    def perturbations(indices: jax.Array) -> Any:
        offsets = moved(indices, norms.offsets(indices))  # [s, *d]
        return moved(indices, norms.perturbations(indices)), jax.vmap(norm.size)(offsets) if box is None else offsets

    def features(x: jax.Array) -> Any:
        with jax.default_matmul_precision("float32"):
            logits = logits_fn(x)  # [c]
        return norms.features(x), x, logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def at(features: Any, perturbations: Any) -> Callable[[jax.Array], jax.Array]:
        inner, x, logits = features
        shared, away = perturbations
        lengths = away if box is None else jax.vmap(lambda u: norm.size(jnp.clip(x + u, *box) - x))(away)  # [s]
        norm_of = norms.at(inner, shared)

        def reaching(v: jax.Array) -> jax.Array:
            gap = jnp.sum(v * logits)  # not a product of low precision
            apart = lengths > 0
            most = jnp.where(apart, gap / jnp.where(apart, lengths, 1.0), jnp.inf)
            return jnp.minimum(norm_of(v), most)

        return reaching

    return norms._replace(perturbations=perturbations, features=features, at=at)
