"""Result cards as the rows of tables, those that studies have in common: formatted for reading, or plain numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from jaxmargin.lab.cards import Card

__all__ = ["beside", "brackets", "costs", "flags", "numbers", "seeds_share", "who"]

AnyCard = TypeVar("AnyCard", bound=Card)
Row = dict[str, str]


def seeds_share(cards: Sequence[AnyCard], row: Callable[[list[AnyCard]], Row]) -> list[Row]:
    """One row for the cards of a model and method, which differ by the seed.

    Args:
      cards: result cards.
      row: makes the row of such cards.

    Returns:
      The rows, with the number of seeds where any has several.
    """
    groups: dict[tuple[str, str], list[AnyCard]] = {}
    for card in cards:
        groups.setdefault((card["model"], card["method"]), []).append(card)
    several = any(len(group) > 1 for group in groups.values())
    return [row(group) | ({"seeds": str(len(group))} if several else {}) for group in groups.values()]


def beside(values: Sequence[float], paper: float | None = None, digits: int = 2) -> str:
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


def who(card: Card, cards: Sequence[Card]) -> Row:
    """What names the row of a card.

    Args:
      card: the card.
      cards: all of the table.

    Returns:
      Model and method, and the seed where there are several.
    """
    several = len({one["seed"] for one in cards}) > 1
    return {"model": card["model"], "method": card["method"]} | ({"seed": str(card["seed"])} if several else {})


def brackets(cards: Sequence[Card]) -> list[Row]:
    """Average distances of the same points from three sides, one row a card.

    Args:
      cards: result cards.

    Returns:
      Rows of formatted cells.
    """
    return [
        who(card, cards) | {
            "average certified": "–" if (proven := card["average_certified"]) is None else f"{proven:.3f}",
            "average estimated": f"{card['average_distance']:.3f}",
            "average attacked": "infinite" if (value := card["average_attacked"]) is None else f"{value:.3f}",
            "estimate contradicted %": f"{100 * card['contradicted_fraction']:.1f}",
            "points": str(card["n_margin"]),
        }
        for card in cards
    ]  # fmt: skip


def flags(cards: Sequence[Card]) -> list[Row]:
    """What the flags of each card say, raised ones in capitals.

    Args:
      cards: result cards with flags.

    Returns:
      Rows of formatted cells, one for each card and flag.
    """
    return [
        who(card, cards) | {
            "sign": flag["name"],
            "raised": "YES" if flag["raised"] else "no",
            "value": "infinite" if flag["value"] is None else f"{flag['value']:.3g}",
            "threshold": f"{flag['threshold']:g}",
            "points": "" if flag.get("n") is None else f"{flag['n']:,}", "value is": flag["meaning"],
            "remedy": flag["remedy"] if flag["raised"] else "",
        }
        for card in cards
        for flag in cast(dict[str, Any], card)["flags"]
    ]  # fmt: skip


def costs(cards: Sequence[Card], settings: Sequence[str]) -> list[dict[str, Any]]:
    """Settings of the cells and the seconds of their stages.

    Args:
      cards: result cards.
      settings: names of what is shown of each card.

    Returns:
      One row a card.
    """
    return [
        who(card, cards)
        | {name: cast(dict[str, Any], card)[name] for name in settings}
        | {f"{name} s": f"{stage['seconds']:.1f}" for name, stage in card["stages"].items()}
        for card in cards
    ]


def numbers(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """The cards as flat rows of plain numbers, for pandas.

    Args:
      cards: result cards.

    Returns:
      One row a card.
    """
    rows = []
    for card in cards:
        whole = cast(Mapping[str, Any], card)
        flat = {name: value for name, value in whole.items() if not isinstance(value, dict | list) and name != "paper"}
        for name in sorted({"robust_accuracy_published", "robust_accuracy_worst"} & whole.keys()):
            values = zip(card["epsilons"], whole[name], strict=True)
            flat |= {f"{name}_{epsilon:g}": value for epsilon, value in values}
        for name, value in (card["paper"] or {}).items():
            if not isinstance(value, list):
                flat[f"paper_{name}"] = value
        flat["seconds"] = round(sum(stage["seconds"] for stage in card["stages"].values()), 3)
        rows.append(flat)
    return rows
