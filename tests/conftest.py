"""Strictness for every test, and the small classifiers that many tests share."""

import jax
import pytest
from helpers import random_linear, tiny_mlp
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# The same cases each time in the suite; --hypothesis-profile=long draws new ones. What compiles takes its time.
lasting = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("suite", max_examples=300, derandomize=True, database=None, **lasting)
settings.register_profile("long", max_examples=5000, **lasting)
settings.load_profile("suite")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
    # Another worker may be in the middle of writing what this one reads: it is compiled once more.
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry")


def pytest_make_parametrize_id(config, val):
    """Options by what they hold, functions in them by name: their addresses differ between the workers."""
    if isinstance(val, dict):
        return ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in val.items())
    return None


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def linear():
    """A random asymmetric linear classifier of three classes in six dimensions, with twenty points."""
    return random_linear(3)


@pytest.fixture(scope="session")
def tiny():
    return tiny_mlp()
