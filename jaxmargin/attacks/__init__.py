"""Attacks on one example: upper bounds of its distance to the decision boundary.

In float32 the cross-entropy has an exactly zero gradient once the logit margin passes about 17, so an attack on it can
stand still and report robustness that is not there. The other losses cannot saturate.
"""

from jaxmargin.attacks.adaptive import Boundary, an_pgd
from jaxmargin.attacks.attack import Attack
from jaxmargin.attacks.auto_pgd import apgd
from jaxmargin.attacks.nearest import bisect_boundary, ddn, deepfool, fmn, minimum_norm
from jaxmargin.attacks.projected_gradient import PUBLISHED, pgd
from jaxmargin.attacks.random_search import square
from jaxmargin.attacks.worst import worst_case

__all__ = [
    "PUBLISHED", "Attack", "Boundary", "an_pgd", "apgd", "bisect_boundary", "ddn", "deepfool", "fmn", "minimum_norm",
    "pgd", "square", "worst_case",
]  # fmt: skip
