"""Training that goes on from its last checkpoint, and logs each step once."""

import time
import warnings
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import optax
from tqdm import tqdm

from jaxmargin.lab import files
from jaxmargin.lab.checkpoints import Checkpoints
from jaxmargin.lab.files import DamagedError, Record
from jaxmargin.lab.training import DivergedError, TrainState, fit, init_state, train_epoch
from jaxmargin.lab.workspace import Workspace
from jaxmargin.models import Model
from jaxmargin.objectives import Objective

__all__ = ["Training", "train"]

_CHECKPOINT_SECONDS = 20.0


class Training(NamedTuple):
    """How a cell is trained, in calls of compiled code: epochs, or so many steps.

    Attributes:
      objective: what is minimised.
      optimizer: an optax optimiser.
      images: [n, *d] uint8 on the device.
      labels: [n].
      scale: images / scale is what the network reads.
      batch_size: examples a step.
      calls: how many calls.
      keep: calls with a checkpoint of their own; others get one now and then.
      record: (call, state after it) -> a line of metrics.jsonl, None where none is due.
      measures: by call, the names of the measures that its record keeps in the workspace.
      unit: what a call is called.
      num_steps: steps of a call; None for those of an epoch.
      augment: (key, image [*d]) -> image, drawn anew at each step; None for none.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    images: jax.Array
    labels: jax.Array
    scale: float
    batch_size: int
    calls: int
    keep: Collection[int]
    record: Callable[[int, TrainState], Record | None]
    measures: Mapping[int, tuple[str, ...]] = MappingProxyType({})
    unit: str = "epoch"
    num_steps: int | None = None
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None


def train(how: Training, model: Model, key_init: jax.Array, key_train: jax.Array, work: Workspace) -> TrainState:
    """Trains to the last call from wherever an earlier run was cut.

    Args:
      how: the training.
      model: the network.
      key_init: of its initial parameters.
      key_train: of shuffling, dropout, augmentation and inner attacks.
      work: gets checkpoints/, metrics.jsonl and the time of the stage "train".

    Returns:
      The state after the last call.

    Raises:
      DivergedError: the loss is no longer finite; the message names the step and the last good checkpoint.
    """
    epoch_fn = train_epoch(
        model.apply, how.objective, how.optimizer, batch_size=how.batch_size, scale=how.scale,
        num_steps=how.num_steps, augment=how.augment,
    )  # fmt: skip
    state = init_state(model.init(key_init), how.optimizer, key_train, len(how.labels))
    with Checkpoints(work.folder / "checkpoints") as checkpoints:
        done = _kept(how, checkpoints, work)
        files.write_records(work.metrics, checkpoints.records(done) if done else ())
        if done:
            state = checkpoints.restore(done, state)
            _log(how, done, state, work)
        try:
            state = _fit(how, epoch_fn, state, done, checkpoints, work)
        except DivergedError as error:
            good = checkpoints.latest()
            where = f"the last good checkpoint is {checkpoints.path(good)}" if good else "before any checkpoint"
            error.args = (f"{work.label}: {error}; {where}; lower the learning rate or change the method",)
            raise
    return state


def _kept(how: Training, checkpoints: Checkpoints, work: Workspace) -> int:
    """The call to go on from: the last one saved, but before what was measured and is there no longer."""
    done = checkpoints.latest() or 0
    for call, names in sorted(how.measures.items()):
        try:
            for name in names if call < done else ():
                work.check(name)
        except (DamagedError, FileNotFoundError) as error:
            checkpoints.go_back(call)
            warnings.warn(f"{error}; {work.label} is trained again from before it, to be measured there", stacklevel=3)
            return checkpoints.latest() or 0
    return done


def _fit(
    how: Training,
    epoch_fn: Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, jax.Array]],
    state: TrainState,
    done: int,
    checkpoints: Checkpoints,
    work: Workspace,
) -> TrainState:
    """The calls that are left, with their checkpoints and lines; only the calls themselves are the stage's time."""
    saved = time.monotonic()
    calls = fit(epoch_fn, state, how.images, how.labels, epochs=how.calls, first=done + 1, unit=how.unit)
    with tqdm(total=how.calls, initial=done, desc=f"{work.label} training", unit=how.unit, leave=False) as bar:
        for _ in range(done, how.calls):
            with work.timed("train"):
                call, state, _ = next(calls)
            if call in how.keep or time.monotonic() - saved > _CHECKPOINT_SECONDS:
                checkpoints.save(call, state, files.read_records(work.metrics))
                saved = time.monotonic()
            _log(how, call, state, work)
            bar.update()
    return state


def _log(how: Training, call: int, state: TrainState, work: Workspace) -> None:
    line = how.record(call, state)
    if line is not None:
        files.append_record(work.metrics, line)
