"""The largest gradient norms around several centres, sampled in rounds, over the classes that can decide the margin.

The margin is min_k (f_p - f_k) / L_k, the gap of a class over its gradient norm. All classes are candidates in a pilot;
then rounds that double the number of samples go on with those whose norm may still rise so far, by ``tails``, that they
decide. The others are eliminated. Should a class have risen faster than foreseen, and an eliminated one come too close
in that light, its centre is flagged and finished with all classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin.lipschitz import tails
from jaxmargin.lipschitz.gradient_norms import GradientNorms
from jaxmargin.lipschitz.sampler import Centre, Sampler, all_norms, tails_of
from jaxmargin.lipschitz.sampling import Sampling
from jaxmargin.lipschitz.tails import Tail
from jaxmargin.margins import gap_over_slope
from jaxmargin.varying import axes_of, varying

__all__ = ["PILOT", "LargestNorms", "largest_norms"]

# Samples of the pilot, in which every class is a candidate, and where there are MANY classes.
PILOT, PILOT_OF_MANY, MANY = 256, 64, 100


class LargestNorms(NamedTuple):
    """What was found at one centre, or at b stacked along the first axis.

    Attributes:
      largest: [m] the largest gradient norm seen of each class.
      seen: [m] samples it was looked for in.
      flagged: bool, whether eliminated classes came too close, so that all were run to the end.
      remainder: by how much the margin may still fall until num_samples, in units of the input.
    """

    largest: jax.Array
    seen: jax.Array
    flagged: jax.Array
    remainder: jax.Array


class _State(NamedTuple):
    """Where the sampling of one centre stands, or of b."""

    tail: Tail  # of [m] each
    threshold: jax.Array  # [m]
    unit: jax.Array  # [m] the largest gradient norm of the pilot
    rise: jax.Array  # [m] how far the pilot expected it to rise, without any safety
    seen: jax.Array  # [m]
    missed: jax.Array  # [m] by how much others rose since it was eliminated
    flagged: jax.Array


def largest_norms(
    gradient_norms: GradientNorms, centres: Centre, sampling: Sampling, *, rows: int, least_rows: int
) -> LargestNorms:
    """The largest gradient norm of every class that can decide the margin, at b centres that share their samples.

    Args:
      gradient_norms: of the classifier.
      centres: Centre with fields stacked [b].
      sampling: of the balls; a margin beyond the radius is of no interest.
      rows: samples looked at together.
      least_rows: fewer than so many are never looked at.

    Returns:
      LargestNorms with fields stacked [b]. A class that cannot decide the margin keeps the norm it was left with.
    """
    num_samples = sampling.num_samples
    sampler = Sampler(gradient_norms, centres, num_samples, rows, sampling.axis_name)
    if sampling.exact and sampling.tolerance is None:
        return _of_all_samples(sampler)
    length = min(num_samples, PILOT if centres.gaps.shape[1] < MANY else PILOT_OF_MANY)
    rules = _Rules(sampling, length)
    ends = [*(length * 2**i for i in range(64) if length * 2**i < num_samples), num_samples]
    bounds, valid = jnp.asarray(ends, jnp.int32), jnp.broadcast_to(centres.valid[:, None], centres.gaps.shape)  # [b, m]

    def round_(i: jax.Array, state: _State) -> _State:
        return _follow(sampler, state, bounds[i], bounds[i + 1], _judged(rules.active, state, centres) & valid)

    state = _pilot(sampler, length, min(rows, -(-length // least_rows) * least_rows))
    state = jax.lax.fori_loop(0, len(ends) - 1, round_, state)
    if len(ends) > 1 and sampling.tolerance is None and not sampling.exact:
        flagged = (_judged(rules.too_close, state, centres) & valid).any(1)  # [b]
        behind = flagged[:, None] & (state.seen < num_samples) & valid
        state = _follow(sampler, state, length, num_samples, behind)._replace(flagged=flagged)
    return LargestNorms(state.tail.largest, state.seen, state.flagged, _judged(rules.remainder, state, centres))


def _of_all_samples(sampler: Sampler) -> LargestNorms:
    none, num_samples = jnp.zeros_like(sampler.centres.gaps), sampler.num_samples
    tail = tails_of(sampler, 0, num_samples, None, none, none)
    return LargestNorms(tail.largest, jnp.full(none.shape, num_samples, jnp.int32), none[:, 0] > 0, none[:, 0])


def _judged(rule: Callable[[_State, jax.Array], jax.Array], state: _State, centres: Centre) -> jax.Array:
    """[b, ...] what a rule says of every centre."""
    judged: jax.Array = jax.lax.map(lambda centre: rule(*centre), (state, centres.gaps))
    return judged


def _follow(
    sampler: Sampler, state: _State, start: jax.Array | int, end: jax.Array | int, candidates: jax.Array
) -> _State:
    """Shows samples start to end to the candidates [b, m]."""
    tail = tails.merge(state.tail, tails_of(sampler, start, end, candidates, state.threshold, state.unit))
    rise = jnp.max(tail.largest - state.tail.largest, 1, keepdims=True)  # [b, 1]
    missed = jnp.where(candidates, state.missed, state.missed + rise)
    return state._replace(tail=tail, seen=jnp.where(candidates, end, state.seen), missed=missed)


class _Rules(NamedTuple):
    """What is decided about one centre, from where its sampling stands and its gaps [m]."""

    sampling: Sampling
    pilot: int  # samples of the pilot

    def active(self, state: _State, gaps: jax.Array) -> jax.Array:
        """[m] the candidates of the next round."""
        low, now = self._least(state, gaps), self._margin(state, gaps)
        near = jnp.ones(gaps.shape, bool) if self.sampling.exact else low <= now
        candidates, tolerance = near & (state.seen == jnp.max(state.seen)), self.sampling.tolerance
        return candidates if tolerance is None else candidates & (now - jnp.min(low) > tolerance)

    def too_close(self, state: _State, gaps: jax.Array) -> jax.Array:
        """[m] the eliminated classes that could decide after all, had they risen as the others unexpectedly did."""
        risen = (state.tail.largest - state.unit) / jnp.where(state.rise > 0, state.rise, 1.0)
        surprise = jnp.max(jnp.where((state.seen > self.pilot) & (state.rise > 0), risen, 1.0))
        rise = jnp.maximum(jnp.maximum(surprise, 1.0) * self._left(state), state.missed)
        low = gap_over_slope(gaps, state.tail.largest + rise)
        return (state.seen < self.sampling.num_samples) & (low < self._margin(state, gaps))

    def remainder(self, state: _State, gaps: jax.Array) -> jax.Array:
        """By how much the margin may still fall."""
        return jnp.maximum(self._margin(state, gaps) - jnp.min(self._least(state, gaps)), 0.0)

    def _margin(self, state: _State, gaps: jax.Array) -> jax.Array:
        return jnp.minimum(jnp.min(gap_over_slope(gaps, state.tail.largest)), self.sampling.radius)

    def _least(self, state: _State, gaps: jax.Array) -> jax.Array:
        """[m] the distances at which classes could catch up with norms as large as they may become."""
        return gap_over_slope(gaps, state.tail.largest + self._left(state))

    def _left(self, state: _State) -> jax.Array:
        """[m] by how much norms may still rise."""
        total = self.sampling.num_samples
        return tails.predicted_increase(state.tail, state.unit, total, total / state.seen)


def _pilot(sampler: Sampler, length: int, rows: int) -> _State:
    """The first samples of all classes: their norms, the thresholds of their tails, and what the tails foretell."""
    total = sampler.num_samples

    def start(norms: jax.Array) -> _State:
        over = jax.vmap(tails.threshold)(norms)  # [m]
        unit = jnp.where(jnp.isnan(norms).any(1), jnp.nan, jnp.max(norms, 1))  # [m]
        counts = jnp.ones(length, bool)
        tail = jax.vmap(lambda s, o, u: tails.tail(s, counts, o, u, total))(norms, over, unit)
        rise = tails.predicted_increase(tail, unit, total, total / length) / tails.SAFETY
        seen = jnp.full(len(norms), length, jnp.int32)
        state = _State(tail, over, unit, rise, seen, jnp.zeros_like(unit), jnp.zeros((), bool))
        return varying(state, axes_of(norms))

    state: _State = jax.lax.map(start, all_norms(sampler, length, rows))
    return state
