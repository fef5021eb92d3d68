"""Tables as Markdown and CSV, and a study's report as one page."""

from jaxmargin.lab.report.page import Section, write_report
from jaxmargin.lab.report.tables import csv_table, markdown_table

__all__ = ["Section", "csv_table", "markdown_table", "write_report"]
