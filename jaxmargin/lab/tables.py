"""Result cards as the rows of tables: formatted for reading, or plain numbers."""

from typing import Any

import numpy as np

__all__ = ["brackets", "costs", "curve", "flags", "numbers", "table", "trade_off"]

Card = dict[str, Any]
SPLITS = ("train", "test")


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
            epochs, minimum, average = curve(lines, split)
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


def brackets(cards: list[Card]) -> list[dict[str, str]]:
    """Average distances from three sides, one row a card.

    Args:
      cards: result cards.

    Returns:
      Rows of formatted cells.
    """
    return [
        {
            "model": card["model"], "method": card["method"],
            "average certified": f"{card['average_certified']:.3f}",
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
        {
            "model": card["model"], "method": card["method"], "sign": flag["name"],
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
        for name in ("robust_accuracy", "worst_case_accuracy"):
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
    keys = [*("model", "method", "epochs", "learning_rate", "batch_size", "beta", "tau", "num_samples", "n_attack")]
    keys += ["attack_steps", "worst_case_steps", "nearest_steps"]
    return [
        {**{key: card[key] for key in keys}, **{f"{name} s": f"{value:.1f}" for name, value in card["seconds"].items()}}
        for card in cards
    ]


def curve(records: list[dict[str, Any]], split: str) -> tuple[list[int], list[float], list[float]]:
    """Epochs, minimum and average margins of the epochs that were measured.

    Args:
      records: the lines of metrics.jsonl of one cell.
      split: "train" or "test".

    Returns:
      Three lists of equal length.
    """
    lines = [line for line in records if f"{split}_average_margin" in line]
    epochs = [line["epoch"] for line in lines]
    minimum, average = ([line[f"{split}_{name}_margin"] for line in lines] for name in ("minimum", "average"))
    return epochs, minimum, average


def _row(card: Card) -> dict[str, str]:
    paper = card["paper"] or {}
    # Robust accuracies are comparable only at the published budgets.
    paper_robust = paper.get("robust_accuracy", []) if paper.get("epsilons") == card["epsilons"] else []
    row = {"model": card["model"], "method": card["method"]}
    row["clean %"] = _beside(100 * card["clean_accuracy"], 100 * paper["clean_accuracy"] if paper else None)
    for i, (epsilon, robust) in enumerate(zip(card["epsilons"], card["robust_accuracy"], strict=True)):
        row[f"published {epsilon:g} %"] = _beside(100 * robust, 100 * paper_robust[i] if paper_robust else None)
    for epsilon, robust in zip(card["epsilons"], card["worst_case_accuracy"], strict=True):
        row[f"worst {epsilon:g} %"] = f"{100 * robust:.2f}"
    if quartiles := card.get("logit_margin_quartiles"):  # older cards have none
        row["logit margin"] = f"{quartiles[1]:.1f}"
    row["average margin"] = _beside(card["average_margin"], paper.get("average_margin"))
    row["signed"] = f"{card['average_margin_signed']:.2f}"
    row["minimum"] = f"{card['minimum_margin']:.3f}"
    row["samples"] = f"{card['num_samples']:,}" if card["num_samples"] else "exact"
    return row


def _beside(value: float, paper: float | None) -> str:
    return f"{value:.2f}" + ("" if paper is None else f" ({paper:.2f})")
