"""A workdir's cards and metrics as tables, figures and one report, in the layout of Wu and Yu (2019)."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmargin.lab import plots, tracking
from jaxmargin.lab.evaluation import Arrays, read_arrays
from jaxmargin.lab.experiments import METHODS, MODELS
from jaxmargin.lab.reports import Section, csv_table, markdown_table, write_report

__all__ = ["Published", "publish", "table", "trade_off"]

Card = dict[str, Any]
SPLITS = ("train", "test")

_INTRODUCTION = """How far is each point from the decision boundary, and how does training move that distance? The \
margin of a point is that distance, positive where the prediction is right. Wu and Yu (2019) report that training \
raises the minimum margin and lowers the average one, and that the average margin regulariser (AMR) breaks the \
trade-off.

Margins of linear models are exact. Those of the others are estimates from sampled Lipschitz constants (their eq. 3): \
they may lie above the true distance, and they are not certificates."""

_TABLE = """Robust accuracy is the published attack's: l2 PGD on the cross-entropy, one start, last iterate, on the \
whole test split. It is an upper bound of the true robust accuracy, far too high where the cross-entropy saturates. \
Average margin is the unsigned mean over the test points, as in Table 1 of the paper; the signed mean and the minimum \
stand beside it. Numbers in brackets are the paper's."""

_TRADE_OFF = """Margins at the first epoch, at the peak of the average, and at the last epoch. The average must rise \
while the network still learns; the trade-off holds where it falls after its peak while the minimum rises."""


class Published(NamedTuple):
    """What ``publish`` wrote.

    Attributes:
      table: the table as Markdown.
      report: the path of report.html.
    """

    table: str
    report: Path


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
    tracking.write_bytes(workdir / "table.md", (shown + "\n").encode())
    tracking.write_bytes(workdir / "table.csv", csv_table(_numbers(cards)).encode())
    tracking.write_records(workdir / "metrics.jsonl", [record for cell in cells for record in cell.records])
    figures = _figures(cells, workdir / "figures")
    title = f"Minimum and average margin on {cards[0]['dataset']}"
    report = write_report(
        workdir / "report.html", title=title, introduction=_INTRODUCTION, sections=_sections(cells, figures)
    )
    return Published(shown, report)


def table(cards: list[Card]) -> list[dict[str, str]]:
    """Table 1 of the paper: one row a card, accuracies in percent, published numbers in brackets where there are any.

    Args:
      cards: result cards.

    Returns:
      Rows of formatted cells.
    """
    return [_row(card) for card in cards]


def trade_off(cards: list[Card], records: list[list[dict[str, Any]]]) -> list[dict[str, str]]:
    """How minimum and average margin moved, one row a cell and split.

    Args:
      cards: result cards.
      records: the lines of metrics.jsonl of each.

    Returns:
      Rows of formatted cells.
    """
    rows = []
    for card, lines in zip(cards, records, strict=True):
        for split in SPLITS:
            epochs, minimum, average = _curve(lines, split)
            peak = int(np.argmax(average))
            held = average[-1] < average[peak] and minimum[-1] > minimum[peak]
            rows.append({
                "model": card["model"], "method": card["method"], "points": split,
                "minimum first": f"{minimum[0]:.3f}", "at peak": f"{minimum[peak]:.3f}", "last": f"{minimum[-1]:.3f}",
                "average first": f"{average[0]:.3f}", "peak": f"{average[peak]:.3f}",
                "peak epoch": str(epochs[peak]), "average last": f"{average[-1]:.3f}",
                "trade-off": "yes" if held else "no",
            })  # fmt: skip
    return rows


def _read(workdir: Path) -> list[_Cell]:
    cells = []
    for path in (workdir / "cards").glob("*.json"):
        records = tracking.read_records(workdir / "cells" / path.stem / "metrics.jsonl")
        cells.append(_Cell(tracking.read_json(path), records, read_arrays(path.with_suffix(".npz"))))
    if not cells:
        raise FileNotFoundError(f"{workdir}/cards holds no finished cell: run one first")
    cells.sort(key=lambda cell: (MODELS.index(cell.card["model"]), METHODS.index(cell.card["method"])))
    return cells


def _row(card: Card) -> dict[str, str]:
    paper = card["paper"] or {}
    # Robust accuracies are comparable only at the published budgets.
    paper_robust = paper.get("robust_accuracy", []) if paper.get("epsilons") == card["epsilons"] else []
    row = {"model": card["model"], "method": card["method"]}
    row["clean %"] = _beside(100 * card["clean_accuracy"], 100 * paper["clean_accuracy"] if paper else None)
    for i, (epsilon, robust) in enumerate(zip(card["epsilons"], card["robust_accuracy"], strict=True)):
        row[f"PGD {epsilon:g} %"] = _beside(100 * robust, 100 * paper_robust[i] if paper_robust else None)
    row["average margin"] = _beside(card["average_margin"], paper.get("average_margin"))
    row["signed"] = f"{card['average_margin_signed']:.2f}"
    row["minimum"] = f"{card['minimum_margin']:.3f}"
    row["samples"] = f"{card['num_samples']:,}" if card["num_samples"] else "exact"
    return row


def _beside(value: float, paper: float | None) -> str:
    return f"{value:.2f}" + ("" if paper is None else f" ({paper:.2f})")


def _numbers(cards: list[Card]) -> list[dict[str, Any]]:
    """The cards as flat rows of plain numbers, for pandas."""
    rows = []
    for card in cards:
        flat = {name: value for name, value in card.items() if not isinstance(value, dict | list) and name != "paper"}
        for epsilon, robust in zip(card["epsilons"], card["robust_accuracy"], strict=True):
            flat[f"robust_accuracy_{epsilon:g}"] = robust
        for name, value in (card["paper"] or {}).items():
            if not isinstance(value, list):
                flat[f"paper_{name}"] = value
        flat["seconds"] = round(sum(card["seconds"].values()), 3)
        rows.append(flat)
    return rows


def _figures(cells: list[_Cell], folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Draws every figure; by section, (path, caption)."""
    found: dict[str, list[tuple[Path, str]]] = defaultdict(list)

    def add(section: str, name: str, figure: Any, caption: str) -> None:
        found[section].append((plots.save(figure, folder / f"{name}.png"), caption))

    for model in MODELS:
        chosen = {cell.card["method"]: cell for cell in cells if cell.card["model"] == model}
        if not chosen:
            continue
        name = f"{next(iter(chosen.values())).card['dataset']} {model}"
        shown = "std" if "std" in chosen else next(iter(chosen))
        curves = {split: _curve(chosen[shown].records, split) for split in SPLITS}
        add("margins", f"margins-{model}", plots.margin_curves(curves, title=f"{name}, {shown}"),
            f"Minimum and average margin of the {model} model under {shown}.")  # fmt: skip
        averages = {method: _averages(cell) for method, cell in chosen.items()}
        add("average", f"average-margin-{model}", plots.average_margin_by_method(averages, title=name),
            f"Average margin of the {model} model by training method.")  # fmt: skip
        robust = {method: _robust(cell.card) for method, cell in chosen.items()}
        add("robust", f"robust-accuracy-{model}", plots.robust_accuracy_curves(robust, title=name),
            f"Accuracy of the {model} model under the published attack; epsilon 0 is clean.")  # fmt: skip
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


