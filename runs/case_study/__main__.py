"""The case study of Wu and Yu (2019, section 3, Figures 1 and 3): two classes, logistic regression, and the SVM.

``python -m runs.case_study`` takes the embedded digits 0 and 1; ``python -m runs.case_study --dataset mnist`` takes the
paper's 12,665 training and 2,115 test images.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from jaxmargin import checks
from jaxmargin.lab import command_line, data, files
from jaxmargin.lab.compilation import keep_compiled
from jaxmargin.lab.report.page import markdown_table
from runs.case_study import claims, hyperplanes, study
from runs.case_study.publish import write_all
from runs.case_study.quadratic_program import NotSeparableError

__all__ = ["Options", "main"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains logistic regression on two classes and holds its margins against the SVM's and the exact front."""

    dataset: str = "digits"
    """digits (embedded) or mnist (the paper's)."""
    classes: tuple[int, int] = (0, 1)
    """The two classes, -1 and +1; a hyperplane must separate them."""
    epochs: int = 1000
    """Epochs of plain gradient descent, full batch."""
    normalised_epochs: int = 10_000
    """Epochs of the two loss-normalised descents."""
    step: float | None = None
    """Step of plain gradient descent; by default 4 / lambda_max(mean z z'), z = y (x, 1)."""
    normalised_step: float | None = None
    """Step that is divided by the loss; by default the plain one's default."""
    momentum_step: float | None = None
    """The same with momentum; by default 1 / max |z|^2."""
    front_points: int = 40
    """Points of the exact front, beside those at the minimum margins of the classifiers."""
    workdir: str | None = None
    """Folder for everything written; by default out/case-study-<dataset>."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets, for mnist."""
    cache_dir: str | None = None
    """Folder for decoded images, for mnist."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m runs.case_study")
    return command_line.exit_code(lambda: run(options))


def run(options: Options) -> None:
    """Runs the study, and prints its table and the report's place."""
    start = time.perf_counter()
    workdir = check(options)
    images = data.load(options.dataset, data_dir=options.data_dir, cache_dir=options.cache_dir)
    task = hyperplanes.two_classes(images, options.classes)
    try:
        result = study.run(
            task,
            epochs={"plain": options.epochs, **dict.fromkeys(("normalised", "momentum"), options.normalised_epochs)},
            steps=dict(plain=options.step, normalised=options.normalised_step, momentum=options.momentum_step),
            front_points=options.front_points,
        )
    except NotSeparableError as error:
        raise ValueError(f"classes={options.classes[0]} {options.classes[1]}: {error}") from None
    place = write_all(workdir, result, dataset=options.dataset, classes=options.classes, start=start)
    print(f"{markdown_table(claims.table(result))}\nreport: {place}")


def check(options: Options) -> Path:
    """Refuses bad options before any work, and makes the folder."""
    checks.one_of("dataset", options.dataset, ("digits", "mnist"))
    for name, least in (("epochs", 1), ("normalised_epochs", 1), ("front_points", 2)):
        checks.whole(name, getattr(options, name), least)
    for name in ("step", "normalised_step", "momentum_step"):
        if (value := getattr(options, name)) is not None:
            checks.positive(name, value)
    workdir = Path(options.workdir or f"out/case-study-{options.dataset}")
    try:
        files.write_bytes(workdir / ".writable", b"").unlink()
    except OSError as error:
        raise ValueError(f"workdir={str(workdir)!r} cannot be written ({error.strerror}): pass another") from None
    return workdir


if __name__ == "__main__":
    keep_compiled()
    command_line.end(main())
