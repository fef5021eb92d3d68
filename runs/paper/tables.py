"""The result cards as the paper's Table 1, and how the margins moved while training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmargin.lab import tables
from jaxmargin.lab.files import Record
from jaxmargin.lab.tables import Row, beside, seeds_share, who
from runs.paper.cell import METHODS, MODELS
from runs.paper.stages import SPLITS, PaperCard

__all__ = ["costs", "curve", "place", "table", "trade_off"]


def place(card: PaperCard) -> tuple[int, int, int]:
    """Where a card stands in the tables: by model, method and seed."""
    return MODELS.index(card["model"]), METHODS.index(card["method"]), card["seed"]


def table(cards: Sequence[PaperCard]) -> list[Row]:
    """Table 1 of the paper: one row a model and method, accuracies in percent, the paper's numbers in brackets.

    Args:
      cards: result cards; those of one model and method, which differ by the seed, share a row, of means and sample
        standard deviations.

    Returns:
      Rows of formatted cells.
    """
    return seeds_share(cards, _row)


def costs(cards: Sequence[PaperCard]) -> list[dict[str, Any]]:
    """Settings of the cells and the seconds of their stages, one row a card."""
    settings = ["epochs", "learning_rate", "batch_size", "beta", "tau", "num_samples", "n_attack", "attack_steps"]
    return tables.costs(cards, [*settings, "worst_case_steps", "nearest_steps"])


def _row(cards: list[PaperCard]) -> Row:
    card, paper = cards[0], cards[0]["paper"] or {}
    # Robust accuracies are comparable only at the published budgets.
    comparable = paper.get("epsilons") == card["epsilons"]
    row = {"model": card["model"], "method": card["method"]}
    clean = [100 * one["clean_accuracy"] for one in cards]
    row["clean %"] = beside(clean, 100 * paper["clean_accuracy"] if paper else None)
    for i, epsilon in enumerate(card["epsilons"]):
        there = 100 * paper["robust_accuracy_published"][i] if comparable else None
        row[f"published {epsilon:g} %"] = beside([100 * one["robust_accuracy_published"][i] for one in cards], there)
    for i, epsilon in enumerate(card["epsilons"]):
        row[f"worst {epsilon:g} %"] = beside([100 * one["robust_accuracy_worst"][i] for one in cards])
    row["logit margin"] = beside([one["logit_margin_quartiles"][1] for one in cards], digits=1)
    row["average distance"] = beside([one["average_distance"] for one in cards], paper.get("average_distance"))
    row["average margin"] = beside([one["average_margin"] for one in cards])
    row["minimum"] = beside([one["minimum_margin"] for one in cards], digits=3)
    row["samples"] = f"{card['num_samples']:,}" if card["num_samples"] else "exact"
    return row


def trade_off(cards: Sequence[PaperCard], records: Sequence[Sequence[Record]]) -> list[Row]:
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
            epochs, minimum, average = curve(lines, split)
            peak = int(np.argmax(average))
            rows.append(who(card, cards) | {
                "points": f"{card['n_margin']} {split}",
                "minimum first": f"{minimum[0]:.3f}", "at peak": f"{minimum[peak]:.3f}", "last": f"{minimum[-1]:.3f}",
                "average first": f"{average[0]:.3f}", "peak": f"{average[peak]:.3f}",
                "peak epoch": str(epochs[peak]), "average last": f"{average[-1]:.3f}",
                "trade-off": "yes" if _traded(epochs, minimum, average) else "no",
            })  # fmt: skip
    return rows


def _traded(epochs: list[int], minimum: list[float], average: list[float]) -> bool:
    """Whether the average falls after its peak and the minimum rises, by more than noise and 1 % of the peak."""
    peak, steps = int(np.argmax(average)), np.diff(epochs)

    def moved(by: float, values: list[float]) -> bool:
        noise = 3 * np.median(np.abs(np.diff(values))) if len(steps) > 20 and (steps == 1).all() else 0.0
        return by > max(noise, 0.01 * abs(average[peak]))

    return moved(average[peak] - average[-1], average) and moved(minimum[-1] - minimum[peak], minimum)


def curve(records: Sequence[Record], split: str) -> tuple[list[int], list[float], list[float]]:
    """Epochs, minimum and average margins of the epochs that were measured, from the first with most points right.

    Before it a network has learned nothing, and its margins are as large as the ball allows.

    Args:
      records: the lines of metrics.jsonl of one cell.
      split: "train" or "test".

    Returns:
      Three lists of equal length.
    """
    lines = [line for line in records if f"{split}_average_margin" in line]
    learned = [number for number, line in enumerate(lines) if line[f"{split}_margin_accuracy"] > 0.5]
    lines = lines[learned[0] :] if learned else lines
    epochs = [line["epoch"] for line in lines]
    minimum, average = ([line[f"{split}_{name}_margin"] for line in lines] for name in ("minimum", "average"))
    return epochs, minimum, average
