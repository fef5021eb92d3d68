"""A finished workdir as a section of Markdown: what was measured, with the paper's claims at the figures."""

from pathlib import Path
from typing import Any

from jaxmargin.lab import cards
from jaxmargin.lab.publishing import image
from jaxmargin.lab.report.page import markdown_table

__all__ = ["NOTE", "section", "settings", "summary"]

NOTE = """Figures 1 and 3: the paper is Wu and Yu (2019), section 3."""

# What the paper says of each figure, in our words.
_CLAIMS = {
    "figure1": "The paper, Figures 1a and 1b: the minimum margin rises to the SVM's while the average margin falls.",
    "figure1c": "The paper, Figure 1c: the histogram of the margins moves left, towards the boundary, to the SVM's.",
    "figure3": "The paper, Figure 3: loss and errors fall all the while.",
    "pareto": "Not in the paper: the exact front of minimum against average margin.",
    "direction": "Not in the paper: how far the weights' direction is from that of either SVM.",
}


def summary(folder: Path) -> dict[str, str]:
    """What a folder holds: a row of the table of contents."""
    card = cards.read(folder / "result.json")
    return {
        "what": "Figures 1 and 3",
        "data": card["dataset"],
        "networks": "",
        "trainings": str(len(card["methods"])),
        "each of": "",
        "numbers within what is allowed": "",
        "hours": f"{card['seconds'] / 3600:.1f}",
    }


def settings(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """What must agree for results to lie in one folder: classes and epochs; steps follow from the images."""
    if not (folder / "result.json").exists():
        return {}
    card = cards.read(folder / "result.json")
    epochs = {name: method["epochs"] for name, method in card["methods"].items()}
    return {"the case study": {"dataset": [card["dataset"]], "classes": [card["classes"]], "epochs": [epochs]}}


def section(folder: Path) -> list[str]:
    """What was measured, in paragraphs."""
    card = cards.read(folder / "result.json")
    parts = [
        f"{card['dataset']}, {card['classes'][0]} against {card['classes'][1]}: {card['n_train']:,} training and"
        f" {card['n_test']:,} test images. {cards.devices([card])}; {cards.said([card['versions']])};"
        f" {card['seconds']:.0f} seconds.",
        markdown_table(card["rows"]), "### Claims", markdown_table(card["claims"]),
    ]  # fmt: skip
    for name, said in _CLAIMS.items():
        parts += [said, image(folder, folder / f"{name}.png", name)]
    return parts
