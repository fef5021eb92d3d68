"""A loop over chunks against plain ``vmap``."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmargin.batching.chunks import in_chunks
from jaxmargin.xla_cpu.rows import by_rows

pytestmark = pytest.mark.hurried


def one(w, x):
    return {"sum": w @ x, "largest": jnp.max(x)}


@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)])
@pytest.mark.parametrize("size", [1, 3, 4, 7, 100])
def test_chunks_of_any_size_give_what_vmap_gives(size, axes):
    rng = np.random.default_rng(0)
    w, x = (np.float32(rng.integers(-9, 9, shape if axis is None else (7, *shape)))
            for axis, shape in zip(axes, ((2, 3), (3,)), strict=True))  # fmt: skip
    chunked = in_chunks(one, size, contextlib.nullcontext)
    for run in (jax.vmap(chunked, axes), jax.jit(jax.vmap(chunked, axes)), jax.vmap(jax.jit(chunked), axes)):
        jax.tree.map(np.testing.assert_array_equal, run(w, x), jax.vmap(one, axes)(w, x))


def test_a_vmap_around_another_works_too():
    w, x = np.float32(np.arange(24).reshape(4, 2, 3)), np.float32(np.arange(15).reshape(5, 3))
    chunked = in_chunks(one, 2, contextlib.nullcontext)
    nested = [jax.vmap(jax.vmap(f, (None, 0)), (0, None))(w, x) for f in (chunked, one)]
    jax.tree.map(np.testing.assert_array_equal, *nested)


def test_no_more_than_a_chunk_is_worked_on_at_once():
    def wide(x):
        return jnp.sum(jnp.sin(jnp.full(1000, x)))

    program = str(jax.make_jaxpr(jax.vmap(in_chunks(wide, 3, contextlib.nullcontext)))(np.ones(30, np.float32)))
    assert "f32[3,1000]" in program
    assert "f32[30,1000]" not in program


def test_rows_that_matter_are_computed_whatever_the_chunk():
    xs = jnp.arange(24.0).reshape(12, 2)
    for rows in (1, 3, 4, 12, 50):
        found = jax.jit(lambda xs, count, rows=rows: by_rows(jnp.square, (xs,), count, rows))(xs, 5)
        np.testing.assert_array_equal(found[:5], xs[:5] ** 2)
        behind = -(-5 // rows) * rows
        np.testing.assert_array_equal(found[behind:], 0)  # nobody asked for them, and nobody computed them


def test_rows_have_a_gradient():
    xs = jnp.arange(8.0).reshape(4, 2)
    slope = jax.grad(lambda xs: jnp.sum(by_rows(jnp.square, (xs,), 4, 2)))(xs)
    np.testing.assert_array_equal(slope, 2 * xs)
