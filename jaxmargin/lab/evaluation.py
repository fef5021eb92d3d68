"""Measures over whole splits, with progress, saved as they go so that a cut run continues where it was."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxmargin.attacks import pgd
from jaxmargin.batching import Measurement
from jaxmargin.lab.tracking import write_arrays
from jaxmargin.norms import Norm

__all__ = ["Robustness", "measure", "pgd_sweep", "read_arrays"]

Arrays = dict[str, np.ndarray]

_SAVE_SECONDS = 30.0


class Robustness(NamedTuple):
    """One example under attack at several epsilons."""

    found: jax.Array  # [e] bool


def pgd_sweep(
    logits_fn: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm,
    epsilons: tuple[float, ...],
    step_size: float,
    num_steps: int,
    loss: str = "cross_entropy",
    box: tuple[float, float] | None = None,
) -> Robustness:
    """``pgd`` at several epsilons at once, from the same random numbers.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key.
      x: one example, [*d].
      y: its class.
      norm: the norm of the balls.
      epsilons: their radii.
      step_size: length of a step.
      num_steps: number of steps.
      loss: what the attack raises.
      box: (low, high) of valid inputs.

    Returns:
      Robustness.
    """

    def attack(epsilon: jax.Array) -> jax.Array:
        options: dict[str, Any] = dict(step_size=step_size, num_steps=num_steps, loss=loss, box=box)
        return pgd(logits_fn, key, x, y, norm=norm, epsilon=epsilon, **options).found

    return Robustness(jax.vmap(attack)(jnp.asarray(epsilons)))


def measure(
    run: Measurement, params: Any, key: jax.Array, xs: np.ndarray, ys: np.ndarray, *, path: Path | None, label: str
) -> Arrays:
    """Measures a whole split and keeps the result at ``path``; what is there already is not measured again.

    Args:
      run: a measure lifted by ``over_batch``.
      params: parameters of the classifier.
      key: a PRNG key.
      xs: [n, *d] inputs.
      ys: [n] classes.
      path: the .npz file of the result; a part of it lies at ``path`` with the suffix .part while the work lasts. None
        keeps nothing.
      label: what the progress bar says.

    Returns:
      The measure's fields by name, arrays of length n.
    """
    if path is None:
        return _fields(run(params, key, xs, ys))
    if path.exists():
        return read_arrays(path)
    part = path.with_suffix(".part")
    done = [read_arrays(part)] if part.exists() else []
    first = len(next(iter(done[0].values()))) if done else 0
    saved = time.monotonic()
    with tqdm(total=len(xs), initial=first, desc=label, unit="point", leave=False) as bar:
        for batch in run.batches(params, key, xs, ys, first) if first < len(xs) else ():
            done.append(_fields(batch))
            bar.update(len(next(iter(done[-1].values()))))
            if time.monotonic() - saved > _SAVE_SECONDS:
                write_arrays(part, _joined(done))
                saved = time.monotonic()
    result = _joined(done)
    write_arrays(path, result)
    part.unlink(missing_ok=True)
    return result


def read_arrays(path: Path) -> Arrays:
    """Reads a .npz file into memory."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _fields(result: Any) -> Arrays:
    return {name: np.asarray(value) for name, value in result._asdict().items()}


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
