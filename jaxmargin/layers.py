"""A network as the list of its layers, for code that walks through it: faster slopes, certificates.

A classifier shows its layers where ``logits_fn = functools.partial(apply_fn, params)`` and apply_fn has an attribute
``layers``, as those of ``models`` have; any other is measured as a black box.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

__all__ = ["Layer", "layers_of", "shapes_of"]

Shape = tuple[int, ...]


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


def shapes_of(layers: Sequence[Layer], input_shape: Shape) -> list[Shape] | None:
    """The shape before each layer and after the last one.

    Args:
      layers: first to last.
      input_shape: shape *d of one example.

    Returns:
      The shapes; None where a layer is of unknown kind or cannot take its input.

    >>> shapes_of([Layer("max_pool"), Layer("flatten")], (5, 4, 3))
    [(5, 4, 3), (2, 2, 3), (12,)]
    """
    shapes = [tuple(input_shape)]
    for layer in layers:
        shape = _after(layer, shapes[-1])
        if shape is None or 0 in shape:
            return None
        shapes.append(shape)
    return shapes


def _after(layer: Layer, shape: Shape) -> Shape | None:
    kernel = layer.kernel
    if layer.kind == "flatten":
        return (math.prod(shape),)
    if layer.kind in ("relu", "dropout"):
        return shape
    if layer.kind == "max_pool" and len(shape) == 3:
        return (shape[0] // 2, shape[1] // 2, shape[2])
    if layer.kind == "dense" and kernel is not None and len(shape) == 1 and kernel.shape[:-1] == shape:
        return kernel.shape[1:]
    if layer.kind != "conv" or kernel is None or len(shape) != 3 or kernel.shape[2] != shape[2]:
        return None
    if layer.padding == "SAME":
        return (*shape[:2], kernel.shape[3])
    if layer.padding != "VALID" or kernel.shape[0] > shape[0] or kernel.shape[1] > shape[1]:
        return None
    return (shape[0] - kernel.shape[0] + 1, shape[1] - kernel.shape[1] + 1, kernel.shape[3])
