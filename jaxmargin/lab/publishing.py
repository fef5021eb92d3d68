"""The finished cells of a workdir as table.md, table.csv, metrics.jsonl and one report, whatever the study."""

import dataclasses
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from jaxmargin.lab import files, tables
from jaxmargin.lab.cards import Card, hours, read
from jaxmargin.lab.files import Arrays, Record
from jaxmargin.lab.report.page import Section, csv_table, markdown_table, write_report

__all__ = ["Finished", "Picture", "Published", "agreeing", "contents", "image", "read_finished", "write"]

Picture = tuple[Path, str]  # of a PNG, and its caption
AnyCard = TypeVar("AnyCard", bound=Card)


class Finished(NamedTuple, Generic[AnyCard]):
    """One finished cell.

    Attributes:
      card: its result card.
      arrays: its points.
      records: the lines of its metrics.jsonl, none where it was not trained itself.
    """

    card: AnyCard
    arrays: Arrays
    records: list[Record]


class Published(NamedTuple, Generic[AnyCard]):
    """What was written.

    Attributes:
      table: the table as Markdown.
      report: the path of report.html.
      figures: the pictures by kind.
      cells: in the table's order.
    """

    table: str
    report: Path
    figures: dict[str, list[Picture]]
    cells: list[Finished[AnyCard]]

    @property
    def cards(self) -> list[AnyCard]:
        """The result cards, in the table's order."""
        return [cell.card for cell in self.cells]


def read_finished(workdir: Path, place: Callable[[AnyCard], Any]) -> list[Finished[AnyCard]]:
    """Reads the finished cells of a workdir.

    Args:
      workdir: with cards/ and cells/ as ``run_cell`` leaves them.
      place: what their cards are sorted by.

    Returns:
      The cells, sorted.

    Raises:
      FileNotFoundError: no card is there.
      ValueError: cards of another schema.
    """
    paths = list((workdir / "cards").glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"{workdir}/cards holds no finished cell: run one first")
    cells = [
        Finished(
            read(path),
            files.read_arrays(path.with_suffix(".npz")),
            files.read_records(workdir / "cells" / path.stem / "metrics.jsonl"),
        )
        for path in paths
    ]
    return sorted(cells, key=lambda cell: place(cell.card))


def write(
    workdir: Path,
    cells: list[Finished[AnyCard]],
    *,
    table: Sequence[Mapping[str, Any]],
    figures: dict[str, list[Picture]],
    title: str,
    introduction: str,
    sections: Sequence[Section],
) -> Published[AnyCard]:
    """Writes table.md, table.csv, metrics.jsonl and report.html.

    Args:
      workdir: where.
      cells: finished ones, in the table's order.
      table: rows of formatted cells.
      figures: the pictures by kind.
      title: of the report.
      introduction: its first paragraphs.
      sections: of the report.

    Returns:
      Published.
    """
    shown = markdown_table(table)
    files.write_bytes(workdir / "table.md", (shown + "\n").encode())
    files.write_bytes(workdir / "table.csv", csv_table(tables.numbers([cell.card for cell in cells])).encode())
    files.write_records(workdir / "metrics.jsonl", [record for cell in cells for record in cell.records])
    report = write_report(workdir / "report.html", title=title, introduction=introduction, sections=sections)
    return Published(shown, report, figures, cells)


def contents(what: str, cards: Sequence[Card], *, each: str, within: str = "") -> dict[str, str]:
    """A row of the results' table of contents.

    Args:
      what: a folder holds, in words.
      cards: its cards.
      each: how much training each of them stands for.
      within: how many numbers are within what is allowed.

    Returns:
      The row, but for the folder.
    """
    return {
        "what": what,
        "data": ", ".join(sorted({card["dataset"] for card in cards})),
        "networks": ", ".join(sorted({card["model"] for card in cards})),
        "trainings": str(len(cards)),
        "each of": each,
        "numbers within what is allowed": within,
        "hours": hours(cards),
    }


def agreeing(
    paths: Iterable[Path], cell: type, name: Callable[[Path, Any], str], free: Collection[str]
) -> dict[str, dict[str, list[Any]]]:
    """The settings that must agree for results to lie in one folder.

    Args:
      paths: of the cards.
      cell: the dataclass of the settings.
      name: (path, card) -> what the settings are those of, for messages.
      free: names of the settings that may differ.

    Returns:
      By that name, the values of every setting.
    """
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        card = read(path)
        for field in {field.name for field in dataclasses.fields(cell)} - {*free}:
            values = found[name(path, card)][field]
            if card[field] not in values:
                values.append(card[field])
    return found


def image(folder: Path, path: Path, caption: str) -> str:
    """A picture in Markdown, for a page beside the folder that it lies in."""
    return f"![{caption}]({urllib.parse.quote(path.relative_to(folder.parent).as_posix())})"
