"""The finished cells of an MMA study as tables, figures and one report, in the layout of Ding et al. (2020)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmargin.lab import mma_plots, one_dimension, plots, tracking
from jaxmargin.lab.evaluation import Arrays, read_arrays
from jaxmargin.lab.reports import Section, csv_table, markdown_table, write_report
from jaxmargin.lab.robust_cell import ENSEMBLE, kind_of
from jaxmargin.lab.tables import Card, brackets

__all__ = ["Study", "place", "publish_study", "study_costs", "study_table"]

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

_KINDS = ("std", "lcr", "amr", "pgd", ENSEMBLE, "trades", "mma")


class Study(NamedTuple):
    """What ``publish_study`` wrote.

    Attributes:
      table: the table as Markdown.
      report: the path of report.html.
      figures: by kind ("robust", "spread", "line", "landscape"), the path and caption of each.
      cards: the result cards, in the table's order.
    """

    table: str
    report: Path
    figures: dict[str, tuple[Path, str]]
    cards: list[Card]


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
    cells = [_Cell(tracking.read_json(path), read_arrays(path.with_suffix(".npz"))) for path in paths]
    cells.sort(key=lambda cell: place(cell.card))
    cards = [cell.card for cell in cells]
    shown = markdown_table(study_table(cards))
    tracking.write_bytes(workdir / "table.md", (shown + "\n").encode())
    tracking.write_bytes(workdir / "table.csv", csv_table(_numbers(cards)).encode())
    title = f"Margins under every training on {cards[0]['dataset']}, {cards[0]['norm']}"
    figures = _figures(cells, workdir / "figures")
    report = write_report(
        workdir / "report.html", title=title, introduction=_INTRODUCTION, sections=_sections(cards, figures)
    )
    return Study(shown, report, figures, cards)


def place(card: Card) -> tuple[int, float, int]:
    """Where a card stands in the tables: by kind of method, size and seed.

    Args:
      card: a result card.

    Returns:
      What to sort by.
    """
    kind, size = kind_of(card["method"])
    return _KINDS.index(kind), size, card["seed"]


def study_table(cards: list[Card]) -> list[dict[str, str]]:
    """One row a card.

    Args:
      cards: result cards.

    Returns:
      Rows of formatted cells.
    """
    several = len({card["seed"] for card in cards}) > 1
    return [_row(card) | ({"seed": str(card["seed"])} if several else {}) for card in cards]


def _row(card: Card) -> dict[str, str]:
    paper = card["paper"] or {}
    low, middle, high = ("infinite" if value is None else f"{value:.3f}" for value in card["distance_quartiles"])
    published = paper.get("robust_accuracy") or [None] * len(card["epsilons"])
    percent: Callable[[float], str] = lambda value: f"{100 * value:.2f}"  # noqa: E731
    found = "–" if card["average_distance"] is None else f"{card['average_distance']:.3f}"
    return {
        "method": card["method"],
        "clean %": percent(card["clean_accuracy"]) + _beside(paper.get("clean_accuracy"), 100),
        **{
            f"{epsilon:g} %": percent(value) + _beside(there, 100)
            for epsilon, value, there in zip(card["epsilons"], card["robust_accuracy"], published, strict=True)
        },
        "AvgAcc": percent(card["average_accuracy"]),
        "AvgRobAcc": percent(card["average_robust_accuracy"]),
        "distance": found + _beside(paper.get("average_distance"), 1),
        "not found": str(card["not_found"]),
        "quartiles": f"{low}, {middle}, {high}",
    }


def _beside(paper: float | None, scale: float) -> str:
    return "" if paper is None else f" ({scale * paper:.4g})"


def _numbers(cards: list[Card]) -> list[dict[str, Any]]:
    """The cards as flat rows of plain numbers, for pandas."""
    rows = []
    for card in cards:
        flat = {name: value for name, value in card.items() if not isinstance(value, dict | list) and name != "paper"}
        robust = zip(card["epsilons"], card["robust_accuracy"], strict=True)
        flat |= {f"robust_accuracy_{epsilon:g}": value for epsilon, value in robust}
        flat["seconds"] = round(sum(card["seconds"].values()), 3)
        rows.append(flat)
    return rows


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
    line = one_dimension.measure(one_dimension.loss, one_dimension.classifier())
    drawn = {
        "robust": (plots.robust_accuracy_curves(robust, title=name), "Accuracy in the worst case; 0 is clean."),
        "spread": (_spread(_shown(first), name), "Distances of the test images while training."),
        "line": (mma_plots.one_dimension(line, title="Where to lower the loss"), "A point on a line and its margin."),
    }
    if planes := {method: cell for method, cell in _shown(first).items() if "plane_margin" in cell.arrays}:
        drawn["landscape"] = (_landscapes(planes, name), "The loss around the first test image that each gets right.")
    return {kind: (plots.save(figure, folder / f"{kind}.png"), text) for kind, (figure, text) in drawn.items()}


def _sections(cards: list[Card], figures: dict[str, tuple[Path, str]]) -> list[Section]:
    return [
        Section("Table", _TABLE, study_table(cards)),
        Section("Both papers on one network", _BOTH, brackets(cards)),
        *(Section(*_ABOUT[kind], None, (figure,)) for kind, figure in figures.items()),
        Section("How these numbers were made", _settings(cards), study_costs(cards)),
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
    return mma_plots.margin_spread(distances, title=title, epsilons=epsilons)


def _landscapes(cells: dict[str, _Cell], title: str) -> Any:
    names = ("plane_ends", "plane_ends", "plane_loss", "plane_margin")
    grids: Any = {method: tuple(cell.arrays[name] for name in names) for method, cell in cells.items()}
    return mma_plots.landscapes(grids, title=title)


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


def study_costs(cards: list[Card]) -> list[dict[str, Any]]:
    """Sizes of the cells and the seconds of their stages.

    Args:
      cards: result cards.

    Returns:
      One row a card.
    """
    keys = ("method", "steps", "n_attack", "worst_case_steps", "nearest_steps", "n_margin", "num_samples")
    return [
        {key: card[key] for key in keys} | {f"{name} s": f"{value:.1f}" for name, value in card["seconds"].items()}
        for card in cards
    ]
