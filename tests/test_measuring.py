"""Measures over a split: cut and continued gives the same numbers; the sweep is pgd at each epsilon."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmargin as jm
from jaxmargin.lab.files import read_arrays, write_arrays
from jaxmargin.lab.measuring import measure


@pytest.fixture
def problem():
    key_w, key_x = jax.random.split(jax.random.key(0))
    w = jax.random.normal(key_w, (3, 5))
    return w, np.asarray(jax.random.normal(key_x, (150, 5))), np.arange(150) % 3


def linear(w, x):
    return w @ x


def test_a_cut_measurement_continues_and_ends_with_the_same_bits(problem, tmp_path):
    w, xs, ys = problem
    run = jm.over_batch(jm.lipschitz_margin, linear, num_samples=64, chunk_size=64, batch_size=16)
    key = jax.random.key(2)
    whole = measure(run, w, key, xs, ys, path=tmp_path / "whole.npz", label="whole")
    write_arrays(tmp_path / "cut.part", {name: value[:48] for name, value in whole.items()})
    cut = measure(run, w, key, xs, ys, path=tmp_path / "cut.npz", label="cut")
    assert whole.keys() == cut.keys() == set(jm.Margins._fields)
    for name in whole:
        np.testing.assert_array_equal(whole[name], cut[name])
    assert not (tmp_path / "cut.part").exists()
    np.testing.assert_array_equal(whole["margin"], run(w, key, jnp.asarray(xs), jnp.asarray(ys)).margin)


def test_an_interruption_keeps_every_finished_batch(problem, tmp_path):
    w, xs, ys = problem
    run = jm.over_batch(jm.linear_margin, linear, batch_size=16)

    class Interrupted:
        @staticmethod
        def batches(*arguments):
            for number, batch in enumerate(run.batches(*arguments)):
                if number == 1:
                    raise KeyboardInterrupt
                yield batch

    key, path = jax.random.key(2), tmp_path / "margins.npz"
    with pytest.raises(KeyboardInterrupt):
        measure(Interrupted(), w, key, xs, ys, path=path, label="")
    kept = read_arrays(path.with_suffix(".part"))["margin"]
    finished = [len(batch.margin) for batch in itertools.islice(run.batches(w, key, xs, ys), 1)]
    assert len(kept) == sum(finished) and not path.exists()
    margin = run(w, key, jnp.asarray(xs), jnp.asarray(ys)).margin
    np.testing.assert_array_equal(kept, margin[: len(kept)])
    np.testing.assert_array_equal(measure(run, w, key, xs, ys, path=path, label="")["margin"], margin)


def test_what_is_measured_already_is_only_read(problem, tmp_path):
    w, xs, ys = problem
    write_arrays(tmp_path / "done.npz", {"margin": np.array([7.0])})
    run = jm.over_batch(jm.linear_margin, linear)
    assert measure(run, w, jax.random.key(0), xs, ys, path=tmp_path / "done.npz", label="")["margin"] == [7.0]
    assert list(read_arrays(tmp_path / "done.npz")) == ["margin"]


def test_fields_and_open_options(problem, tmp_path):
    w, xs, ys = problem
    run = jm.over_batch(jm.pgd, linear, num_steps=5, step_size=0.1)
    key = jax.random.key(2)
    kept = measure(run, w, key, xs, ys, path=tmp_path / "a.npz", label="", fields=("found",), epsilon=0.5)
    assert list(kept) == list(read_arrays(tmp_path / "a.npz")) == ["found"]
    whole = jm.over_batch(jm.pgd, linear, num_steps=5, step_size=0.1, epsilon=0.5)(w, jax.random.clone(key), xs, ys)
    np.testing.assert_array_equal(kept["found"], whole.found)
