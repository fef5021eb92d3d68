"""``over_batch``: a point is measured alike among any others, nothing is traced twice, bad input is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits

import jaxmargin as jm

pytestmark = pytest.mark.hurried


def lipschitz(apply_fn, num_samples, chunk_size=None, batch_size=None):
    return jm.over_batch(
        jm.lipschitz_margin, apply_fn, radius=2.0, num_samples=num_samples, chunk_size=chunk_size, batch_size=batch_size
    )


@pytest.fixture(scope="module")
def traces():
    """One entry for each time that Python runs through the classifier of ``run``."""
    return []


@pytest.fixture(scope="module")
def run(tiny, traces):
    """Lipschitz margins of the tiny mlp in batches of four points."""

    def apply_fn(params, x):
        traces.append(x)
        return tiny.model.apply(params, x)

    return lipschitz(apply_fn, 64, 16, batch_size=4)


@pytest.fixture(scope="module")
def exact_run(tiny):
    """Margins of the tiny mlp's linearisation."""
    return jm.over_batch(jm.linear_margin, tiny.model.apply)


def test_a_point_is_measured_alike_alone_and_among_others(run, tiny, key):
    many = run(tiny.params, key, tiny.xs, tiny.ys)
    few = run(tiny.params, key, tiny.xs[:2], tiny.ys[:2])
    assert_same_bits(few, jax.tree.map(lambda leaf: leaf[:2], many))


def test_points_share_their_samples(run, tiny, key):
    xs = jnp.tile(tiny.xs[:1], (2, 1, 1))
    both = run(tiny.params, key, xs, tiny.ys[:2])
    assert_same_bits(both.lipschitz[0], both.lipschitz[1])
    other = run(tiny.params, jax.random.key(1), xs, tiny.ys[:2])
    assert (both.lipschitz != other.lipschitz).any()


def test_a_batch_gives_what_the_measure_gives_for_one_example(run, tiny, key):
    margins = run(tiny.params, key, tiny.xs, tiny.ys)
    options = dict(radius=2.0, num_samples=64, chunk_size=16)
    logits_fn = functools.partial(tiny.model.apply, tiny.params)
    one = jax.jit(lambda key, x, y: jm.lipschitz_margin(logits_fn, key, x, y, **options))(key, tiny.xs[3], tiny.ys[3])
    for field, value in one._asdict().items():
        np.testing.assert_allclose(value, getattr(margins, field)[3], rtol=1e-6, err_msg=field)


def test_inside_another_jit_the_result_is_the_same(run, tiny, key):
    outside = run(tiny.params, key, tiny.xs, tiny.ys)  # three batches, the last one filled up
    inside = jax.jit(run)(tiny.params, key, tiny.xs, tiny.ys)
    assert_same_bits(inside, outside)


def test_inside_another_jit_measures_side_by_side_give_the_same_to_rounding(exact_run, tiny, key):
    outside = exact_run(tiny.params, key, tiny.xs, tiny.ys)
    inside = jax.jit(exact_run)(tiny.params, key, tiny.xs, tiny.ys)
    np.testing.assert_array_equal(inside.predicted, outside.predicted)
    np.testing.assert_allclose(inside.margin, outside.margin, rtol=1e-5, atol=1e-6)


def test_a_run_can_be_mapped_over_parameters(exact_run, tiny, key):
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), tiny.params)
    both = jax.vmap(exact_run, (0, None, None, None))(twice, key, tiny.xs, tiny.ys)
    once = exact_run(tiny.params, key, tiny.xs, tiny.ys)
    np.testing.assert_allclose(both.margin[0], once.margin, rtol=1e-5)
    assert (both.lipschitz[1] != both.lipschitz[0]).any()


# Compiled once, cut anywhere ------------------------------------------------------------------------------------------


def test_other_parameters_and_another_n_trace_nothing(run, traces, tiny, key):
    first = run(tiny.params, key, tiny.xs, tiny.ys)
    assert traces
    traces.clear()
    second = run(jax.tree.map(lambda leaf: 2 * leaf, tiny.params), jax.random.key(1), tiny.xs[:6], tiny.ys[:6])
    assert not traces
    assert (second.lipschitz != first.lipschitz[:6]).any()  # and the new parameters were used


