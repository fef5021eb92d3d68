"""One cell of the MMA study, (data set, norm, method, seed): train, follow the distances, attack, write the card.

Like a cell of ``experiments`` it continues from wherever it was cut. The methods are those of both papers, on one
network.
"""

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin.adapters import ensemble
from jaxmargin.lab import files
from jaxmargin.lab.data.loading import Dataset, Split
from jaxmargin.lab.parameters import read_params, write_params
from jaxmargin.lab.resuming import Stopwatch, train
from jaxmargin.lab.training import TrainState, evaluator, init_state, train_epoch
from jaxmargin.objectives.augmentation import crop_and_flip
from runs.mma.cell import RobustCell
from runs.mma.stages import MOMENTS, STAGES, Evaluation, mean_distance

__all__ = ["run_ensemble", "run_robust_cell"]

_augment = functools.partial(crop_and_flip, mode="reflect")  # as the authors' released code
_RECORDS = 20  # lines of metrics.jsonl


def run_robust_cell(
    cell: RobustCell, data: Dataset, workdir: Path, paper: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Runs a cell to its card, from wherever an earlier run was cut; a finished cell is only read.

    Args:
      cell: what to run.
      data: its data set.
      workdir: gets cards/NAME.json, cards/NAME.npz and cells/NAME/.
      paper: the published numbers of the cell, kept in the card.

    Returns:
      The card.

    Raises:
      ValueError: settings that do not fit the data set.
      DivergedError: the loss is no longer finite; the message names the step and the last good checkpoint.
    """
    path = workdir / "cards" / f"{cell.name}.json"
    if path.exists():
        return files.read_json(path)
    cell.check(data)
    run = _Training(cell, data, workdir / "cells" / cell.name)
    params = run.train()
    return _write_card(path, run.evaluation(run.model.apply), params, {"paper": paper})


def run_ensemble(cell: RobustCell, members: Sequence[RobustCell], data: Dataset, workdir: Path) -> dict[str, Any]:
    """The card of finished cells that vote; they are of one network.

    Args:
      cell: the ensemble's settings, of method ENSEMBLE.
      members: its cells, finished.
      data: their data set.
      workdir: theirs too.

    Returns:
      The card.

    Raises:
      ValueError: a member's parameters are of another network.
    """
    path, folder = workdir / "cards" / f"{cell.name}.json", workdir / "cells" / cell.name
    names = [member.method for member in members]
    if path.exists() and (card := files.read_json(path))["members"] == names:
        return card
    if (folder / "members.json").exists() and files.read_json(folder / "members.json") != names:
        shutil.rmtree(folder)  # what others voted
    files.write_json(folder / "members.json", names)
    run = _Training(cell, data, folder)
    like = jax.eval_shape(run.model.init, jax.random.key(0))
    params = [read_params(workdir / "cells" / member.name / "params.npz", like) for member in members]
    return _write_card(path, run.evaluation(_vote(run.model.apply)), params, {"members": names, "paper": None})


_vote = functools.cache(ensemble)


def _write_card(path: Path, evaluation: Evaluation, params: Any, more: dict[str, Any]) -> dict[str, Any]:
    arrays = evaluation.arrays(params)
    card = files.plain(evaluation.card(params, arrays) | more)
    files.write_arrays(path.with_suffix(".npz"), arrays)
    files.write_json(path, card)
    return card


class _Training:
    """A cell's training; it finds in the folder what an earlier run left."""

    def __init__(self, cell: RobustCell, data: Dataset, folder: Path) -> None:
        self.cell, self.data, self.folder = cell, data, folder
        self.model = cell.build_model(data.train.images.shape[1:], data.num_classes)
        self.clock = Stopwatch(folder)
        self.key_init, self.key_train, *keys = jax.random.split(jax.random.key(cell.seed), 2 + len(STAGES))
        self.keys = dict(zip(STAGES, keys, strict=True))
        self.calls = cell.steps // cell.chunk
        self.moments = {max(1, round(share * self.calls)): share for share in MOMENTS}
        self.due = {*np.linspace(0, self.calls, _RECORDS + 1, dtype=int)[1:].tolist(), *self.moments}

    def evaluation(self, apply_fn: Callable[[Any, jax.Array], jax.Array]) -> Evaluation:
        return Evaluation(self.cell, self.data, self.folder, apply_fn, self.clock, self.keys)

    def train(self) -> Any:
        """Trains to the last step; returns the parameters."""
        cell, data = self.cell, self.data
        images, labels = (jnp.asarray(array[cell.validation :]) for array in data.train)
        optimizer = cell.build_optimizer()
        epoch_fn = train_epoch(
            self.model.apply, cell.build_objective(), optimizer, batch_size=cell.batch_size, scale=data.scale,
            num_steps=cell.chunk, augment=_augment if cell.augment else None,
        )  # fmt: skip
        state = init_state(self.model.init(self.key_init), optimizer, self.key_train, len(labels))
        state = train(
            epoch_fn, state, images, labels, epochs=self.calls, folder=self.folder, label=cell.name, clock=self.clock,
            keep=self.due, resume=self._resume, record=self._record, unit="call",
        )  # fmt: skip
        write_params(self.folder / "params.npz", state.params)
        return state.params

    @functools.cached_property
    def _splits(self) -> dict[str, tuple[jax.Array, ...]]:
        """The images that are watched while training, on the device."""
        validation = Split(*(array[: self.cell.validation] for array in self.data.train))
        splits = {"validation": validation, "test": self.data.test}
        return {name: tuple(map(jnp.asarray, split)) for name, split in splits.items() if len(split.labels)}

    def _resume(self, done: int, state: TrainState) -> None:
        """Drops what was logged after the checkpoint, and logs what is due at it where the cut came before that."""
        logged = files.cut_records(self.folder / "metrics.jsonl", "step", done * self.cell.chunk)
        if done and not logged:
            self._record(done, state)

    def _record(self, call: int, state: TrainState) -> None:
        """Where it is due, one line of metrics.jsonl: loss and error, and distances at the moments of the figure."""
        if call not in self.due:
            return
        cell = self.cell
        line: dict[str, Any] = {"method": cell.method, "seed": cell.seed, "step": call * cell.chunk}
        evaluate = evaluator(self.model.apply, scale=self.data.scale)
        with self.clock.stage("evaluate"):
            for name, split in self._splits.items():
                loss, error = evaluate(state.params, *split)
                line |= {f"{name}_loss": float(loss), f"{name}_error": float(error)}
        if call in self.moments:
            distance = self.evaluation(self.model.apply).distances(state.params, self.moments[call])
            line["average_distance"] = mean_distance(distance)
        files.append_record(self.folder / "metrics.jsonl", line)
