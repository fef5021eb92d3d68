"""Certified lower bounds of distances and upper bounds of Lipschitz constants, rounding allowed for."""

from jaxmargin.certificates.certificate import Certificate, certified_margin
from jaxmargin.certificates.spectral import lipschitz_bound

__all__ = ["Certificate", "certified_margin", "lipschitz_bound"]
