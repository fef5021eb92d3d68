"""A network as the list of its layers, for code that walks through it: faster slopes, certificates.

A classifier shows its layers where ``logits_fn = functools.partial(apply_fn, params)`` and apply_fn has an attribute
``layers``, as those of ``models`` have; any other is measured as a black box.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

__all__ = ["Layer", "layers_of"]


class Layer(NamedTuple):
    """One layer with its weights.

    Attributes:
      kind: "conv", "dense", "relu", "max_pool" (2 x 2), "flatten" or "dropout" (the identity when measuring).
      kernel: [kh, kw, i, o] of a convolution, [i, o] of a dense layer, else None.
      bias: [o] or None.
      padding: "SAME" or "VALID" of a convolution, else None.
    """

    kind: str
    kernel: jax.Array | None = None
    bias: jax.Array | None = None
    padding: str | None = None


def layers_of(logits_fn: Callable[[jax.Array], jax.Array]) -> tuple[Layer, ...] | None:
    """The layers of a classifier that shows them, first to last; None of a black box.

    Args:
      logits_fn: x [*d] -> logits [c].

    Returns:
      The layers, or None.

    >>> import functools, jax, jaxmargin as jm
    >>> model = jm.models.mlp((8, 8, 1))
    >>> logits_fn = functools.partial(model.apply, model.init(jax.random.key(0)))
    >>> [layer.kind for layer in layers_of(logits_fn)]
    ['flatten', 'dense', 'relu', 'dense']
    """
    if not isinstance(logits_fn, functools.partial) or len(logits_fn.args) != 1 or logits_fn.keywords:
        return None
    find: Callable[[Any], tuple[Layer, ...]] | None = getattr(logits_fn.func, "layers", None)
    return None if find is None else find(logits_fn.args[0])
