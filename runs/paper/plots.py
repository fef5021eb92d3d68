"""The figures that only this study draws, as those of ``jaxmargin.lab.figures.plots``."""

import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from jaxmargin.brackets import contradicts
from jaxmargin.lab.figures import drawing, style

__all__ = ["average_margin_by_method", "brackets"]


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
    looks = style.looks(series)
    dashes = {split: style.SPLIT_DASHES.get(split, ":") for splits in series.values() for split in splits}
    for method, splits in series.items():
        for split, (epochs, average) in splits.items():
            drawing.line(axes, f"{method}, {split}", epochs, average, looks[method], dashes[split])
    drawing.epoch_axis(axes, [epochs for splits in series.values() for epochs, _ in splits.values()], log_x=False)
    methods = [Line2D([], [], color=look.colour, marker=look.marker, label=method) for method, look in looks.items()]
    kinds = [Line2D([], [], color=style.QUIET, linestyle=dash, label=split) for split, dash in dashes.items()]
    drawing.legend(figure, methods + kinds)
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
            look = style.LOOKS[name]
            drawing.line(axes, name, places, values[order], look, linewidth=width, marker="none", zorder=6.0 - width)
        above = contradicts(arrays[1], arrays[2])
        name = f"{label}: estimate above attack at {above.sum()} of {len(above)}"
        axes.set_title(textwrap.fill(name, max(100 // len(series) - 3, 8)), loc="left", fontsize=9)
        drawing.from_zero(axes)
    drawing.legend(figure)
    return figure
