"""Classifiers under attack over whole splits: as published, in the worst case, and between bounds.

Every stage keeps what it measured in files, so that a run that was cut continues where it was.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin.attacks import PUBLISHED, minimum_norm, pgd, worst_case
from jaxmargin.certificates.certificate import certified_margin
from jaxmargin.lab.stages import Arrays, lifted, measure
from jaxmargin.norms import Norm, l2

__all__ = ["bounds", "broken_as_published", "broken_in_the_worst_case", "pgd_sweep"]

ApplyFn = Callable[[Any, jax.Array], jax.Array]
BOX = (0.0, 1.0)


class Broken(NamedTuple):
    """One example under attack at several epsilons."""

    found: jax.Array  # [e] bool


def pgd_sweep(
    logits_fn: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    epsilons: tuple[float, ...],
    step_size: float,
    num_steps: int,
) -> Broken:
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
      Broken.
    """
    options = PUBLISHED | dict(step_size=step_size, num_steps=num_steps)
    attack = jax.vmap(lambda epsilon: pgd(logits_fn, key, x, y, epsilon=epsilon, **options).found)
    return Broken(attack(jnp.asarray(epsilons)))


def broken_as_published(
    apply_fn: ApplyFn,
    params: Any,
    key: jax.Array,
    xs: np.ndarray,
    ys: np.ndarray,
    *,
    epsilons: Sequence[float],
    num_steps: int,
    step_size: float,
    folder: Path,
    label: str,
) -> np.ndarray:
    """Which examples the published attack breaks: l2 PGD on the cross-entropy, one start, the last iterate.

    Args:
      apply_fn: (params, x [*d]) -> logits [c].
      params: its parameters.
      key: a PRNG key.
      xs: [n, *d] inputs in [0, 1].
      ys: [n] classes.
      epsilons: [e] radii.
      num_steps: number of steps.
      step_size: their length.
      folder: keeps attack.npz.
      label: what the progress bar says.

    Returns:
      [n, e] bool.
    """
    run = lifted(pgd_sweep, apply_fn, epsilons=tuple(epsilons), step_size=step_size, num_steps=num_steps)
    return measure(run, params, key, xs, ys, path=folder / "attack.npz", label=f"{label} attack")["found"]


def broken_in_the_worst_case(
    apply_fn: ApplyFn,
    params: Any,
    key: jax.Array,
    xs: np.ndarray,
    ys: np.ndarray,
    *,
    epsilons: Sequence[float],
    num_steps: int,
    before: np.ndarray,
    folder: Path,
    label: str,
    norm: Norm = l2,
) -> np.ndarray:
    """Which examples any attack breaks: those broken before, and what ``worst_case`` adds.

    The largest epsilon comes first. Who stands it needs no attack at a smaller one; who was broken within a smaller one
    on the way needs none there either.

    Args:
      apply_fn: (params, x [*d]) -> logits [c].
      params: its parameters.
      key: a PRNG key.
      xs: [n, *d] inputs in [0, 1].
      ys: [n] classes.
      epsilons: [e] radii, rising.
      num_steps: steps of one attempt.
      before: [n, e] bool, whom another attack broke.
      folder: keeps worst-EPSILON.npz, what was found for the examples attacked at that epsilon.
      label: what the progress bar says.
      norm: of the balls.

    Returns:
      [n, e] bool, rising along e.
    """
    broken = np.logical_or.accumulate(before, 1)
    distance = np.full(len(xs), np.inf)
    standing = np.zeros(len(xs), bool)
    run = lifted(worst_case, apply_fn, norm=norm, num_steps=num_steps, box=BOX)
    for number in reversed(range(len(epsilons))):
        epsilon = epsilons[number]
        broken[:, number] |= distance <= epsilon
        asked = np.flatnonzero(~broken[:, number] & ~standing)
        if len(asked):
            found = measure(
                run, params, jax.random.fold_in(key, number), xs[asked], ys[asked],
                path=folder / f"worst-{epsilon:g}.npz", label=f"{label} worst case at {epsilon:g}",
                fields=("found", "distance"), epsilon=epsilon,
            )  # fmt: skip
            broken[asked, number] |= found["found"]
            distance[asked] = np.minimum(distance[asked], found["distance"])
        standing |= ~broken[:, number]
    return np.logical_or.accumulate(broken, 1)


def bounds(
    apply_fn: ApplyFn,
    params: Any,
    key: jax.Array,
    xs: np.ndarray,
    predicted: np.ndarray,
    *,
    radius: float,
    num_steps: int,
    folder: Path,
    label: str,
    norm: Norm = l2,
) -> Arrays:
    """Certified and attacked distances to where the prediction changes.

    Args:
      apply_fn: (params, x [*d]) -> logits [c].
      params: its parameters.
      key: a PRNG key.
      xs: [n, *d] inputs in [0, 1].
      predicted: [n] predicted classes.
      radius: the largest certified distance.
      num_steps: steps of ``minimum_norm``.
      folder: keeps certified.npz and attacked.npz.
      label: what the progress bar says.
      norm: of the distances.

    Returns:
      "certified" [n] and "attacked" [n], which knows no box: the estimate beside them knows none either.
    """
    runs = {
        "certified": lifted(certified_margin, apply_fn, norm=norm, radius=radius),
        "attacked": lifted(minimum_norm, apply_fn, norm=norm, num_steps=num_steps),
    }
    keys = jax.random.split(key, len(runs))
    return {
        name: measure(
            run, params, one, xs, predicted, path=folder / f"{name}.npz", label=f"{label} {name}", fields=("distance",)
        )["distance"]
        for one, (name, run) in zip(keys, runs.items(), strict=True)
    }
