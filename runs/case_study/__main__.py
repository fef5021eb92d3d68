"""The case study of Wu and Yu (2019, section 3, Figures 1 and 3): two classes, logistic regression, and the SVM.

``python -m runs.case_study`` takes the embedded digits 0 and 1; ``python -m runs.case_study --dataset mnist`` takes the
paper's 12,665 training and 2,115 test images.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxmargin import checks
from jaxmargin.lab import command_line, data, files
from jaxmargin.lab.compilation import keep_compiled
from jaxmargin.lab.figures import plots
from jaxmargin.lab.report import page
from jaxmargin.lab.report.page import Section
from runs.case_study import claims, hyperplanes, study
from runs.case_study.svm import NotSeparableError

__all__ = ["Options", "main"]

TABLE_NOTE = (
    "Signed margins y (w.x + b)/|w| of the training points unless a column says test; the best average at a minimum "
    "is the front's. Distances are |w/|w| - r/|r||. The mean difference's boundary lies half-way between the class "
    "means."
)
BIAS_NOTE = (
    "Gradient descent treats b as one more weight, so its limit minimises |w|^2 + b^2: the SVM with a penalised bias. "
    "The textbook's SVM leaves b free; it has another direction and the larger minimum margin."
)
FRONT_NOTE = (
    "For each m, the largest mean of y (w.x + b) over |w| <= 1 and b with every y (w.x + b) at least m: a convex "
    "program, solved by daqp's active-set method and certified by its duality gap. The right end is the SVM with a free "
    "bias. Where one class is larger, the bias alone raises the average without end towards the left."
)
CHECK_NOTE = (
    "Relative KKT residuals of both SVMs, the front's largest duality gap over its average, the distance of the free "
    "SVM's direction to scikit-learn's (C = 1e6, tol = 1e-7), and the largest difference on the test points between "
    "these margins (closed form, double precision) and the package's linear_margin (single precision)."
)


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
    """Runs the study; bad input gives one line on stderr and exit code 2."""
    options = command_line.parse(Options, arguments, prog="python -m runs.case_study")
    start = time.perf_counter()
    try:
        workdir = check(options)
        images = data.load(options.dataset, data_dir=options.data_dir, cache_dir=options.cache_dir)
        task = hyperplanes.two_classes(images, options.classes)
    except (ValueError, OSError) as error:
        return command_line.stopped(str(error), 2)
    try:
        result = study.run(
            task,
            epochs={"plain": options.epochs, **dict.fromkeys(("normalised", "momentum"), options.normalised_epochs)},
            steps=dict(plain=options.step, normalised=options.normalised_step, momentum=options.momentum_step),
            front_points=options.front_points,
        )
    except NotSeparableError as error:
        return command_line.stopped(f"classes={options.classes[0]} {options.classes[1]}: {error}", 2)
    place = write_all(options, result, workdir, start)
    print(f"{page.markdown_table(claims.table(result))}\nreport: {place}")
    return 0


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


def write_all(options: Options, result: study.Result, workdir: Path, start: float) -> Path:
    """Writes every file of the study and returns the report's path."""
    rows, name = claims.table(result), f"{options.dataset}, {options.classes[0]} against {options.classes[1]}"
    figures = {
        key: (plots.save(figure, workdir / f"{key}.png"), caption) for key, figure, caption in draw(result, name)
    }
    files.write_bytes(workdir / "table.md", page.markdown_table(rows).encode())
    files.write_bytes(workdir / "table.csv", page.csv_table(rows).encode())
    files.write_records(workdir / "metrics.jsonl", claims.metrics(result))
    files.write_arrays(workdir / "margins.npz", arrays(result))
    card = result_card(options, result, time.perf_counter() - start)
    files.write_json(workdir / "result.json", card)
    return page.write_report(
        workdir / "report.html",
        title=f"Minimum against average margin: {name}",
        introduction=claims.findings(result),
        sections=sections(result, figures, card),
    )


def arrays(result: study.Result) -> dict[str, np.ndarray]:
    """The margins, the classifiers and the front, by name."""
    found: dict[str, np.ndarray] = {}
    for name, row in result.rows.items():
        found |= {f"train_{name}": row.train, f"test_{name}": row.test, f"w_{name}": row.direction.w}
        found |= {f"b_{name}": np.asarray(row.direction.b)}
    for name, trace in result.traces.items():
        found |= {f"marks_{name}": np.asarray(result.marks[name]), f"v_{name}": trace.v}
    return found | {f"front_{name}": value for name, value in result.front._asdict().items()}


