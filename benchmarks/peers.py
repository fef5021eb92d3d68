"""Other ways to the sampled Lipschitz margin, on the same weights and the same samples: PyTorch, ART, and plain JAX.

Each is built once for a network and then called as ``peer(xs, ys)``, which gives the signed margins [n] and returns
only when they are there. All look at the samples x + u_i with the same offsets u_i, which are drawn beforehand and
handed over: only jaxmargin and ART pay for drawing theirs.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, TypeVar
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxmargin as jm
from benchmarks.networks import Trained, shapes
from jaxmargin.xla_cpu import on_cpu

__all__ = [
    "CHUNK", "Peer", "art_clever", "art_on_samples", "channels_first", "choose_torch_threads", "missing", "offsets",
    "ours", "plain_jax", "timed", "torch_device", "torch_loop", "torch_network",
]  # fmt: skip

Name = TypeVar("Name")
Peer = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Samples that the peers take together: on a CPU 32, 128 and 256 were not faster for them, a GPU wants more.
CHUNK = 64 if on_cpu() else 512


def offsets(key: jax.Array, num_samples: int, shape: tuple[int, ...], radius: float) -> np.ndarray:
    """[s, *d] the points of an l2 ball that ``jm.lipschitz_margin`` samples with the same key."""

    def one(index: jax.Array) -> jax.Array:
        return radius * jm.l2.sample_ball(jax.random.fold_in(key, index), shape)

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(num_samples)))


def timed(peer: Callable[..., Any], xs: np.ndarray, ys: np.ndarray) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    peer(xs, ys)
    return time.perf_counter() - start


def side_by_side(contenders: Mapping[Name, Callable[[], object]], repetitions: int) -> dict[Name, float]:
    """Median seconds of each contender, their repetitions taken in turns."""
    seconds: dict[Name, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def missing(package: str) -> bool:
    """Whether an optional package is not installed."""
    return find_spec(package) is None


# jaxmargin, and JAX without it ---------------------------------------------------------------------------------------


def ours(network: Trained, key: jax.Array, num_samples: int, radius: float, *, exact: bool) -> Callable[..., Any]:
    """jaxmargin's estimator as (xs, ys) -> Margins [n]."""
    options: dict[str, Any] = dict(norm=jm.l2, radius=radius, num_samples=num_samples, exact=exact)
    estimate = jm.over_batch(jm.lipschitz_margin, network.model.apply, **options)
    return lambda xs, ys: jax.block_until_ready(estimate(network.params, key, xs, ys))


def plain_jax(network: Trained, samples: np.ndarray, radius: float) -> Peer:
    """What one would write in JAX: the Jacobians of a chunk of samples in one jitted call, the chunks in a loop."""
    forward = _forward(network)
    logits_of = jax.jit(jax.vmap(forward, (None, 0)))
    chunks = [jnp.asarray(samples[start : start + CHUNK]) for start in range(0, len(samples), CHUNK)]

    @jax.jit
    def slopes(params: Any, x: jax.Array, chunk: jax.Array, predicted: jax.Array) -> jax.Array:
        jacobians = jax.vmap(jax.jacrev(functools.partial(forward, params)))(x + chunk)  # [s, c, *d]
        differences = jacobians[:, predicted, None] - jacobians
        return jnp.sqrt((differences.reshape(*differences.shape[:2], -1) ** 2).sum(-1)).max(0)  # [c]

    def measure(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("float32"):
            logits = np.asarray(logits_of(network.params, xs))
            largest = np.zeros_like(logits)
            for i, (x, predicted) in enumerate(zip(xs, logits.argmax(1), strict=True)):
                found = [slopes(network.params, x, chunk, predicted) for chunk in chunks]
                largest[i] = np.max(jax.device_get(found), 0)
        return _margins(logits, largest, ys, radius)

    return measure


def _forward(network: Trained) -> Callable[[Any, jax.Array], jax.Array]:
    """The network written out with the layers of JAX and flax, without jaxmargin's own convolution and pooling."""
    simple: dict[str, Callable[[jax.Array], jax.Array]] = {
        "relu": jax.nn.relu,
        "max_pool": functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2)),
        "flatten": lambda x: x.reshape(1, -1),
    }

    def forward(params: Any, x: jax.Array) -> jax.Array:
        x, layers = x[None], network.layers(params)
        layer: Any
        for layer in layers:
            if layer.kind == "conv":
                layout = ("NHWC", "HWIO", "NHWC")
                x = jax.lax.conv_general_dilated(x, layer.kernel, (1, 1), layer.padding, dimension_numbers=layout)
                x = x + layer.bias
            elif layer.kind == "dense":
                x = x @ layer.kernel + layer.bias
            else:
                x = simple[layer.kind](x)
        return x[0]

    return forward


