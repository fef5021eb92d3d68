"""Settings that the paper leaves open, tried: ``python -m runs.ablations --question tau``; see ``paper.ablations``."""

from jaxmargin.lab import command_line
from jaxmargin.lab.compilation import keep_compiled
from runs.paper.ablations import main

__all__ = ["main"]

if __name__ == "__main__":
    keep_compiled()
    command_line.end(main())
