"""Gradient norms of samples around several centres, chunk by chunk, for the classes that are still candidates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin.lipschitz import tails
from jaxmargin.lipschitz.gradient_norms import GradientNorms
from jaxmargin.lipschitz.tails import Tail
from jaxmargin.varying import axes_of, varying

__all__ = ["Centre", "Sampler", "all_norms", "tails_of"]


class Centre(NamedTuple):
    """What is asked of one centre, or of b stacked along the first axis.

    Attributes:
      features: ``GradientNorms.features`` of the centre.
      differences: [m, c], one v for each of m classes: the gradient of class k is that of v_k . f.
      gaps: [m] how far each class is behind, v_k . f(x).
      valid: bool; False skips the centre.
    """

    features: Any
    differences: jax.Array
    gaps: jax.Array
    valid: jax.Array


class Sampler(NamedTuple):
    """What all samples of b centres have in common.

    Attributes:
      gradient_norms: of the classifier.
      centres: Centre with fields stacked [b].
      num_samples: the most samples of a centre.
      rows: samples of a chunk, looked at together.
      axis_name: of a mapped axis whose devices share the chunks among them; None of one device.
    """

    gradient_norms: GradientNorms
    centres: Centre
    num_samples: int
    rows: int
    axis_name: str | None


class _Chunk(NamedTuple):
    """Samples looked at together."""

    perturbations: Any  # [s, ...]
    counts: jax.Array  # [s] bool, False of those that only fill the chunk up


def tails_of(
    sampler: Sampler,
    start: jax.Array | int,
    end: jax.Array | int,
    candidates: jax.Array | None,
    threshold: jax.Array,
    unit: jax.Array,
) -> Tail:
    """The tails of samples start to end.

    Args:
      sampler: what they have in common.
      start: the first one.
      end: one after the last.
      candidates: [b, m] bool, the classes to look at; None for all, which has a reverse-mode derivative.
      threshold: [b, m] of the tails.
      unit: [b, m] of the tails.

    Returns:
      Tail with fields [b, m]; of classes that are no candidates, that of no samples.
    """
    axis = sampler.axis_name
    devices, device = (1, 0) if axis is None else (jax.lax.axis_size(axis), jax.lax.axis_index(axis))
    stride = sampler.rows * devices

    def chunk(i: jax.Array, seen: Tail) -> Tail:
        indices = start + i * stride + device * sampler.rows + jnp.arange(sampler.rows)
        samples = _Chunk(_perturbations(sampler, jnp.minimum(indices, end - 1)), indices < end)
        centres = sampler.centres, candidates, threshold, unit
        return tails.merge(seen, jax.lax.map(lambda centre: _chunk_tail(sampler, samples, *centre), centres))

    chunks = -(-(end - start) // stride)
    if candidates is not None:
        chunks = jnp.where(candidates.any(), chunks, 0)
    nothing = _nothing(threshold.shape, sampler.centres.gaps)
    seen: Tail = jax.lax.fori_loop(0, chunks, chunk, nothing)
    return seen if axis is None else _of_all_devices(seen, axis)


def all_norms(sampler: Sampler, length: int, rows: int) -> jax.Array:
    """The gradient norms of all classes at the first samples.

    Args:
      sampler: what samples have in common.
      length: number of samples.
      rows: of them looked at together.

    Returns:
      [b, m, length], 0 of centres that are not valid.
    """

    def chunk(i: jax.Array) -> jax.Array:
        indices = jnp.minimum(i * rows + jnp.arange(rows), length - 1)
        perturbations = _perturbations(sampler, indices)
        norms: jax.Array = jax.lax.map(lambda one: _chunk_norms(sampler, perturbations, rows, one), sampler.centres)
        return norms

    norms = jnp.moveaxis(jax.lax.map(chunk, jnp.arange(-(-length // rows))), 0, 2)  # [b, m, chunks, s]
    return norms.reshape(*norms.shape[:2], -1)[..., :length]


def _chunk_tail(
    sampler: Sampler,
    chunk: _Chunk,
    centre: Centre,
    candidates: jax.Array | None,
    threshold: jax.Array,
    unit: jax.Array,
) -> Tail:
    """[m] of one centre."""
    blank = _nothing(centre.gaps.shape, centre.gaps)

    def look() -> Tail:
        norm_of = sampler.gradient_norms.at(centre.features, chunk.perturbations)

        def keep(k: jax.Array, found: Tail) -> Tail:
            norms = norm_of(centre.differences[k]).astype(centre.gaps.dtype)
            tail = tails.tail(norms, chunk.counts, threshold[k], unit[k], sampler.num_samples)
            return Tail(*(every.at[k].set(one) for every, one in zip(found, tail, strict=True)))

        return _over_classes(keep, candidates, blank)

    tail: Tail = jax.lax.cond(centre.valid if candidates is None else candidates.any(), look, lambda: blank)
    return tail


def _perturbations(sampler: Sampler, indices: jax.Array) -> Any:
    return varying(sampler.gradient_norms.perturbations(indices), axes_of(sampler.centres.gaps))


def _nothing(shape: tuple[int, ...], gaps: jax.Array) -> Tail:
    """The tails of no samples of centres with such gaps."""
    return varying(tails.nothing(shape, gaps.dtype), axes_of(gaps))


def _over_classes(keep: Callable[[jax.Array, Tail], Tail], candidates: jax.Array | None, blank: Tail) -> Tail:
    """One class after the other; that all of them are meant is known while tracing, or no derivative would be."""
    if candidates is None:
        whole: Tail = jax.lax.fori_loop(0, len(blank.largest), keep, blank)
        return whole
    order, count = jnp.argsort(~candidates), jnp.sum(candidates, dtype=jnp.int32)  # the candidates first
    found: Tail = jax.lax.fori_loop(0, count, lambda j, found: keep(order[j], found), blank)
    return found


def _of_all_devices(seen: Tail, axis_name: str) -> Tail:
    """What the devices of an axis have seen together. A maximum over devices may pass over a NaN."""
    nan = jax.lax.pmax(jnp.isnan(seen.largest).astype(jnp.int32), axis_name) > 0
    largest = jnp.where(nan, jnp.nan, jax.lax.pmax(jnp.nan_to_num(seen.largest), axis_name))
    return Tail(largest, jax.lax.psum(seen.excess, axis_name), jax.lax.psum(seen.above, axis_name))


def _chunk_norms(sampler: Sampler, perturbations: Any, rows: int, centre: Centre) -> jax.Array:
    """[m, s] of one centre."""
    dtype = centre.gaps.dtype

    def look() -> jax.Array:
        norm_of = sampler.gradient_norms.at(centre.features, perturbations)
        norms: jax.Array = jax.lax.map(lambda v: norm_of(v).astype(dtype), centre.differences)
        return norms

    blank = varying(jnp.zeros((len(centre.gaps), rows), dtype), axes_of(centre.gaps))
    norms: jax.Array = jax.lax.cond(centre.valid, look, lambda: blank)
    return norms
