"""A case study as files: tables, metrics, margins, figures, its card and one report."""

import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxmargin.lab import files, provenance
from jaxmargin.lab.cards import Stage, origin
from jaxmargin.lab.figures import plots
from jaxmargin.lab.report import page
from jaxmargin.lab.report.page import Section
from runs.case_study import claims
from runs.case_study.figures import draw
from runs.case_study.study import METHODS, Result

__all__ = ["arrays", "result_card", "sections", "write_all"]

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
    "program, solved by daqp and certified by its duality gap. The right end is the SVM with a free bias. Where one "
    "class is larger, the bias alone raises the average without end towards the left."
)
CHECK_NOTE = (
    "Relative KKT residuals of both SVMs, the front's largest duality gap over its average, the distance of the free "
    "SVM's direction to scikit-learn's (C = 1e6, tol = 1e-7), and the largest difference on the test points between "
    "these margins (closed form, double precision) and the package's linear_margin (single precision)."
)


def write_all(workdir: Path, result: Result, *, dataset: str, classes: tuple[int, int], start: float) -> Path:
    """Writes table.md, table.csv, metrics.jsonl, margins.npz, the figures, result.json and report.html.

    Args:
      workdir: Where.
      result: What was measured.
      dataset: The name of the data.
      classes: The two classes, -1 and +1.
      start: When it started, by ``time.perf_counter``.

    Returns:
      The report's path.
    """
    rows, name = claims.table(result), f"{dataset}, {classes[0]} against {classes[1]}"
    pictures = {
        key: (plots.save(figure, workdir / f"{key}.png"), caption) for key, figure, caption in draw(result, name)
    }
    files.write_bytes(workdir / "table.md", page.markdown_table(rows).encode())
    files.write_bytes(workdir / "table.csv", page.csv_table(rows).encode())
    files.write_records(workdir / "metrics.jsonl", claims.metrics(result))
    files.write_arrays(workdir / "margins.npz", arrays(result))
    card = {"dataset": dataset, "classes": list(classes)} | result_card(result, time.perf_counter() - start)
    files.write_json(workdir / "result.json", card)
    return page.write_report(
        workdir / "report.html",
        title=f"Minimum against average margin: {name}",
        introduction=claims.findings(result),
        sections=sections(result, pictures, card),
    )


def arrays(result: Result) -> dict[str, np.ndarray]:
    """The margins, the classifiers and the front, by name."""
    found: dict[str, np.ndarray] = {}
    for name, row in result.rows.items():
        found |= {f"train_{name}": row.train, f"test_{name}": row.test, f"w_{name}": row.direction.w}
        found |= {f"b_{name}": np.asarray(row.direction.b)}
    for name, trace in result.traces.items():
        found |= {f"marks_{name}": np.asarray(result.marks[name]), f"v_{name}": trace.v}
    return found | {f"front_{name}": value for name, value in result.front._asdict().items()}


def result_card(result: Result, seconds: float) -> dict[str, Any]:
    """What was measured, and with what."""
    versions = provenance.versions() | {name: metadata.version(name) for name in ("daqp", "scikit-learn")}
    stages: dict[str, Stage] = {
        name: {"seconds": spent, "device": provenance.device_name(), "versions": versions}
        for name, spent in result.seconds.items()
    }
    return {
        **origin("case_study", stages),
        "versions": versions,
        "n_train": len(result.task.train_ys),
        "n_test": len(result.task.test_ys),
        "methods": {
            name: {"epochs": result.marks[name][-1], "step": step, "rule": METHODS[name].rule}
            for name, step in result.steps.items()
        },
        "rows": claims.table(result),
        "claims": claims.claims(result),
        "residuals": result.residuals,
        "seconds": round(seconds, 3),
    }


def sections(result: Result, pictures: dict[str, tuple[Path, str]], card: dict[str, Any]) -> list[Section]:
    """The report, from the claims to the settings."""
    rules = [{"method": METHODS[name].label, "step": step} for name, step in result.steps.items()]
    residuals = [{"residual": name, "value": value} for name, value in result.residuals.items()]
    spent = {f"{name}, seconds": stage["seconds"] for name, stage in card["stages"].items()}
    used = card["versions"] | {"device": card["device"]} | spent | {"total, seconds": card["seconds"]}
    return [
        Section("Classifiers", TABLE_NOTE, card["rows"]),
        Section("Claims and what was measured", "", card["claims"]),
        Section("Margins over training (Figure 1)", "", figures=(pictures["figure1"], pictures["figure1c"])),
        Section("Loss and errors (Figure 3)", "", figures=(pictures["figure3"],)),
        Section("Direction of the weights", BIAS_NOTE, figures=(pictures["direction"],)),
        Section("The exact front", FRONT_NOTE, figures=(pictures["pareto"],)),
        Section("Updates", "\n\n".join(f"{m.label}: {m.rule}" for m in METHODS.values()), rules),
        Section("Optimality, checked", CHECK_NOTE, residuals),
        Section("Versions and time", "", [{"what": key, "value": str(value)} for key, value in used.items()]),
    ]
