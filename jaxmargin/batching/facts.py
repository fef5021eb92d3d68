"""What is called found is a fact: held against the classifier as it was given, in a program of its own.

Inside of a measure the classifier is compiled together with a search, and rewritten where that is faster: the last bits
of its logits are not those that its owner sees.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from jaxmargin.norms import Norm
from jaxmargin.types import Box, Finding

__all__ = ["confirmed"]

_Found = TypeVar("_Found", bound=Finding)

# How much farther out an input is tried that the classifier itself does not see as another class.
_FARTHER = tuple(2.0**exponent for exponent in range(-20, -3))


def confirmed(
    finding: _Found,
    xs: np.ndarray,
    ys: np.ndarray,
    classes: Callable[[np.ndarray], np.ndarray],
    norm: Norm,
    epsilon: float,
    box: Box | None,
) -> _Found:
    """The inputs found that the classifier misclassifies, drawn a little farther out where it takes that, and no other.

    Args:
      finding: of n examples.
      xs: [n, *d] the examples.
      ys: [n] their classes.
      classes: inputs [n, *d] -> predicted classes [n].
      norm: of the distance.
      epsilon: the largest distance.
      box: (low, high) of valid inputs; None for none.

    Returns:
      The finding; not found is what is not confirmed.
    """
    x_adv, (found, forbidden) = np.asarray(finding.x_adv), finding.claimed(ys)
    lost = np.asarray(found) & (classes(x_adv) == np.asarray(forbidden))  # [n]
    if not lost.any():
        return finding
    moved, axes = lost.copy(), (slice(None), *[None] * (xs.ndim - 1))
    for share in _FARTHER:
        farther = (xs + (1 + share) * (x_adv - xs)).astype(x_adv.dtype)
        farther = farther if box is None else np.clip(farther, *box)
        sizes = np.asarray(jax.vmap(norm.size)(farther - xs))
        over = lost & (sizes <= epsilon) & (classes(farther) != np.asarray(forbidden))
        x_adv, lost = np.where(over[axes], farther, x_adv), lost & ~over
        if not lost.any():
            break
    return finding.revised(x_adv, moved, np.where(lost, np.inf, np.asarray(jax.vmap(norm.size)(x_adv - xs))))
