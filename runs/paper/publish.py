"""A workdir's cards and metrics as tables, figures and one report, in the layout of Wu and Yu (2019)."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmargin.lab import files
from jaxmargin.lab.figures import plots
from jaxmargin.lab.report.page import Section, csv_table, markdown_table, write_report
from jaxmargin.lab.stages import Arrays, read_arrays
from jaxmargin.lab.tables import SPLITS, Card, brackets, costs, curve, flags, numbers, table, trade_off
from runs.paper.cell import METHODS, MODELS
from runs.paper.plots import average_margin_by_method
from runs.paper.plots import brackets as draw_brackets

__all__ = ["Published", "publish"]

_INTRODUCTION = """How far is each point from the decision boundary, and how does training move that distance? The \
margin of a point is that distance, positive where the prediction is right. Wu and Yu (2019) report that training \
raises the minimum margin and lowers the average one, and that the average margin regulariser (AMR) breaks the \
trade-off.

Margins of linear models are exact. Those of the others are estimates from sampled Lipschitz constants (their eq. 3): \
they may lie above the true distance, and they are not certificates."""

_TABLE = """Accuracy under attack as published: l2 PGD on the cross-entropy, one start, last iterate. The worst case \
counts a point as broken where that attack or auto-PGD with any of three losses that cannot saturate succeeded. Both \
are upper bounds of the true robust accuracy, the first one far too high where the cross-entropy saturates: in float32 \
it has no gradient left where the logit margin, whose median over the attacked images is given, exceeds about 17. \
Average margin is the unsigned mean over the test points, as in Table 1 of the paper; the signed mean and the minimum \
stand beside it. Numbers in brackets are the paper's."""

_BRACKETS = """For every point whose margin is estimated: no change of the prediction is possible nearer than the \
certified distance; one was found at the attacked distance; the true distance lies between the two. The sampled \
estimate is neither bound: where it exceeds the attacked distance it is wrong, and the table says at how many points."""

_FLAGS = """Signs that an attack failed rather than that a network is robust."""

_TRADE_OFF = """Margins at the first measured epoch at which most points are right, at the peak of the average, and at \
the last epoch. The average must rise while the network still learns; the trade-off holds where it falls after its \
peak while the minimum rises, both by more than a hundredth of the peak and, where every epoch is measured, three \
times what an epoch moves them (its median)."""


class Published(NamedTuple):
    """What ``publish`` wrote.

    Attributes:
      table: the table as Markdown.
      report: the path of report.html.
      figures: by kind ("margins", "average", "robust", "brackets", "training", "points"), the path and caption of each.
      cards: the result cards, in the table's order.
      records: the metrics of each card's epochs.
    """

    table: str
    report: Path
    figures: dict[str, list[tuple[Path, str]]]
    cards: list[Card]
    records: list[list[dict[str, Any]]]


class _Cell(NamedTuple):
    card: Card
    records: list[dict[str, Any]]
    arrays: Arrays


def publish(workdir: Path) -> Published:
    """Writes table.md, table.csv, metrics.jsonl, figures and report.html from the finished cells of a workdir.

    Args:
      workdir: with cards/ and cells/ as ``run_cell`` leaves them.

    Returns:
      Published.

    Raises:
      FileNotFoundError: no card is there.
    """
    cells = _read(workdir)
    cards = [cell.card for cell in cells]
    shown = markdown_table(table(cards))
    files.write_bytes(workdir / "table.md", (shown + "\n").encode())
    files.write_bytes(workdir / "table.csv", csv_table(numbers(cards)).encode())
    files.write_records(workdir / "metrics.jsonl", [record for cell in cells for record in cell.records])
    figures = _figures(cells, workdir / "figures")
    title = f"Minimum and average margin on {cards[0]['dataset']}"
    report = write_report(
        workdir / "report.html", title=title, introduction=_INTRODUCTION, sections=_sections(cells, figures)
    )
    return Published(shown, report, figures, [cell.card for cell in cells], [cell.records for cell in cells])


def _read(workdir: Path) -> list[_Cell]:
    cells = []
    for path in (workdir / "cards").glob("*.json"):
        records = files.read_records(workdir / "cells" / path.stem / "metrics.jsonl")
        cells.append(_Cell(files.read_json(path), records, read_arrays(path.with_suffix(".npz"))))
    if not cells:
        raise FileNotFoundError(f"{workdir}/cards holds no finished cell: run one first")
    cells.sort(key=lambda cell: _place(cell.card))
    return cells


def _place(card: Card) -> tuple[int, int, int]:
    return MODELS.index(card["model"]), METHODS.index(card["method"]), card["seed"]


