"""What was really measured, beside the papers: ``python -m runs.results out/paper-mnist out/case-study-mnist``.

The results of the workdirs given are taken over into the results folder, one folder a workdir; then its figures and its
README.md are made anew from everything that lies there. Nothing in it is typed by hand.
"""

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxmargin.lab import command_line, files
from jaxmargin.lab.report.page import markdown_table
from runs.mma.cell import RobustCell
from runs.paper.cell import Cell
from runs.results import comparison

__all__ = ["Options", "main"]

# What is kept of a workdir, cards last: points and metrics of cells, a case study's figures and result, a question's
# ranking.
KEPT = (
    "cards/*.npz", "cells/*/metrics.jsonl", "*.png", "result.json", "*/cards/*.npz", "*/cards/*.json", "ranking.md",
    "cards/*.json",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Takes over what is finished in workdirs of runs.paper, case_study, ablations and mma, beside the papers."""

    workdirs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Workdirs; none writes the README anew from what is there."""
    results: str = str(Path(__file__).parent)
    """The results folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Collects, compares, and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m runs.results")
    return command_line.exit_code(lambda: run(options))


def run(options: Options) -> None:
    """Takes over every workdir, writes README.md, and prints its path."""
    results = Path(options.results)
    workdirs = {results / Path(name).absolute().name: Path(name) for name in options.workdirs}
    if len(workdirs) < len(options.workdirs):
        raise ValueError("workdirs: two have the same name, which names their results: rename one")
    for folder, workdir in workdirs.items():
        check(workdir, folder)
    for folder, workdir in workdirs.items():
        take_over(workdir, folder)
    folders = sorted(path for path in results.glob("*") if comparison.kind(path))
    if not folders:
        raise ValueError(f"results={str(results)!r} holds no results: pass a finished workdir")
    sections = [comparison.section(folder) for folder in folders]
    contents = markdown_table([comparison.summary(folder) for folder in folders]) + "\n"
    print(files.write_bytes(results / "README.md", "\n".join([INTRODUCTION, contents, *sections]).encode()))


def check(workdir: Path, folder: Path) -> None:
    """Refuses a workdir without results, the results folder itself, and other settings than those in the folder."""
    if comparison.kind(workdir) is None:
        raise ValueError(
            f"workdirs={str(workdir)!r} holds no finished result: pass a workdir of runs.paper, runs.case_study,"
            " runs.ablations or runs.mma"
        )
    if folder.exists() and folder.samefile(workdir):
        raise ValueError(f"workdirs={str(workdir)!r} is in the results already: pass none to write their README anew")
    there = settings(folder)
    for name, here in settings(workdir).items():
        if changed := sorted(key for key, value in here.items() if there.get(name, here).get(key) != value):
            raise ValueError(
                f"workdirs={str(workdir)!r}: {name} has another {changed[0]} than in {folder}: rename the workdir, or"
                " remove that folder"
            )


def settings(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """What must agree for results to lie in one folder.

    That is all of a cell of the table but its seed, all of an MMA study but method and seed, and the classes and epochs
    of a case study, whose steps follow from the images, to the processor's rounding.
    """
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for path in folder.glob("**/cards/*.json"):
        card, place = files.read_json(path), path.parent.parent.relative_to(folder).as_posix()
        study = "norm" in card
        name = f"{place}: {'the study' if study else card['model'] + '-' + card['method']}"
        free = {"seed", "method"} if study else {"seed"} if place == "." else set()
        for field in dataclasses.fields(RobustCell if study else Cell):
            values = found[name][field.name]
            if field.name not in free and card.get(field.name) not in values:
                values.append(card.get(field.name))
    if (folder / "result.json").exists():
        card = files.read_json(folder / "result.json")
        epochs = {name: method["epochs"] for name, method in card["methods"].items()}
        found["the case study"] = {"dataset": [card["dataset"]], "classes": [card["classes"]], "epochs": [epochs]}
    return found


def take_over(workdir: Path, folder: Path) -> None:
    """Copies what is kept of a workdir, each file whole or not at all; cells that have no card yet stay behind."""
    finished = {path.stem for path in workdir.glob("cards/*.json")}
    for pattern in KEPT:
        for path in workdir.glob(pattern):
            if pattern != "cells/*/metrics.jsonl" or path.parent.name in finished:
                files.write_bytes(folder / path.relative_to(workdir), path.read_bytes())


INTRODUCTION = f"""# Measured

Written by `python -m runs.results` from the files in this folder. Numbers in brackets are those of the paper, Table 1
of Wu and Yu (2019) or, in the folders named mma, Ding et al. (2020), and what "the paper" is said to show are its
claims, to be compared with the figure below. A column such as "published 0.5 %" is the accuracy in percent under the
published attack of radius 0.5. Allowed are differences from the paper of {comparison.CLEAN["mnist"]:g} point of clean
accuracy on MNIST and of {comparison.CLEAN["cifar10"]:g} on CIFAR-10, of {comparison.ROBUST:g} points of accuracy under
attack, and of {100 * comparison.MARGIN:g} % of the average margin. Every card (`*/cards/*.json`) says its versions,
seconds, settings, seed and sizes, and the device that finished it; the `.npz` beside it holds the points.
"""

if __name__ == "__main__":
    sys.exit(main())
