"""The figures of the case study: Figures 1 and 3 of the paper, the exact front, and the direction of the weights."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from jaxmargin.lab.figures import drawing, plots, style
from runs.case_study import claims, hyperplanes
from runs.case_study.study import Result, Trace

__all__ = ["direction_convergence", "draw", "pareto_front"]

Labels = dict[str, str]  # of the classifiers, by their keys
Drawn = tuple[str, Figure, str]  # the file's name, the figure, its caption
SVMS = ("penalised", "free")


def draw(result: Result, name: str) -> list[Drawn]:
    """Draws every figure of a study.

    Args:
      result: What was measured.
      name: Of the data, for the titles.

    Returns:
      The figures, each with its file's name and its caption.
    """
    labels = {key: row.label for key, row in result.rows.items()}
    best = claims.nearest(result)
    return [
        _margins(result, name, labels),
        _histograms(result, name, labels, best),
        _errors(result, name, labels),
        _front(result, name, labels, best),
        _directions(result, name, labels, best),
    ]


def _margins(result: Result, name: str, labels: Labels) -> Drawn:
    curves = {labels[key]: (_epochs(trace), trace.minimum, trace.average) for key, trace in result.traces.items()}
    svms = {labels[key]: _end(result, key) for key in SVMS}
    figure = plots.margin_curves(curves, title=f"{name}: margins over training", references=svms, log_x=True)
    return "figure1", figure, "Minimum and average margin of the training points after each epoch, and the two SVMs'."


def _histograms(result: Result, name: str, labels: Labels, best: str) -> Drawn:
    shown = zip(result.marks[best], result.traces[best].v, strict=True)
    margins = {f"epoch {t}": hyperplanes.at("", v, result.task).train for t, v in shown}
    margins |= {labels[key]: result.rows[key].train for key in SVMS}
    figure = plots.margin_histograms(margins, title=f"{name}: training margins, {labels[best]}")
    return "figure1c", figure, f"Margins of the training points under {labels[best]}, and of the two SVMs."


def _errors(result: Result, name: str, labels: Labels) -> Drawn:
    errors: dict[str, dict[str, ArrayLike]] = {
        labels[key]: dict(epoch=_epochs(trace), train_loss=np.exp(np.float64(trace.log_loss)),
                          train_error=trace.train_error, test_error=trace.test_error)
        for key, trace in result.traces.items()
    }  # fmt: skip
    figure = plots.training_curves(errors, title=f"{name}: loss and errors", log_x=True)
    return "figure3", figure, "Loss and errors after each epoch; a filled area goes up and down from epoch to epoch."


def _front(result: Result, name: str, labels: Labels, best: str) -> Drawn:
    front, trace = result.front, result.traces[best]
    figure = pareto_front(
        (front.minimum, front.average), {labels[key]: _end(result, key) for key in result.rows},
        title=f"{name}: the front of margins", path=(trace.minimum, trace.average), path_label=labels[best],
    )  # fmt: skip
    return "pareto", figure, f"No classifier lies above the front. The path is {labels[best]}, epoch by epoch."


def _directions(result: Result, name: str, labels: Labels, best: str) -> Drawn:
    distances = {
        f"{labels[key]}, to penalised": (_epochs(trace), trace.distance[:, 0]) for key, trace in result.traces.items()
    }
    distances |= {f"{labels[best]}, to free": (_epochs(result.traces[best]), result.traces[best].distance[:, 1])}
    figure = direction_convergence(distances, title=f"{name}: distance of w/|w| to the SVM's")
    return "direction", figure, "Distance of the weights' direction to the SVM's, with a penalised and a free bias."


def _epochs(trace: Trace) -> NDArray[np.int64]:
    return np.arange(1, len(trace.minimum) + 1)


def _end(result: Result, key: str) -> tuple[float, float]:
    """The minimum and the average training margin of a classifier."""
    margins = result.rows[key].train
    return float(margins.min()), float(margins.mean())


def pareto_front(
    front: tuple[ArrayLike, ArrayLike],
    points: Mapping[str, tuple[float, float]],
    *,
    title: str,
    path: tuple[ArrayLike, ArrayLike] | None = None,
    path_label: str | None = None,
) -> Figure:
    """Draws the exact trade-off between minimum and average margin, and where classifiers lie against it.

    Args:
      front: (minimum [m], average [m]), the Pareto front in the order of the curve.
      points: Label ("SVM", "mean difference", "gradient descent") to (minimum, average).
      title: The figure's title.
      path: (minimum [t], average [t]), the trajectory of training: a ring marks its start, an arrow its way.
      path_label: Whose path it is; it then has the colour of that label's point.

    Returns:
      The figure, with one panel.

    Raises:
      ValueError: `points` is empty, or the lengths of `front` or `path` differ.
    """
    lines = drawing.read({"front": front} if path is None else {"front": front, "path": path}, "front")
    places = drawing.read(points, "points")
    figure, (axes,) = drawing.panels(title, ("",), xlabel="minimum margin", ylabel="average margin", height=5.0)
    lowest, best = lines["front"]
    drawing.line(axes, "Pareto front", lowest, best, style.Look(style.QUIET, ""), linewidth=2.4)
    looks = style.looks(dict.fromkeys((*places, path_label) if path_label else places))
    if path is not None:
        minimum, average = lines["path"]
        colour = (looks[path_label] if path_label else style.LOOKS["descent"]).colour
        drawing.path(axes, "path of training", minimum, average, colour)
    for label, (minimum, average) in places.items():
        size = 20.0 if looks[label].marker == "*" else 9.0
        # the larger lie below, so that points in one place are all seen
        drawing.line(axes, label, minimum, average, looks[label], "none", markersize=size, zorder=5 - size / 10)
    drawing.legend(figure)
    return figure


def direction_convergence(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, title: str) -> Figure:
    """Draws the distance between a classifier's direction and its limit over training, both axes logarithmic.

    Args:
      curves: Label ("gradient descent") to (steps [t], distance [t]); what is not positive is left out and counted.
      title: The figure's title.

    Returns:
      The figure, with one panel.

    Raises:
      ValueError: `curves` is empty, or the lengths of a curve differ.
    """
    series = drawing.read(curves, "curves")
    figure, (axes,) = drawing.panels(title, ("Distance to the limit direction",), xlabel="step", ylabel="distance")
    looks = style.looks(series)
    hidden = 0
    for label, (steps, distance) in series.items():
        drawable = ~np.isfinite(distance) | ((steps > 0) & (distance > 0))  # line counts what is not finite
        hidden += int(np.sum(~drawable))
        drawing.line(axes, label, steps[drawable], distance[drawable], looks[label])
    drawing.note(axes, hidden, "not positive")
    for axis in (axes.xaxis, axes.yaxis):
        if np.all(np.isfinite(axis.get_data_interval())):  # an empty axis has no logarithm
            drawing.log_axis(axis)
    drawing.legend(figure)
    return figure
