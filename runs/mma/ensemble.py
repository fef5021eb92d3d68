"""Finished cells of one network that vote, measured as a cell of their own."""

import functools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxmargin.adapters import ensemble
from jaxmargin.lab import cards, files
from jaxmargin.lab.cells import Setup, run_cell
from jaxmargin.lab.data.loading import Dataset
from jaxmargin.lab.files import Arrays
from jaxmargin.lab.parameters import read_params
from jaxmargin.lab.workspace import Workspace
from runs.mma.cell import Cell
from runs.mma.stages import STUDY, MmaCard, set_up

__all__ = ["run_ensemble"]

_vote = functools.cache(ensemble)


def run_ensemble(cell: Cell, members: Sequence[Cell], data: Dataset, workdir: Path) -> MmaCard:
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
    path, folder = cards.path_of(workdir, cell.name), workdir / "cells" / cell.name
    names, known = [member.method for member in members], folder / "members.json"
    if (path.exists() and cards.read(path)["members"] != names) or (known.exists() and files.read_json(known) != names):
        path.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # what others voted
    files.write_json(known, names)

    def voting(cell: Cell, data: Dataset, work: Workspace) -> Setup[Cell]:
        setup = set_up(cell, data, work)
        return replace(setup, apply_fn=_vote(setup.model.apply))

    def read(setup: Setup[Cell]) -> Any:
        like = jax.eval_shape(setup.model.init, jax.random.key(0))
        return [read_params(workdir / "cells" / member.name / "params.npz", like) for member in members]

    def card(setup: Setup[Cell], params: Any, arrays: Arrays) -> dict[str, Any]:
        return {**STUDY.card(setup, params, arrays), "members": names}

    found: MmaCard = run_cell(STUDY._replace(set_up=voting, train=read, card=card), cell, data, workdir)
    return found
