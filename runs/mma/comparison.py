"""A finished workdir as a section of Markdown: what was measured, beside what the paper says."""

from pathlib import Path
from typing import Any

from jaxmargin.lab import cards, publishing
from jaxmargin.lab.report.page import markdown_table
from jaxmargin.lab.tables import brackets
from runs.mma import presets
from runs.mma.cell import Cell
from runs.mma.publish import publish
from runs.mma.stages import MmaCard
from runs.mma.tables import costs, gains

__all__ = ["NOTE", "section", "settings", "summary"]

NOTE = """Both papers on one network: the paper is Ding et al. (2020), unless Wu and Yu are named."""

# What the paper says of each figure, in our words.
_CLAIMS = {
    "robust": "The paper, Tables 1 and 2: MMA is robust over a range of epsilons, PGD about its own.",
    "spread": "The paper, Figure 4: distances pile up near a fixed epsilon, and spread to the right under MMA.",
    "line": "The paper, Figure 2: lowering the loss at the boundary raises the margin, elsewhere it may lower it.",
    "landscape": "The paper, Figure 3: the loss around a point.",
}


def summary(folder: Path) -> dict[str, str]:
    """What a folder holds: a row of the table of contents."""
    found: list[MmaCard] = [cards.read(path) for path in sorted(folder.glob("cards/*.json"))]
    return publishing.contents("both papers on one network", found, each=f"{found[0]['steps']:,} steps")


def settings(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """What must agree for results to lie in one folder: all of the study but method and seed."""
    free = ("method", "seed")
    return publishing.agreeing(folder.glob("cards/*.json"), Cell, lambda path, card: "the study", free)


def section(folder: Path) -> list[str]:
    """What was measured, in paragraphs, with the paper's claims at the figures; draws the figures."""
    published = publish(folder)
    found = published.cards
    farther = gains(found, [cell.arrays for cell in published.cells])
    parts = [
        _conditions(found),
        published.table, *(["### Image by image", markdown_table(farther)] if farther else []),
        "### Both papers: certified, estimated, attacked", markdown_table(brackets(found)),
    ]  # fmt: skip
    for name, pictures in published.figures.items():
        parts += [_CLAIMS[name], *(publishing.image(folder, *picture) for picture in pictures)]
    return [*parts, "### Seconds", markdown_table(costs(found))]


def _conditions(found: list[MmaCard]) -> str:
    """How much of the paper's study was done, and where."""
    first = found[0]
    whole = presets.cell(first["dataset"], first["norm"], "std")
    (_, rate), *_ = first["learning_rates"]
    (_, preset_rate), *_ = whole.learning_rates
    return (
        f"{first['dataset']}, {first['norm']}, {first['model']} (preset {whole.model}), {first['steps']:,} of"
        f" {whole.steps:,} steps, first rate {rate:g} (preset {preset_rate:g}), inner attacks of"
        f" {first['attack_steps']} of {whole.attack_steps} steps, {first['n_attack']:,} of {first['n_test']:,} test"
        f" images under attack. {cards.conditions(found)}"
    )
