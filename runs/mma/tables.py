"""The result cards of an MMA study as the rows of tables, and one training against another, image by image."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from jaxmargin.lab import tables
from jaxmargin.lab.files import Arrays
from jaxmargin.lab.tables import Row, beside, seeds_share
from runs.mma.cell import ENSEMBLE, kind_of
from runs.mma.stages import MmaCard

__all__ = ["costs", "gains", "place", "table"]

_KINDS = ("std", "lcr", "amr", "pgd", ENSEMBLE, "trades", "mma")


def place(card: MmaCard) -> tuple[int, float, int]:
    """Where a card stands in the tables: by kind of method, size and seed.

    Args:
      card: a result card.

    Returns:
      What to sort by.
    """
    kind, size = kind_of(card["method"])
    return _KINDS.index(kind), size, card["seed"]


def table(cards: Sequence[MmaCard]) -> list[Row]:
    """One row a method, accuracies in percent, the paper's numbers in brackets.

    Args:
      cards: result cards; those of one method, which differ by the seed, share a row, of means and sample standard
        deviations.

    Returns:
      Rows of formatted cells.
    """
    return seeds_share(cards, _row)


def gains(cards: Sequence[MmaCard], arrays: Sequence[Arrays]) -> list[Row]:
    """How much farther the largest mma puts the same images from the boundary than each other training does.

    Args:
      cards: result cards that attack the same images.
      arrays: what is kept point by point, of each.

    Returns:
      One row a method, of formatted cells: the mean over images of the difference of distances, itself a mean over the
      seeds that both methods have; its standard error over images; the share of images that are farther; and, for
      several seeds, the sample standard deviation of each seed's mean. Images whose distance was not found are left
      out. No row where there is no mma, no other or fewer than two images.
    """
    distances: dict[str, dict[int, np.ndarray]] = {}
    for card, kept in zip(cards, arrays, strict=True):
        distances.setdefault(card["method"], {})[card["seed"]] = kept["nearest"][-1]
    largest = max((name for name in distances if kind_of(name)[0] == "mma"), key=kind_of, default=None)
    if largest is None:
        return []
    best = distances.pop(largest)
    rows = []
    for method, others in distances.items():
        pairs = [(best[seed], others[seed]) for seed in sorted(best.keys() & others.keys())]
        found = np.isfinite(pairs).all((0, 1)) if pairs else np.zeros(0, bool)
        if np.count_nonzero(found) > 1:
            differences = np.stack([here[found] - there[found] for here, there in pairs])
            rows.append({"against": method} | _gain(largest, differences, several=len(best) > 1))
    return rows


def _gain(largest: str, differences: np.ndarray, several: bool) -> Row:
    """What ``gains`` says of differences [s, n] of s seeds and n images."""
    images, means = differences.mean(0), differences.mean(1)
    row = {
        f"gain of {largest}": f"{images.mean():+.3f}",
        "standard error": f"{np.std(images, ddof=1) / math.sqrt(len(images)):.3f}",
        "farther %": f"{100 * np.mean(images > 0):.1f}",
        "images": f"{len(images):,}",
    }
    deviation = f"{np.std(means, ddof=1):.3f}" if len(means) > 1 else "–"
    return row | ({"seeds": str(len(means)), "deviation over seeds": deviation} if several else {})


def costs(cards: Sequence[MmaCard]) -> list[dict[str, Any]]:
    """Sizes of the cells and the seconds of their stages, one row a card; all of them are of one network."""
    sizes = ["steps", "n_attack", "worst_case_steps", "nearest_steps", "n_margin", "num_samples"]
    rows = tables.costs(cards, sizes)
    return [{name: value for name, value in row.items() if name != "model"} for row in rows]


def _row(cards: list[MmaCard]) -> Row:
    card, paper = cards[0], cards[0]["paper"] or {}
    published = paper.get("robust_accuracy_published") or [None] * len(card["epsilons"])

    def percent(values: list[float], there: float | None = None) -> str:
        return beside([100 * value for value in values], None if there is None else 100 * there)

    row = {"method": card["method"], "clean %": percent(_all(cards, "clean_accuracy"), paper.get("clean_accuracy"))}
    for i, epsilon in enumerate(card["epsilons"]):
        row[f"{epsilon:g} %"] = percent([one["robust_accuracy_worst"][i] for one in cards], published[i])
    row["AvgAcc"] = percent(_all(cards, "average_accuracy"))
    row["AvgRobAcc"] = percent(_all(cards, "average_robust_accuracy_worst"))
    found = [value for value in _all(cards, "average_nearest") if value is not None]
    there = paper.get("average_nearest")
    row["nearest"] = beside(found, there, digits=3) if found else "–" + ("" if there is None else f" ({there:.2f})")
    row["not found"] = str(sum(_all(cards, "not_found")))
    quartiles = zip(*_all(cards, "nearest_quartiles"), strict=True)
    row["quartiles"] = ", ".join("infinite" if None in one else f"{np.mean(one):.3f}" for one in quartiles)
    return row


def _all(cards: list[MmaCard], name: str) -> list[Any]:
    return [cast(dict[str, Any], card)[name] for card in cards]
