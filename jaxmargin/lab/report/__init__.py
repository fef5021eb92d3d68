"""Tables as Markdown and CSV, and a study's report as one page."""
