"""The former name of ``python -m runs.ablations``."""

from jaxmargin.lab import command_line
from jaxmargin.lab.compilation import keep_compiled
from runs.ablations import main

if __name__ == "__main__":
    keep_compiled()
    command_line.end(main())
