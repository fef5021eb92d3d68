"""The main job: train the models of Wu and Yu (2019) with each method, follow the margins, attack, and report.

``python -m runs.paper`` takes the embedded digits; ``--dataset mnist`` and ``--dataset cifar10`` reproduce Table 1 and
Figures 2 and 4 to 7. A run that was interrupted continues when started again with the same options.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxmargin import checks
from jaxmargin.lab import command_line, data
from jaxmargin.lab.cells import run_cell
from jaxmargin.lab.compilation import keep_compiled
from runs.paper import presets, publish
from runs.paper.cell import METHODS, MODELS, Cell
from runs.paper.stages import STUDY

__all__ = ["Options", "main"]


@dataclass(frozen=True)
class Options(command_line.RunOptions):
    """Trains {linear, mlp, cnn} with {std, lcr, amr}, follows minimum and average margins, attacks, and reports."""

    dataset: str = "digits"
    """digits (embedded), mnist or cifar10."""
    models: tuple[str, ...] = MODELS
    """Models to train: linear mlp cnn."""
    methods: tuple[str, ...] = METHODS
    """Training methods: std lcr amr."""
    epochs: int | None = None
    """Epochs of every cell; by default the preset's (mnist, cifar10: linear 1000, others 200; digits: 100 and 40)."""
    num_samples: int | None = None
    """Ball samples a point for the Lipschitz constants; by default 51,200 (digits: 1,024)."""
    points: int | None = None
    """Training and test points whose margins are measured, of each; by default 500 (digits: 60)."""
    epsilons: tuple[float, ...] | None = None
    """l2 radii of the attack; by default the paper's four."""
    attack_points: int | None = None
    """Test images under attack, evenly spread over the split; by default all."""
    attack_steps: int | None = None
    """Steps of the published attack; by default 1000 (digits: 100, each twice as long)."""
    worst_case_steps: int | None = None
    """Steps of each attempt of the worst case; by default 100 (digits: 50)."""
    nearest_steps: int | None = None
    """Steps of each minimum-norm attack; by default 500 (digits: 200)."""
    preset: str = "released"
    """text (the words of the paper) or released (the configuration behind its numbers)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the table and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m runs.paper")
    return command_line.exit_code(lambda: run(options), minutes=options.minutes)


def run(options: Options) -> None:
    """Runs every cell that is not finished, publishes the workdir, and prints the table and the report's place."""
    cells = check(options)
    images = data.load(options.dataset, data_dir=options.data_dir)
    workdir = Path(options.workdir or f"out/paper-{options.dataset}")

    def run_one(cell: Cell) -> None:
        run_cell(STUDY, cell, images, workdir, presets.published(cell.dataset, cell.model, cell.method))

    command_line.run_cells(
        cells, images, run_one, describe=describe, publish=publish.publish, workdir=workdir, settings=settings(options)
    )


def check(options: Options) -> list[Cell]:
    """The cells to run, every option checked before any work."""
    for name, chosen, known in (("models", options.models, MODELS), ("methods", options.methods, METHODS)):
        if not chosen:
            raise ValueError(f"{name} is empty: choose from {', '.join(known)}")
        for value in chosen:
            checks.one_of(name, value, known)
    command_line.check_seeds(options.seeds)
    names = itertools.product(options.seeds, options.models, options.methods)
    return [_cell(options, model, method, seed) for seed, model, method in names]


def settings(options: Options) -> dict[str, Any]:
    """The settings of all the cells a workdir may hold, run or not and of any seed."""
    cells = {"-".join(name): asdict(_cell(options, *name)) for name in itertools.product(MODELS, METHODS)}
    return {name: {k: v for k, v in cell.items() if k != "seed"} for name, cell in cells.items()}


def describe(cell: Cell) -> str:
    """The settings of a cell in a few words."""
    sampling = "exact margins" if cell.model == "linear" else f"{cell.num_samples:,} samples a point"
    return f"{cell.epochs} epochs at rate {cell.learning_rate:g}, {sampling}, {cell.points} points a split"


def _cell(options: Options, model: str, method: str, seed: int = 0) -> Cell:
    return presets.cell(model=model, method=method, seed=seed, **command_line.overrides(options, Cell))


if __name__ == "__main__":
    keep_compiled()
    command_line.end(main())
