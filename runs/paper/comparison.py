"""A finished workdir as a section of Markdown: what was measured, beside what the paper says, and why they differ."""

import math
from pathlib import Path
from typing import Any, cast

from jaxmargin.lab import cards, publishing, tables
from jaxmargin.lab.report.page import markdown_table
from jaxmargin.lab.tables import Row
from runs.paper import presets
from runs.paper.cell import Cell
from runs.paper.publish import publish
from runs.paper.stages import PaperCard
from runs.paper.tables import costs, trade_off

__all__ = ["NOTE", "deviations", "section", "settings", "summary"]

# How far a number may lie from the paper's: percentage points of accuracy, and a share of the average distance.
CLEAN = {"mnist": 1.0, "cifar10": 2.5}
ROBUST, DISTANCE = 4.0, 0.1

# What decides how complete a cell is, and what to call it.
_SIZES = {"epochs": "epochs", "num_samples": "samples a point", "points": "points", "attack_steps": "attack steps"}

# Sizes that may explain a difference in a number, by its first word.
_WHY = {
    "clean": ("epochs",),
    "published": ("epochs", "attack_steps"),
    "average": ("epochs", "points", "num_samples"),
}

# What the paper says of each figure, in our words.
_CLAIMS = {
    "margins": "The paper, Figures 2a to 2c (CIFAR-10) and 6 (MNIST): the minimum margin rises and the average one"
    " falls; only on the MNIST CNN the average does not fall.",
    "average": "The paper, Figures 2d to 2f (CIFAR-10): with AMR the average margin ends above that of standard"
    " training.",
    "robust": "The paper, Table 1 (MLP and CNN): AMR is the most robust of the three, most of all at large epsilons."
    " The worst case, dashed, is not in the paper.",
    "training": "The paper, Figure 4: loss and errors fall as usual; nothing in them tells of the margins.",
    "brackets": "Not in the paper: what is proven and what was found, around the estimate.",
    "points": "The paper, Figures 5 and 7: the mass of the margins moves towards the boundary while the left tail gets"
    " shorter.",
}

NOTE = f"""Table 1: the paper is Wu and Yu (2019). A column such as "published 0.5 %" is the accuracy in percent under
the published attack of radius 0.5. Allowed are differences from the paper of {CLEAN["mnist"]:g} point of clean
accuracy on MNIST and of {CLEAN["cifar10"]:g} on CIFAR-10, of {ROBUST:g} points of accuracy under attack, and of
{100 * DISTANCE:g} % of the average distance, the paper's average margin, which has no sign."""


def summary(folder: Path) -> dict[str, str]:
    """What a folder holds, and how much of it is within what is allowed: a row of the table of contents."""
    found: list[PaperCard] = [cards.read(path) for path in sorted(folder.glob("**/cards/*.json"))]
    question = not any(folder.glob("cards/*.json"))
    compared = [] if question else deviations(found)
    near = sum(row["within"].endswith("yes") for row in compared)
    what = "a setting that the paper leaves open" if question else "Table 1, Figures 2 and 4 to 7"
    each = " or ".join(f"{n:,} epochs" for n in sorted({card["epochs"] for card in found}))
    row = publishing.contents(what, found, each=each, within=f"{near} of {len(compared)}" if compared else "")
    return row | ({"data": cards.read(folder / "result.json")["dataset"]} if question else {})


