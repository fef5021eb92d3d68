"""What a case study found: its table, its records, the paper's claims decided by its numbers, and two paragraphs."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from runs.case_study.hyperplanes import apart
from runs.case_study.study import METHODS, Result, Trace

__all__ = ["claims", "findings", "metrics", "nearest", "table"]

REACHED = 0.01  # a minimum margin counts as the SVM's when it is within this part of it


def metrics(result: Result) -> Iterator[dict[str, Any]]:
    """One flat record for each method and epoch of a ``Result``."""
    for method, trace in result.traces.items():
        names = {"minimum": "minimum_margin", "average": "average_margin"}  # as in the metrics of every study
        columns = {names.get(n, n): np.asarray(getattr(trace, n), np.float64) for n in trace._fields[:5]}
        columns |= {"train_loss": np.exp(columns["log_loss"])}
        distances = np.asarray(trace.distance, np.float64)
        columns |= {f"distance_{bias}": distances[:, i] for i, bias in enumerate(("penalised", "free"))}
        for i in range(len(trace.minimum)):
            yield {"method": method, "epoch": i + 1} | {name: float(values[i]) for name, values in columns.items()}


def nearest(result: Result) -> str:
    """The method that ends nearest to the penalised-bias SVM."""
    return min(result.traces, key=lambda name: result.traces[name].distance[-1, 0])


def table(result: Result) -> list[dict[str, Any]]:
    """One row for each classifier of a ``Result``, flat; margins are in units of a pixel's range."""
    penalised, free = (result.rows[name].direction.w for name in ("penalised", "free"))
    return [
        {
            "classifier": row.label,
            "epochs": result.marks[name][-1] if name in result.marks else None,
            "minimum": float(row.train.min()),
            "average": float(row.train.mean()),
            "best average at that minimum": result.ceilings[name],
            "train error": float(np.mean(row.train <= 0)),
            "test minimum": float(row.test.min()),
            "test average": float(row.test.mean()),
            "test error": float(np.mean(row.test <= 0)),
            "distance to penalised SVM": apart(row.direction.w, penalised),
            "distance to free SVM": apart(row.direction.w, free),
        }
        for name, row in result.rows.items()
    ]


def claims(result: Result) -> list[dict[str, Any]]:
    """The paper's claims, each decided by the numbers of a ``Result``: claim, holds (yes or no), measured."""
    svm, mean = result.rows["penalised"].train, result.rows["mean"].train
    ceiling, found = result.ceilings["penalised"], []
    for name, trace in result.traces.items():
        found += _claims_of(METHODS[name].label, trace, svm.min())
    found += [
        ("the penalised SVM's average margin is below the mean difference's", svm.mean() < mean.mean(),
         f"{svm.mean():.4f} and {mean.mean():.4f}"),
        ("the mean difference has a negative minimum margin", mean.min() < 0, f"{mean.min():.4f}"),
        ("the SVM that descent converges to lies below the front", svm.mean() < ceiling - 1e-6,
         f"average {svm.mean():.4f}; {ceiling:.4f} is possible at its minimum margin"),
    ]  # fmt: skip
    return [{"claim": text, "holds": "yes" if holds else "no", "measured": measured} for text, holds, measured in found]


def _claims_of(label: str, trace: Trace, largest: float) -> list[tuple[str, bool, str]]:
    last, (low, average), (penalised, free) = len(trace.minimum), (trace.minimum, trace.average), trace.distance[-1]
    return [
        (f"{label}: the minimum margin rises", low[-1] > low[0], f"{low[0]:.4f} to {low[-1]:.4f} in {last} epochs"),
        (f"{label}: it reaches the penalised SVM's within {REACHED:.0%}", low[-1] >= (1 - REACHED) * largest,
         f"{low[-1]:.4f} of {largest:.4f}"),
        (f"{label}: the average margin falls", average[-1] < average[0], f"{average[0]:.4f} to {average[-1]:.4f}"),
        (f"{label}: ends nearer to the SVM with a penalised bias than with a free one", penalised < free,
         f"distances {penalised:.4f} and {free:.4f}"),
    ]  # fmt: skip


def findings(result: Result) -> str:
    """Two paragraphs that say what a ``Result`` shows, with its numbers."""
    name, svm = nearest(result), result.rows["penalised"].train
    best, ceiling = result.rows[name], result.ceilings[name]
    plain, last = result.rows["plain"].train, result.marks["plain"][-1]
    stops = "reaches" if plain.min() >= (1 - REACHED) * svm.min() else "stops short of"
    return (
        f"Logistic regression on {len(svm)} training and {len(result.task.test_ys)} test points, with exact margins in "
        f"units of a pixel's range. The SVM with a penalised bias, the limit of gradient descent on (w, b), has the "
        f"minimum margin {svm.min():.4f} and the average margin {svm.mean():.4f}.\n\n"
        f"After {last} epochs plain gradient descent {stops} it: minimum {plain.min():.4f}, average "
        f"{plain.mean():.4f}. {best.label.capitalize()} comes nearest: minimum {best.train.min():.4f}, average "
        f"{best.train.mean():.4f}. At that minimum margin a linear classifier can have the average {ceiling:.4f}."
    )
