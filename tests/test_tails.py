"""Peaks over a threshold: predictions of a maximum against maxima that were drawn, and sums that no order changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmargin.lipschitz import tails

pytestmark = pytest.mark.hurried

N, SEEN, TRIALS = 51_200, 256, 300


def drawn(name):
    """[trials, N] samples of a known law."""
    rng = np.random.default_rng(0)
    laws = dict(
        exponential=lambda: rng.exponential(size=(TRIALS, N)),
        normal=lambda: 10 + rng.normal(size=(TRIALS, N)),
        uniform=lambda: rng.uniform(size=(TRIALS, N)),
    )
    return laws[name]().astype(np.float32)


@jax.jit
def foretold(first):
    """The largest of the first samples, and its rise as predicted."""
    over, unit = tails.threshold(first), jnp.max(first)
    seen = tails.tail(first, jnp.ones(len(first), bool), over, unit, N)
    return seen.largest, tails.predicted_increase(seen, unit, N, N / len(first))


@pytest.mark.parametrize("law", ["exponential", "normal", "uniform"])
def test_the_largest_of_many_hardly_ever_exceeds_what_the_first_foretell(law):
    samples = drawn(law)
    largest, rise = jax.vmap(foretold)(jnp.asarray(samples[:, :SEEN]))
    assert (samples.max(1) > largest + rise).mean() <= 1 / TRIALS
    assert (samples.max(1) > largest).mean() > 0.9  # and it does rise


def test_without_its_safety_the_prediction_is_right_on_average_for_an_exponential_tail():
    samples = drawn("exponential")
    largest, rise = jax.vmap(foretold)(jnp.asarray(samples[:, :SEEN]))
    error = np.mean(samples.max(1) - largest) / np.mean(rise / tails.SAFETY)
    assert abs(error - 1) < 0.1


@pytest.mark.parametrize("cuts", [[1000], [1, 2, 997, 998, 999], list(range(7, 1000, 7))], ids=["whole", "few", "many"])
def test_the_order_and_the_parts_change_no_bit(cuts):
    rng = np.random.default_rng(0)
    samples = rng.gamma(2.0, size=1000).astype(np.float32)
    over, unit = np.float32(2.0), samples[:100].max()
    whole = tails.tail(jnp.asarray(samples), jnp.ones(1000, bool), over, unit, N)
    parts = [rng.permutation(part) for part in np.split(rng.permutation(samples), cuts) if len(part)]
    merged = tails.nothing((), jnp.float32)
    for part in parts:
        merged = tails.merge(merged, tails.tail(jnp.asarray(part), jnp.ones(len(part), bool), over, unit, N))
    assert whole == merged
    assert whole.above == (samples > over).sum()


def test_samples_that_do_not_count_are_passed_over():
    samples, counts = jnp.array([1.0, 9.0, 2.0]), jnp.array([True, False, True])
    seen = tails.tail(samples, counts, jnp.array(0.5), jnp.array(1.0), 3)
    assert seen.largest == 2
    assert seen.above == 2


def test_nan_is_kept():
    samples = jnp.full(8192, 1.0).at[3].set(jnp.nan)  # XLA's CPU backend drops NaN from a large maximum
    seen = tails.tail(samples, jnp.ones(8192, bool), jnp.array(0.5), jnp.array(1.0), 8192)
    assert np.isnan(seen.largest)
    assert np.isnan(tails.merge(seen, tails.nothing((), jnp.float32)).largest)
    assert np.isnan(tails.merge(tails.nothing((), jnp.float32), seen).largest)


def test_a_slope_never_seen_to_be_other_than_zero_may_rise_without_limit():
    seen = tails.tail(jnp.zeros(256), jnp.ones(256, bool), jnp.array(0.0), jnp.array(0.0), N)
    assert tails.predicted_increase(seen, jnp.array(0.0), N, 200.0) == np.inf
    assert tails.predicted_increase(seen, jnp.array(0.0), N, 1.0) == 0


def test_constant_samples_are_not_expected_to_rise():
    seen = tails.tail(jnp.full(256, 3.0), jnp.ones(256, bool), jnp.array(3.0), jnp.array(3.0), N)
    assert tails.predicted_increase(seen, jnp.array(3.0), N, 200.0) == 0


@pytest.mark.parametrize("total", [1, 64, 51_200, 10**8])
def test_sums_of_excesses_never_overflow(total):
    share = tails.tail(jnp.array([1e9]), jnp.ones(1, bool), jnp.array(0.0), jnp.array(1.0), total)
    assert 0 < int(share.excess) * total < 2**31
