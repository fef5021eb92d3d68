"""Classifiers, points and comparisons that many tests share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin import models


def flipped(content, bit):
    """Some bytes, one bit of them another."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flip(path):
    """Flips a bit in the middle of a file."""
    content = path.read_bytes()
    path.write_bytes(flipped(content, 4 * len(content)))


class Linear(NamedTuple):
    """An affine classifier f(x) = W x + b in float64, with points and labels."""

    weights: np.ndarray
    biases: np.ndarray
    xs: np.ndarray
    ys: np.ndarray

    @staticmethod
    def apply(params, x):
        weights, biases = params
        return weights @ x + biases

    @property
    def params(self):
        return jnp.asarray(self.weights, jnp.float32), jnp.asarray(self.biases, jnp.float32)

    @property
    def logits(self):
        """[n, c] in float64."""
        return self.xs @ self.weights.T + self.biases

    def right(self):
        """The same classifier, every label the predicted one."""
        return self._replace(ys=np.argmax(self.logits, 1))

    def margins(self, dual_order):
        """Closed-form signed margins: the sign of the prediction times min_k (f_p - f_k) / ||w_p - w_k||_*."""
        margins = []
        for scores, y in zip(self.logits, self.ys, strict=True):
            p = np.argmax(scores)
            slopes = np.linalg.norm(self.weights[p] - np.delete(self.weights, p, 0), dual_order, axis=1)
            distance = np.min((scores[p] - np.delete(scores, p)) / slopes)
            margins.append(distance if p == y else -distance)
        return np.array(margins)


def random_linear(num_classes, dimension=6, n=20, seed=0):
    """Weights of unlike sizes, in values that float32 holds exactly: both precisions see the same classifier."""
    rng = np.random.default_rng((seed, num_classes))
    weights = rng.normal(size=(num_classes, dimension)) * rng.uniform(0.5, 3, (num_classes, 1))
    biases, xs = rng.normal(size=num_classes), rng.normal(size=(n, dimension))
    weights, biases, xs = (np.float64(np.float32(array)) for array in (weights, biases, xs))
    ys = np.argmax(xs @ weights.T + biases, 1)
    ys[::3] = rng.integers(0, num_classes, len(ys[::3]))  # some of them wrong
    return Linear(weights, biases, xs, ys)


def random_params(model, seed=0):
    """Normal parameters in the shapes of ``model.init``, of deviation 1/sqrt(fan_in); ``init`` compiles slowly."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), jnp.float32)

    return jax.tree.map(fill, jax.eval_shape(model.init, jax.random.key(0)))


class Tiny(NamedTuple):
    """A tiny mlp with points and labels."""

    model: models.Model
    params: dict
    xs: jax.Array
    ys: jax.Array

    @property
    def predicted(self):
        """[n] the class that the mlp sees in each point, as numpy sees it."""
        params, xs = jax.tree.map(np.asarray, (self.params, self.xs))
        first, second = params["Dense_0"], params["Dense_1"]
        hidden = np.maximum(xs.reshape(len(xs), -1) @ first["kernel"] + first["bias"], 0)
        return np.argmax(hidden @ second["kernel"] + second["bias"], 1)


def tiny_mlp():
    """An mlp of 16 hidden units on 4 x 3 inputs, four classes, with nine points."""
    model = models.mlp((4, 3), 4, hidden=16)
    rng = np.random.default_rng(7)
    xs, ys = rng.normal(size=(9, 4, 3)).astype(np.float32), rng.integers(0, 4, 9)
    return Tiny(model, random_params(model), jnp.asarray(xs), jnp.asarray(ys))


def assert_same_bits(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def paraboloid(x):
    """f_0 - f_1 = |x|^2 / 2, whose gradient is x."""
    return jnp.stack([jnp.sum(x * x) / 2, jnp.zeros(())])
