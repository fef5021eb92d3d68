"""What figures are drawn with: panels dressed in one ``style``, lines and bars, axes, and the legend.

What cannot be drawn is counted by `note`.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from jaxmargin.lab.figures import style

__all__ = [
    "array", "bin_edges", "epoch_axis", "filled", "from_zero", "grid", "histogram", "legend", "line", "log_axis",
    "note", "panels", "path", "percent", "read", "reference",
]  # fmt: skip

Points = NDArray[np.float64]

# Reading the arguments.


def filled(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The mapping, which must not be empty."""
    if not values:
        raise ValueError(f"{name} is empty: there is nothing to draw")
    return values


def array(label: str, values: ArrayLike) -> Points:
    """The values as one dimension of doubles."""
    row = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if row.ndim != 1:
        raise ValueError(f"{label!r} has an array of shape {row.shape}: pass one dimension")
    return row


def read(curves: Mapping[str, Iterable[ArrayLike]], name: str) -> dict[str, list[Points]]:
    """Each label's arrays, which must agree in length."""
    series = {label: [array(label, values) for values in arrays] for label, arrays in filled(curves, name).items()}
    for label, arrays in series.items():
        if len(set(lengths := [len(row) for row in arrays])) > 1:
            raise ValueError(f"{label!r} has arrays of lengths {lengths}: they must agree")
    return series


def percent(label: str, fractions: Points) -> Points:
    """Shares of 1 in percent."""
    if np.any((fractions < -1e-6) | (fractions > 1 + 1e-6)):
        raise ValueError(f"{label!r} has values outside [0, 1]: pass fractions, not percent")
    return 100.0 * fractions


# Drawing.


def _figure(title: str, width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(width, height), facecolor=style.PAPER, layout=layout)
    text = textwrap.fill(title, int(width * 9.5))  # letters of style.TITLE_SIZE to a line
    figure.suptitle(text, x=0.012, ha="left", fontsize=style.TITLE_SIZE, fontweight="bold", color=style.INK)
    return figure


def panels(
    title: str, names: Sequence[str], *, xlabel: str, ylabel: str, height: float = style.HEIGHT
) -> tuple[Figure, list[Axes]]:
    """A figure with named panels in a row, dressed and labelled."""
    figure = _figure(title, style.WIDTH if len(names) > 1 else 0.72 * style.WIDTH, height)
    row = list(figure.subplots(1, len(names), squeeze=False).flat)
    for axes, name in zip(row, names, strict=True):
        _dress(axes)
        axes.set_title(name, loc="left", fontsize=style.LABEL_SIZE, color=style.INK)
        axes.set_xlabel(xlabel, fontsize=style.LABEL_SIZE, color=style.INK)
        axes.set_ylabel(ylabel, fontsize=style.LABEL_SIZE, color=style.INK)
    return figure, row


