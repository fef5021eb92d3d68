"""MMA training (Ding et al. 2020) beside adversarial training, TRADES, and both methods of Wu and Yu, on one network.

``python -m runs.mma`` takes the embedded digits; ``--dataset mnist`` and ``--dataset cifar10`` have the paper's
networks and settings. A run that was interrupted continues when started again with the same options.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxmargin import checks
from jaxmargin.lab import cards, command_line, data
from jaxmargin.lab.cells import run_cell
from jaxmargin.lab.compilation import keep_compiled
from runs.mma import presets, publish
from runs.mma.cell import ENSEMBLE, NETWORKS, Cell, kind_of
from runs.mma.ensemble import run_ensemble
from runs.mma.stages import STUDY

__all__ = ["Options", "main"]


@dataclass(frozen=True)
class Options(command_line.RunOptions):
    """Trains one network with every method, follows the distances of test images, attacks, and reports."""

    dataset: str = "digits"
    """digits (embedded), mnist or cifar10."""
    norm: str = "l2"
    """l2 or linf: of the attacks, in training and after it."""
    model: str | None = None
    """lenet, small-lenet (8 and 16 channels, 64 units) or wrn-28-4 (cifar10); by default the paper's (digits: the small
    one)."""
    methods: tuple[str, ...] | None = None
    """std lcr amr pgd-SIZE trades-SIZE mma-SIZE pgd-ens (of the pgd's that run), sizes in input units; by default those
    of the paper."""
    steps: int | None = None
    """Optimiser steps of every cell; by default the paper's 100,000 (cifar10: 50,000; digits: 1,500)."""
    learning_rate: float | None = None
    """The first one; later ones fall as the paper's do. By default the paper's 1e-4 (cifar10: 0.3; digits: 1e-3)."""
    attack_steps: int | None = None
    """PGD steps of the inner attacks; by default 40 (cifar10, digits: 10)."""
    attack_points: int | None = None
    """Test images under attack, the first ones; by default 1000 (digits: all)."""
    worst_case_steps: int | None = None
    """Steps of each attempt of the worst case; by default 100 (digits: 50)."""
    nearest_steps: int | None = None
    """Steps of each minimum-norm attack; by default 500 (digits: 100)."""
    points: int | None = None
    """Test points whose distance is estimated, certified and attacked; by default 200 (cifar10: 50; digits: 60)."""
    num_samples: int | None = None
    """Ball samples a point for the Lipschitz constants; by default 8,192 (cifar10, digits: 1,024)."""
    reference: bool = False
    """Search the boundary as the authors' released code does, in mma."""
    bfloat16: bool = False
    """Compute the convolutions of the cifar10 network in bfloat16."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m runs.mma")
    return command_line.exit_code(lambda: run(options), minutes=options.minutes)


def run(options: Options) -> None:
    """Runs every cell that is not finished, publishes the workdir, and prints the table and the report's place."""
    cells = check(options)
    images = data.load(options.dataset, data_dir=options.data_dir)
    workdir = Path(options.workdir or f"out/mma-{options.dataset}-{options.norm}")

    def run_one(cell: Cell) -> None:
        if cell.method != ENSEMBLE:
            run_cell(STUDY, cell, images, workdir, presets.published(cell.dataset, cell.norm, cell.method))
            return
        members = [one for one in cells if kind_of(one.method)[0] == "pgd" and one.seed == cell.seed]
        if missing := [one.method for one in members if not cards.path_of(workdir, one.name).exists()]:
            print(f"{cell.name}: left out, since {', '.join(missing)} diverged", file=sys.stderr)
        else:
            run_ensemble(cell, members, images, workdir)

    command_line.run_cells(
        cells, images, run_one, describe=describe, publish=publish.publish, workdir=workdir, settings=_settings(options)
    )


def describe(cell: Cell) -> str:
    """What makes a cell, in a few words."""
    return "its members vote" if cell.method == ENSEMBLE else f"{cell.steps:,} steps"


def check(options: Options) -> list[Cell]:
    """The cells to run, every option checked before any work; an ensemble comes after its members."""
    chosen = presets.methods(options.dataset, options.norm) if options.methods is None else options.methods
    if not chosen:
        raise ValueError("methods is empty: pass at least one, such as --methods std mma-1")
    kinds = {kind_of(method)[0] for method in chosen}
    if ENSEMBLE in kinds and "pgd" not in kinds:
        raise ValueError(f"methods has {ENSEMBLE} without a member: add some, such as pgd-1")
    command_line.check_seeds(options.seeds)
    if options.learning_rate is not None:
        checks.positive("learning_rate", options.learning_rate)
    if options.model is not None:
        checks.one_of("model", options.model, NETWORKS)
    ordered = sorted(dict.fromkeys(chosen), key=lambda method: method == ENSEMBLE)
    return [_cell(options, method, seed) for seed in options.seeds for method in ordered]


def _cell(options: Options, method: str, seed: int) -> Cell:
    changes = command_line.overrides(options, Cell) | {"learning_rate": options.learning_rate}
    return presets.cell(method=method, seed=seed, **changes)


def _settings(options: Options) -> dict[str, Any]:
    """The settings that all cells of a workdir share."""
    settings = asdict(_cell(options, "std", 0))
    return {name: value for name, value in settings.items() if name not in ("method", "seed")}


if __name__ == "__main__":
    keep_compiled()
    command_line.end(main())
