"""Tables as Markdown, CSV and HTML, and a report as one HTML file that opens offline.

A table is a list of rows, each a dict from column to str, int, float or None; the columns are the union of the keys in
first-seen order. Numbers are for reading in Markdown and HTML (4 significant digits) and exact in CSV (repr).
"""

import base64
import csv
import html
import io
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmargin.lab import files

__all__ = ["Section", "csv_table", "markdown_table", "write_report"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NO_VALUE = "–"
CONTENTS_FROM = 4  # sections from which a table of contents helps

CSS = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2026; --quiet: #5b6470; --line: #dde1e6;
  --stripe: #f6f7f9; --link: #0062a3; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --ink: #e4e7eb; --quiet: #9aa4b0; --line: #343a42;
  --stripe: #1c2025; --link: #7cc0f2; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.6 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 0.75rem; overflow-wrap: anywhere; }
p { max-width: 44rem; margin: 0 0 1rem; overflow-wrap: break-word; }
a { color: var(--link); }
nav { margin: 1.5rem 0; padding: 0.75rem 1.25rem; border: 1px solid var(--line); border-radius: 0.5rem; }
nav p { margin: 0; font-weight: 600; }
nav ol { margin: 0.25rem 0 0; padding-left: 1.5rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.8rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--quiet); font-weight: 600; white-space: normal; vertical-align: bottom; }
tbody tr:nth-child(even) { background: var(--stripe); }
.number { text-align: right; }
figure { margin: 1.75rem 0; }
figure .scroll { background: #ffffff; border: 1px solid var(--line); border-radius: 0.5rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 0.5rem; color: var(--quiet); font-size: 0.92rem; max-width: 44rem; }
@media print { main { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""


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


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Formats rows as a Markdown table, numeric columns to the right.

    Args:
      rows: Rows from column to str, int, float or None; a missing or None cell shows as "–".

    Returns:
      The table with a final newline; the empty string for no rows.

    >>> print(markdown_table([{"method": "std", "clean": 98.2431}, {"method": "a|b", "clean": None}]), end="")
    | method | clean |
    | --- | ---: |
    | std | 98.24 |
    | a\|b | – |
    """
    if not rows:
        return ""
    columns = _columns(rows)
    rules = ["---:" if _is_numeric(rows, column) else "---" for column in columns]
    cells = [[_escape_markdown(_shown(row.get(column))) for column in columns] for row in rows]
    lines = [[_escape_markdown(column) for column in columns], rules, *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats rows as CSV with a header, numbers exact (a float's repr), None and missing cells empty.

    Args:
      rows: Rows from column to str, int, float or None.

    Returns:
      The table with a final newline; the empty string for no rows.

    >>> print(csv_table([{"method": "std", "margin": 0.1 + 0.2}, {"method": "amr, 60 epochs"}]), end="")
    method,margin
    std,0.30000000000000004
    "amr, 60 epochs",
    """
    if not rows:
        return ""
    columns = _columns(rows)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_exact(row.get(column)) for column in columns] for row in rows)
    return stream.getvalue()


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
    body = [f"<h1>{html.escape(title)}</h1>", *_paragraphs(introduction)]
    if len(sections) >= CONTENTS_FROM:
        body.append(_contents(sections))
    body += [_section(number, section) for number, section in enumerate(sections, start=1)]
    return files.write_bytes(Path(path), _page(title, "\n".join(body)).encode())


def _page(title: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _contents(sections: Sequence[Section]) -> str:
    items = "\n".join(
        f'<li><a href="#section-{number}">{html.escape(section.heading)}</a></li>'
        for number, section in enumerate(sections, start=1)
    )
    return f'<nav aria-label="Contents">\n<p>Contents</p>\n<ol>\n{items}\n</ol>\n</nav>'


def _section(number: int, section: Section) -> str:
    heading = f'<h2 id="section-{number}">{html.escape(section.heading)}</h2>'
    table = [_html_table(section.table, section.heading)] if section.table else []
    figures = [_figure(Path(file), caption) for file, caption in section.figures]
    return "\n".join(["<section>", heading, *_paragraphs(section.text), *table, *figures, "</section>"])


def _paragraphs(text: str) -> list[str]:
    blocks = (block.strip() for block in re.split(r"\n\s*\n", text))
    return [f"<p>{html.escape(block)}</p>" for block in blocks if block]


def _html_table(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    columns = _columns(rows)
    align = {column: ' class="number"' if _is_numeric(rows, column) else "" for column in columns}
    head = "".join(f'<th scope="col"{align[column]}>{html.escape(column)}</th>' for column in columns)
    lines = [
        "".join(f"<td{align[column]}>{html.escape(_shown(row.get(column)))}</td>" for column in columns) for row in rows
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table>\n<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return _scrolling(table, f"{name}, table")


def _figure(file: Path, caption: str) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"figure {str(file)!r} does not exist: save it before writing the report")
    data = file.read_bytes()
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError(f"figure {str(file)!r} is not a PNG file: save it with plots.save")
    width = int.from_bytes(data[16:20], "big")  # the image header chunk: width, height
    height = int.from_bytes(data[20:24], "big")
    text = html.escape(caption)
    # plots.save writes 150 dots an inch and a page has 96: 64 % is the figure's own size. A narrow screen may shrink it
    # to 38 %, where the labels can still be read, and then scrolls it in its own box.
    image = (
        f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}" alt="{text}" '
        f'width="{width}" height="{height}" style="min-width: {width * 0.38:.0f}px">'
    )
    box = _scrolling(image, "figure")
    return f'<figure style="max-width: {width * 0.64:.0f}px">\n{box}\n<figcaption>{text}</figcaption>\n</figure>'


def _scrolling(content: str, name: str) -> str:
    """A box of its own that scrolls sideways; it takes the focus, or the keyboard could not scroll it."""
    return f'<div class="scroll" role="group" tabindex="0" aria-label="{html.escape(name)}">\n{content}\n</div>'


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _is_numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(isinstance(value, numbers.Real) for value in values)


def _shown(value: Any) -> str:
    """A cell for reading: 4 significant digits for floats; a string is shown as given."""
    if value is None:
        return NO_VALUE
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.4g}"
    return str(value)


def _exact(value: Any) -> str:
    """A cell for computing with: the shortest digits that read back as the same float."""
    if value is None:
        return ""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return repr(float(value))
    return str(value)


def _escape_markdown(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
