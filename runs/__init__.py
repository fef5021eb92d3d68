"""One folder a study, run with ``python -m runs.NAME``; a study can be read, or removed, by its folder."""
