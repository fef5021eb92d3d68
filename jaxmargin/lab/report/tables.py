"""Rows as tables, in Markdown and CSV.

A table is a list of rows, each a dict from column to str, int, float or None; the columns are the union of the keys in
first-seen order. Numbers are for reading in Markdown and HTML (4 significant digits) and exact in CSV (repr).
"""

import csv
import io
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Rows", "columns_of", "csv_table", "is_numeric", "markdown_table", "shown"]

Rows = Sequence[Mapping[str, Any]]
NO_VALUE = "–"


def markdown_table(rows: Rows) -> str:
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
    columns = columns_of(rows)
    rules = ["---:" if is_numeric(rows, column) else "---" for column in columns]
    cells = [[_escape_markdown(shown(row.get(column))) for column in columns] for row in rows]
    lines = [[_escape_markdown(column) for column in columns], rules, *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_table(rows: Rows) -> str:
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
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _exact(value) for column, value in row.items()} for row in rows)
    return stream.getvalue()


def columns_of(rows: Rows) -> list[str]:
    """The union of the rows' keys, in first-seen order."""
    return list(dict.fromkeys(column for row in rows for column in row))


def is_numeric(rows: Rows, column: str) -> bool:
    """Whether all values of a column are numbers, and there is one."""
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(isinstance(value, numbers.Real) for value in values)


def shown(value: Any) -> str:
    """A cell for reading: 4 significant digits for floats; a string is shown as given."""
    if value is None:
        return NO_VALUE
    return f"{float(value):.4g}" if _is_fraction(value) else str(value)


def _exact(value: Any) -> Any:
    """A cell for computing with: a float in double precision, whose shortest digits csv writes."""
    return float(value) if _is_fraction(value) else value


def _is_fraction(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)


def _escape_markdown(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