def test_nothing_is_compiled_but_what_looks_and_measures_and_what_puts_batches_together(tiny, key, caplog):
    run = jm.over_batch(jm.linear_margin, lambda params, x: tiny.model.apply(params, x), batch_size=2)
    many = np.tile(tiny.xs, (8, 1, 1)), np.tile(tiny.ys, 8)
    with jax.log_compiles():
        run(tiny.params, key, *many)
    compiled = [record.args[0] for record in caplog.records if record.msg.startswith("Compiling")]
    assert len(compiled) <= 4, compiled


def test_batches_concatenate_to_the_whole(run, tiny, key):
    parts = list(run.batches(tiny.params, key, tiny.xs, tiny.ys))
    assert [len(part.margin) for part in parts] == [4, 4, 1]
    whole = run(tiny.params, key, tiny.xs, tiny.ys)
    assert_same_bits(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), whole)


@pytest.mark.parametrize("first", [4, 5, 8])
def test_a_run_resumed_anywhere_gives_the_same_bits(first, run, tiny, key):
    parts = list(run.batches(tiny.params, key, tiny.xs, tiny.ys, first=first))
    whole = run(tiny.params, key, tiny.xs, tiny.ys)
    resumed = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    assert_same_bits(resumed, jax.tree.map(lambda leaf: leaf[first:], whole))


def test_nothing_is_left_to_measure_after_the_last(run, tiny, key):
    assert not list(run.batches(tiny.params, key, tiny.xs, tiny.ys, first=9))


def test_numpy_arrays_are_measured_like_jax_arrays(run, tiny, key):
    expected = run(tiny.params, key, tiny.xs, tiny.ys)
    assert_same_bits(run(tiny.params, key, np.asarray(tiny.xs), np.asarray(tiny.ys)), expected)


def test_a_measure_of_ones_own_is_lifted_too(linear, key):
    def scaled(logits_fn, key, x, y, *, factor):
        return {"logit": factor * logits_fn(x)[y], "draw": jax.random.uniform(key)}

    run = jm.over_batch(scaled, linear.apply, factor=3.0)
    result = run(linear.params, key, jnp.asarray(linear.xs, jnp.float32), linear.ys)
    logits = linear.xs @ linear.weights.T + linear.biases
    np.testing.assert_allclose(result["logit"], 3 * logits[np.arange(20), linear.ys], rtol=1e-5, atol=1e-5)
    assert len(np.unique(result["draw"])) == 20


# Bad input ------------------------------------------------------------------------------------------------------------


def measure(linear, key, apply_fn=None, *, xs=None, ys=None, of=jm.lipschitz_margin, **options):
    xs = jnp.asarray(linear.xs, jnp.float32) if xs is None else xs
    ys = linear.ys if ys is None else ys
    return jm.over_batch(of, apply_fn or linear.apply, **options)(linear.params, key, xs, ys)


XS = np.ones((4, 6), np.float32)
YS = np.zeros(4, int)


def with_value(value):
    xs = XS.copy()
    xs[2, 3] = value
    return xs


@pytest.mark.parametrize(
    ("xs", "ys", "message"),
    [
        (with_value(np.nan), YS, "images are not finite.*NaN or infinity.*clean"),
        (with_value(np.inf), YS, "images are not finite"),
        (XS, np.array([0, 1, 2, 3]), r"labels lie in \[0, 3\], outside \[0, 2\]"),
        (XS, np.array([0, -1, 2, 0]), r"labels lie in \[-1, 2\], outside \[0, 2\]"),
        (XS, np.zeros(4), "labels have dtype float.*integer classes"),
        (XS, np.eye(3, dtype=int)[[0, 1, 2, 0]], r"ys has shape \(4, 3\): expected \[n\]"),
        (XS, YS[:3], "xs holds 4 examples and ys 3 labels"),
        (XS[0], np.array(0), r"xs has shape \(6,\): expected \[n, \*d\]"),
        (XS[:, 0], YS, r"xs has shape \(4,\): expected \[n, \*d\]"),
        (XS[:0], YS[:0], "xs is empty: pass at least one example"),
        (np.full((4, 6), 255, np.uint8), YS, "x has dtype uint8: scale the input.*x / 255"),
    ],
)
def test_bad_examples_are_refused(xs, ys, message, linear, key):
    with pytest.raises(ValueError, match=message):
        measure(linear, key, xs=xs, ys=ys, num_samples=64)


