"""The finished cells of an MMA study as tables, figures and one report, in the layout of Ding et al. (2020)."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxmargin.lab.cards import devices, said, versions
from jaxmargin.lab.figures import plots
from jaxmargin.lab.publishing import Finished, Picture, Published, read_finished, write
from jaxmargin.lab.report.page import Section
from jaxmargin.lab.tables import brackets
from runs.mma import figures, tables, toy_classifier
from runs.mma.cell import kind_of
from runs.mma.stages import MmaCard

__all__ = ["publish"]

_INTRODUCTION = """How far is each test image from the nearest input that is classified otherwise, and which training \
moves that distance most? Adversarial training (pgd) and TRADES fix the size of the perturbations they train on. \
Max-margin adversarial training (mma, Ding et al. 2020) looks for each example's own distance to the boundary and \
raises it, up to d_max. Lipschitz (lcr) and average margin regularisation (amr, Wu and Yu 2019) train on clean images. \
Here all of them train one network, and all are measured alike."""

_TABLE = """Accuracy in percent: clean on all test images, and at each epsilon in the worst case over minimum-norm \
attacks and auto-PGD with three losses that cannot saturate, two starts each. AvgRobAcc is the mean over the epsilons, \
AvgAcc includes the clean one. Nearest is the mean over the attacked images of the nearest misclassified input that \
minimum-norm attacks find in the box, 0 where the image itself is wrong, over those where one was found, with its \
quartiles; numbers in brackets are the paper's, on its network after its full training, at the moment that was best on \
the validation images, its accuracies under attack from ten starts of PGD."""

_GAINS = """How much farther the largest mma puts the attacked images from the boundary than each other training \
does, on the same images: a gain within two standard errors, or within the deviation over seeds, tells nothing."""

_BOTH = """Both papers' questions to every method, on the same test points of one network: nothing changes the \
prediction nearer than the certified distance, something was found at the attacked one, and the sampled estimate of \
Wu and Yu lies between the two or is contradicted. None of the three knows the box."""

_SPREAD = """Distances of the attacked test images at moments of the training (Figure 4 of the paper). The paper \
finds that a fixed epsilon piles the distances up near itself, and that with each example's own they spread to the \
right."""

_LINE = """Why the loss has to be lowered at the boundary (Figure 2 of the paper), measured on a network of twelve \
units on a line: a step of a fixed length, on the loss at one place or another, and what it does to the margin of the \
point."""

_PLANE = """The soft margin loss around a test image (Figure 3 of the paper): along the direction of its \
nearest adversarial example, and along a random one. The soft margin loss is 0 before the decision boundary, all the \
more so where several classes are near."""

_ABOUT = {
    "robust": ("Robust accuracy", "The table as curves."),
    "spread": ("Margins spread", _SPREAD),
    "line": ("Lower the loss where?", _LINE),
    "landscape": ("Loss landscapes", _PLANE),
}


def publish(workdir: Path) -> Published[MmaCard]:
    """Writes table.md, table.csv, metrics.jsonl, figures and report.html from the finished cells of a workdir.

    Args:
      workdir: with cards/ as ``run_cell`` leaves them.

    Returns:
      Published, its figures by kind ("robust", "spread", "line", "landscape").

    Raises:
      FileNotFoundError: no card is there.
    """
    cells = read_finished(workdir, tables.place)
    cards = [cell.card for cell in cells]
    figures = _figures(cells, workdir / "figures")
    return write(
        workdir, cells, table=tables.table(cards), figures=figures, introduction=_INTRODUCTION,
        title=f"Margins under every training on {cards[0]['dataset']}, {cards[0]['norm']}",
        sections=_sections(cells, figures),
    )  # fmt: skip


def _figures(cells: list[Finished[MmaCard]], folder: Path) -> dict[str, list[Picture]]:
    """Draws every figure, of the first seed."""
    name = f"{cells[0].card['dataset']}, {cells[0].card['norm']}"
    first: dict[str, Finished[MmaCard]] = {}
    for cell in cells:
        first.setdefault(cell.card["method"], cell)
    robust = {
        method: ([0.0, *cell.card["epsilons"]], [cell.card["clean_accuracy"], *cell.card["robust_accuracy_worst"]])
        for method, cell in first.items()
    }
    line = toy_classifier.measure(toy_classifier.loss, toy_classifier.classifier())
    drawn = {
        "robust": (plots.robust_accuracy_curves(robust, title=name), "Accuracy in the worst case; 0 is clean."),
        "spread": (_spread(_shown(first), name), "Distances of the test images while training."),
        "line": (figures.toy_classifier(line, title="Where to lower the loss"), "A point on a line and its margin."),
    }
    if planes := {method: cell for method, cell in _shown(first).items() if "plane_margin" in cell.arrays}:
        drawn["landscape"] = (_landscapes(planes, name), "The loss around the first test image that each gets right.")
    return {kind: [(plots.save(figure, folder / f"{kind}.png"), text)] for kind, (figure, text) in drawn.items()}


def _sections(cells: list[Finished[MmaCard]], figures: dict[str, list[Picture]]) -> list[Section]:
    cards = [cell.card for cell in cells]
    gains = tables.gains(cards, [cell.arrays for cell in cells])
    return [
        Section("Table", _TABLE, tables.table(cards)),
        *([Section("Image by image", _GAINS, gains)] if gains else []),
        Section("Both papers on one network", _BOTH, brackets(cards)),
        *(Section(*_ABOUT[kind], None, tuple(pictures)) for kind, pictures in figures.items()),
        Section("How these numbers were made", _settings(cards), tables.costs(cards)),
    ]


def _shown(cells: dict[str, Finished[MmaCard]]) -> dict[str, Finished[MmaCard]]:
    """Standard training, and the largest pgd and mma: the figures compare these."""
    largest = {kind_of(method)[0]: method for method in cells}
    return {largest[kind]: cells[largest[kind]] for kind in ("std", "pgd", "mma") if kind in largest} or cells


def _spread(cells: dict[str, Finished[MmaCard]], title: str) -> Any:
    distances: dict[str, dict[str, np.ndarray]] = {}
    for method, cell in cells.items():
        for share, values in zip(cell.arrays["moments"], cell.arrays["nearest"], strict=True):
            distances.setdefault(f"{share:.0%} of training", {})[method] = values
    sizes = {method: kind_of(method)[1] for method in cells}
    epsilons = {method: size for method, size in sizes.items() if np.isfinite(size)}
    return figures.margin_spread(distances, title=title, epsilons=epsilons)


def _landscapes(cells: dict[str, Finished[MmaCard]], title: str) -> Any:
    names = ("plane_ends", "plane_ends", "plane_loss", "plane_margin")
    grids: Any = {method: tuple(cell.arrays[name] for name in names) for method, cell in cells.items()}
    return figures.landscapes(grids, title=title)


def _settings(cards: list[MmaCard]) -> str:
    card = cards[0]
    rates = ", ".join(f"{rate:g} from step {first:,}" for first, rate in card["learning_rates"])
    return (
        f"{card['model']}, {card['n_train']:,} training and {card['n_test']:,} test images, batches of"
        f" {card['batch_size']}, {card['optimizer']} at rate {rates}; inner attacks of {card['attack_steps']} steps."
        f" {devices(cards)}. {said(versions(cards))}."
    )
