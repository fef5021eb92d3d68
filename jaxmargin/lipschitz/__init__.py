"""Sampled Lipschitz constants and the margins made from them: gradient norms at random points of a ball.

A maximum over samples can only be too small: everything here is an estimate, never a certificate.
"""

from jaxmargin.lipschitz.blocks import BlockMaxima, block_maxima
from jaxmargin.lipschitz.clever_score import Clever, clever
from jaxmargin.lipschitz.constants import local_lipschitz
from jaxmargin.lipschitz.radial import radial_margin
from jaxmargin.lipschitz.sampled_margin import lipschitz_margin

__all__ = [
    "BlockMaxima", "Clever", "block_maxima", "clever", "lipschitz_margin", "local_lipschitz", "radial_margin",
]  # fmt: skip
