"""How far is each point from a classifier's decision boundary, and how does training move that distance?"""

from jaxmargin import attacks, losses, models, norms, objectives
from jaxmargin.adapters import ensemble, from_batched, from_linen, from_nnx
from jaxmargin.attacks import Attack, apgd, ddn, deepfool, fmn, minimum_norm, pgd, square, worst_case
from jaxmargin.batching import over_batch
from jaxmargin.brackets import Bracket, bracket
from jaxmargin.certificates import Certificate, certified_margin, lipschitz_bound
from jaxmargin.flags import Flag
from jaxmargin.health import health_check
from jaxmargin.lipschitz import (
    BlockMaxima,
    Clever,
    block_maxima,
    clever,
    lipschitz_margin,
    local_lipschitz,
    radial_margin,
)
from jaxmargin.margins import Margins, Summary, histogram, linear_margin, summarize
from jaxmargin.norms import Norm, l1, l2, linf
from jaxmargin.objectives import augmentation, regularizers

__version__ = "0.1.0"

__all__ = [
    "Attack", "BlockMaxima", "Bracket", "Certificate", "Clever", "Flag", "Margins", "Norm", "Summary", "apgd",
    "attacks", "augmentation", "block_maxima", "bracket", "certified_margin", "clever", "ddn", "deepfool", "ensemble",
    "fmn", "from_batched", "from_linen", "from_nnx", "health_check", "histogram", "l1", "l2", "linear_margin", "linf",
    "lipschitz_bound", "lipschitz_margin", "local_lipschitz", "losses", "minimum_norm", "models", "norms",
    "objectives", "over_batch", "pgd", "radial_margin", "regularizers", "square", "summarize", "worst_case",
]  # fmt: skip
