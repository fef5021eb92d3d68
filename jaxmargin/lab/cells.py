"""Cells of a study, from their settings to their cards: the one way in which all studies run theirs.

A study is a value: how a cell is set up and trained, the stages that measure it, and the card they add up to. A stage
is a function (setup, params) -> arrays; one that needs the arrays of another asks ``setup.kept`` for them.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from jaxmargin.lab import cards, files, manifests
from jaxmargin.lab.data.loading import Dataset
from jaxmargin.lab.files import Arrays, DamagedError
from jaxmargin.lab.parameters import write_params
from jaxmargin.lab.resuming import Training, train
from jaxmargin.lab.settings import hold
from jaxmargin.lab.workspace import Workspace
from jaxmargin.models import Model
from jaxmargin.norms import Norm
from jaxmargin.types import ApplyFn

__all__ = ["Cell", "Setup", "Study", "run_cell", "trained"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The settings that a cell of any study has; a study's own class adds the others. All of them go into the card."""

    dataset: str
    model: str
    method: str
    seed: int
    batch_size: int
    epsilons: tuple[float, ...]
    attack_points: int
    attack_steps: int
    worst_case_steps: int
    nearest_steps: int
    points: int
    num_samples: int
    radius: float

    @property
    def name(self) -> str:
        """The cell's name, which is also the name of its files."""
        return f"{self.dataset}-{self.model}-{self.method}-seed{self.seed}"

    def check(self, data: Dataset) -> None:
        """Refuses, before any work, settings that do not fit the data set or one another.

        Args:
          data: the data set.

        Raises:
          ValueError: says what does not fit.
        """
        if not all(near < far for near, far in zip(self.epsilons, self.epsilons[1:], strict=False)):
            raise ValueError(f"epsilons={self.epsilons} must rise")


AnyCell = TypeVar("AnyCell", bound=Cell)
OneCell = TypeVar("OneCell", bound=Cell, covariant=True)


@dataclass(frozen=True, eq=False)
class Setup(Generic[OneCell]):
    """What the stages of a cell start from.

    Attributes:
      cell: its settings.
      data: its data set.
      model: its network.
      apply_fn: the classifier, (params, x [*d]) -> logits [c].
      norm: of distances and attacks.
      keys: a PRNG key for each use, "init" and "train" among them.
      attacked: which test images are attacked.
      points: which points of a split ("train", "test") have their margins measured.
      work: keeps and times what the stages make.
    """

    cell: OneCell
    data: Dataset
    model: Model
    apply_fn: ApplyFn
    norm: Norm
    keys: Mapping[str, jax.Array]
    attacked: np.ndarray
    points: Mapping[str, np.ndarray]
    work: Workspace

    def kept(self, stage: "Callable[[Setup[OneCell], Any], Arrays]", params: Any) -> Arrays:
        """The arrays of another stage, which are only read where they are there already."""
        return self.work.run(stage, self, params)


class Study(NamedTuple, Generic[AnyCell]):
    """How the cells of a study are run.

    Attributes:
      name: of its folder below runs/.
      set_up: (cell, data, workspace) -> Setup.
      train: setup -> params of the trained classifier.
      stages: in the order in which they run; the arrays of all of them are the points beside the card.
      card: (setup, params, arrays of all stages) -> what the card has beside settings and provenance.
    """

    name: str
    set_up: Callable[[AnyCell, Dataset, Workspace], Setup[AnyCell]]
    train: Callable[[Setup[AnyCell]], Any]
    stages: tuple[Callable[[Setup[AnyCell], Any], Arrays], ...]
    card: Callable[[Setup[AnyCell], Any, Arrays], Mapping[str, Any]]


def run_cell(
    study: Study[AnyCell], cell: AnyCell, data: Dataset, workdir: Path, paper: Mapping[str, Any] | None = None
) -> Any:
    """Runs a cell to its card, from wherever an earlier run was cut; a finished cell that is intact is only read.

    A run that was cut, at any moment, ends with the same bytes in its parameters, metrics, points and card, what its
    stages took apart. What is damaged is made again, and a warning names it.

    Args:
      study: how.
      cell: what to run.
      data: its data set.
      workdir: gets cards/NAME.json, cards/NAME.npz and cells/NAME/.
      paper: the published numbers of the cell, kept in the card.

    Returns:
      The card, of the study's TypedDict.

    Raises:
      ValueError: settings that do not fit the data set, or others than those the cell was begun with.
      DivergedError: the loss is no longer finite; the message names the step and the last good checkpoint.
    """
    path, work = cards.path_of(workdir, cell.name), Workspace(workdir / "cells" / cell.name, cell.name)
    if work.folder.exists() or not path.exists():
        hold(work.folder, asdict(cell))
    if (finished := _finished(path, work)) is not None:
        return finished
    cell.check(data)
    if moved := work.moved():
        warnings.warn(f"{cell.name} was begun elsewhere: {'; '.join(moved)}; its card names both", stacklevel=2)
    setup = study.set_up(cell, data, work)
    params = study.train(setup)
    arrays: Arrays = {}
    for stage in study.stages:
        arrays |= setup.kept(stage, params)
    found = study.card(setup, params, arrays)
    card = files.plain({
        **cards.origin(study.name, setup.work.stages()), **asdict(cell), "n_test": len(data.test.labels),
        "n_attack": len(setup.attacked), "n_margin": cell.points, **found, "paper": paper,
    })  # fmt: skip
    files.write_arrays(path.with_suffix(".npz"), arrays)
    files.write_json(path, card)
    return card


def _finished(path: Path, work: Workspace) -> Any:
    """The card of a finished cell, None where there is none or where a file of the cell is damaged."""
    if not path.exists():
        return None
    try:
        manifests.read(path.with_suffix(".npz"))
        for one in (work.metrics, work.params):
            with contextlib.suppress(FileNotFoundError):  # an ensemble trains nothing
                manifests.read(one)
        return cards.read(path)
    except (DamagedError, FileNotFoundError) as error:
        warnings.warn(f"{error}; {work.label} is finished again", stacklevel=3)
        return None


def trained(setup: Setup[Cell], how: Training) -> Any:
    """Trains the network of a cell and keeps its parameters as params.npz.

    Args:
      setup: of the cell.
      how: the training.

    Returns:
      The parameters.

    Raises:
      DivergedError: see ``train``.
    """
    state = train(how, setup.model, setup.keys["init"], setup.keys["train"], setup.work)
    write_params(setup.work.params, state.params)
    return state.params
