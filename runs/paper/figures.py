"""The figures of Wu and Yu (2019), drawn from the finished cells of a workdir."""

from collections import defaultdict
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from jaxmargin.lab.figures import plots
from jaxmargin.lab.publishing import Finished, Picture
from runs.paper.cell import METHODS, MODELS
from runs.paper.plots import average_margin_by_method, brackets
from runs.paper.stages import SPLITS, PaperCard
from runs.paper.tables import curve

__all__ = ["draw"]


def draw(cells: list[Finished[PaperCard]], folder: Path) -> dict[str, list[Picture]]:
    """Draws every figure, of the first seed.

    Args:
      cells: finished ones, in the table's order.
      folder: gets the PNG files.

    Returns:
      By kind ("margins", "average", "robust", "brackets", "training", "points"), the pictures.
    """
    found: dict[str, list[Picture]] = defaultdict(list)

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
            {method: _robust(cell.card, accuracy(cell.card)) for method, cell in chosen.items()}
            for accuracy in (itemgetter("robust_accuracy_published"), itemgetter("robust_accuracy_worst"))
        )
        add("robust", f"robust-accuracy-{model}", plots.robust_accuracy_curves(robust, title=name, worst=worst),
            f"Accuracy of the {model} model under the published attack and in the worst case; 0 is clean.")  # fmt: skip
        between = {method: _between(cell) for method, cell in chosen.items()}
        add("brackets", f"brackets-{model}", brackets(between, title=name),
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


def _epochs(cell: Finished[PaperCard]) -> list[str]:
    return [f"epoch {epoch}" for epoch in cell.arrays["epochs"]]


def _averages(cell: Finished[PaperCard]) -> dict[str, tuple[list[int], list[float]]]:
    curves = {split: curve(cell.records, split) for split in SPLITS}
    return {split: (epochs, average) for split, (epochs, _, average) in curves.items()}


def _robust(card: PaperCard, robust: list[float]) -> tuple[list[float], list[float]]:
    return [0.0, *card["epsilons"]], [card["clean_accuracy"], *robust]


def _between(cell: Finished[PaperCard]) -> dict[str, np.ndarray]:
    """The bracket of the test points at the last epoch."""
    arrays = cell.arrays
    distances = {name: arrays[name] for name in ("certified", "attacked")}
    return distances | {"estimated": np.abs(arrays["test_margin"][-1])}


def _losses(cell: Finished[PaperCard]) -> dict[str, list[float]]:
    names = ("epoch", "train_loss", "train_error", "test_error")
    return {name: [line[name] for line in cell.records] for name in names}
