"""The figures of maximum margin training (Ding et al. 2020, MMA Training), drawn as in ``jaxmargin.lab.figures.plots``.

A method keeps one colour in all panels of a figure. What cannot be drawn (an infinite distance) is left out and counted
above its panel.
"""

import itertools
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from jaxmargin.lab.figures import drawing, style
from runs.mma.toy_classifier import Steps

Points = NDArray[np.float64]

__all__ = ["landscapes", "margin_spread", "toy_classifier"]

PANELS_IN_A_ROW = 4  # a figure with more has the smaller panels of ``drawing.grid``
LETTERS_A_ROW = 80  # of the panels' names and notes
DOTS = 3.0  # between the dots of a line, in its widths
LEVELS = 20  # of the contours, about
COLOURS = ("#882255", "#e69f00", "#0072b2", "#009e73", "#56b4e9", "#666666")  # far apart: histograms overlap
STEPS = (style.INK, "#0072b2", "#882255", "#e69f00")  # none; at the point, as std; at its boundary, as mma; beyond
HERE: dict[str, Any] = dict(marker="o", color=style.PAPER, mec=style.INK, markersize=7.0, linestyle="none")


def margin_spread(
    distances: Mapping[str, Mapping[str, ArrayLike]],
    *,
    title: str,
    epsilons: Mapping[str, float] | None = None,
    bins: int = 40,
) -> Figure:
    """Draws how the margins of a set are spread at some snapshots of training, methods over one another (Figure 4).

    Args:
      distances: Snapshot ("step 100") to method ("mma-2") to the distances of its points to the boundary [n].
      title: The figure's title.
      epsilons: Method to the epsilon or d_max it trains with, drawn as a dotted line in the method's colour; methods
        with the same one take turns along it.
      bins: Number of bins from 0 (or a lesser distance) to the largest finite distance of all.

    Returns:
      The figure, with a panel for each snapshot, all on the same bins and axes; heights are in percent of a method's
      points, the infinitely distant ones included. The share at a distance of exactly 0, which is that of the points
      classified wrongly, is written instead of drawn.

    Raises:
      ValueError: `distances` or one of its snapshots is empty, an array has not one dimension, `epsilons` names a
        method that has no distances, or `bins` is not positive.
    """
    if bins < 1:
        raise ValueError(f"bins={bins} is not positive: ask for at least one bin")
    series = {
        snapshot: {method: drawing.array(f"{snapshot}, {method}", values) for method, values in methods.items()}
        for snapshot, methods in drawing.filled(distances, "distances").items()
        if drawing.filled(methods, f"distances[{snapshot!r}]")
    }
    colours = _colours(dict.fromkeys(method for methods in series.values() for method in methods))
    if unknown := set(epsilons or {}) - set(colours):
        raise ValueError(f"epsilons has {', '.join(sorted(unknown))}: distances has {', '.join(colours)}")
    pooled = np.concatenate([values for methods in series.values() for values in methods.values()])
    edges = drawing.bin_edges(np.append(pooled[np.isfinite(pooled)], 0.0), bins)
    figure, row = _panels(title, tuple(series), xlabel="distance", ylabel="points (%)", height=3.6)
    for axes, methods in zip(row, series.values(), strict=True):
        for method, (epsilon, dots) in _dotted(epsilons or {}).items():
            axes.axvline(epsilon, color=colours[method], linestyle=dots, linewidth=1.8, zorder=2.5)
        for method, values in methods.items():
            _steps(axes, values, edges, colours[method])
            drawing.note(axes, int(np.sum(~np.isfinite(values))), "not finite")
        _say_zeros(axes, methods, colours)
    row[0].set_ylim(0.0)
    _apart(row)
    handles = [Line2D([], [], color=colour, linewidth=5, label=method) for method, colour in colours.items()]
    budget = Line2D([], [], color=style.QUIET, linestyle=":", linewidth=1.8, label="epsilon or d_max")
    drawing.legend(figure, [*handles, budget] if epsilons else handles)
    return figure


