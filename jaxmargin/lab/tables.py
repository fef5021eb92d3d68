"""Result cards as the rows of tables: formatted for reading, or plain numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["beside", "brackets", "costs", "curve", "flags", "numbers", "seeds_share", "table", "trade_off"]

Card = dict[str, Any]
SPLITS = ("train", "test")


def table(cards: list[Card]) -> list[dict[str, str]]:
    """Table 1 of the paper: one row a model and method, accuracies in percent, the paper's numbers in brackets.

    Args:
      cards: result cards; those of one model and method, which differ by the seed, share a row, of means and sample
        standard deviations.

    Returns:
      Rows of formatted cells.
    """
    return seeds_share(cards, _row)


def seeds_share(cards: list[Card], row: Callable[[list[Card]], dict[str, str]]) -> list[dict[str, str]]:
    """One row for the cards of a model and method, which differ by the seed.

    Args:
      cards: result cards.
      row: makes the row of such cards.

    Returns:
      The rows, with the number of seeds where any has several.
    """
    groups: dict[tuple[str, str], list[Card]] = {}
    for card in cards:
        groups.setdefault((card["model"], card["method"]), []).append(card)
    several = any(len(group) > 1 for group in groups.values())
    return [row(group) | ({"seeds": str(len(group))} if several else {}) for group in groups.values()]


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
            epochs, minimum, average = curve(lines, split)
            peak = int(np.argmax(average))
            rows.append(_who(card, cards) | {
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


def brackets(cards: list[Card]) -> list[dict[str, str]]:
    """Average distances from three sides, one row a card.

    Args:
      cards: result cards.

    Returns:
      Rows of formatted cells.
    """
    return [
        _who(card, cards) | {
            "average certified": "–" if (proven := card["average_certified"]) is None else f"{proven:.3f}",
            "average estimated": f"{card['average_margin']:.3f}",
            "average attacked": "infinite" if (value := card["average_attacked"]) is None else f"{value:.3f}",
            "estimate contradicted %": f"{100 * card['contradicted_fraction']:.1f}",
            "points": str(card["n_margin"]),
        }
        for card in cards
    ]  # fmt: skip


def flags(cards: list[Card]) -> list[dict[str, str]]:
    """What the flags of each card say, raised ones in capitals.

    Args:
      cards: result cards.

    Returns:
      Rows of formatted cells, one for each card and flag.
    """
    return [
        _who(card, cards) | {
            "sign": flag["name"],
            "raised": "YES" if flag["raised"] else "no",
            "value": "infinite" if flag["value"] is None else f"{flag['value']:.3g}",
            "threshold": f"{flag['threshold']:g}", "value is": flag["meaning"],
            "remedy": flag["remedy"] if flag["raised"] else "",
        }
        for card in cards
        for flag in card["flags"]
    ]  # fmt: skip


def numbers(cards: list[Card]) -> list[dict[str, Any]]:
    """The cards as flat rows of plain numbers, for pandas.

    Args:
      cards: result cards.

    Returns:
      One row a card.
    """
    rows = []
    for card in cards:
        flat = {name: value for name, value in card.items() if not isinstance(value, dict | list) and name != "paper"}
        for name in sorted({"robust_accuracy", "worst_case_accuracy"} & card.keys()):  # an MMA study has the first
            values = zip(card["epsilons"], card[name], strict=True)
            flat |= {f"{name}_{epsilon:g}": value for epsilon, value in values}
        for name, value in (card["paper"] or {}).items():
            if not isinstance(value, list):
                flat[f"paper_{name}"] = value
        flat["seconds"] = round(sum(card["seconds"].values()), 3)
        rows.append(flat)
    return rows


def costs(cards: list[Card]) -> list[dict[str, Any]]:
    """Settings of the cells and the seconds of their stages.

    Args:
      cards: result cards.

    Returns:
      One row a card.
    """
    keys = [*("epochs", "learning_rate", "batch_size", "beta", "tau", "num_samples", "n_attack")]
    keys += ["attack_steps", "worst_case_steps", "nearest_steps"]
    return [
        _who(card, cards)
        | {key: card[key] for key in keys}
        | {f"{name} s": f"{value:.1f}" for name, value in card["seconds"].items()}
        for card in cards
    ]


def curve(records: list[dict[str, Any]], split: str) -> tuple[list[int], list[float], list[float]]:
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


def beside(values: list[float], paper: float | None = None, digits: int = 2) -> str:
    """A number as the tables show it: the mean, its deviation over seeds, and the paper's number in brackets.

    Args:
      values: one a seed.
      paper: what was published, None for nothing.
      digits: of our number.

    Returns:
      The cell.

    >>> beside([1.0, 2.0], 1.4)
    '1.50 ± 0.71 (1.40)'
    """
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}" + ("" if paper is None else f" ({paper:.2f})")


def _row(cards: list[Card]) -> dict[str, str]:
    card, paper = cards[0], cards[0]["paper"] or {}
    # Robust accuracies are comparable only at the published budgets.
    comparable = paper.get("epsilons") == card["epsilons"]

    def percent(name: str, i: int) -> list[float]:
        return [100 * one[name][i] for one in cards]

    row = {"model": card["model"], "method": card["method"]}
    clean = [100 * one["clean_accuracy"] for one in cards]
    row["clean %"] = beside(clean, 100 * paper["clean_accuracy"] if paper else None)
    for i, epsilon in enumerate(card["epsilons"]):
        there = 100 * paper["robust_accuracy"][i] if comparable else None
        row[f"published {epsilon:g} %"] = beside(percent("robust_accuracy", i), there)
    for i, epsilon in enumerate(card["epsilons"]):
        row[f"worst {epsilon:g} %"] = beside(percent("worst_case_accuracy", i))
    if all(one.get("logit_margin_quartiles") for one in cards):  # older cards have none
        row["logit margin"] = beside([one["logit_margin_quartiles"][1] for one in cards], digits=1)
    row["average margin"] = beside([one["average_margin"] for one in cards], paper.get("average_margin"))
    row["signed"] = beside([one["average_margin_signed"] for one in cards])
    row["minimum"] = beside([one["minimum_margin"] for one in cards], digits=3)
    row["samples"] = f"{card['num_samples']:,}" if card["num_samples"] else "exact"
    return row


def _who(card: Card, cards: list[Card]) -> dict[str, str]:
    """What names a row: model and method, and the seed where there are several."""
    several = len({one["seed"] for one in cards}) > 1
    return {"model": card["model"], "method": card["method"]} | ({"seed": str(card["seed"])} if several else {})
