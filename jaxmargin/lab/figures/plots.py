"""Figures of margins and robustness, as `matplotlib.figure.Figure` objects: no pyplot, no backend, no global state.

A method (std, lcr, amr) and a split (train, test) keep one colour and one marker in every figure (`drawing`). What
cannot be drawn (an infinite margin) is left out and counted above its panel.
"""

import io
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from jaxmargin.brackets import contradicts
from jaxmargin.lab import files
from jaxmargin.lab.figures import drawing

__all__ = [
    "average_margin_by_method",
    "brackets",
    "direction_convergence",
    "margin_curves",
    "margin_histograms",
    "pareto_front",
    "robust_accuracy_curves",
    "save",
    "training_curves",
]


def margin_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    title: str,
    references: Mapping[str, tuple[float, float]] | None = None,
    log_x: bool = False,
) -> Figure:
    """Draws the minimum and the average margin over training, side by side (Figures 1a-b, 2a-c and 6).

    Args:
      curves: Label ("train", "test") to (epochs [m], minimum [m], average [m]); beside others, "train" is dashed.
      title: The figure's title.
      references: Label ("hard-margin SVM") to (minimum, average), drawn as horizontal lines.
      log_x: Whether epochs are on a logarithmic axis; epoch 0 then keeps its place, left of epoch 1.

    Returns:
      The figure, with two panels.

    Raises:
      ValueError: `curves` is empty, or the lengths of a curve differ.

    >>> figure = margin_curves({"train": ([1, 10], [0.1, 0.2], [1.0, 0.9])}, title="Logistic regression")
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['Minimum margin', 'Average margin']
    """
    series = drawing.read(curves, "curves")
    figure, panels = drawing.panels(title, ("Minimum margin", "Average margin"), xlabel="epoch", ylabel="margin")
    looks = drawing.looks(series)
    dashes = drawing.SPLIT_DASHES if len(series) > 1 else {}
    for column, axes in enumerate(panels, start=1):
        for label, arrays in series.items():
            drawing.line(axes, label, arrays[0], arrays[column], looks[label], dashes.get(label, "-"))
        for position, (label, values) in enumerate((references or {}).items()):
            drawing.reference(axes, label, float(values[column - 1]), position)
        drawing.epoch_axis(axes, [arrays[0] for arrays in series.values()], log_x)
    drawing.legend(figure)
    return figure


def average_margin_by_method(curves: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]], *, title: str) -> Figure:
    """Draws the average margin of several training methods over training (Figures 2d-f).

    Args:
      curves: Method ("std", "lcr", "amr") to split ("test" solid, "train" dashed) to (epochs [m], average [m]).
      title: The figure's title.

    Returns:
      The figure, with one panel.

    Raises:
      ValueError: `curves` or one of its methods is empty, or the lengths of a curve differ.
    """
    named = drawing.filled(curves, "curves").items()
    series = {method: drawing.read(splits, f"curves[{method!r}]") for method, splits in named}
    figure, (axes,) = drawing.panels(title, ("Average margin",), xlabel="epoch", ylabel="margin")
    looks = drawing.looks(series)
    dashes = {split: drawing.SPLIT_DASHES.get(split, ":") for splits in series.values() for split in splits}
    for method, splits in series.items():
        for split, (epochs, average) in splits.items():
            drawing.line(axes, f"{method}, {split}", epochs, average, looks[method], dashes[split])
    drawing.epoch_axis(axes, [epochs for splits in series.values() for epochs, _ in splits.values()], log_x=False)
    methods = [Line2D([], [], color=look.colour, marker=look.marker, label=method) for method, look in looks.items()]
    kinds = [Line2D([], [], color=drawing.QUIET, linestyle=dash, label=split) for split, dash in dashes.items()]
    drawing.legend(figure, methods + kinds)
    return figure


def margin_histograms(margins: Mapping[str, ArrayLike], *, title: str, bins: int = 50) -> Figure:
    """Draws one histogram of margins a panel, all on the same bins and axes (Figures 1c, 5 and 7).

    Zero, the decision boundary, is a vertical line and an edge of the bins, so that misclassified points (margin < 0)
    have bars of their own colour. A dashed line marks the mean of the finite margins.

    Args:
      margins: Label ("epoch 1", ..., "SVM") to signed margins [n], in the order of the panels.
      title: The figure's title.
      bins: Number of bins over the range of all finite margins.

    Returns:
      The figure, with a panel for each label and at most five panels a row.

    Raises:
      ValueError: `margins` is empty, or `bins` is not positive.
    """
    if bins < 1:
        raise ValueError(f"bins={bins} is not positive: ask for at least one bin")
    series = {label: drawing.array(label, values) for label, values in drawing.filled(margins, "margins").items()}
    edges = drawing.bin_edges(np.concatenate([values[np.isfinite(values)] for values in series.values()]), bins)
    figure, grid = drawing.grid(title, len(series))
    for axes, (label, values) in zip(grid, series.items(), strict=True):
        drawing.histogram(axes, label, values, edges)
    low, high = min(edges[0], 0.0), max(edges[-1], 0.0)
    grid[0].set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    grid[0].set_ylim(0.0, max(grid[0].get_ylim()[1], 1.0))
    grid[0].xaxis.set_major_locator(MaxNLocator(4))
    grid[0].yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def training_curves(curves: Mapping[str, Mapping[str, ArrayLike]], *, title: str, log_x: bool = False) -> Figure:
    """Draws training loss, training error and test error over training (Figures 3 and 4).

    Args:
      curves: Label ("std") to a dict of epoch, train_loss, train_error and test_error, each [m]; errors in [0, 1].
      title: The figure's title.
      log_x: Whether epochs are on a logarithmic axis; epoch 0 then keeps its place, left of epoch 1.

    Returns:
      The figure, with three panels; errors are in percent.

    Raises:
      ValueError: `curves` is empty, a label lacks a key or has lengths that differ, or an error is outside [0, 1].
    """
    keys = ("epoch", "train_loss", "train_error", "test_error")
    for label, curve in curves.items():
        if missing := [key for key in keys if key not in curve]:
            raise ValueError(f"curves[{label!r}] lacks {', '.join(missing)}")
    series = drawing.read({label: tuple(curve[key] for key in keys) for label, curve in curves.items()}, "curves")
    names = ("Training loss", "Training error", "Test error")
    figure, panels = drawing.panels(title, names, xlabel="epoch", ylabel="error (%)")
    panels[0].set_ylabel("loss")
    looks = drawing.looks(series)
    for label, (epochs, loss, *errors) in series.items():
        heights = (loss, *(drawing.percent(label, error) for error in errors))
        for axes, values in zip(panels, heights, strict=True):
            drawing.line(axes, label, epochs, values, looks[label])
    for axes in panels:
        drawing.epoch_axis(axes, [arrays[0] for arrays in series.values()], log_x)
    for axes in panels[1:]:
        drawing.from_zero(axes)
    drawing.legend(figure)
    return figure


