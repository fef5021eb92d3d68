"""A report as one HTML file that opens offline, from the templates beside this file."""

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from jaxmargin.lab import files
from jaxmargin.lab.report.tables import Rows, columns_of, csv_table, is_numeric, markdown_table, shown

__all__ = ["Section", "csv_table", "markdown_table", "write_report"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CONTENTS_FROM = 4  # sections from which a table of contents helps


class Section(NamedTuple):
    """One section of a report: paragraphs, then a table, then figures; each of the three may be left out.

    Attributes:
      heading: The section's heading.
      text: Paragraphs, separated by blank lines.
      table: Rows as for `markdown_table`, or None for no table.
      figures: Pairs of a PNG file's path and a caption, which is also the image's alternative text.
    """

    heading: str
    text: str = ""
    table: list[dict[str, Any]] | None = None
    figures: tuple[tuple[str | os.PathLike[str], str], ...] = ()


def write_report(path: str | os.PathLike[str], *, title: str, introduction: str, sections: Sequence[Section]) -> Path:
    """Writes one self-contained HTML file: inline style, inline images, no scripts, nothing fetched.

    The file appears whole or not at all: it is written beside its place and then renamed.

    Args:
      path: Where to write; missing folders are made.
      title: The report's title.
      introduction: Paragraphs before the first section, separated by blank lines.
      sections: The sections in order; with more than three, a table of contents precedes them.

    Returns:
      The path written.

    Raises:
      FileNotFoundError: A figure's file does not exist; the message names it.
      ValueError: A figure's file is not a PNG.
    """
    page = _template("page.html").render(
        title=title,
        introduction=_paragraphs(introduction),
        sections=[_filled(section) for section in sections],
        contents=len(sections) >= CONTENTS_FROM,
    )
    return files.write_bytes(Path(path), page.encode())


def _template(name: str) -> jinja2.Template:
    """A template of the folder templates/, in which everything is escaped and nothing may be missing."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("jaxmargin.lab.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    ).get_template(name)  # fmt: skip


def _filled(section: Section) -> dict[str, Any]:
    """A section as the template wants it."""
    return {
        "heading": section.heading,
        "paragraphs": _paragraphs(section.text),
        "table": _table(section.table) if section.table else None,
        "figures": [_figure(Path(file), caption) for file, caption in section.figures],
    }


def _paragraphs(text: str) -> list[str]:
    blocks = (block.strip() for block in re.split(r"\n\s*\n", text))
    return [block for block in blocks if block]


def _table(rows: Rows) -> dict[str, Any]:
    """The columns, whether each is one of numbers, and the cells."""
    columns = columns_of(rows)
    numeric = [is_numeric(rows, column) for column in columns]
    lines = [list(zip((shown(row.get(column)) for column in columns), numeric, strict=True)) for row in rows]
    return {"columns": list(zip(columns, numeric, strict=True)), "lines": lines}


def _figure(file: Path, caption: str) -> dict[str, Any]:
    """A PNG inline, with its size in pixels."""
    if not file.is_file():
        raise FileNotFoundError(f"figure {str(file)!r} does not exist: save it before writing the report")
    data = file.read_bytes()
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError(f"figure {str(file)!r} is not a PNG file: save it with plots.save")
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20))  # of the image header chunk
    return {"data": base64.b64encode(data).decode(), "caption": caption, "width": width, "height": height}
