"""One entry point a study, run with ``python -m runs.NAME``."""
