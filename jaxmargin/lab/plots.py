"""Figures of margins and robustness, as `matplotlib.figure.Figure` objects: no pyplot, no backend, no global state.

A method (std, lcr, amr) and a split (train, test) keep one colour and one marker in every figure; the colours are Okabe
and Ito's and Tol's, safe for colour-blind readers. What cannot be drawn (an infinite margin) is left out and counted
above its panel.
"""

import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "average_margin_by_method",
    "direction_convergence",
    "margin_curves",
    "margin_histograms",
    "pareto_front",
    "robust_accuracy_curves",
    "save",
    "training_curves",
]

Points = NDArray[np.float64]


class Look(NamedTuple):
    """The colour and the marker of one label."""

    colour: str
    marker: str


INK, QUIET, GRID, PAPER = "#1c2026", "#5b6470", "#e3e6ea", "#ffffff"
BARS, REFERENCE_BARS, WRONG_SIDE = "#5b8db8", "#8a8f98", "#d55e00"
LOOKS = {  # by a word in the label
    "std": Look("#0072b2", "o"),
    "lcr": Look("#e69f00", "s"),
    "amr": Look("#009e73", "^"),
    "adversarial": Look("#cc79a7", "D"),
    "trades": Look("#56b4e9", "v"),
    "mma": Look("#882255", "P"),
    "train": Look("#332288", "o"),
    "test": Look("#d55e00", "s"),
    "svm": Look(INK, "*"),
    "difference": Look("#56b4e9", "s"),  # of the two class means
    "descent": Look("#882255", "o"),
    "gd": Look("#882255", "o"),
}
OTHER_LOOKS = tuple(
    map(Look, ("#cc79a7", "#999933", "#44aa99", "#666666", "#88ccee", "#661100"), ("D", "v", "P", "X", "<", ">"))
)
SPLIT_DASHES: dict[str, Any] = {"test": "-", "train": "--"}
REFERENCE_DASHES = ((0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKED_UP_TO = 40  # points; a longer curve is a plain line
DOTS_PER_INCH = 150
TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 12.0, 10.0, 9.0
WIDTH, HEIGHT = 10.0, 3.9  # inches, of a row of panels
PANELS_A_ROW, LETTERS_A_PANEL = 5, 19  # of histograms
PLAIN_UP_TO = 2e4  # an axis that ends beyond writes powers of ten


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
    series = _read(curves, "curves")
    figure, panels = _panels(title, ("Minimum margin", "Average margin"), xlabel="epoch", ylabel="margin")
    looks = _looks(series)
    dashes = SPLIT_DASHES if len(series) > 1 else {}
    for column, axes in enumerate(panels, start=1):
        for label, arrays in series.items():
            _line(axes, label, arrays[0], arrays[column], looks[label], dashes.get(label, "-"))
        for position, (label, values) in enumerate((references or {}).items()):
            _reference(axes, label, float(values[column - 1]), position)
        _epoch_axis(axes, [arrays[0] for arrays in series.values()], log_x)
    _legend(figure)
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
    series = {method: _read(splits, f"curves[{method!r}]") for method, splits in _filled(curves, "curves").items()}
    figure, (axes,) = _panels(title, ("Average margin",), xlabel="epoch", ylabel="margin")
    looks = _looks(series)
    for method, splits in series.items():
        for split, (epochs, average) in splits.items():
            _line(axes, f"{method}, {split}", epochs, average, looks[method], SPLIT_DASHES.get(split, ":"))
    _epoch_axis(axes, [epochs for splits in series.values() for epochs, _ in splits.values()], log_x=False)
    dashes = {split: SPLIT_DASHES.get(split, ":") for splits in series.values() for split in splits}
    methods = [Line2D([], [], color=look.colour, marker=look.marker, label=method) for method, look in looks.items()]
    kinds = [Line2D([], [], color=QUIET, linestyle=dash, label=split) for split, dash in dashes.items()]
    _legend(figure, methods + kinds)
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
    series = {label: _array(label, values) for label, values in _filled(margins, "margins").items()}
    edges = _bin_edges(np.concatenate([values[np.isfinite(values)] for values in series.values()]), bins)
    figure, grid = _grid(title, len(series))
    for axes, (label, values) in zip(grid, series.items(), strict=True):
        _histogram(axes, label, values, edges)
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
    series = _read({label: tuple(curve[key] for key in keys) for label, curve in curves.items()}, "curves")
    names = ("Training loss", "Training error", "Test error")
    figure, panels = _panels(title, names, xlabel="epoch", ylabel="error (%)")
    panels[0].set_ylabel("loss")
    looks = _looks(series)
    for label, (epochs, loss, *errors) in series.items():
        heights = (loss, *(_percent(label, error) for error in errors))
        for axes, values in zip(panels, heights, strict=True):
            _line(axes, label, epochs, values, looks[label])
    for axes in panels:
        _epoch_axis(axes, [arrays[0] for arrays in series.values()], log_x)
    for axes in panels[1:]:
        _from_zero(axes)
    _legend(figure)
    return figure


def robust_accuracy_curves(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, title: str) -> Figure:
    """Draws accuracy under attack against the attack's budget.

    Args:
      curves: Label ("std") to (epsilons [e], accuracy [e]), accuracy in [0, 1]; epsilon 0 is clean accuracy.
      title: The figure's title.

    Returns:
      The figure, with one panel; accuracy is in percent.

    Raises:
      ValueError: `curves` is empty, the lengths of a curve differ, or an accuracy is outside [0, 1].
    """
    series = _read(curves, "curves")
    figure, (axes,) = _panels(title, ("Accuracy under attack",), xlabel="epsilon", ylabel="accuracy (%)")
    looks = _looks(series)
    for label, (epsilons, accuracy) in series.items():
        _line(axes, label, epsilons, _percent(label, accuracy), looks[label])
    axes.set_ylim(-2.0, 102.0)
    _legend(figure)
    return figure


def pareto_front(
    front: tuple[ArrayLike, ArrayLike],
    points: Mapping[str, tuple[float, float]],
    *,
    title: str,
    path: tuple[ArrayLike, ArrayLike] | None = None,
) -> Figure:
    """Draws the exact trade-off between minimum and average margin, and where classifiers lie against it.

    Args:
      front: (minimum [m], average [m]), the Pareto front in the order of the curve.
      points: Label ("SVM", "mean difference", "gradient descent") to (minimum, average).
      title: The figure's title.
      path: (minimum [t], average [t]), the trajectory of training: a ring marks its start, an arrow its way.

    Returns:
      The figure, with one panel.

    Raises:
      ValueError: `points` is empty, or the lengths of `front` or `path` differ.
    """
    lines = _read({"front": front} if path is None else {"front": front, "path": path}, "front")
    places = _read(points, "points")
    figure, (axes,) = _panels(title, ("",), xlabel="minimum margin", ylabel="average margin", height=5.0)
    _line(axes, "Pareto front", lines["front"][0], lines["front"][1], Look(QUIET, ""), linewidth=2.4)
    if path is not None:
        _path(axes, *lines["path"])
    looks = _looks(places)
    for label, (minimum, average) in places.items():
        size = 15.0 if looks[label].marker == "*" else 9.0
        _line(axes, label, minimum, average, looks[label], "none", markersize=size, zorder=4)
    _legend(figure)
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
    series = _read(curves, "curves")
    figure, (axes,) = _panels(title, ("Distance to the limit direction",), xlabel="step", ylabel="distance")
    looks = _looks(series)
    hidden = 0
    for label, (steps, distance) in series.items():
        drawable = ~np.isfinite(distance) | ((steps > 0) & (distance > 0))  # _line counts what is not finite
        hidden += int(np.sum(~drawable))
        _line(axes, label, steps[drawable], distance[drawable], looks[label])
    _note(axes, hidden, "not positive")
    for axis in (axes.xaxis, axes.yaxis):
        if np.all(np.isfinite(axis.get_data_interval())):  # an empty axis has no logarithm
            _log_axis(axis)
    _legend(figure)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(draft, format="png", dpi=DOTS_PER_INCH, facecolor=PAPER, metadata={"Software": None})
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


# Reading the arguments.


def _filled(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not values:
        raise ValueError(f"{name} is empty: there is nothing to draw")
    return values


def _array(label: str, values: ArrayLike) -> Points:
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if array.ndim != 1:
        raise ValueError(f"{label!r} has an array of shape {array.shape}: pass one dimension")
    return array


def _read(curves: Mapping[str, Iterable[ArrayLike]], name: str) -> dict[str, list[Points]]:
    series = {label: [_array(label, values) for values in arrays] for label, arrays in _filled(curves, name).items()}
    for label, arrays in series.items():
        if len({len(array) for array in arrays}) > 1:
            raise ValueError(f"{label!r} has arrays of lengths {[len(array) for array in arrays]}: they must agree")
    return series


def _percent(label: str, fractions: Points) -> Points:
    if np.any((fractions < -1e-6) | (fractions > 1 + 1e-6)):
        raise ValueError(f"{label!r} has values outside [0, 1]: pass fractions, not percent")
    return 100.0 * fractions


def _looks(labels: Iterable[str]) -> dict[str, Look]:
    """A known word in a label decides its look, unless an earlier label took it; the others take theirs in turn."""
    looks: dict[str, Look] = {}
    for label in labels:
        known = [LOOKS[word] for word in re.split(r"[^a-z]+", label.lower()) if word in LOOKS]
        free = [look for look in (*known[-1:], *OTHER_LOOKS) if look not in looks.values()]
        looks[label] = free[0] if free else OTHER_LOOKS[len(looks) % len(OTHER_LOOKS)]
    return looks


# Drawing.


def _figure(title: str, width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(width, height), facecolor=PAPER, layout=layout)
    text = textwrap.fill(title, int(width * 9.5))  # letters of TITLE_SIZE to a line
    figure.suptitle(text, x=0.012, ha="left", fontsize=TITLE_SIZE, fontweight="bold", color=INK)
    return figure


def _panels(
    title: str, names: Sequence[str], *, xlabel: str, ylabel: str, height: float = HEIGHT
) -> tuple[Figure, list[Axes]]:
    figure = _figure(title, WIDTH if len(names) > 1 else 0.72 * WIDTH, height)
    panels = list(figure.subplots(1, len(names), squeeze=False).flat)
    for axes, name in zip(panels, names, strict=True):
        _dress(axes)
        axes.set_title(name, loc="left", fontsize=LABEL_SIZE, color=INK)
        axes.set_xlabel(xlabel, fontsize=LABEL_SIZE, color=INK)
        axes.set_ylabel(ylabel, fontsize=LABEL_SIZE, color=INK)
    return figure, panels


def _grid(title: str, size: int) -> tuple[Figure, list[Axes]]:
    rows = -(-size // PANELS_A_ROW)
    columns = -(-size // rows)
    figure = _figure(title, min(max(2.3 * columns, 4.5), WIDTH), 1.0 + 1.75 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in panels[size:]:
        axes.remove()
        panels[panels.index(axes) - columns].tick_params(labelbottom=True)
    for axes in panels[:size]:
        _dress(axes)
    figure.supxlabel("margin", fontsize=LABEL_SIZE, color=INK)
    figure.supylabel("points", fontsize=LABEL_SIZE, color=INK)
    return figure, panels[:size]


def _dress(axes: Axes) -> None:
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(labelsize=TICK_SIZE, color=QUIET, labelcolor=INK, length=3)


def _line(axes: Axes, label: str, x: Points, y: Points, look: Look, dash: Any = "-", **style: Any) -> None:
    """A curve with its markers; a dashed one lies on top with open markers, so that a curve it meets stays visible."""
    finite = np.isfinite(x) & np.isfinite(y)
    marked = look.marker and (len(x) <= MARKED_UP_TO or dash == "none")
    default: dict[str, Any] = {"linewidth": 1.8, "marker": look.marker if marked else "none"}
    full = {"markersize": 5.5, "markeredgecolor": PAPER, "markeredgewidth": 0.7, "zorder": 2.0}
    hollow = {"markersize": 4.5, "markerfacecolor": PAPER, "markeredgewidth": 1.2, "zorder": 2.1}
    style = default | (hollow if dash == "--" else full) | style
    axes.plot(x, np.where(finite, y, np.nan), label=label, color=look.colour, linestyle=dash, **style)
    _note(axes, int(np.sum(~finite)), "not finite")


def _reference(axes: Axes, label: str, value: float, position: int) -> None:
    if np.isfinite(value):
        dash = REFERENCE_DASHES[position % len(REFERENCE_DASHES)]
        axes.axhline(value, label=label, color=INK, linestyle=dash, linewidth=1.4, zorder=1.5)
    _note(axes, int(not np.isfinite(value)), "not finite")


def _note(axes: Axes, number: int, what: str) -> None:
    """Adds to the count of what a panel leaves out, at its upper right, above the data."""
    if number == 0:
        return
    said = axes.get_title(loc="right")
    if match := re.search(rf"(\d+) {what}", said):
        text = said.replace(match[0], f"{int(match[1]) + number} {what}")
    else:
        text = f"{said}\n{number} {what}".strip()
    axes.set_title(text, loc="right", fontsize=TICK_SIZE, color=QUIET)


def _path(axes: Axes, minimum: Points, average: Points) -> None:
    colour = LOOKS["descent"].colour
    _line(axes, "path of training", minimum, average, Look(colour, ""), linewidth=1.6)
    finite = np.isfinite(minimum) & np.isfinite(average)
    places = np.stack([minimum[finite], average[finite]], axis=1)  # [t, 2]
    if len(places):
        axes.plot(*places[0], color=PAPER, marker="o", markeredgecolor=colour, markeredgewidth=1.6, markersize=6)
    steps = np.diff(places, axis=0) / np.maximum(np.ptp(places, axis=0), 1e-12) if len(places) else places  # [t - 1, 2]
    travelled = np.cumsum([0.0, *np.hypot(steps[:, 0], steps[:, 1])])  # [t]
    if travelled[-1] > 0:
        tail, head = ([np.interp(part * travelled[-1], travelled, place) for place in places.T] for part in (0.45, 0.5))
        style = "-|>,head_length=0.9,head_width=0.3"
        arrow = {"arrowstyle": style, "color": colour, "mutation_scale": 14, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(head[0], head[1]), xytext=(tail[0], tail[1]), arrowprops=arrow)


def _histogram(axes: Axes, label: str, margins: Points, edges: Points) -> None:
    finite = margins[np.isfinite(margins)]
    counts, _ = np.histogram(finite, edges)  # [bins]
    colour = BARS if "epoch" in label.lower() else REFERENCE_BARS
    colours = [WRONG_SIDE if right <= 0 else colour for right in edges[1:]]
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours, linewidth=0)
    axes.axvline(0.0, color=INK, linewidth=1.0)
    axes.set_title(label, loc="left", fontsize=LABEL_SIZE, color=INK)
    if len(finite):
        axes.axvline(float(finite.mean()), color=INK, linewidth=1.2, linestyle=(0, (3, 2)))
        axes.set_title(f"mean {finite.mean():#.3g}".rstrip("."), loc="right", fontsize=TICK_SIZE, color=QUIET)
    _note(axes, len(margins) - len(finite), "not finite")
    beside = axes.get_title(loc="right").split("\n")
    if len(label) + max(map(len, beside)) > LETTERS_A_PANEL:
        axes.set_title(label + "\n" * len(beside), loc="left", fontsize=LABEL_SIZE, color=INK)  # above, not beside


def _bin_edges(values: Points, bins: int) -> Points:
    """Edges over the range of all values; where the range holds 0, 0 is an edge."""
    if not len(values):
        return np.linspace(0.0, 1.0, bins + 1)
    low, high = float(values.min()), float(values.max())
    if low == high:
        room = max(abs(low), 1.0)
        return np.linspace(low - room, high + room, bins + 1)
    if bins == 1 or not low < 0.0 < high:
        return np.linspace(low, high, bins + 1)
    width = (high - low) / (bins - 1)
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + 1)
    edges[[0, -1]] = min(edges[0], low), max(edges[-1], high)  # rounding must not lose the extremes
    return edges


def _epoch_axis(axes: Axes, epochs: Sequence[Points], log_x: bool) -> None:
    values = np.concatenate(epochs)
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if not np.isfinite(high - low):
        return
    if not log_x:
        room = 0.04 * (high - low) or 0.5
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=bool(np.all(values == np.round(values))), min_n_ticks=1))
    elif low > 0:
        room = (high / low) ** 0.04 if high > low else 2.0
        axes.set_xlim(low / room, high * room)
        _log_axis(axes.xaxis)
    else:
        axes.set_xscale("symlog", linthresh=1.0, linscale=0.4)
        axes.set_xlim(low - 0.3, max(high, 1.0) * 1.3)
        if high <= PLAIN_UP_TO:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _log_axis(axis: Any) -> None:
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    subs = (1.0,) if high >= 100 * low else (1.0, 2.0, 5.0)  # a short axis needs more than its powers of ten
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    if low >= 1e-4 and high <= PLAIN_UP_TO:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _from_zero(axes: Axes) -> None:
    top = axes.get_ylim()[1]
    axes.set_ylim(-0.03 * top, max(top, 1e-3))


def _legend(figure: Figure, handles: Sequence[Any] = ()) -> None:
    """One legend below the panels, in as many columns as fit, of the given handles or of all labelled lines."""
    lines = [line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]]
    unique = list({str(handle.get_label()): handle for handle in handles or lines}.items())
    widths = [0.7 + 0.085 * len(label) for label, _ in unique]  # inches
    width = figure.get_figwidth() - 0.3
    fitting = len(unique) if sum(widths) <= width else max(int(width / max(widths)), 1)
    rows = -(-len(unique) // fitting)
    style = {"ncols": -(-len(unique) // rows), "frameon": False, "fontsize": LABEL_SIZE, "labelcolor": INK}
    figure.legend(handles=[handle for _, handle in unique], loc="outside lower center", **style)
