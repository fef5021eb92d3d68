"""Long work in pieces: training that goes on from its last checkpoint, and a clock that survives being cut."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from jaxmargin.lab import files
from jaxmargin.lab.checkpoints import Checkpoints
from jaxmargin.lab.training import DivergedError, TrainState, fit

__all__ = ["Stopwatch", "train"]

_CHECKPOINT_SECONDS = 20.0


class Stopwatch:
    """Adds up the seconds of the stages of a run in seconds.json, over all the pieces it was cut into.

    Args:
      folder: where the file lies.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "seconds.json"

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage so far."""
        return files.read_json(self._path) if self._path.exists() else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time until the end of the ``with`` block to a stage.

        Args:
          name: of the stage.
        """
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = self.seconds()
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - start, 3)
            files.write_json(self._path, seconds)

    def timed(self, name: str, steps: Iterator[Any]) -> Iterator[Any]:
        """The items of an iterator; only the time inside of it counts as the stage's.

        Args:
          name: of the stage.
          steps: the iterator.

        Yields:
          Its items.
        """
        while True:
            with self.stage(name):
                item = next(steps, None)
            if item is None:
                return
            yield item


def train(
    epoch_fn: Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, jax.Array]],
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    epochs: int,
    folder: Path,
    label: str,
    clock: Stopwatch,
    keep: Collection[int],
    resume: Callable[[int, TrainState], None],
    record: Callable[[int, TrainState], None],
    unit: str = "epoch",
) -> TrainState:
    """Trains to the last epoch from wherever an earlier run was cut.

    Args:
      epoch_fn: from ``train_epoch``; an epoch here is one call of it.
      state: before the first epoch.
      images: [n, *d] on the device.
      labels: [n].
      epochs: how many.
      folder: gets checkpoints/.
      label: names the run in messages and on the progress bar.
      clock: gets the stage "train".
      keep: epochs with a checkpoint of their own; others get one now and then.
      resume: (epochs done, state), called once before the first epoch.
      record: (epoch, state after it), called after each.
      unit: what an epoch is called.

    Returns:
      The state after the last epoch.

    Raises:
      DivergedError: the loss is no longer finite; the message names the step and the last good checkpoint.
    """
    with Checkpoints(folder / "checkpoints") as checkpoints:
        done = checkpoints.latest() or 0
        if done:
            state = checkpoints.restore(done, state)
        resume(done, state)
        saved = time.monotonic()
        steps = fit(epoch_fn, state, images, labels, epochs=epochs, first=done + 1, unit=unit)
        with tqdm(total=epochs, initial=done, desc=f"{label} training", unit=unit, leave=False) as bar:
            try:
                for epoch, state, _ in clock.timed("train", steps):
                    if epoch in keep or time.monotonic() - saved > _CHECKPOINT_SECONDS:
                        checkpoints.save(epoch, state)
                        saved = time.monotonic()
                    record(epoch, state)
                    bar.update()
            except DivergedError as error:
                good = checkpoints.latest()
                where = f"the last good checkpoint is {checkpoints.path(good)}" if good else "before any checkpoint"
                error.args = (f"{label}: {error}; {where}; lower the learning rate or change the method",)
                raise
    return state
