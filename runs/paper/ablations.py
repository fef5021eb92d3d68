"""What the paper leaves open, put to experiment: which setting comes nearest to the numbers that it published.

``python -m runs.ablations --question form`` trains one cell of the table in every variant of one setting, measures what
Table 1 has of it, and ranks the variants by their distance from the published row. An interrupted run continues when
started again with the same options.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from jaxmargin import checks
from jaxmargin.lab import command_line, data, files
from jaxmargin.lab.cards import origin
from jaxmargin.lab.cells import run_cell
from jaxmargin.lab.report.page import markdown_table
from jaxmargin.lab.settings import claimed
from jaxmargin.lab.training import DivergedError
from runs.paper import presets
from runs.paper.cell import Cell
from runs.paper.stages import STUDY, PaperCard

__all__ = ["QUESTIONS", "Options", "main"]


class Question(NamedTuple):
    """One cell of the table and the settings it may have had."""

    dataset: str
    model: str
    method: str
    variants: dict[str, dict[str, Any]]


QUESTIONS = {
    "form": Question("cifar10", "mlp", "amr", {
        f"{form}, rate {rate:g}": dict(form=form, learning_rate=rate)
        for form in ("ramp", "hinge", "wrong_ramp", "dc") for rate in (0.002, 0.01)
    }),
    "beta": Question("mnist", "mlp", "amr", {f"beta {beta:g}": dict(beta=beta) for beta in (1e-3, 2e-3)}),
    "tau": Question("mnist", "cnn", "amr", {f"tau {tau:g}": dict(tau=tau) for tau in (10.0, 40.0)}),
    "dropout": Question("cifar10", "cnn", "std", {
        "none": dict(dropout=0.0), "first dense layer": dict(dropout=(0.5, 0.0)), "both": dict(dropout=0.5),
    }),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Trains one cell in every variant of one setting and ranks them by their distance from the published row."""

    question: str
    """form (of the margin term, and rate), beta, tau or dropout."""
    epochs: int = 30
    """Epochs of every variant; the paper's rows took 200."""
    points: int = 100
    """Test points whose margins are measured."""
    num_samples: int = 1024
    """Ball samples a point."""
    attack_points: int = 1000
    """Test images under the published attack, evenly spread over the split."""
    attack_steps: int = 1000
    """Its steps."""
    worst_case_steps: int = 20
    """Steps of each attempt of the worst case."""
    nearest_steps: int = 50
    """Steps of each minimum-norm attack."""
    seed: int = 0
    """Of initialisation, shuffling and sampling."""
    minutes: float | None = None
    """Stop after so many minutes, to be continued by the same command; longer than an epoch."""
    workdir: str | None = None
    """Folder for everything written; by default out/question-<question>."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the variants and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m runs.ablations")
    return command_line.exit_code(lambda: run(options), minutes=options.minutes)


def run(options: Options) -> None:
    """Runs every variant that is not finished, prints the ranking, and writes it as ranking.md."""
    checks.one_of("question", options.question, tuple(QUESTIONS))
    sizes = command_line.overrides(options, Cell)
    question = QUESTIONS[options.question]
    images = data.load(question.dataset, data_dir=options.data_dir)
    workdir = Path(options.workdir or f"out/question-{options.question}")
    place = question.dataset, question.model, question.method
    cells = {
        name: presets.cell(*place, preset="released", **(sizes | changes))
        for name, changes in question.variants.items()
    }
    for cell in cells.values():
        cell.check(images)
    with claimed(workdir, {folder_of(name): asdict(cell) for name, cell in cells.items()}):
        cards = _answers(cells, images, workdir)
    attacked = min(options.attack_points, len(images.test.labels))
    sizes_said = (
        f"{options.epochs} epochs, one seed, margins of {options.points} points; an accuracy under attack of"
        f" {attacked:,} images has a standard error of up to {50 / attacked**0.5:.1f} points."
    )
    said = f"{markdown_table(ranking(cards, *place))}\n{sizes_said}\n"
    files.write_bytes(workdir / "ranking.md", said.encode())
    files.write_json(workdir / "result.json", {**origin(STUDY.name, {}), "dataset": question.dataset})
    print(said)


def _answers(cells: dict[str, Cell], images: data.Dataset, workdir: Path) -> dict[str, PaperCard | None]:
    """The card of every variant, None where it diverged."""
    cards: dict[str, PaperCard | None] = {}
    for number, (name, cell) in enumerate(cells.items(), 1):
        print(f"[{number}/{len(cells)}] {name}", file=sys.stderr)
        paper = presets.published(cell.dataset, cell.model, cell.method)
        try:
            cards[name] = run_cell(STUDY, cell, images, workdir / folder_of(name), paper)
        except DivergedError as error:  # an answer too
            print(f"{name}: {error}", file=sys.stderr)
            cards[name] = None
    return cards


def folder_of(variant: str) -> str:
    """The folder of a variant's run, below the workdir."""
    return variant.replace(", ", "-").replace(" ", "-")


def ranking(cards: dict[str, PaperCard | None], dataset: str, model: str, method: str) -> list[dict[str, str]]:
    """One row a variant, the nearest to the paper's row first, and that row; variants that diverged (None) come last.

    The distance is the mean, over clean accuracy and the robust accuracies, of the difference in percentage points.
    """
    paper: Any = presets.published(dataset, model, method)
    epochs = presets.cell(dataset, model, method, preset="released").epochs

    def distance(card: PaperCard) -> float:
        here: list[float] = [card["clean_accuracy"], *card["robust_accuracy_published"]]
        there = [paper["clean_accuracy"], *paper["robust_accuracy_published"]]
        return 100 * float(sum(abs(a - b) for a, b in zip(here, there, strict=True))) / len(here)

    def row(name: str, card: Mapping[str, Any], away: str) -> dict[str, str]:
        robust = zip(card["epsilons"], card["robust_accuracy_published"], strict=True)
        worst = [f"{100 * value:.2f}" for value in card.get("robust_accuracy_worst", ())]  # the paper has none
        return {
            "variant": name, "clean %": f"{100 * card['clean_accuracy']:.2f}",
            **{f"published {epsilon:g} %": f"{100 * value:.2f}" for epsilon, value in robust},
            f"worst case {card['epsilons'][-1]:g} %": worst[-1] if worst else "",
            "average distance": f"{card['average_distance']:.3f}", "points from the paper": away,
        }  # fmt: skip

    finished = sorted((distance(card), name) for name, card in cards.items() if card is not None)
    rows = [row(name, cast(Any, cards[name]), f"{away:.2f}") for away, name in finished]
    diverged = [{"variant": f"{name}: diverged"} for name, card in cards.items() if card is None]
    return [*rows, *diverged, row(f"paper, {epochs} epochs", paper, "")]