@pytest.mark.parametrize(
    ("apply_fn", "message"),
    [
        (lambda params, x: params[0] @ x[None].T, r"logits have shape \(3, 1\).*expected \[c\].*from_batched"),
        (lambda params, x: x[0], r"logits have shape \(\).*expected \[c\]"),
        (lambda params, x: (params[0] @ x, x), r"logits have shape .*expected \[c\]"),
        (lambda params, x: x[:1], r"logits have c=1 class.*-s / 2, s / 2"),
        (lambda params, x: jnp.argsort(params[0] @ x), "logits have dtype int32.*before any argmax"),
        (lambda params, x: jax.nn.softmax(params[0] @ x), "logits look like probabilities.*before the softmax"),
        (lambda params, x: params[0] @ x * jnp.nan, "logits are not finite.*check params"),
        (lambda params, x: params[0] @ x + jnp.inf, "logits are not finite"),
    ],
    ids=["batched", "scalar", "pair", "one class", "integers", "probabilities", "NaN", "infinite"],
)
def test_a_bad_classifier_is_refused(apply_fn, message, linear, key):
    with pytest.raises(ValueError, match=message):
        measure(linear, key, apply_fn, ys=np.zeros(20, int), num_samples=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(radius=0), "radius=0 must be finite and greater than 0"),
        (dict(radius=-2.0), "radius=-2.0 must be"),
        (dict(num_samples=100, chunk_size=64), "num_samples=100 is not a multiple of chunk_size=64: change either"),
        (dict(of=jm.pgd, epsilon=0.0), "epsilon=0.0 must be finite and greater than 0"),
        (dict(of=jm.pgd, epsilon=-1.0), "epsilon=-1.0 must be"),
        (dict(of=jm.pgd, epsilon=1.0, loss="hinge"), "loss='hinge' is unknown: choose from cross_entropy"),
        (dict(batch_size=0), "batch_size=0 must be a whole number of at least 1"),
        (dict(batch_size=2.0), "batch_size=2.0 must be a whole number"),
        (dict(epsilon=1.0), "lipschitz_margin has no option epsilon: it takes .*radius"),
        (dict(radious=1.0, num_sample=3), "lipschitz_margin has no option num_sample, radious"),
    ],
)
def test_bad_options_are_refused(options, message, linear, key):
    with pytest.raises(ValueError, match=message):
        measure(linear, key, **options)


def test_an_option_without_default_must_be_given(linear, key):
    with pytest.raises((ValueError, TypeError), match="epsilon"):
        measure(linear, key, of=jm.pgd)


@pytest.mark.parametrize(
    ("of", "options"),
    [
        (jm.lipschitz_margin, dict(num_samples=64)),
        (jm.linear_margin, {}),  # XLA's CPU backend drops NaN from a minimum over 4,096 numbers or more
        (jm.pgd, dict(epsilon=1.0, num_steps=2, loss="logit_margin")),  # the argmax of NaN is class 0
    ],
    ids=["lipschitz_margin", "linear_margin", "pgd"],
)
def test_logits_that_turn_nan_later_are_refused_with_the_index(of, options, linear, key):
    def apply_fn(params, x):
        return linear.apply(params, x) + jnp.where(x[0] > 50, jnp.nan, 0.0)

    xs = np.float32(linear.xs)
    xs[17, 0] = 100.0
    with pytest.raises(ValueError, match="result of example 17 is NaN"):
        measure(linear, key, apply_fn, xs=xs, of=of, **options)


def test_shapes_are_checked_inside_another_jit_too(linear, key):
    run = jm.over_batch(jm.linear_margin, lambda params, x: x[:1])
    with pytest.raises(ValueError, match="c=1"):
        jax.jit(run)(linear.params, key, XS, YS)


def test_whole_logits_that_happen_to_sum_to_one_are_logits_all_the_same(key):
    run = jm.over_batch(jm.linear_margin, lambda w, x: w @ x)
    margins = run(jnp.eye(2), key, jnp.array([[1.0, 0.0]]), jnp.array([0]))
    np.testing.assert_allclose(margins.margin, np.sqrt(0.5), rtol=1e-6)