def robust_accuracy_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    worst: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
) -> Figure:
    """Draws accuracy under attack against the attack's budget.

    Args:
      curves: Label ("std") to (epsilons [e], accuracy [e]), accuracy in [0, 1]; epsilon 0 is clean accuracy.
      title: The figure's title.
      worst: The same labels to the accuracies in the worst case over attacks, drawn dashed.

    Returns:
      The figure, with one panel; accuracy is in percent.

    Raises:
      ValueError: `curves` is empty, the lengths of a curve differ, or an accuracy is outside [0, 1].
    """
    series = drawing.read(curves, "curves")
    figure, (axes,) = drawing.panels(title, ("Accuracy under attack",), xlabel="epsilon", ylabel="accuracy (%)")
    looks = drawing.looks(series)
    for label, (epsilons, accuracy) in series.items():
        drawing.line(axes, label, epsilons, drawing.percent(label, accuracy), looks[label])
    for label, (epsilons, accuracy) in (drawing.read(worst, "worst") if worst else {}).items():
        name = f"{label}, worst case"
        drawing.line(axes, name, epsilons, drawing.percent(name, accuracy), looks[label], "--")
    axes.set_ylim(-2.0, 102.0)
    drawing.legend(figure)
    return figure


def brackets(points: Mapping[str, Mapping[str, ArrayLike]], *, title: str) -> Figure:
    """Draws certified, estimated and attacked distances of the same points, sorted by the attacked one.

    Args:
      points: Label of a panel ("std") to "certified", "estimated" and "attacked", each [n], in input units.
      title: The figure's title.

    Returns:
      The figure, with a panel for each label; a note counts the points whose estimate exceeds the attack's distance.

    Raises:
      ValueError: `points` is empty, a label lacks one of the three, or their lengths differ.
    """
    names = ("certified", "estimated", "attacked")
    for label, curves in drawing.filled(points, "points").items():
        if missing := [name for name in names if name not in curves]:
            raise ValueError(f"points[{label!r}] lacks {', '.join(missing)}")
    series = drawing.read({label: [curves[name] for name in names] for label, curves in points.items()}, "points")
    figure, row = drawing.panels(title, tuple(series), xlabel="points, by attacked distance", ylabel="distance")
    for axes, (label, arrays) in zip(row, series.items(), strict=True):
        order = np.argsort(arrays[2], kind="stable")
        places = np.arange(1.0, len(order) + 1)
        for name, values, width in zip(names, arrays, (1.0, 2.0, 4.5), strict=True):  # where they meet, all are seen
            style = dict(linewidth=width, marker="none", zorder=6.0 - width)
            drawing.line(axes, name, places, values[order], drawing.LOOKS[name], **style)
        above = contradicts(arrays[1], arrays[2])
        name = f"{label}: estimate above attack at {above.sum()} of {len(above)}"
        axes.set_title(textwrap.fill(name, max(100 // len(series) - 3, 8)), loc="left", fontsize=9)
        drawing.from_zero(axes)
    drawing.legend(figure)
    return figure


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
    drawing.line(axes, "Pareto front", lowest, best, drawing.Look(drawing.QUIET, ""), linewidth=2.4)
    looks = drawing.looks(dict.fromkeys((*places, path_label) if path_label else places))
    if path is not None:
        minimum, average = lines["path"]
        colour = (looks[path_label] if path_label else drawing.LOOKS["descent"]).colour
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
    looks = drawing.looks(series)
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


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure as a PNG of 150 dots an inch, the same bytes for the same figure, whole or not at all.

    Args:
      figure: The figure.
      path: Where to write, ending in .png; missing folders are made.

    Returns:
      The path written.

    Raises:
      ValueError: The path does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path={str(path)!r} does not end in .png: figures are saved as PNG")
    image = io.BytesIO()
    metadata = {"Software": None}  # else the version of matplotlib
    figure.savefig(image, format="png", dpi=drawing.DOTS_PER_INCH, facecolor=drawing.PAPER, metadata=metadata)
    return files.write_bytes(path, image.getvalue())
