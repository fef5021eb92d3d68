"""The look of the figures: which colour, marker and dashes a label gets, and how large things are.

The colours are Okabe and Ito's and Tol's, safe for colour-blind readers.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = [
    "BARS", "DOTS_PER_INCH", "GRID", "HEIGHT", "INK", "LABEL_SIZE", "LETTERS_A_PANEL", "LOOKS", "MARKED_UP_TO", "PAPER",
    "PANELS_A_ROW", "PLAIN_UP_TO", "QUIET", "REFERENCE_BARS", "REFERENCE_DASHES", "SPLIT_DASHES", "TICK_SIZE",
    "TITLE_SIZE", "WIDTH", "WRONG_SIDE", "Look", "looks",
]  # fmt: skip


class Look(NamedTuple):
    """The colour and the marker of one label."""

    colour: str
    marker: str


INK, QUIET, GRID, PAPER = "#1c2026", "#5b6470", "#e3e6ea", "#ffffff"
BARS, REFERENCE_BARS, WRONG_SIDE = "#5b8db8", "#8a8f98", "#d55e00"
LOOKS = {  # by a word in the label
    "std": Look("#0072b2", "o"),
    "lcr": Look("#e69f00", "s"),
    "amr": Look("#009e73", "^"),
    "adversarial": Look("#cc79a7", "D"),
    "trades": Look("#56b4e9", "v"),
    "mma": Look("#882255", "P"),
    "train": Look("#332288", "o"),
    "test": Look("#d55e00", "s"),
    "svm": Look(INK, "*"),
    "difference": Look("#56b4e9", "s"),  # of the two class means
    "descent": Look("#882255", "o"),
    "gd": Look("#882255", "o"),
    "certified": Look("#0072b2", "s"),
    "estimated": Look("#e69f00", "o"),
    "attacked": Look("#882255", "^"),
}
_COLOURS, _MARKERS = ("#cc79a7", "#999933", "#44aa99", "#666666", "#88ccee", "#661100"), "DvPX<>"
# Each colour with each marker; both change from one look to the next.
OTHER_LOOKS = tuple(
    Look(colour, _MARKERS[(i + turn) % len(_MARKERS)]) for turn in range(6) for i, colour in enumerate(_COLOURS)
)
SPLIT_DASHES: dict[str, Any] = {"test": "-", "train": "--"}
REFERENCE_DASHES = ((0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKED_UP_TO = 40  # points; a longer curve is a plain line
DOTS_PER_INCH = 150
TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 12.0, 10.0, 9.0
WIDTH, HEIGHT = 10.0, 3.9  # inches, of a row of panels
PANELS_A_ROW, LETTERS_A_PANEL = 5, 19  # of histograms
PLAIN_UP_TO = 2e4  # an axis that ends beyond writes powers of ten


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A known word in a label decides its look, unless an earlier label took it; the others take theirs in turn."""
    chosen: dict[str, Look] = {}
    for label in labels:
        known = [LOOKS[word] for word in re.split(r"[^a-z]+", label.lower()) if word in LOOKS]
        free = [look for look in (*known[-1:], *OTHER_LOOKS) if look not in chosen.values()]
        chosen[label] = free[0] if free else OTHER_LOOKS[len(chosen) % len(OTHER_LOOKS)]
    return chosen