def result_card(options: Options, result: study.Result, seconds: float) -> dict[str, Any]:
    """What was asked, measured and used."""
    return {
        "study": "case_study",
        "dataset": options.dataset,
        "classes": list(options.classes),
        "n_train": len(result.task.train_ys),
        "n_test": len(result.task.test_ys),
        "methods": {
            name: {"epochs": result.marks[name][-1], "step": step, "rule": study.METHODS[name].rule}
            for name, step in result.steps.items()
        },
        "rows": claims.table(result),
        "claims": claims.claims(result),
        "residuals": result.residuals,
        "device": files.device_name(),
        "versions": files.versions() | {"scikit-learn": metadata.version("scikit-learn")},
        "seconds": result.seconds | {"total": round(seconds, 3)},
    }


def draw(result: study.Result, name: str) -> Iterator[tuple[str, Figure, str]]:
    """The figures, each with its file's name and its caption."""
    traces, rows, labels = result.traces, result.rows, {key: row.label for key, row in result.rows.items()}
    epoch = {key: np.arange(1, len(trace.minimum) + 1) for key, trace in traces.items()}
    ends = {key: (float(row.train.min()), float(row.train.mean())) for key, row in rows.items()}
    svms = {labels[key]: ends[key] for key in ("penalised", "free")}
    best = claims.nearest(result)
    curves = {labels[key]: (epoch[key], trace.minimum, trace.average) for key, trace in traces.items()}
    figure = plots.margin_curves(curves, title=f"{name}: margins over training", references=svms, log_x=True)
    yield "figure1", figure, "Minimum and average margin of the training points after each epoch, and the two SVMs'."

    shown = zip(result.marks[best], traces[best].v, strict=True)
    margins = {f"epoch {t}": hyperplanes.at("", v, result.task).train for t, v in shown}
    margins |= {labels[key]: rows[key].train for key in ("penalised", "free")}
    figure = plots.margin_histograms(margins, title=f"{name}: training margins, {labels[best]}")
    yield "figure1c", figure, f"Margins of the training points under {labels[best]}, and of the two SVMs."

    errors = {
        labels[key]: dict(epoch=epoch[key], train_loss=np.exp(np.float64(trace.log_loss)),
                          train_error=trace.train_error, test_error=trace.test_error)
        for key, trace in traces.items()
    }  # fmt: skip
    figure = plots.training_curves(errors, title=f"{name}: loss and errors", log_x=True)
    yield "figure3", figure, "Loss and errors after each epoch; a filled area goes up and down from epoch to epoch."

    front, path = result.front, (traces[best].minimum, traces[best].average)
    points = {labels[key]: end for key, end in ends.items()}
    title = f"{name}: the front of margins"
    figure = plots.pareto_front((front.minimum, front.average), points, title=title, path=path, path_label=labels[best])
    yield "pareto", figure, f"No classifier lies above the front. The path is {labels[best]}, epoch by epoch."

    distances = {f"{labels[key]}, to penalised": (epoch[key], trace.distance[:, 0]) for key, trace in traces.items()}
    distances |= {f"{labels[best]}, to free": (epoch[best], traces[best].distance[:, 1])}
    figure = plots.direction_convergence(distances, title=f"{name}: distance of w/|w| to the SVM's")
    yield "direction", figure, "Distance of the weights' direction to the SVM's, with a penalised and a free bias."


def sections(result: study.Result, figures: dict[str, tuple[Path, str]], card: dict[str, Any]) -> list[Section]:
    """The report, from the claims to the settings."""
    rules = [{"method": study.METHODS[name].label, "step": step} for name, step in result.steps.items()]
    residuals = [{"residual": name, "value": value} for name, value in result.residuals.items()]
    used = card["versions"] | {"device": card["device"]} | {f"{k}, seconds": v for k, v in card["seconds"].items()}
    return [
        Section("Classifiers", TABLE_NOTE, card["rows"]),
        Section("Claims and what was measured", "", card["claims"]),
        Section("Margins over training (Figure 1)", "", figures=(figures["figure1"], figures["figure1c"])),
        Section("Loss and errors (Figure 3)", "", figures=(figures["figure3"],)),
        Section("Direction of the weights", BIAS_NOTE, figures=(figures["direction"],)),
        Section("The exact front", FRONT_NOTE, figures=(figures["pareto"],)),
        Section("Updates", "\n\n".join(f"{m.label}: {m.rule}" for m in study.METHODS.values()), rules),
        Section("Optimality, checked", CHECK_NOTE, residuals),
        Section("Versions and time", "", [{"what": key, "value": str(value)} for key, value in used.items()]),
    ]


if __name__ == "__main__":
    keep_compiled()
    sys.exit(main())
