"""Stages that studies share: a classifier under attack, as published and in the worst case, and between bounds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin.attacks import PUBLISHED, minimum_norm, pgd, worst_case
from jaxmargin.certificates.certificate import certified_margin
from jaxmargin.lab.cells import Cell, Setup
from jaxmargin.lab.files import Arrays
from jaxmargin.lab.measuring import lifted
from jaxmargin.types import Box, LogitsFn

__all__ = ["BOX", "bounds_of", "found_as_published", "found_in_the_worst_case", "pgd_sweep"]

BOX: Box = (0.0, 1.0)


class Sweep(NamedTuple):
    """One example under attack at several epsilons."""

    found: jax.Array  # [e] bool


def pgd_sweep(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    epsilons: tuple[float, ...],
    step_size: float,
    num_steps: int,
) -> Sweep:
    """The published attack at several epsilons at once, from the same random numbers.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key.
      x: one example, [*d].
      y: its class.
      epsilons: radii of the balls.
      step_size: length of a step.
      num_steps: number of steps.

    Returns:
      Sweep.
    """
    options: dict[str, Any] = PUBLISHED | dict(step_size=step_size, num_steps=num_steps)

    def found(epsilon: jax.Array) -> jax.Array:
        return pgd(logits_fn, key, x, y, epsilon=epsilon, **options).found

    return Sweep(jax.vmap(found)(jnp.asarray(epsilons)))


def found_as_published(setup: Setup[Cell], params: Any, *, num_steps: int, step_size: float) -> Arrays:
    """For which images the published attack succeeds: l2 PGD on the cross-entropy, one start, the last iterate.

    Args:
      setup: of the cell, with the key "published".
      params: of its classifier.
      num_steps: number of steps.
      step_size: their length.

    Returns:
      "found_published" [n, e] bool, at each of the cell's epsilons.
    """
    run = lifted(pgd_sweep, setup.apply_fn, epsilons=setup.cell.epsilons, step_size=step_size, num_steps=num_steps)
    xs, ys = setup.data.inputs("test", setup.attacked)
    found = setup.work.measure(run, params, setup.keys["published"], xs, ys, name="published", said="published attack")
    return {"found_published": found["found"]}


def found_in_the_worst_case(setup: Setup[Cell], params: Any, before: np.ndarray) -> Arrays:
    """For which images any attack succeeds: those another one succeeded for, and what ``worst_case`` adds.

    The largest epsilon comes first. Who stands it needs no attack at a smaller one; who was broken within a smaller one
    on the way needs none there either.

    Args:
      setup: of the cell, with the key "worst_case".
      params: of its classifier.
      before: [n, e] bool, for which images another attack succeeded.

    Returns:
      "found_worst" [n, e] bool, rising along e.
    """
    cell = setup.cell
    xs, ys = setup.data.inputs("test", setup.attacked)
    found = np.logical_or.accumulate(before, 1)
    distance = np.full(len(xs), np.inf)
    robust = np.zeros(len(xs), bool)
    run = lifted(worst_case, setup.apply_fn, norm=setup.norm, num_steps=cell.worst_case_steps, box=BOX)
    for number in reversed(range(len(cell.epsilons))):
        epsilon = cell.epsilons[number]
        found[:, number] |= distance <= epsilon
        asked = np.flatnonzero(~found[:, number] & ~robust)
        if len(asked):
            here = setup.work.measure(
                run, params, jax.random.fold_in(setup.keys["worst_case"], number), xs[asked], ys[asked],
                name=f"worst_case-{epsilon:g}", said=f"worst case at {epsilon:g}", fields=("found", "distance"),
                epsilon=epsilon,
            )  # fmt: skip
            found[asked, number] |= here["found"]
            distance[asked] = np.minimum(distance[asked], here["distance"])
        robust |= ~found[:, number]
    return {"found_worst": np.logical_or.accumulate(found, 1)}


def bounds_of(setup: Setup[Cell], params: Any, predicted: np.ndarray) -> Arrays:
    """Certified and attacked distances of the measured test points to where the prediction changes.

    Args:
      setup: of the cell, with the key "bounds".
      params: of its classifier.
      predicted: [n] predicted classes.

    Returns:
      "certified" [n] and "attacked" [n], which knows no box: the estimate beside them knows none either.
    """
    cell, norm = setup.cell, setup.norm
    xs, _ = setup.data.inputs("test", setup.points["test"])
    runs = {
        "certified": lifted(certified_margin, setup.apply_fn, norm=norm, radius=cell.radius),
        "attacked": lifted(minimum_norm, setup.apply_fn, norm=norm, num_steps=cell.nearest_steps),
    }
    found = {}
    for key, (name, run) in zip(jax.random.split(setup.keys["bounds"], len(runs)), runs.items(), strict=True):
        one = setup.work.measure(run, params, key, xs, predicted, name=name, said=name, fields=("distance",))
        found[name] = one["distance"]
    return found
