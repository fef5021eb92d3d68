"""What was really measured, beside the papers: ``python -m runs.results out/paper-mnist out/case-study-mnist``.

The results of the workdirs given are taken over into the results folder, one folder a workdir; then its figures and its
README.md are made anew from everything that lies there. Nothing in it is typed by hand. The words are those of each
study: cards name the folder below runs/ whose ``comparison`` knows them.
"""

import importlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import tyro

from jaxmargin.lab import cards, command_line, files
from jaxmargin.lab.report.page import markdown_table

__all__ = ["Comparison", "Options", "main"]

# What is kept of a workdir, cards last: points and metrics of cells, figures and result of a study without cells, a
# question's ranking.
KEPT = (
    "cards/*.npz", "cells/*/metrics.jsonl", "*.png", "result.json", "*/cards/*.npz", "*/cards/*.json", "ranking.md",
    "cards/*.json",
)  # fmt: skip
CARDS = ("cards/*.json", "result.json")  # of cells, or of a study without cells of its own
RUNS = Path(__file__).parents[1]


class Comparison(Protocol):
    """What the module ``comparison`` of a study has."""

    NOTE: str  # what a reader must know of all its folders

    @staticmethod
    def section(folder: Path) -> list[str]:
        """The paragraphs on a folder of results."""

    @staticmethod
    def summary(folder: Path) -> dict[str, str]:
        """Its row of the table of contents."""

    @staticmethod
    def settings(folder: Path) -> dict[str, dict[str, list[Any]]]:
        """What must agree with the settings of a workdir that is taken over, by name."""


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
    found = {folder: study for folder in sorted(results.glob("*")) if (study := comparison_of(folder))}
    if not found:
        raise ValueError(f"results={str(results)!r} holds no results: pass a finished workdir")
    contents = markdown_table([link(folder) | study.summary(folder) for folder, study in found.items()]) + "\n"
    sections = [section(folder, study) for folder, study in found.items()]
    text = "\n".join([introduction([*found.values()]), contents, *sections])
    print(files.write_bytes(results / "README.md", text.encode()))


def comparison_of(folder: Path) -> Comparison | None:
    """The comparison of the study whose results a folder holds; None where nothing is finished."""
    for path in (path for pattern in CARDS for path in sorted(folder.glob(pattern))):
        known = sorted(path.parent.name for path in RUNS.glob("*/comparison.py"))
        if (name := cards.read(path)["study"]) not in known:
            raise ValueError(f"{path} is of the study {name!r}: there is {', '.join(known)}")
        return cast(Comparison, importlib.import_module(f"runs.{name}.comparison"))
    return None


def link(folder: Path) -> dict[str, str]:
    """The first cell of a folder's row."""
    return {"folder": f"[{folder.name}](#{folder.name})"}


def section(folder: Path, study: Comparison) -> str:
    """One folder of results as Markdown under a heading with its name."""
    return "\n\n".join(part.strip() for part in [f"## {folder.name}", *study.section(folder)]) + "\n"


def check(workdir: Path, folder: Path) -> None:
    """Refuses a workdir without results, the results folder itself, and other settings than those in the folder."""
    if (study := comparison_of(workdir)) is None:
        raise ValueError(
            f"workdirs={str(workdir)!r} holds no finished result: pass a workdir of runs.paper, runs.case_study,"
            " runs.ablations or runs.mma"
        )
    if folder.exists() and folder.samefile(workdir):
        raise ValueError(f"workdirs={str(workdir)!r} is in the results already: pass none to write their README anew")
    there = study.settings(folder)
    for name, here in study.settings(workdir).items():
        if changed := sorted(key for key, value in here.items() if there.get(name, here).get(key, value) != value):
            raise ValueError(
                f"workdirs={str(workdir)!r}: {name} has another {changed[0]} than in {folder}: rename the workdir, or"
                " remove that folder"
            )


def take_over(workdir: Path, folder: Path) -> None:
    """Copies what is kept of a workdir, each file whole or not at all; cells that have no card yet stay behind."""
    finished = {path.stem for path in workdir.glob("cards/*.json")}
    for pattern in KEPT:
        for path in workdir.glob(pattern):
            if pattern != "cells/*/metrics.jsonl" or path.parent.name in finished:
                to = folder / path.relative_to(workdir)
                if path.suffix in files.FORMATS:
                    files.copy(path, to)
                else:
                    files.write_bytes(to, path.read_bytes())


def introduction(studies: Sequence[Comparison]) -> str:
    """What stands above all of it, with a paragraph of each study."""
    notes = [textwrap.fill(" ".join(note.split()), 120) for note in dict.fromkeys(study.NOTE for study in studies)]
    return "\n\n".join([_INTRODUCTION, *notes]) + "\n"


_INTRODUCTION = """# Measured

Written by `python -m runs.results` from the files in this folder. Numbers in brackets are those of the paper, and what
"the paper" is said to show are its claims, to be compared with the figure below. Every card (`*/cards/*.json`) says its
study, commit, versions, settings, seed and sizes, and of every stage the seconds and the device; the `.npz` beside it
holds the points. A margin is signed, a distance is not."""

if __name__ == "__main__":
    command_line.end(main())
