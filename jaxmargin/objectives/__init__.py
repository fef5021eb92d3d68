"""Training objectives as values: what one example costs, what the weights cost, what is searched and remembered.

A training step minimises  mean_i example_loss(logits_fn, key_i, x_i, y_i, inner_result_i) + penalty(params)  and then
applies ``retract`` to the parameters.

>>> objective = amr(lam=0.1, beta=1e-3, tau=5.0)
>>> objective = mma(d_max=2.0, box=(0.0, 1.0))
"""

from jaxmargin.objectives.adversarial_training import adversarial, trades
from jaxmargin.objectives.max_margin import mma
from jaxmargin.objectives.objective import Objective
from jaxmargin.objectives.regularised import amr, lcr, margin_term, standard

__all__ = ["Objective", "adversarial", "amr", "lcr", "margin_term", "mma", "standard", "trades"]
