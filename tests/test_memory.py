"""What a program holds at once does not grow with its samples or its examples: compiled as for users."""

import functools

import jax
import numpy as np
import pytest
from helpers import random_params

import jaxmargin as jm
from jaxmargin import models


def held(run, *arguments):
    """The bytes of what the program of a function holds besides its arguments and results."""
    return jax.jit(run).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("measure", [jm.local_lipschitz, jm.radial_margin])
def test_samples_are_held_a_chunk_at_a_time(measure, tiny, key):
    def run(params, key, x, num_samples):
        logits_fn = functools.partial(tiny.model.apply, params)
        return measure(logits_fn, key, x, 0, num_samples=num_samples, chunk_size=256)

    few, many = (held(functools.partial(run, num_samples=n), tiny.params, key, tiny.xs[0]) for n in (1024, 51_200))
    assert few > 256 * tiny.xs[0].size * 4  # the analysis does see the chunk
    assert many <= 1.1 * few


@pytest.mark.slow
def test_many_certificates_take_no_more_memory_than_a_few_beyond_what_they_return(key):
    model = models.mlp((28, 28, 1))
    params, xs = random_params(model), np.zeros((1000, 28, 28, 1), np.float32)

    def one(params, key, x, y):
        return jm.certified_margin(functools.partial(model.apply, params), key, x, y)

    few, many = (held(jax.vmap(one, (None, None, 0, 0)), params, key, xs[:n], np.zeros(n, int)) for n in (200, 1000))
    assert many < few + 800 * 784 * 8 * 4  # the inputs themselves, in float64, a few times