def _margins(logits: np.ndarray, largest: np.ndarray, ys: np.ndarray, radius: float) -> np.ndarray:
    """[n] the signed margins from logits [n, c] and the largest slopes [n, c] of the differences to the predicted."""
    predicted = logits.argmax(1)
    gaps = np.take_along_axis(logits, predicted[:, None], 1) - logits
    others = np.arange(logits.shape[1]) != predicted[:, None]
    distance = np.divide(gaps, largest, out=np.full(gaps.shape, np.inf, np.float32), where=others & (largest > 0))
    signed: np.ndarray = np.where(predicted == ys, 1, -1) * np.minimum(distance.min(1), radius)
    return signed


# PyTorch -------------------------------------------------------------------------------------------------------------


def torch_device() -> str:
    """Where PyTorch computes: on a GPU if it sees one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_torch_threads(peer: Peer, xs: np.ndarray, ys: np.ndarray) -> int:
    """Gives PyTorch all cores, or one if ``peer`` is faster so: where others hold a core, waiting for it costs much."""
    import torch

    seconds = {}
    for threads in dict.fromkeys((os.cpu_count() or 1, 1)):
        torch.set_num_threads(threads)
        seconds[threads] = min(timed(peer, xs, ys) for _ in range(2))
    fastest = min(seconds, key=lambda threads: seconds[threads])
    torch.set_num_threads(fastest)
    return fastest


def torch_loop(network: Trained, samples: np.ndarray, radius: float) -> Peer:
    """What one would write in PyTorch with care: one forward pass a chunk, one backward pass a rival class.

    The weights need no gradients, so that backward passes go to the input alone; everything stays on the device.
    """
    import torch

    net, device = torch_network(network), torch_device()
    drawn = torch.from_numpy(channels_first(samples)).to(device)

    def largest(x: Any, predicted: int, num_classes: int) -> np.ndarray:
        best = torch.zeros(num_classes, device=device)
        rivals = [k for k in range(num_classes) if k != predicted]
        for start in range(0, len(drawn), CHUNK):
            points = (x + drawn[start : start + CHUNK]).requires_grad_()
            logits = net(points)
            for k in rivals:
                difference = (logits[:, predicted] - logits[:, k]).sum()
                (gradient,) = torch.autograd.grad(difference, points, retain_graph=k != rivals[-1])
                best[k] = torch.maximum(best[k], gradient.flatten(1).norm(dim=1).max())
        largest: np.ndarray = best.cpu().numpy()
        return largest

    def measure(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        inputs = torch.from_numpy(channels_first(xs)).to(device)
        with torch.no_grad():
            logits = net(inputs).cpu().numpy()
        found = [largest(x, int(row.argmax()), len(row)) for x, row in zip(inputs, logits, strict=True)]
        return _margins(logits, np.stack(found), ys, radius)

    return measure


def torch_network(network: Trained) -> Any:
    """The same network in PyTorch, held against the original at ten images.

    PyTorch's images are [n, c, h, w]; the rows of the dense layer behind ``flatten`` are reordered to match.
    """
    import torch
    from torch import nn as tnn

    torch.backends.cudnn.allow_tf32 = False  # float32, as all others compute
    layers = network.layers(network.params)
    simple: dict[str, Callable[[], Any]] = {
        "relu": tnn.ReLU,
        "max_pool": lambda: tnn.MaxPool2d(2),
        "flatten": tnn.Flatten,
    }
    before = [network.model.input_shape, *shapes(layers, network.model.input_shape)]
    modules, image = [], before[0]
    layer: Any
    for layer, shape in zip(layers, before, strict=False):
        if layer.kernel is None:
            modules.append(simple[layer.kind]())
            image = shape if layer.kind == "flatten" else image
            continue
        kernel = np.array(layer.kernel)
        if layer.kind == "conv":
            module: Any = tnn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=layer.padding.lower())
            weight = kernel.transpose(3, 2, 0, 1)
        else:
            module = tnn.Linear(*kernel.shape)
            weight = kernel.T
            if len(image) == 3:  # directly behind flatten
                weight = weight.reshape(-1, *image).transpose(0, 3, 1, 2).reshape(weight.shape)
                image = ()
        module.weight.data, module.bias.data = torch.tensor(weight.copy()), torch.tensor(np.array(layer.bias))
        modules.append(module)
    net = tnn.Sequential(*modules).eval().requires_grad_(False).to(torch_device())
    images = network.images[:10]
    theirs = net(torch.from_numpy(channels_first(images)).to(torch_device())).cpu().numpy()
    with jax.default_matmul_precision("float32"):
        expected = np.asarray(jax.vmap(functools.partial(network.model.apply, network.params))(images))
    np.testing.assert_allclose(theirs, expected, rtol=1e-4, atol=1e-4)
    return net


def channels_first(images: np.ndarray) -> np.ndarray:
    """[n, h, w, c] -> [n, c, h, w], as PyTorch has images."""
    return np.array(images.transpose(0, 3, 1, 2), order="C")


# The Adversarial Robustness Toolbox ----------------------------------------------------------------------------------


def art_clever(network: Trained, num_samples: int, radius: float) -> Peer:
    """CLEVER of the Adversarial Robustness Toolbox, ``clever_u``: every rival class in turn, from samples of its own.

    ART takes gradients at a pool of pool_factor * batch_size samples a class, pool_factor of them together. The pool
    here has num_samples, CHUNK of them together (ART's default is 10, which makes more and smaller calls). The score
    comes from a Weibull distribution fitted to nb_batches maxima of batch_size, nb_batches * batch_size = num_samples
    as well: it is no maximum, and so near our margins but not equal to them.
    """
    from art.estimators.classification import PyTorchClassifier

    return _art_scores(_art_classifier(PyTorchClassifier, network), num_samples, radius)


def art_on_samples(
    network: Trained, samples: np.ndarray, radius: float
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """CLEVER from given offsets, to compare: (xs, ys) -> margins from the largest slopes it saw [n], and its scores."""
    from art.estimators.classification import PyTorchClassifier

    class Watched(PyTorchClassifier):  # type: ignore[misc]
        """Notes the largest slope of each pair of calls, for the predicted class and then for a rival."""

        def class_gradient(self, x: np.ndarray, label: Any = None, **options: Any) -> np.ndarray:
            gradients: np.ndarray = super().class_gradient(x, label=label, **options)
            if label == self.predicted:
                self.reference = gradients
            else:
                slopes = np.linalg.norm((self.reference - gradients).reshape(len(x), -1), axis=1)
                self.largest[label] = max(self.largest[label], slopes.max())
            return gradients

    classifier = _art_classifier(Watched, network)
    given = channels_first(samples).reshape(len(samples), -1).astype(float)
    scores_of = _art_scores(classifier, len(samples), radius)

    def measure(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = classifier.predict(channels_first(xs))
        largest, scores = np.zeros_like(logits), np.zeros(len(xs))
        for i, classifier.largest in enumerate(largest):
            classifier.predicted = int(logits[i].argmax())
            with mock.patch("art.metrics.metrics.random_sphere", lambda **_: given.copy()):
                scores[i] = scores_of(xs[i : i + 1], ys[i : i + 1])[0]
        return _margins(logits, largest, ys, radius), scores

    return measure


def _art_classifier(kind: type, network: Trained) -> Any:
    from torch.nn import CrossEntropyLoss

    height, width, channels = network.model.input_shape
    options: dict[str, Any] = dict(input_shape=(channels, height, width), nb_classes=network.model.num_classes)
    device = "gpu" if torch_device() == "cuda" else "cpu"
    return kind(model=torch_network(network), loss=CrossEntropyLoss(), device_type=device, **options)


def _art_scores(classifier: Any, num_samples: int, radius: float) -> Peer:
    from art.metrics import clever_u

    settings: dict[str, Any] = dict(nb_batches=CHUNK, batch_size=num_samples // CHUNK, pool_factor=CHUNK)
    settings |= dict(radius=radius, norm=2, verbose=False)

    def scores(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        images = channels_first(xs)
        signs = np.where(classifier.predict(images).argmax(1) == ys, 1, -1)
        found: np.ndarray = signs * np.array([clever_u(classifier, image, **settings) for image in images])
        return found

    return scores