def landscapes(grids: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]], *, title: str) -> Figure:
    """Draws the loss in a plane through a point: along its attack, and a random direction (Figure 3).

    Args:
      grids: Method to (first [m], second [k], loss [m, k], margin [m, k]): distances along the attack and along the
        other direction, the soft margin loss there, and the logit margin, positive where the prediction is right.
      title: The figure's title.

    Returns:
      The figure, with a panel for each method on one scale of colours, and the bar of these colours. A thick line is
      the decision boundary, where the margin is 0; with more than two classes the loss is 0 before it.

    Raises:
      ValueError: `grids` is empty, or loss or margin of a method have another shape than (m, k), m and k at least 2.
    """
    planes = {method: _plane(method, *grid) for method, grid in drawing.filled(grids, "grids").items()}
    pooled = np.concatenate([loss.ravel() for _, _, loss, _ in planes.values()])
    finite = np.append(pooled[np.isfinite(pooled)], 0.0)
    levels = np.asarray(MaxNLocator(LEVELS, min_n_ticks=4).tick_values(finite.min(), finite.max()))
    limit = float(np.abs(levels).max())
    xlabel, ylabel = "along the attack", "random, orthogonal"
    figure, row = _panels(title, tuple(planes), xlabel=xlabel, ylabel=ylabel, height=3.9)
    for axes, (first, second, loss, margin) in zip(row, planes.values(), strict=True):
        known, side = np.ma.masked_invalid(loss.T), np.ma.masked_invalid(margin.T)  # [k, m]
        drawn = axes.contourf(first, second, known, levels, cmap="RdBu_r", vmin=-limit, vmax=limit)
        if side.count() and side.min() < 0 < side.max():
            axes.contour(first, second, side, [0.0], colors=style.INK, linewidths=2.6)
        axes.plot(0.0, 0.0, zorder=3, **HERE)
        drawing.note(axes, int(np.sum(~np.isfinite(loss))), "not finite")
    _apart(row)
    bar = figure.colorbar(drawn, ax=row, fraction=0.04, pad=0.02)
    bar.set_label("soft margin loss", fontsize=style.LABEL_SIZE, color=style.INK)
    bar.ax.tick_params(labelsize=style.TICK_SIZE)
    boundary = Line2D([], [], color=style.INK, linewidth=2.6, label="decision boundary")
    drawing.legend(figure, [boundary, Line2D([], [], **HERE, label="the point")])
    return figure


def toy_classifier(result: Steps, *, title: str) -> Figure:
    """Draws how steps that lower the loss at one place or another move the margin of a point on a line (Figure 2).

    Args:
      result: From ``runs.mma.toy_classifier.measure``.
      title: The figure's title.

    Returns:
      The figure, with two panels: the loss before and after a step at each of the kept places, their boundaries marked;
      and the change of the margin against the place of the step, what theory has for short steps dashed.

    Raises:
      ValueError: The lengths of the result's curves differ.
    """
    margin, places = float(result.margin), drawing.array("places", result.places)
    labels = [f"step at {place:.3g}, {_where(place, margin)}" for place in places]
    after = {label: (result.xs, curve) for label, curve in zip(labels, result.after, strict=True)}
    curves = drawing.read({"loss before a step": (result.xs, result.before), **after}, "result")
    kept = drawing.read({"places": (places, result.margins_at)}, "result")["places"][1]
    sweep = drawing.read({"margins": (result.locations, result.margins, result.first_order)}, "result")["margins"]
    names = ("Loss before and after a step", "What each step does to the margin")
    figure, (left, right) = drawing.panels(title, names, xlabel="distance from the point", ylabel="loss", height=4.6)
    right.set(xlabel="where the step lowers the loss", ylabel="change of the margin")
    for axes in (left, right):
        axes.axhline(0.0, color=style.QUIET, linewidth=1.0, zorder=1)
        axes.axvline(margin, color=style.QUIET, linestyle=":", linewidth=1.6, label="boundary before a step")
    change = sweep[1] - margin
    drawing.line(right, "_change", sweep[0], change, style.Look(style.INK, ""))
    drawing.line(right, "change to first order", sweep[0], sweep[2] - margin, style.Look(style.QUIET, ""), "--")
    right.fill_between(sweep[0], change, 0.0, where=change <= 0, color=style.WRONG_SIDE, alpha=0.18, linewidth=0)
    colours = dict(zip(curves, itertools.cycle(STEPS)))
    for (label, (xs, heights)), place, moved in zip(curves.items(), (None, *places), (margin, *kept), strict=True):
        drawing.line(left, label, xs, heights, style.Look(colours[label], ""))
        _mark(left, moved, 0.0, colours[label])
        if place is not None:
            _mark(right, place, moved - margin, colours[label])
    drawing.legend(figure)
    return figure


def _where(place: float, margin: float) -> str:
    """A place against the boundary, in words."""
    if np.isclose(place, margin):
        return "the boundary"
    return "the point itself" if place == 0 else "before it" if place < margin else "beyond it"


def _mark(axes: Axes, x: float, y: float, colour: str) -> None:
    """One point, which the legend leaves out."""
    ring: dict[str, Any] = {"markeredgecolor": style.PAPER, "markeredgewidth": 1.2}
    axes.plot(x, y, color=colour, marker="o", markersize=9.0, linestyle="none", zorder=4, **ring)


