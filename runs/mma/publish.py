"""The finished cells of an MMA study as tables, figures and one report, in the layout of Ding et al. (2020)."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmargin.lab import files
from jaxmargin.lab.figures import plots
from jaxmargin.lab.report.page import Section, csv_table, markdown_table, write_report
from jaxmargin.lab.stages import Arrays, read_arrays
from jaxmargin.lab.tables import Card, brackets, numbers
from runs.mma import figures, tables, toy_classifier
from runs.mma.cell import kind_of

__all__ = ["Study", "publish_study"]

_INTRODUCTION = """How far is each test image from the nearest input that is classified otherwise, and which training \
moves that distance most? Adversarial training (pgd) and TRADES fix the size of the perturbations they train on. \
Max-margin adversarial training (mma, Ding et al. 2020) looks for each example's own distance to the boundary and \
raises it, up to d_max. Lipschitz (lcr) and average margin regularisation (amr, Wu and Yu 2019) train on clean images. \
Here all of them train one network, and all are measured alike."""

_TABLE = """Accuracy in percent: clean on all test images, and at each epsilon in the worst case over minimum-norm \
attacks and auto-PGD with three losses that cannot saturate, two starts each. AvgRobAcc is the mean over the epsilons, \
AvgAcc includes the clean one. Distance is the mean over the attacked images of the nearest misclassified input that \
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


class Study(NamedTuple):
    """What ``publish_study`` wrote.

    Attributes:
      table: the table as Markdown.
      report: the path of report.html.
      figures: by kind ("robust", "spread", "line", "landscape"), the path and caption of each.
      cards: the result cards, in the table's order.
      gains: rows of the largest mma against each other method, see ``tables.gains``.
    """

    table: str
    report: Path
    figures: dict[str, tuple[Path, str]]
    cards: list[Card]
    gains: list[dict[str, str]]


class _Cell(NamedTuple):
    card: Card
    arrays: Arrays


def publish_study(workdir: Path) -> Study:
    """Writes table.md, table.csv, figures and report.html from the finished cells of a workdir.

    Args:
      workdir: with cards/ as ``run_robust_cell`` leaves them.

    Returns:
      Study.

    Raises:
      FileNotFoundError: no card is there.
    """
    paths = list((workdir / "cards").glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"{workdir}/cards holds no finished cell: run one first")
    cells = [_Cell(files.read_json(path), read_arrays(path.with_suffix(".npz"))) for path in paths]
    cells.sort(key=lambda cell: tables.place(cell.card))
    cards = [cell.card for cell in cells]
    shown = markdown_table(tables.table(cards))
    files.write_bytes(workdir / "table.md", (shown + "\n").encode())
    files.write_bytes(workdir / "table.csv", csv_table(numbers(cards)).encode())
    title = f"Margins under every training on {cards[0]['dataset']}, {cards[0]['norm']}"
    gains = tables.gains(cards, [cell.arrays for cell in cells])
    figures = _figures(cells, workdir / "figures")
    report = write_report(
        workdir / "report.html", title=title, introduction=_INTRODUCTION, sections=_sections(cards, gains, figures)
    )
    return Study(shown, report, figures, cards, gains)


def _figures(cells: list[_Cell], folder: Path) -> dict[str, tuple[Path, str]]:
    """Draws every figure, of the first seed; by kind, (path, caption)."""
    name = f"{cells[0].card['dataset']}, {cells[0].card['norm']}"
    first: dict[str, _Cell] = {}
    for cell in cells:
        first.setdefault(cell.card["method"], cell)
    robust = {
        method: ([0.0, *cell.card["epsilons"]], [cell.card["clean_accuracy"], *cell.card["robust_accuracy"]])
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
    return {kind: (plots.save(figure, folder / f"{kind}.png"), text) for kind, (figure, text) in drawn.items()}


def _sections(cards: list[Card], gains: list[dict[str, str]], figures: dict[str, tuple[Path, str]]) -> list[Section]:
    return [
        Section("Table", _TABLE, tables.table(cards)),
        *([Section("Image by image", _GAINS, gains)] if gains else []),
        Section("Both papers on one network", _BOTH, brackets(cards)),
        *(Section(*_ABOUT[kind], None, (figure,)) for kind, figure in figures.items()),
        Section("How these numbers were made", _settings(cards), tables.costs(cards)),
    ]


def _shown(cells: dict[str, _Cell]) -> dict[str, _Cell]:
    """Standard training, and the largest pgd and mma: the figures compare these."""
    largest = {kind_of(method)[0]: method for method in cells}
    return {largest[kind]: cells[largest[kind]] for kind in ("std", "pgd", "mma") if kind in largest} or cells


def _spread(cells: dict[str, _Cell], title: str) -> Any:
    distances: dict[str, dict[str, np.ndarray]] = {}
    for method, cell in cells.items():
        for share, values in zip(cell.arrays["moments"], cell.arrays["distance"], strict=True):
            distances.setdefault(f"{share:.0%} of training", {})[method] = values
    sizes = {method: kind_of(method)[1] for method in cells}
    epsilons = {method: size for method, size in sizes.items() if np.isfinite(size)}
    return figures.margin_spread(distances, title=title, epsilons=epsilons)


def _landscapes(cells: dict[str, _Cell], title: str) -> Any:
    names = ("plane_ends", "plane_ends", "plane_loss", "plane_margin")
    grids: Any = {method: tuple(cell.arrays[name] for name in names) for method, cell in cells.items()}
    return figures.landscapes(grids, title=title)


def _settings(cards: list[Card]) -> str:
    card = cards[0]
    devices = ", ".join(sorted({one["device"] for one in cards}))
    seen = sorted({f"{name} {version}" for one in cards for name, version in one["versions"].items()})
    versions = ", ".join(seen)
    rates = ", ".join(f"{rate:g} from step {first:,}" for first, rate in card["learning_rates"])
    return (
        f"{card['model']}, {card['n_train']:,} training and {card['n_test']:,} test images, batches of"
        f" {card['batch_size']}, {card['optimizer']} at rate {rates}; inner attacks of {card['attack_steps']} steps."
        f" {devices}. {versions}."
    )
