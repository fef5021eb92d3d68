"""Strictness for every test, and the small classifiers that many tests share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmargin import models

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Programs that several tests compile, which takes most of their time, are compiled once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# Files that look at decisions, or at numbers far above rounding: compiled in a hurry, in two thirds of the time. What
# rests on bits, rounding or memory is compiled as for users.
HURRIED = {
    "test_adapters", "test_adaptive", "test_adversarial", "test_api", "test_attacks", "test_audit", "test_case_study",
    "test_endpoints", "test_experiments", "test_extremes", "test_health", "test_margins", "test_max_margin", "test_mma",
    "test_nearest", "test_paper", "test_pgd", "test_readme", "test_residual", "test_results",
    "test_rivals", "test_robustness", "test_slopes", "test_toy_classifier", "test_training",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def forgotten(request):
    """What a file's tests have compiled leaves the memory with them."""
    jax.config.update("jax_disable_most_optimizations", request.module.__name__ in HURRIED)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


def pytest_make_parametrize_id(config, val):
    """Options by what they hold, functions in them by name: their addresses differ between the workers."""
    if isinstance(val, dict):
        return ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in val.items())
    return None


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

    def margins(self, dual_order):
        """Closed-form signed margins: the sign of the prediction times min_k (f_p - f_k) / ||w_p - w_k||_*."""
        logits = self.xs @ self.weights.T + self.biases  # [n, c]
        margins = []
        for scores, y in zip(logits, self.ys, strict=True):
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


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def linear():
    """A random asymmetric linear classifier of three classes in six dimensions, with twenty points."""
    return random_linear(3)


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


@pytest.fixture(scope="session")
def tiny():
    """An mlp of 16 hidden units on 4 x 3 inputs, four classes, with nine points."""
    model = models.mlp((4, 3), 4, hidden=16)
    rng = np.random.default_rng(7)
    xs, ys = rng.normal(size=(9, 4, 3)).astype(np.float32), rng.integers(0, 4, 9)
    return Tiny(model, random_params(model), jnp.asarray(xs), jnp.asarray(ys))
