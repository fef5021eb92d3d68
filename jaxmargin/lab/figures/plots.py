"""Figures that several studies draw, as `matplotlib.figure.Figure` objects: no pyplot, no backend, no global state.

A method (std, lcr, amr) and a split (train, test) keep one colour and one marker in every figure (`style`). What
cannot be drawn (an infinite margin) is left out and counted above its panel.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from jaxmargin.lab import files
from jaxmargin.lab.figures import drawing, style

__all__ = [
    "margin_curves",
    "margin_histograms",
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
    looks = style.looks(series)
    dashes = style.SPLIT_DASHES if len(series) > 1 else {}
    for column, axes in enumerate(panels, start=1):
        for label, arrays in series.items():
            drawing.line(axes, label, arrays[0], arrays[column], looks[label], dashes.get(label, "-"))
        for position, (label, values) in enumerate((references or {}).items()):
            drawing.reference(axes, label, float(values[column - 1]), position)
        drawing.epoch_axis(axes, [arrays[0] for arrays in series.values()], log_x)
    drawing.legend(figure)
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
    looks = style.looks(series)
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
    looks = style.looks(series)
    for label, (epsilons, accuracy) in series.items():
        drawing.line(axes, label, epsilons, drawing.percent(label, accuracy), looks[label])
    for label, (epsilons, accuracy) in (drawing.read(worst, "worst") if worst else {}).items():
        name = f"{label}, worst case"
        drawing.line(axes, name, epsilons, drawing.percent(name, accuracy), looks[label], "--")
    axes.set_ylim(-2.0, 102.0)
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
    figure.savefig(image, format="png", dpi=style.DOTS_PER_INCH, facecolor=style.PAPER, metadata=metadata)
    return files.write_bytes(path, image.getvalue())