def _figures(cells: list[_Cell], folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Draws every figure, of the first seed; by section, (path, caption)."""
    found: dict[str, list[tuple[Path, str]]] = defaultdict(list)

    def add(section: str, name: str, figure: Any, caption: str) -> None:
        found[section].append((plots.save(figure, folder / f"{name}.png"), caption))

    for model in MODELS:
        chosen = {cell.card["method"]: cell for cell in reversed(cells) if cell.card["model"] == model}
        chosen = {method: chosen[method] for method in METHODS if method in chosen}
        if not chosen:
            continue
        name = f"{next(iter(chosen.values())).card['dataset']} {model}"
        shown = "std" if "std" in chosen else next(iter(chosen))
        curves = {split: curve(chosen[shown].records, split) for split in SPLITS}
        add("margins", f"margins-{model}", plots.margin_curves(curves, title=f"{name}, {shown}"),
            f"Minimum and average margin of the {model} model under {shown}.")  # fmt: skip
        averages = {method: _averages(cell) for method, cell in chosen.items()}
        add("average", f"average-margin-{model}", average_margin_by_method(averages, title=name),
            f"Average margin of the {model} model by training method.")  # fmt: skip
        robust, worst = (
            {method: _robust(cell.card, key) for method, cell in chosen.items()}
            for key in ("robust_accuracy", "worst_case_accuracy")
        )
        add("robust", f"robust-accuracy-{model}", plots.robust_accuracy_curves(robust, title=name, worst=worst),
            f"Accuracy of the {model} model under the published attack and in the worst case; 0 is clean.")  # fmt: skip
        between = {method: _between(cell) for method, cell in chosen.items()}
        add("brackets", f"brackets-{model}", draw_brackets(between, title=name),
            f"Certified, estimated and attacked distances of the test points of the {model} model.")  # fmt: skip
        losses = {method: _losses(cell) for method, cell in chosen.items()}
        add("training", f"training-{model}", plots.training_curves(losses, title=name),
            f"Cross-entropy and errors of the {model} model.")  # fmt: skip
        for split in SPLITS:
            margins = dict(zip(_epochs(chosen[shown]), chosen[shown].arrays[f"{split}_margin"], strict=True))
            bins = int(np.clip(chosen[shown].card["n_margin"] / 3, 10, 50))
            figure = plots.margin_histograms(margins, title=f"{name}, {shown}, {split} points", bins=bins)
            add("points", f"histograms-{model}-{split}", figure, f"Margins of the {split} points of the {model} model.")
    return found


def _epochs(cell: _Cell) -> list[str]:
    return [f"epoch {epoch}" for epoch in cell.arrays["epochs"]]


def _averages(cell: _Cell) -> dict[str, tuple[list[int], list[float]]]:
    curves = {split: curve(cell.records, split) for split in SPLITS}
    return {split: (epochs, average) for split, (epochs, _, average) in curves.items()}


def _robust(card: Card, name: str) -> tuple[list[float], list[float]]:
    return [0.0, *card["epsilons"]], [card["clean_accuracy"], *card[name]]


def _between(cell: _Cell) -> dict[str, np.ndarray]:
    """The bracket of the test points at the last epoch."""
    arrays = cell.arrays
    distances = {name: arrays[f"test_{name}"] for name in ("certified", "attacked")}
    return distances | {"estimated": np.abs(arrays["test_margin"][-1])}


def _losses(cell: _Cell) -> dict[str, list[float]]:
    names = ("epoch", "train_loss", "train_error", "test_error")
    return {name: [line[name] for line in cell.records] for name in names}


def _sections(cells: list[_Cell], figures: Mapping[str, list[tuple[Path, str]]]) -> list[Section]:
    cards = [cell.card for cell in cells]
    moved = trade_off(cards, [cell.records for cell in cells])
    return [
        Section("Table", _TABLE, table(cards)),
        Section("Does the trade-off hold?", _TRADE_OFF, moved),
        Section("Minimum and average margin", "Figures 2a to 2c and 6 of the paper.", None, tuple(figures["margins"])),
        Section("Average margin by method", "Figures 2d to 2f of the paper.", None, tuple(figures["average"])),
        Section("Robust accuracy", "Table 1 as curves, the worst case dashed.", None, tuple(figures["robust"])),
        Section("Training", "Figure 4 of the paper.", None, tuple(figures["training"])),
        Section("Brackets", _BRACKETS, brackets(cards), tuple(figures["brackets"])),
        Section("Signs of failing attacks", _FLAGS, flags(cards)),
        Section("Margin histograms", "Figures 5 and 7 of the paper.", None, tuple(figures["points"])),
        Section("How these numbers were made", _settings(cards), costs(cards)),
    ]


def _settings(cards: list[Card]) -> str:
    first = cards[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    sizes = f"{first['n_train']:,} training and {first['n_test']:,} test images, margins on {first['n_margin']} of each"
    return f"Preset {first['preset']}, {sizes}, ball radius {first['radius']:g}. {first['device']}. {versions}."
