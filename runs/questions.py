"""The former name of ``python -m runs.ablations``."""

import sys

from jaxmargin.lab.compilation import keep_compiled
from runs.ablations import main

if __name__ == "__main__":
    keep_compiled()
    sys.exit(main())
