"""The networks that the benchmarks measure: trained in under a minute each, from data inside scikit-learn.

The digits are resized to the shape of MNIST (28 x 28 x 1) or of CIFAR-10 (32 x 32 x 3), so that the networks have their
published sizes and weights that were really trained, without a download. MNIST and CIFAR-10 themselves are an option.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmargin import checks, models, objectives
from jaxmargin.lab import data
from jaxmargin.lab.training import evaluator, fit, init_state, train_epoch
from jaxmargin.layers import Layer, layers_of

__all__ = ["DATASETS", "NETWORKS", "Trained", "fitted", "flops", "shapes", "trained"]

NETWORKS = ("mlp", "cnn", "linear", "cifar-cnn")
DATASETS = ("digits", "mnist", "cifar10")
SUBSET = {"train": 4000, "test": 1000}  # images of the larger data sets

_MNIST_SHAPE, _CIFAR_SHAPE = (28, 28, 1), (32, 32, 3)
_EPOCHS = {"linear": 10, "mlp": 10, "cnn": 3}


class Trained(NamedTuple):
    """A network with its weights and the images it has not seen.

    Attributes:
      name: as in NETWORKS.
      model: the network.
      params: its trained weights.
      images: [n, h, w, c] float32 in [0, 1], the test split.
      labels: [n] int32.
      accuracy: on the test split, in [0, 1].
    """

    name: str
    model: models.Model
    params: Any
    images: np.ndarray
    labels: np.ndarray
    accuracy: float

    def layers(self, params: Any) -> tuple[Layer, ...]:
        """The layers of the network with other weights."""
        shown = layers_of(functools.partial(self.model.apply, params))
        if shown is None:
            raise ValueError(f"{self.name} does not show its layers: choose one of {', '.join(NETWORKS)}")
        return shown


def trained(name: str, dataset: str = "digits", *, shape: tuple[int, int, int] | None = None) -> Trained:
    """Trains one network for a few epochs.

    Args:
      name: linear, mlp (1,024 hidden) or cnn, at the shape of MNIST; with "cifar-" before it, at that of CIFAR-10.
      dataset: digits, mnist or cifar10; images of another shape than the network's are resized.
      shape: (height, width, channels) of the network's input, if neither.

    Returns:
      Trained, the same for the same arguments.
    """
    kind = name.removeprefix("cifar-")
    checks.one_of("network", kind, tuple(_EPOCHS))
    checks.one_of("dataset", dataset, DATASETS)
    if shape is None:
        shape = _CIFAR_SHAPE if name != kind or dataset == "cifar10" else _MNIST_SHAPE
    source = data.load(dataset)
    train, test = (
        (_resized(split.images[:most] / source.scale, shape), split.labels[:most])
        for split, most in ((source.train, SUBSET["train"]), (source.test, SUBSET["test"]))
    )
    builders = {"linear": models.linear, "mlp": models.mlp, "cnn": models.cnn}
    return fitted(name, builders[kind](shape), train, test, epochs=_EPOCHS[kind])


def fitted(
    name: str,
    model: models.Model,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    epochs: int,
) -> Trained:
    """Trains any network on (images [n, *d] in [0, 1], labels [n]) by Adam on the cross-entropy."""
    optimizer = optax.adam(1e-3)
    epoch = train_epoch(model.apply, objectives.standard(), optimizer, batch_size=32, scale=1.0)
    state = init_state(model.init(jax.random.key(0)), optimizer, jax.random.key(1), len(train[1]))
    *_, (_, state, _) = fit(epoch, state, *map(jnp.asarray, train), epochs=epochs)
    _, error = evaluator(model.apply, scale=1.0)(state.params, *map(jnp.asarray, test))
    return Trained(name, model, state.params, *test, 1.0 - float(error))


def shapes(layers: tuple[Layer, ...], input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shape after each layer."""
    found: list[tuple[int, ...]] = []
    shape = tuple(input_shape)
    for layer in layers:
        if layer.kernel is not None and layer.kind == "conv":
            lost = [size - 1 if layer.padding == "VALID" else 0 for size in layer.kernel.shape[:2]]
            shape = (shape[0] - lost[0], shape[1] - lost[1], layer.kernel.shape[-1])
        elif layer.kind == "max_pool":
            shape = (shape[0] // 2, shape[1] // 2, shape[2])
        elif layer.kind == "flatten":
            shape = (math.prod(shape),)
        elif layer.kernel is not None:
            shape = (layer.kernel.shape[-1],)
        found.append(shape)
    return found


def flops(network: Trained) -> int:
    """Floating-point operations of one forward pass at one example: the products of its dense layers and convolutions.

    The gradient of one logit with respect to the input costs the same once more: each product with the kernel is
    followed backwards by one with its transpose.
    """
    layers = network.layers(network.params)
    after = shapes(layers, network.model.input_shape)
    weighted = [(layer.kernel, shape) for layer, shape in zip(layers, after, strict=True) if layer.kernel is not None]
    return sum(2 * kernel.size * math.prod(shape[:-1]) for kernel, shape in weighted)


def _resized(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """[n, h, w, c] -> [n, *shape], bilinear, one channel repeated."""
    images = np.asarray(images, np.float32)
    if images.shape[1:] == shape:
        return images
    across = jax.image.resize(images, (len(images), *shape[:2], images.shape[-1]), "bilinear")
    channels = across if across.shape[-1] == shape[2] else across.mean(-1, keepdims=True)
    return np.array(jnp.broadcast_to(channels, (len(images), *shape)))
