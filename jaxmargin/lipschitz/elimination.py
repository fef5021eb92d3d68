"""The steepest slopes around several points, sampled in rounds, over the classes that can still decide the margin.

The margin is min_k (f_p - f_k) / L_k, the gap of a class over its slope. All classes take part in a pilot; then rounds
that double the number of samples go on with those whose slope may still rise so far, by ``tails``, that they decide.
The others have run as far as they can matter. Should a class have risen faster than foreseen, and one left behind come
too close in that light, its point is flagged and finished with all classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin.lipschitz import tails
from jaxmargin.lipschitz.gradient_norms import Slopes
from jaxmargin.lipschitz.tails import Tail
from jaxmargin.margins import gap_over_slope

__all__ = ["PILOT", "Point", "Steepest", "steepest"]

# Samples of the pilot, which every class takes part in, and where there are MANY classes.
PILOT, PILOT_OF_MANY, MANY = 256, 64, 100


class Point(NamedTuple):
    """What is asked of one point, or of b stacked along the first axis.

    Attributes:
      anchor: ``Slopes.anchor`` of the point.
      differences: [m, c], one v for each of m classes: the slope of class k is that of v_k . f.
      gaps: [m] how far each class is behind, v_k . f(x).
      asked: bool; False skips the point.
    """

    anchor: jax.Array
    differences: jax.Array
    gaps: jax.Array
    asked: jax.Array


class Steepest(NamedTuple):
    """What was found at one point, or at b stacked along the first axis.

    Attributes:
      largest: [m] the largest slope seen of each class.
      seen: [m] samples it was looked for in.
      flagged: bool, whether classes left behind came too close, so that all were run to the end.
      remainder: by how much the margin may still fall until num_samples, in units of the input.
    """

    largest: jax.Array
    seen: jax.Array
    flagged: jax.Array
    remainder: jax.Array


class _State(NamedTuple):
    """Where the sampling of one point stands, or of b."""

    tail: Tail  # of [m] each
    threshold: jax.Array  # [m]
    unit: jax.Array  # [m] the largest slope of the pilot
    rise: jax.Array  # [m] how far the pilot expected it to rise, without any safety
    seen: jax.Array  # [m]
    missed: jax.Array  # [m] by how much others rose since it was left behind
    flagged: jax.Array


def steepest(
    slopes: Slopes,
    points: Point,
    *,
    radius: float | jax.Array,
    num_samples: int,
    rows: int,
    least_rows: int = 1,
    exact: bool = False,
    tolerance: float | None = None,
    axis_name: str | None = None,
) -> Steepest:
    """The largest slope of every class that can decide the margin, at b points that share their samples.

    Args:
      slopes: of the classifier.
      points: Point with fields stacked [b].
      radius: of the ball; a margin beyond it is of no interest.
      num_samples: number of samples.
      rows: samples looked at together.
      least_rows: fewer than so many are never looked at.
      exact: whether all classes see all samples.
      tolerance: stop at a point once its margin is not expected to fall by more; None goes on to num_samples.
      axis_name: of a mapped axis whose devices share the samples among them.

    Returns:
      Steepest with fields stacked [b]. A class that cannot decide the margin keeps the slope it was left with.
    """
    sample = _Sampler(slopes, points, num_samples, rows, axis_name)
    everyone = jnp.broadcast_to(points.asked[:, None], points.gaps.shape)  # [b, m]
    if exact and tolerance is None:
        none = jnp.zeros_like(points.gaps)
        tail = sample(0, num_samples, None, none, none)
        return Steepest(tail.largest, jnp.full(everyone.shape, num_samples, jnp.int32), none[:, 0] > 0, none[:, 0])

    length = min(num_samples, PILOT if points.gaps.shape[1] < MANY else PILOT_OF_MANY)
    rules = _Rules(radius, num_samples, length, exact, tolerance)

    def judged(rule: Callable[[_State, jax.Array], jax.Array], state: _State) -> jax.Array:
        return jax.lax.map(lambda point: rule(*point), (state, points.gaps))

    def follow(state: _State, start: jax.Array | int, end: jax.Array | int, chosen: jax.Array) -> _State:
        tail = tails.merge(state.tail, sample(start, end, chosen, state.threshold, state.unit))
        rise = jnp.max(tail.largest - state.tail.largest, 1, keepdims=True)  # [b, 1]
        missed = jnp.where(chosen, state.missed, state.missed + rise)
        return state._replace(tail=tail, seen=jnp.where(chosen, end, state.seen), missed=missed)

    ends = [*(length * 2**i for i in range(64) if length * 2**i < num_samples), num_samples]
    bounds = jnp.asarray(ends, jnp.int32)

    def a_round(i: jax.Array, state: _State) -> _State:
        return follow(state, bounds[i], bounds[i + 1], judged(rules.active, state) & everyone)

    state = _pilot(sample, points, length, min(rows, -(-length // least_rows) * least_rows), num_samples)
    state = jax.lax.fori_loop(0, len(ends) - 1, a_round, state)
    if len(ends) > 1 and tolerance is None and not exact:
        flagged = (judged(rules.too_close, state) & everyone).any(1)  # [b]
        behind = flagged[:, None] & (state.seen < num_samples) & everyone
        state = follow(state, length, num_samples, behind)._replace(flagged=flagged)
    return Steepest(state.tail.largest, state.seen, state.flagged, judged(rules.remainder, state))


class _Rules(NamedTuple):
    """What is decided about one point, from where its sampling stands and its gaps [m]."""

    radius: float | jax.Array
    num_samples: int
    pilot: int
    exact: bool
    tolerance: float | None

    def active(self, state: _State, gaps: jax.Array) -> jax.Array:
        """[m] the classes to be followed in the next round."""
        low, now = self._least(state, gaps), self._margin(state, gaps)
        chosen = (jnp.ones(gaps.shape, bool) if self.exact else low <= now) & (state.seen == jnp.max(state.seen))
        return chosen if self.tolerance is None else chosen & (now - jnp.min(low) > self.tolerance)

    def too_close(self, state: _State, gaps: jax.Array) -> jax.Array:
        """[m] the classes left behind that could decide after all, had they risen as the others unexpectedly did."""
        risen = (state.tail.largest - state.unit) / jnp.where(state.rise > 0, state.rise, 1.0)
        surprise = jnp.max(jnp.where((state.seen > self.pilot) & (state.rise > 0), risen, 1.0))
        rise = jnp.maximum(jnp.maximum(surprise, 1.0) * self._left(state), state.missed)
        low = gap_over_slope(gaps, state.tail.largest + rise)
        return (state.seen < self.num_samples) & (low < self._margin(state, gaps))

    def remainder(self, state: _State, gaps: jax.Array) -> jax.Array:
        """By how much the margin may still fall."""
        return jnp.maximum(self._margin(state, gaps) - jnp.min(self._least(state, gaps)), 0.0)

    def _margin(self, state: _State, gaps: jax.Array) -> jax.Array:
        return jnp.minimum(jnp.min(gap_over_slope(gaps, state.tail.largest)), self.radius)

    def _least(self, state: _State, gaps: jax.Array) -> jax.Array:
        """[m] the distances at which classes could catch up with slopes as large as they may become."""
        return gap_over_slope(gaps, state.tail.largest + self._left(state))

    def _left(self, state: _State) -> jax.Array:
        """[m] by how much slopes may still rise."""
        return tails.growth(state.tail, state.unit, self.num_samples, self.num_samples / state.seen)


def _pilot(sample: "_Sampler", points: Point, length: int, rows: int, total: int) -> _State:
    """The first samples of all classes: their slopes, the thresholds of their tails, and what the tails foretell."""

    def start(sizes: jax.Array) -> _State:
        over = jax.vmap(tails.threshold)(sizes)  # [m]
        unit = jnp.where(jnp.isnan(sizes).any(1), jnp.nan, jnp.max(sizes, 1))  # [m]
        counts = jnp.ones(length, bool)
        tail = jax.vmap(lambda s, o, u: tails.tail(s, counts, o, u, total))(sizes, over, unit)
        rise = tails.growth(tail, unit, total, total / length) / tails.SAFETY
        seen = jnp.full(len(sizes), length, jnp.int32)
        return _State(tail, over, unit, rise, seen, jnp.zeros_like(unit), jnp.zeros((), bool))

    return jax.lax.map(start, sample.all_sizes(length, rows))


class _Sampler:
    """Slopes of b points in chunks of samples: ``sampler(start, end, chosen, threshold, unit)`` gives their tails."""

    def __init__(self, slopes: Slopes, points: Point, total: int, rows: int, axis_name: str | None) -> None:
        self._slopes, self._points, self._total, self._rows, self._axis = slopes, points, total, rows, axis_name

    def __call__(
        self,
        start: jax.Array | int,
        end: jax.Array | int,
        chosen: jax.Array | None,
        threshold: jax.Array,
        unit: jax.Array,
    ) -> Tail:
        """The tails [b, m] of samples start to end, of the chosen [b, m] classes; None chooses all."""
        shape, dtype = self._points.gaps.shape, self._points.gaps.dtype
        devices, device = self._devices()
        stride = self._rows * devices

        def chunk(i: jax.Array, seen: Tail) -> Tail:
            indices = start + i * stride + device * self._rows + jnp.arange(self._rows)
            rays = self._slopes.rays(jnp.minimum(indices, end - 1))

            def point(args: tuple) -> Tail:
                one, who, over, measure = args
                blank = tails.nothing(shape[1:], dtype)

                def look() -> Tail:
                    size = self._slopes.sizes(one.anchor, rays)

                    def keep(k: jax.Array, found: Tail) -> Tail:
                        sizes = size(one.differences[k]).astype(dtype)
                        tail = tails.tail(sizes, indices < end, over[k], measure[k], self._total)
                        return jax.tree.map(lambda all_, one: all_.at[k].set(one), found, tail)

                    if who is None:
                        return jax.lax.fori_loop(0, shape[1], keep, blank)
                    order = jnp.argsort(~who)  # the chosen ones first
                    count = jnp.sum(who, dtype=jnp.int32)
                    return jax.lax.fori_loop(0, count, lambda j, found: keep(order[j], found), blank)

                return jax.lax.cond(one.asked if who is None else who.any(), look, lambda: blank)

            return tails.merge(seen, jax.lax.map(point, (self._points, chosen, threshold, unit)))

        chunks = -(-(end - start) // stride)
        if chosen is not None:
            chunks = jnp.where(chosen.any(), chunks, 0)
        seen = jax.lax.fori_loop(0, chunks, chunk, tails.nothing(shape, dtype))
        if self._axis is None:
            return seen
        # A maximum over devices may pass over a NaN.
        nan = jax.lax.pmax(jnp.isnan(seen.largest).astype(jnp.int32), self._axis) > 0
        largest = jnp.where(nan, jnp.nan, jax.lax.pmax(jnp.nan_to_num(seen.largest), self._axis))
        return Tail(largest, *(jax.lax.psum(count, self._axis) for count in seen[1:]))

    def all_sizes(self, length: int, rows: int) -> jax.Array:
        """[b, m, length] the slopes of all classes at the first samples, looked at in chunks of rows."""
        count = -(-length // rows)

        def chunk(i: jax.Array) -> jax.Array:
            rays = self._slopes.rays(jnp.minimum(i * rows + jnp.arange(rows), length - 1))

            def point(one: Point) -> jax.Array:
                def look() -> jax.Array:
                    size = self._slopes.sizes(one.anchor, rays)
                    return jax.lax.map(lambda v: size(v).astype(one.gaps.dtype), one.differences)  # [m, s]

                blank = jnp.zeros((len(one.gaps), rows), one.gaps.dtype)
                return jax.lax.cond(one.asked, look, lambda: blank)

            return jax.lax.map(point, self._points)  # [b, m, s]

        sizes = jnp.moveaxis(jax.lax.map(chunk, jnp.arange(count)), 0, 2)  # [b, m, chunks, s]
        return sizes.reshape(*sizes.shape[:2], -1)[..., :length]

    def _devices(self) -> tuple[int, jax.Array | int]:
        return (1, 0) if self._axis is None else (jax.lax.axis_size(self._axis), jax.lax.axis_index(self._axis))
