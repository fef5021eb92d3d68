"""Settings that the paper leaves open, tried: ``python -m runs.ablations --question tau``; see ``paper.ablations``."""

import sys

from jaxmargin.lab.compilation import keep_compiled
from runs.paper.ablations import main

__all__ = ["main"]

if __name__ == "__main__":
    keep_compiled()
    sys.exit(main())