def _colours(methods: Iterable[str]) -> dict[str, str]:
    """A known word in a method's name decides its colour, unless an earlier one took it; the others take turns."""
    chosen: dict[str, str] = {}
    for method in methods:
        known = [style.LOOKS[word].colour for word in re.split("[^a-z]+", method.lower()) if word in style.LOOKS]
        free = [colour for colour in (*known[-1:], *COLOURS) if colour not in chosen.values()]
        chosen[method] = free[0] if free else COLOURS[len(chosen) % len(COLOURS)]
    return chosen


def _panels(title: str, names: Sequence[str], *, xlabel: str, ylabel: str, height: float) -> tuple[Figure, list[Axes]]:
    """Named panels on common axes, labelled at the outside: a row of up to four, else smaller ones."""
    if len(names) > PANELS_IN_A_ROW:
        figure, row = drawing.grid(title, len(names))
        figure.set_size_inches(style.WIDTH, 1.25 * figure.get_figheight())
        figure.supxlabel("")  # a legend below the panels would cover it
        figure.supylabel("")
        columns = _columns(len(row))
        for axes in row[-columns:]:
            axes.set_xlabel(xlabel, fontsize=style.LABEL_SIZE, color=style.INK)
        for axes in row[::columns]:
            axes.set_ylabel(ylabel, fontsize=style.LABEL_SIZE, color=style.INK)
    else:
        figure, row = drawing.panels(title, names, xlabel=xlabel, ylabel=ylabel, height=height)
        for axes in row[1:]:
            axes.sharex(row[0])
            axes.sharey(row[0])
            axes.tick_params(labelleft=False)
            axes.set_ylabel("")
    for axes, name in zip(row, names, strict=True):
        axes.set_title(name, loc="left", fontsize=style.LABEL_SIZE, color=style.INK)
    return figure, row


def _columns(size: int) -> int:
    """How many of so many panels stand in a row."""
    rows = -(-size // style.PANELS_A_ROW)
    return -(-size // rows)


def _apart(row: Sequence[Axes]) -> None:
    """Moves a panel's name above its note where they do not fit side by side, and breaks a long name."""
    letters = LETTERS_A_ROW // _columns(len(row))
    for axes in row:
        name, note = axes.get_title(loc="left"), axes.get_title(loc="right")
        lines = textwrap.fill(name, letters)
        if note and len(name) + len(note) > letters:
            lines += "\n" * (1 + note.count("\n"))
        axes.set_title(lines, loc="left", fontsize=style.LABEL_SIZE, color=style.INK)


def _steps(axes: Axes, values: Points, edges: Points, colour: str) -> None:
    """The outline of a histogram of all but the zeros over a breath of its colour, in percent of all values."""
    counts, _ = np.histogram(values[np.isfinite(values) & (values != 0)], edges)
    heights = 100.0 * counts / max(len(values), 1)
    axes.stairs(heights, edges, fill=True, color=colour, alpha=0.15, linewidth=0)
    axes.stairs(heights, edges, color=colour, linewidth=1.7)


def _say_zeros(axes: Axes, methods: Mapping[str, Points], colours: Mapping[str, str]) -> None:
    """Writes each method's share of zero distances, in its colour: as bars they would flatten all the others."""
    shares = {method: 100.0 * np.mean(values == 0) for method, values in methods.items() if np.any(values == 0)}
    size = style.TICK_SIZE if len(shares) <= 3 else 7.5
    paper: dict[str, Any] = {"facecolor": style.PAPER, "alpha": 0.8, "linewidth": 0, "pad": 0.8}
    for position, (method, share) in enumerate(shares.items()):
        text: dict[str, Any] = {"color": colours[method], "fontsize": size, "ha": "right", "va": "top", "bbox": paper}
        place = (-2.0, -2.0 - 1.3 * size * position)  # points, from the upper right
        axes.annotate(f"{share:.2g}% at 0", (1, 1), place, "axes fraction", textcoords="offset points", **text)


def _dotted(epsilons: Mapping[str, float]) -> dict[str, tuple[float, tuple[float, tuple[float, float]]]]:
    """Each method's epsilon and dots; methods with the same epsilon take turns along one line."""
    lines = {}
    for method, epsilon in epsilons.items():
        same = [other for other in epsilons if epsilons[other] == epsilon]
        lines[method] = float(epsilon), (-DOTS * same.index(method), (0.4 * DOTS, DOTS * (len(same) - 0.4)))
    return lines


def _plane(method: str, first: ArrayLike, second: ArrayLike, *fields: ArrayLike) -> tuple[Points, ...]:
    """The arrays of one method, which must fit together."""
    rows, columns = drawing.array(method, first), drawing.array(method, second)
    heights = [np.asarray(values, dtype=np.float64) for values in fields]
    for values in heights:
        if values.shape != (len(rows), len(columns)) or min(values.shape) < 2:
            raise ValueError(
                f"{method!r} has values of shape {values.shape} for {len(rows)} by {len(columns)} distances: pass"
                " [m, k], at least 2 by 2"
            )
    return rows, columns, *heights
