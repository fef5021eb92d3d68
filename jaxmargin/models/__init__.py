"""The papers' networks as pure functions.

>>> import jax, jax.numpy as jnp
>>> model = mlp((28, 28, 1))
>>> params = model.init(jax.random.key(0))
>>> model.apply(params, jnp.zeros((28, 28, 1))).shape
(10,)
"""

from jaxmargin.models.model import BATCH, Apply, Model
from jaxmargin.models.residual import wide_resnet
from jaxmargin.models.sequential import cnn, lenet, linear, mlp

__all__ = ["BATCH", "Apply", "Model", "cnn", "lenet", "linear", "mlp", "wide_resnet"]