def settings(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """What must agree for results to lie in one folder: all of a cell, but the seed of one of the table."""
    free = ("seed",) if any(folder.glob("cards/*.json")) else ()

    def name(path: Path, card: PaperCard) -> str:
        place = path.parent.parent.relative_to(folder).as_posix()
        return f"{place}: {card['model']}-{card['method']}"

    return publishing.agreeing(folder.glob("**/cards/*.json"), Cell, name, free)


def section(folder: Path) -> list[str]:
    """What was measured beside the paper's numbers, in paragraphs; draws the figures of a table's cells."""
    if not any(folder.glob("cards/*.json")):
        return _question(folder)
    published = publish(folder)
    found = published.cards
    parts = [_conditions(found), published.table]
    if compared := deviations(found):
        parts += ["### Beside the paper, with what may explain a difference", markdown_table(compared)]
    moved = trade_off(found, [cell.records for cell in published.cells])
    parts += ["### Trade-off, from the epoch of the largest average", markdown_table(moved)]
    parts += ["### Certified, estimated, attacked", markdown_table(tables.brackets(found))]
    for name, figures in published.figures.items():
        parts += [f"### {name.capitalize()}", "" if found[0]["dataset"] == "digits" else _CLAIMS[name]]
        parts += [publishing.image(folder, *picture) for picture in figures]
    return [*parts, "### Sizes and seconds", markdown_table(costs(found))]


def _question(folder: Path) -> list[str]:
    found: dict[str, PaperCard] = {
        path.parent.parent.name: cards.read(path) for path in sorted(folder.glob("*/cards/*.json"))
    }
    ranking = (folder / "ranking.md").read_text()
    if not found:  # all diverged
        return [ranking]
    rows = [{"variant": name} | row for name, row in zip(found, costs(list(found.values())), strict=True)]
    return [_conditions(list(found.values())), ranking, markdown_table(rows)]


def _conditions(found: list[PaperCard]) -> str:
    """Where the cards were measured and on how much data."""
    first = found[0]
    return (
        f"{first['dataset']}, preset {first['preset']}, {first['n_train']:,} training and {first['n_test']:,} test"
        f" images. {cards.conditions(found)}"
    )


def deviations(cards: list[PaperCard]) -> list[Row]:
    """One row for each number that the paper has too.

    Args:
      cards: result cards.

    Returns:
      Rows of formatted cells: the number here and there, whether it is within what is allowed, and if not, in what the
      run was smaller than the paper's, or "open".
    """
    rows = []
    for card in cards:
        if not (paper := card["paper"]):
            continue
        compared = [("clean %", 100 * card["clean_accuracy"], 100 * paper["clean_accuracy"], CLEAN[card["dataset"]])]
        if paper["epsilons"] == card["epsilons"]:
            robust = (one["robust_accuracy_published"] for one in (card, paper))
            pairs = zip(card["epsilons"], *robust, strict=True)
            compared += [(f"published {epsilon:g} %", 100 * a, 100 * b, ROBUST) for epsilon, a, b in pairs]
        there = paper["average_distance"]
        compared.append(("average distance", card["average_distance"], there, DISTANCE * there))
        for name, here, there, allowed in compared:
            near = abs(here - there) <= allowed
            rows.append({
                "model": card["model"], "method": card["method"], "seed": str(card["seed"]), "number": name,
                "here": f"{here:.2f}", "paper": f"{there:.2f}", "difference": f"{here - there:+.2f}",
                "within": f"{allowed:.2g}: {'yes' if near else 'NO'}",
                "why": "" if near else _cut(card, name.split()[0], here, there, allowed) or "open",
            })  # fmt: skip
    return rows


def _cut(card: PaperCard, number: str, here: float, there: float, allowed: float) -> str:
    """In what a card is smaller than the preset that may explain a difference; empty where there is nothing."""
    whole: Any = presets.cell(card["dataset"], card["model"], card["method"], preset=card["preset"])
    sizes = {name: (cast(dict[str, Any], card)[name], getattr(whole, name)) for name in _WHY[number]}
    smaller = [
        f"{size:,} of {full:,} {_SIZES[name]}"
        for name, (size, full) in sizes.items()
        if size < full and (name != "num_samples" or here > there)  # more of them lower it
    ]
    images = {"published": card["n_attack"], "clean": card["n_test"]}.get(number, 10_000)
    error = math.sqrt(there * (100 - there) / images * (1 - images / 10_000))
    if abs(here - there) - allowed <= 2 * error:
        smaller.append(f"{images:,} of 10,000 images (standard error {error:.1f})")
    return f"cut to {', '.join(smaller)}" if smaller else ""
