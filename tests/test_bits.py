"""The same bits however the work is cut: what rests on the order of sums is compiled as for users.

``python -m benchmarks.bits`` tries every measure, on three networks and in more ways.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits, random_linear, random_params

import jaxmargin as jm
from jaxmargin import models

CNN = models.cnn((8, 8, 1), 3, widths=(4, 8), hidden=16)


def points(model, n):
    rng = np.random.default_rng(0)
    xs = np.float32(rng.normal(size=(n, *model.input_shape)))
    return random_params(model), jax.random.key(0), xs, rng.integers(0, model.num_classes, n)


# Batches and chunks ---------------------------------------------------------------------------------------------------


# XLA's CPU backend sums arrays below 4,096 entries in another order than large ones: few inputs are the hard case.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "sizes"),
    [(jm.lipschitz_margin, dict(num_samples=1024)), (jm.block_maxima, dict(num_blocks=2, block_size=512))],
    ids=["margin", "blocks"],
)
def test_neither_batch_nor_chunk_changes_a_bit(measure, sizes, tiny, key):
    first, second = (
        jm.over_batch(measure, tiny.model.apply, radius=2.0, chunk_size=chunk, batch_size=batch, **sizes)(
            tiny.params, jax.random.clone(key), tiny.xs, tiny.ys
        )
        for chunk, batch in ((16, 1), (128, 7))
    )
    assert_same_bits(first, second)
    assert len({leaf.tobytes() for leaf in np.asarray(first[0])}) == 9


@pytest.mark.slow
def test_neither_batch_nor_chunk_changes_a_bit_for_a_cnn():
    options = dict(radius=2.0, num_samples=64)
    first, second = (
        jm.over_batch(jm.lipschitz_margin, CNN.apply, chunk_size=chunk, batch_size=batch, **options)(*points(CNN, 5))
        for chunk, batch in ((16, 1), (64, 7))
    )
    assert_same_bits(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "options", "sizes"),
    [
        (jm.pgd, dict(epsilon=0.5, step_size=0.1, num_steps=10), (7, 1500)),
        (jm.worst_case, dict(epsilon=0.8, num_steps=20), (7, 1000)),
    ],
    ids=["pgd", "worst case"],
)
def test_the_batch_and_the_neighbours_change_no_bit_of_an_attack(attack, options, sizes, tiny):
    params, key, xs, _ = points(tiny.model, 72)
    ys = tiny._replace(xs=xs).predicted
    first, second = (
        jm.over_batch(attack, tiny.model.apply, batch_size=size, **options)(params, jax.random.clone(key), xs, ys)
        for size in sizes
    )
    assert 5 < first.found.sum() < 67
    assert_same_bits(first, second)


@pytest.mark.slow
def test_nor_where_hidden_layers_are_written_the_other_way_round(key):
    rng = np.random.default_rng(0)
    params = [np.float32(rng.normal(size=shape) / 15) for shape in ((300, 100), (5, 300))]
    xs = np.float32(rng.normal(size=(300, 100)))

    def apply_fn(params, x):
        return params[1] @ jax.nn.relu(params[0] @ x)

    ys = np.argmax(np.maximum(xs @ params[0].T, 0) @ params[1].T, 1)
    options = dict(epsilon=0.3, step_size=0.05, num_steps=9)
    runs = [jm.over_batch(jm.pgd, apply_fn, batch_size=batch_size, **options) for batch_size in (1, 300)]
    assert_same_bits(*(run(params, jax.random.clone(key), xs, ys) for run in runs))


def test_the_batch_does_not_change_a_bit_of_a_linear_margin():
    linear = random_linear(10, dimension=30, n=450)
    runs = [jm.over_batch(jm.linear_margin, linear.apply, batch_size=batch_size) for batch_size in (1, 200, 500)]
    first, *others = (run(linear.params, jax.random.key(0), np.float32(linear.xs), linear.ys) for run in runs)
    for result in others:
        assert_same_bits(result, first)


# Blocks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hidden", "norm"), [("gram", 7, jm.l2), ("mlp", 40, jm.linf), ("black box", 40, jm.l2)]
)
def test_the_largest_of_the_blocks_are_the_constants_of_the_same_key(name, hidden, norm):
    model = models.mlp((6, 5), 5, hidden=hidden)
    apply_fn = (lambda params, x: model.apply(params, x)) if name == "black box" else model.apply

    def measured(measure, **sizes):
        run = jm.over_batch(measure, apply_fn, norm=norm, radius=2.0, chunk_size=64, **sizes)
        return run(*points(model, 5))

    blocks = measured(jm.block_maxima, num_blocks=3, block_size=128)
    margins = measured(jm.lipschitz_margin, num_samples=384, exact=True)
    np.testing.assert_array_equal(blocks.maxima.max(1), margins.lipschitz)
    np.testing.assert_array_equal(blocks.predicted, margins.predicted)
    assert (blocks.maxima[:, 0] != blocks.maxima[:, 1]).any()
    if name == "gram":
        first = measured(jm.lipschitz_margin, num_samples=128, exact=True)
        np.testing.assert_array_equal(blocks.maxima[:, 0], first.lipschitz)


# NaN ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunk_size",
    [64, 8192],  # XLA's CPU backend drops NaN from a large maximum
)
def test_a_gradient_that_is_nan_anywhere_makes_the_constant_nan(chunk_size, key):
    def undefined_below_zero(x):
        return jnp.stack([jnp.sqrt(x[0]), x[1]])

    options = dict(radius=2.0, num_samples=8192, chunk_size=chunk_size)
    measure = jax.jit(lambda key: jm.local_lipschitz(undefined_below_zero, key, jnp.array([1.0, 0.0]), 0, **options))
    assert np.isnan(measure(key)[1])
