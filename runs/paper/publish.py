"""A workdir's cards and metrics as tables, figures and one report, in the layout of Wu and Yu (2019)."""

from collections.abc import Mapping
from pathlib import Path

from jaxmargin.lab import tables
from jaxmargin.lab.cards import devices, said, versions
from jaxmargin.lab.publishing import Finished, Picture, Published, read_finished, write
from jaxmargin.lab.report.page import Section
from runs.paper.figures import draw
from runs.paper.stages import PaperCard
from runs.paper.tables import costs, place, table, trade_off

__all__ = ["publish"]

_INTRODUCTION = """How far is each point from the decision boundary, and how does training move that distance? The \
margin of a point is that distance, positive where the prediction is right. Wu and Yu (2019) report that training \
raises the minimum margin and lowers the average one, and that the average margin regulariser (AMR) breaks the \
trade-off.

Margins of linear models are exact. Those of the others are estimates from sampled Lipschitz constants (their eq. 3): \
they may lie above the true distance, and they are not certificates."""

_TABLE = """Accuracy under attack as published: l2 PGD on the cross-entropy, one start, last iterate. The worst case \
counts a point as broken where that attack or auto-PGD with any of three losses that cannot saturate succeeded. Both \
are upper bounds of the true robust accuracy, the first one far too high where the cross-entropy saturates: in float32 \
it has no gradient left where the logit margin, whose median over the attacked images is given, exceeds about 17. \
Average distance is the unsigned mean over the test points, Table 1's "Avg Margin"; the signed mean and the minimum \
stand beside it. Numbers in brackets are the paper's."""

_BRACKETS = """For every point whose margin is estimated: no change of the prediction is possible nearer than the \
certified distance; one was found at the attacked distance; the true distance lies between the two. The sampled \
estimate is neither bound: where it exceeds the attacked distance it is wrong, and the table says at how many points."""

_FLAGS = """Signs that an attack failed rather than that a network is robust."""

_TRADE_OFF = """Margins at the first measured epoch at which most points are right, at the peak of the average, and at \
the last epoch. The average must rise while the network still learns; the trade-off holds where it falls after its \
peak while the minimum rises, both by more than a hundredth of the peak and, where every epoch is measured, three \
times what an epoch moves them (its median)."""


def publish(workdir: Path) -> Published[PaperCard]:
    """Writes table.md, table.csv, metrics.jsonl, figures and report.html from the finished cells of a workdir.

    Args:
      workdir: with cards/ and cells/ as ``run_cell`` leaves them.

    Returns:
      Published, its figures by kind as ``draw`` has them.

    Raises:
      FileNotFoundError: no card is there.
    """
    cells = read_finished(workdir, place)
    cards = [cell.card for cell in cells]
    figures = draw(cells, workdir / "figures")
    return write(
        workdir, cells, table=table(cards), figures=figures, introduction=_INTRODUCTION,
        title=f"Minimum and average margin on {cards[0]['dataset']}", sections=_sections(cells, figures),
    )  # fmt: skip


def _sections(cells: list[Finished[PaperCard]], figures: Mapping[str, list[Picture]]) -> list[Section]:
    cards = [cell.card for cell in cells]
    moved = trade_off(cards, [cell.records for cell in cells])
    return [
        Section("Table", _TABLE, table(cards)),
        Section("Does the trade-off hold?", _TRADE_OFF, moved),
        Section("Minimum and average margin", "Figures 2a to 2c and 6 of the paper.", None, tuple(figures["margins"])),
        Section("Average margin by method", "Figures 2d to 2f of the paper.", None, tuple(figures["average"])),
        Section("Robust accuracy", "Table 1 as curves, the worst case dashed.", None, tuple(figures["robust"])),
        Section("Training", "Figure 4 of the paper.", None, tuple(figures["training"])),
        Section("Brackets", _BRACKETS, tables.brackets(cards), tuple(figures["brackets"])),
        Section("Signs of failing attacks", _FLAGS, tables.flags(cards)),
        Section("Margin histograms", "Figures 5 and 7 of the paper.", None, tuple(figures["points"])),
        Section("How these numbers were made", _settings(cards), costs(cards)),
    ]


def _settings(cards: list[PaperCard]) -> str:
    first = cards[0]
    made = f"{devices(cards)}. {said(versions(cards))}."
    sizes = f"{first['n_train']:,} training and {first['n_test']:,} test images, margins on {first['n_margin']} of each"
    return f"Preset {first['preset']}, {sizes}, ball radius {first['radius']:g}. {made}"
