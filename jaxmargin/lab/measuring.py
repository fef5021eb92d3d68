"""Measures over whole splits, with progress, saved as they go so that a cut run continues where it was."""

import functools
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxmargin.batching.measurement import Measurement, over_batch
from jaxmargin.lab import manifests
from jaxmargin.lab.files import Arrays, DamagedError, read_arrays, write_arrays
from jaxmargin.types import ApplyFn, Measure

__all__ = ["if_intact", "lifted", "measure"]

_SAVE_SECONDS = 30.0


@functools.lru_cache(maxsize=64)
def lifted(measure: Measure[Any], apply_fn: ApplyFn, **options: Any) -> Measurement[Any]:
    """``over_batch``, but the same Measurement for the same arguments: cells of one network compile it once.

    Args:
      measure: as in ``over_batch``.
      apply_fn: likewise.
      **options: likewise, hashable.

    Returns:
      Measurement.
    """
    return over_batch(measure, apply_fn, **options)


def if_intact(path: Path) -> Arrays | None:
    """What a file holds, None where there is none or it is damaged, which a warning says."""
    try:
        return read_arrays(path)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        warnings.warn(f"{path} is damaged ({error.why}): it is made again", stacklevel=3)
        manifests.forget(path)
        return None


def measure(
    run: Measurement[Any],
    params: Any,
    key: jax.Array,
    xs: np.ndarray,
    ys: np.ndarray,
    *,
    path: Path | None,
    label: str,
    fields: tuple[str, ...] | None = None,
    **values: float,
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
      fields: of the measure's result, the ones to keep; None keeps all.
      **values: options of the measure that were left open.

    Returns:
      The fields by name, arrays of length n.
    """
    if path is None:
        return _fields(run(params, key, xs, ys, **values), fields)
    if (whole := if_intact(path)) is not None:
        return whole
    part = path.with_suffix(".part")
    done = [before] if (before := if_intact(part)) else []
    first = len(next(iter(done[0].values()))) if done else 0
    saved = time.monotonic()
    with tqdm(total=len(xs), initial=first, desc=label, unit="point", leave=False) as bar:
        try:
            for batch in run.batches(params, key, xs, ys, first, **values) if first < len(xs) else ():
                done.append(_fields(batch, fields))
                bar.update(len(next(iter(done[-1].values()))))
                if time.monotonic() - saved > _SAVE_SECONDS:
                    write_arrays(part, _joined(done))
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if done:
                write_arrays(part, _joined(done))
            raise
    result = _joined(done)
    write_arrays(path, result)
    manifests.forget(part)
    return result


def _fields(result: Any, chosen: tuple[str, ...] | None) -> Arrays:
    return {name: np.asarray(getattr(result, name)) for name in chosen or result._fields}


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
