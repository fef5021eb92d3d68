"""What a network is here: a few pure functions of its parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxmargin.layers import Layer

__all__ = ["BATCH", "Apply", "Model", "Shape"]

Shape = tuple[int, ...]

# The mapped axis over which a network with batch normalisation averages while it trains.
BATCH = "batch"


class Model(NamedTuple):
    """A classifier as pure functions of its parameters.

    Attributes:
      init: key -> params.
      apply: (params, x [*d], key=None) -> logits [c]; a key switches dropout on (training), none means measuring.
      features: (params, x [*d]) -> [p], the input of the last dense layer, Phi of eq. (4) of Wu and Yu.
      layers: params -> tuple of Layer, first to last; None where the network is no chain of such layers.
      input_shape: *d.
      num_classes: c.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]
    features: Callable[[Any, jax.Array], jax.Array]
    layers: Callable[[Any], tuple[Layer, ...]] | None
    input_shape: Shape
    num_classes: int


@dataclasses.dataclass(frozen=True)
class Apply:
    """``Model.apply``: a function that also shows what a caller may use of its network.

    Attributes:
      run: (params, x [*d], key) -> logits [c].
      layers: as in Model.
      observe: (params, x [*d], key) -> (logits [c], params): a training pass of a network with batch normalisation,
        inside of ``jax.vmap(..., axis_name=BATCH)``, and the parameters with its running statistics moved on; None
        where there is nothing to observe.
    """

    run: Callable[..., jax.Array]
    layers: Callable[[Any], tuple[Layer, ...]] | None = None
    observe: Callable[..., tuple[jax.Array, Any]] | None = None

    def __call__(self, params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self.run(params, x, key)