def grid(title: str, size: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels for histograms on common axes, at most five a row."""
    rows = -(-size // style.PANELS_A_ROW)
    columns = -(-size // rows)
    figure = _figure(title, min(max(2.3 * columns, 4.5), style.WIDTH), 1.0 + 1.75 * rows)
    places = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in places[size:]:
        axes.remove()
        places[places.index(axes) - columns].tick_params(labelbottom=True)
    for axes in places[:size]:
        _dress(axes)
    figure.supxlabel("margin", fontsize=style.LABEL_SIZE, color=style.INK)
    figure.supylabel("points", fontsize=style.LABEL_SIZE, color=style.INK)
    return figure, places[:size]


def _dress(axes: Axes) -> None:
    axes.grid(True, color=style.GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(style.QUIET)
    axes.tick_params(labelsize=style.TICK_SIZE, color=style.QUIET, labelcolor=style.INK, length=3)


def line(axes: Axes, label: str, x: Points, y: Points, look: style.Look, dash: Any = "-", **options: Any) -> None:
    """A curve with its markers; a dashed one lies on top with open markers, so that a curve it meets stays visible."""
    finite = np.isfinite(x) & np.isfinite(y)
    marked = look.marker and (len(x) <= style.MARKED_UP_TO or dash == "none")
    default: dict[str, Any] = {"linewidth": 1.8, "marker": look.marker if marked else "none"}
    full = {"markersize": 5.5, "markeredgecolor": style.PAPER, "markeredgewidth": 0.7, "zorder": 2.0}
    hollow = {"markersize": 4.5, "markerfacecolor": style.PAPER, "markeredgewidth": 1.2, "zorder": 2.1}
    options = default | (hollow if dash == "--" else full) | options
    axes.plot(x, np.where(finite, y, np.nan), label=label, color=look.colour, linestyle=dash, **options)
    note(axes, int(np.sum(~finite)), "not finite")


def reference(axes: Axes, label: str, value: float, position: int) -> None:
    """A horizontal line across a panel."""
    if np.isfinite(value):
        dash = style.REFERENCE_DASHES[position % len(style.REFERENCE_DASHES)]
        axes.axhline(value, label=label, color=style.INK, linestyle=dash, linewidth=1.4, zorder=1.5)
    note(axes, int(not np.isfinite(value)), "not finite")


def note(axes: Axes, number: int, what: str) -> None:
    """Adds to the count of what a panel leaves out, at its upper right, above the data."""
    if number == 0:
        return
    said = axes.get_title(loc="right")
    if match := re.search(rf"(\d+) {what}", said):
        text = said.replace(match[0], f"{int(match[1]) + number} {what}")
    else:
        text = f"{said}\n{number} {what}".strip()
    axes.set_title(text, loc="right", fontsize=style.TICK_SIZE, color=style.QUIET)


def path(axes: Axes, label: str, x: Points, y: Points, colour: str) -> None:
    """A trajectory through a plane: a ring marks its start, an arrow its way."""
    line(axes, label, x, y, style.Look(colour, ""), linewidth=1.6)
    finite = np.isfinite(x) & np.isfinite(y)
    places = np.stack([x[finite], y[finite]], axis=1)  # [t, 2]
    if len(places):
        axes.plot(*places[0], color=style.PAPER, marker="o", markeredgecolor=colour, markeredgewidth=1.6, markersize=6)
    steps = np.diff(places, axis=0) / np.maximum(np.ptp(places, axis=0), 1e-12) if len(places) else places  # [t - 1, 2]
    travelled = np.cumsum([0.0, *np.hypot(steps[:, 0], steps[:, 1])])  # [t]
    if travelled[-1] > 0:
        tail, head = ([np.interp(part * travelled[-1], travelled, place) for place in places.T] for part in (0.45, 0.5))
        arrow = {
            "arrowstyle": "-|>,head_length=0.9,head_width=0.3",
            "color": colour,
            "mutation_scale": 14,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        axes.annotate("", xy=(head[0], head[1]), xytext=(tail[0], tail[1]), arrowprops=arrow)


def histogram(axes: Axes, label: str, margins: Points, edges: Points) -> None:
    """The bars of one panel, with zero and the mean marked."""
    finite = margins[np.isfinite(margins)]
    counts, _ = np.histogram(finite, edges)  # [bins]
    colour = style.BARS if "epoch" in label.lower() else style.REFERENCE_BARS
    colours = [style.WRONG_SIDE if right <= 0 else colour for right in edges[1:]]
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours, linewidth=0)
    axes.axvline(0.0, color=style.INK, linewidth=1.0)
    axes.set_title(label, loc="left", fontsize=style.LABEL_SIZE, color=style.INK)
    if len(finite):
        axes.axvline(float(finite.mean()), color=style.INK, linewidth=1.2, linestyle=(0, (3, 2)))
        mean = f"mean {finite.mean():#.3g}".rstrip(".")
        axes.set_title(mean, loc="right", fontsize=style.TICK_SIZE, color=style.QUIET)
    note(axes, len(margins) - len(finite), "not finite")
    beside = axes.get_title(loc="right").split("\n")
    if len(label) + max(map(len, beside)) > style.LETTERS_A_PANEL:
        above = label + "\n" * len(beside)
        axes.set_title(above, loc="left", fontsize=style.LABEL_SIZE, color=style.INK)


def bin_edges(values: Points, bins: int) -> Points:
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


def epoch_axis(axes: Axes, epochs: Sequence[Points], log_x: bool) -> None:
    """The range and the ticks of a panel's epochs, on a logarithmic axis with a place for epoch 0 if asked."""
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
        log_axis(axes.xaxis)
    else:
        axes.set_xscale("symlog", linthresh=1.0, linscale=0.4)
        axes.set_xlim(low - 0.3, max(high, 1.0) * 1.3)
        if high <= style.PLAIN_UP_TO:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def log_axis(axis: Any) -> None:
    """A logarithmic axis with few, plain ticks."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    subs = (1.0,) if high >= 100 * low else (1.0, 2.0, 5.0)  # a short axis needs more than its powers of ten
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    if low >= 1e-4 and high <= style.PLAIN_UP_TO:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def from_zero(axes: Axes) -> None:
    """Lets a panel's heights start at 0."""
    top = axes.get_ylim()[1]
    axes.set_ylim(-0.03 * top, max(top, 1e-3))


def legend(figure: Figure, handles: Sequence[Any] = ()) -> None:
    """One legend below the panels, in as many columns as fit, of the given handles or of all labelled lines."""
    drawn = [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
    unique = list({str(handle.get_label()): handle for handle in handles or drawn}.items())
    widths = [0.7 + 0.085 * len(label) for label, _ in unique]  # inches
    width = figure.get_figwidth() - 0.3
    fitting = len(unique) if sum(widths) <= width else max(int(width / max(widths)), 1)
    rows = -(-len(unique) // fitting)
    figure.legend(
        handles=[handle for _, handle in unique], loc="outside lower center", ncols=-(-len(unique) // rows),
        frameon=False, fontsize=style.LABEL_SIZE, labelcolor=style.INK,
    )  # fmt: skip
