"""What all entry points share: typed options from the command line, and one line on stderr for whatever goes wrong."""

import contextlib
import dataclasses
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from jaxmargin import checks
from jaxmargin.lab.cells import Cell
from jaxmargin.lab.data.loading import Dataset
from jaxmargin.lab.interruptions import SAID, Stopped, stoppable
from jaxmargin.lab.publishing import Published
from jaxmargin.lab.settings import READ_ONLY, claimed
from jaxmargin.lab.training import DivergedError

__all__ = ["RunOptions", "check_seeds", "end", "exit_code", "overrides", "parse", "run_cells"]

Options = TypeVar("Options")


AnyCell = TypeVar("AnyCell", bound=Cell)


@dataclass(frozen=True)
class RunOptions:
    """Options of every study that runs cells."""

    seeds: tuple[int, ...] = (0,)
    """Of initialisation, shuffling and sampling; every cell runs with each, and the table gives mean and deviation."""
    minutes: float | None = None
    """Stop after so many minutes, to be continued by the same command, here or where the workdir is copied to; longer
    than an epoch, since what was under way is done again."""
    workdir: str | None = None
    """Folder for everything written; by default out/STUDY-<dataset>."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def parse(options: type[Options], arguments: Sequence[str] | None, *, prog: str) -> Options:
    """Reads a frozen dataclass of options from the command line; its docstrings are the --help.

    Args:
      options: the dataclass.
      arguments: the words of the command line; None takes the process's own.
      prog: the command, for messages.

    Returns:
      The options.

    Raises:
      SystemExit: code 0 after --help; code 2, after one line on stderr, for words that cannot be read.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, args=arguments, prog=prog)
    except SystemExit as stop:
        if stop.code:
            words = re.sub(r"[\u2500-\u257f\s]+", " ", said.getvalue()).strip()  # without the frame drawn around it
            words = re.sub(r"^(\w[\w ]*) (?=\1)", "", words)  # nor its title, where the text repeats it
            print(f"error: {words}", file=sys.stderr)
        raise


def exit_code(job: Callable[[], None], minutes: float | None = None) -> int:
    """Runs a job and says in one line on stderr why it stopped, if it did.

    Args:
      job: does the work and prints its result.
      minutes: after which it is interrupted as by the keyboard; None for never.

    Returns:
      0; 1 for a diverging loss; 2 for bad input; 130 for an interruption; 143 for one by SIGTERM.
    """
    try:
        with stoppable(minutes), _brief_warnings():
            job()
    except DivergedError as error:
        return _stopped(str(error), 1)
    except (ValueError, OSError) as error:
        return _stopped(str(error), 2)
    except KeyboardInterrupt as stop:
        print(SAID, file=sys.stderr)
        return stop.exit_code if isinstance(stop, Stopped) else 130
    return 0


def end(code: int) -> NoReturn:
    """Ends the process with an exit code, after an interruption without waiting for what would be tidied up.

    Args:
      code: of the process.
    """
    if code > 128:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_cells(
    cells: Sequence[AnyCell],
    images: Dataset,
    run_one: Callable[[AnyCell], Any],
    *,
    describe: Callable[[AnyCell], str],
    publish: Callable[[Path], Published[Any]],
    workdir: Path,
    settings: Mapping[str, Any],
) -> None:
    """Runs one cell after the other, publishes what is finished, and prints the table and the report's place.

    Args:
      cells: the cells; all of them are checked first.
      images: their data set.
      run_one: runs a cell and leaves its card in the workdir.
      describe: a cell's settings in a few words, for the line that announces it.
      publish: makes table and report of a workdir with cards.
      workdir: of the run, which is claimed for it.
      settings: see ``claimed``.

    Raises:
      ValueError: a cell that does not fit the data set, or see ``claimed``.
      DivergedError: the first of the cells, after all the others were run and published.
    """
    for cell in cells:
        cell.check(images)
    with claimed(workdir, settings):
        _run_each(cells, run_one, describe, publish, workdir)


def _run_each(
    cells: Sequence[AnyCell],
    run_one: Callable[[AnyCell], Any],
    describe: Callable[[AnyCell], str],
    publish: Callable[[Path], Published[Any]],
    workdir: Path,
) -> None:
    diverged: list[DivergedError] = []
    for number, cell in enumerate(cells, 1):
        print(f"[{number}/{len(cells)}] {cell.name}: {describe(cell)}", file=sys.stderr)
        try:
            run_one(cell)
        except DivergedError as error:
            diverged.append(error)
    if any((workdir / "cards").glob("*.json")):
        print(_published(publish, workdir))
    if diverged:
        raise diverged[0]


def _published(publish: Callable[[Path], Published[Any]], workdir: Path) -> str:
    """The table and the report's place, those of before where the workdir can only be read."""
    try:
        published = publish(workdir)
        return f"{published.table}\nreport: {published.report}"
    except OSError as error:
        if error.errno not in READ_ONLY or not (workdir / "table.md").exists():
            raise
        return f"{(workdir / 'table.md').read_text()}report: {workdir / 'report.html'}"


def overrides(options: Any, cell: type) -> dict[str, Any]:
    """The settings of a cell that the command line sets: the options that bear the name of one of its fields.

    Args:
      options: the dataclass of options; None, and False for a switch, leaves a setting to the preset.
      cell: the dataclass of the cell's settings.

    Returns:
      The settings by name, without those that are left to the preset.

    Raises:
      ValueError: a count below 1, a seed below 0, or radii that are none.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(cell)}
    asked = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name in kinds}
    settings = {name: value for name, value in asked.items() if value is not None and value is not False}
    for name, value in settings.items():
        if kinds[name] is int:
            checks.whole(name, value, least=0 if name == "seed" else 1)
    if "epsilons" in settings and not settings["epsilons"]:
        raise ValueError("epsilons is empty: pass at least one radius, such as --epsilons 0.5 1.0")
    for epsilon in settings.get("epsilons", ()):
        checks.positive("epsilons", epsilon)
    return settings


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuses seeds that are none.

    Args:
      seeds: of a run.

    Raises:
      ValueError: no seed, or a negative one.
    """
    if not seeds:
        raise ValueError("seeds is empty: pass at least one, such as --seeds 0")
    for seed in seeds:
        checks.whole("seeds", seed, least=0)


@contextlib.contextmanager
def _brief_warnings() -> Iterator[None]:
    """Warnings on one line, without the place in the code that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _stopped(message: str, code: int) -> int:
    """Says in one line on stderr why a job stopped, and gives its exit code back."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
