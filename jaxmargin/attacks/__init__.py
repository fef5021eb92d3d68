"""Attacks on one example: upper bounds of its distance to the decision boundary.

In float32 the cross-entropy has an exactly zero gradient once the logit margin passes about 17, so an attack on it can
stand still and report robustness that is not there. The other losses cannot saturate.
"""

from jaxmargin.attacks.adaptive_norm_pgd import Boundary, an_pgd
from jaxmargin.attacks.auto_pgd import apgd
from jaxmargin.attacks.base import Attack
from jaxmargin.attacks.decoupled_direction_norm import ddn
from jaxmargin.attacks.deep_fool import deepfool
from jaxmargin.attacks.fast_minimum_norm import fmn
from jaxmargin.attacks.nearest import bisect_boundary, minimum_norm
from jaxmargin.attacks.projected_gradient_descent import PUBLISHED, pgd
from jaxmargin.attacks.square_attack import square
from jaxmargin.attacks.worst import worst_case

__all__ = [
    "PUBLISHED", "Attack", "Boundary", "an_pgd", "apgd", "bisect_boundary", "ddn", "deepfool", "fmn", "minimum_norm",
    "pgd", "square", "worst_case",
]  # fmt: skip