def _curve(records: list[dict[str, Any]], split: str) -> tuple[list[int], list[float], list[float]]:
    """Epochs, minimum and average margins of the epochs that were measured."""
    lines = [line for line in records if f"{split}_average_margin" in line]
    epochs = [line["epoch"] for line in lines]
    minimum, average = ([line[f"{split}_{name}_margin"] for line in lines] for name in ("minimum", "average"))
    return epochs, minimum, average


def _averages(cell: _Cell) -> dict[str, tuple[list[int], list[float]]]:
    return {split: (curve[0], curve[2]) for split in SPLITS for curve in [_curve(cell.records, split)]}


def _robust(card: Card) -> tuple[list[float], list[float]]:
    return [0.0, *card["epsilons"]], [card["clean_accuracy"], *card["robust_accuracy"]]


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
        Section("Robust accuracy", "The columns of Table 1 as curves.", None, tuple(figures["robust"])),
        Section("Training", "Figure 4 of the paper.", None, tuple(figures["training"])),
        Section("Margin histograms", "Figures 5 and 7 of the paper.", None, tuple(figures["points"])),
        Section("How these numbers were made", _settings(cards), _costs(cards)),
    ]


def _settings(cards: list[Card]) -> str:
    first = cards[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    sizes = f"{first['n_train']:,} training and {first['n_test']:,} test images, margins on {first['n_margin']} of each"
    return f"Preset {first['preset']}, {sizes}, ball radius {first['radius']:g}. {first['device']}. {versions}."


def _costs(cards: list[Card]) -> list[dict[str, Any]]:
    keys = ("model", "method", "epochs", "learning_rate", "batch_size", "beta", "tau", "num_samples", "attack_steps")
    return [
        {**{key: card[key] for key in keys}, **{f"{name} s": f"{value:.1f}" for name, value in card["seconds"].items()}}
        for card in cards
    ]
