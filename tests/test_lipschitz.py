"""Sampled local Lipschitz constants against exact ones, and the promises about samples, chunks and memory."""

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import paraboloid, random_linear
from nets import RADIUS, nets_of, sampled

import jaxmargin as jm
from jaxmargin.certificates.rounding import double_precision
from jaxmargin.lipschitz.sampling import default_chunk_size

pytestmark = pytest.mark.hurried


def everything():
    return [nets_of(num_classes) for num_classes in (2, 3, 5)]


nets = pytest.mark.parametrize("num_classes", [2, 3, 5])


# The enumeration itself -----------------------------------------------------------------------------------------------


def test_the_enumerated_distance_is_that_of_a_fine_grid():
    steps = np.linspace(-2, 2, 201)
    offsets = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    lengths = np.linalg.norm(offsets, axis=1)
    compared = 0
    for net, x, distance in zip(nets_of(3).nets[:20], nets_of(3).xs, nets_of(3).distances, strict=False):
        predicted = net.logits(x[None]).argmax()
        others = net.logits(x + offsets).argmax(1) != predicted
        if not others.any():
            assert distance > 1.9
            continue
        assert distance <= lengths[others].min()  # no grid point of another class is nearer than the boundary
        assert lengths[others].min() < distance + 0.05 or distance > 1.9
        compared += 1
    assert compared > 5


def test_the_enumerated_constants_are_those_of_a_fine_grid():
    steps = np.linspace(-RADIUS, RADIUS, 201)
    offsets = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    offsets = offsets[np.linalg.norm(offsets, axis=1) < RADIUS]
    agree = []
    for net, x, constants in zip(nets_of(5).nets[:20], nets_of(5).xs, nets_of(5).constants, strict=False):
        active = (x + offsets) @ net.hidden.T + net.hidden_bias > 0  # [m, h]
        predicted = net.logits(x[None]).argmax()
        gradients = np.einsum("ch,mh,hd->mcd", net.output[predicted] - net.output, active, net.hidden)
        seen = np.linalg.norm(gradients, axis=2).max(0)
        assert (seen <= constants * (1 + 1e-12)).all()
        agree.append(np.allclose(seen, constants))
    assert np.mean(agree) > 0.9  # the grid may miss a sliver of a cell


# Sampled constants and margins against enumerated ones ----------------------------------------------------------------


@nets
def test_the_bound_with_exact_constants_never_exceeds_the_exact_distance(num_classes):
    found = nets_of(num_classes)
    assert (found.bounds <= found.distances * (1 + 1e-9)).all()
    assert (found.bounds > 0.999 * found.distances).mean() > 0.05  # and it is tight for some


@nets
def test_sampled_constants_never_exceed_the_exact_ones(num_classes):
    sampled, found = nets_of(num_classes).sampled(4096), nets_of(num_classes)
    np.testing.assert_array_equal(sampled.predicted, found.logits.argmax(1))
    assert (sampled.lipschitz <= found.constants * (1 + 1e-6) + 1e-6).all()


@nets
def test_sampled_margins_never_fall_below_the_bound_with_exact_constants(num_classes):
    sampled, found = nets_of(num_classes).sampled(4096), nets_of(num_classes)
    rounding = 1e-5 * np.abs(found.logits).max(1) / np.maximum(found.constants.max(1), 0.1) + 1e-6
    assert (sampled.margin >= found.bounds * (1 - 1e-6) - rounding).all()


def test_with_many_samples_in_the_plane_the_constants_are_nearly_always_exact():
    exact_everywhere = [
        np.isclose(nets.sampled(4096).lipschitz, nets.constants, rtol=1e-5, atol=1e-5).all(1) for nets in everything()
    ]
    assert np.mean(exact_everywhere) > 0.95


def test_an_estimate_can_exceed_the_exact_distance_and_more_samples_make_it_rare():
    def exceeds(nets, num_samples):
        return np.mean(nets.sampled(num_samples).margin > nets.distances * (1 + 1e-4))

    assert exceeds(nets_of(5), 2) > 0.03
    assert np.mean([exceeds(nets, 4096) for nets in everything()]) <= 0.005


def test_a_sliver_that_no_sample_hits_makes_the_estimate_exceed_the_exact_distance():
    # f_0 - f_1 falls from 1 to -1 between z_0 = 1/4 and 1/4 + 2^-20 and is flat elsewhere.
    width = 2.0**-20
    slope = 2 / width
    hidden, bias = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([-0.25, -0.25 - width])
    net = exact.Net(hidden, bias, np.array([[-slope, slope], [0.0, 0.0]]), np.array([1.0, 0.0]))
    margins = sampled([net] * 75, np.zeros((75, 2)), np.zeros(75, int), 4096)  # as many as others compile
    np.testing.assert_allclose(exact.distance(net, np.zeros(2)), 0.25, rtol=1e-5)
    assert exact.bound(net, np.zeros(2), RADIUS) < 1e-5
    assert (margins.margin == RADIUS).mean() > 0.9  # few hit it
    assert (margins.capped == (margins.margin == RADIUS)).all()


# Other classifiers with known slopes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "dual"), [(jm.l2, 2), (jm.linf, 1), (jm.l1, np.inf)], ids=["l2", "linf", "l1"])
def test_the_constants_of_a_linear_classifier_are_dual_norms_of_weight_differences(norm, dual, key):
    linear = random_linear(5)
    logits_fn = functools.partial(linear.apply, linear.params)
    measure = functools.partial(jm.local_lipschitz, logits_fn, norm=norm, num_samples=64)
    found = jax.jit(measure)(key, jnp.zeros(6), 2)
    expected = np.linalg.norm(linear.weights[2] - linear.weights, dual, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_reference_class_may_be_any_and_has_constant_zero(linear, key):
    logits_fn = functools.partial(linear.apply, linear.params)
    run = jax.jit(lambda key, reference: jm.local_lipschitz(logits_fn, key, jnp.zeros(6), reference, num_samples=64))
    for reference in range(3):
        found = run(key, reference)
        assert found[reference] == 0
        assert (np.delete(found, reference) > 0).all()


def test_the_constant_of_a_paraboloid_approaches_its_value_on_the_sphere_from_below(key):
    x, radius = jnp.array([3.0, 4.0]), 2.0
    measure = functools.partial(jm.local_lipschitz, paraboloid, radius=radius, num_samples=4096)
    found = jax.jit(measure)(key, x, 0)[1]
    assert 6.95 < found <= 7 * (1 + 1e-6)  # |x| + radius


def test_a_box_keeps_the_samples_among_valid_inputs(key):
    @jax.jit
    def run(key):
        centre, options = jnp.full(4, 0.5), dict(radius=3.0, num_samples=512)
        boxed = jm.local_lipschitz(paraboloid, key, centre, 0, box=(0.0, 1.0), **options)
        return boxed[1], jm.local_lipschitz(paraboloid, jax.random.clone(key), centre, 0, **options)[1]

    boxed, free = run(key)
    assert 1.5 < boxed <= 2 < free  # |(1, 1, 1, 1)| = 2


# Samples and chunks --------------------------------------------------------------------------------------------------


def test_more_samples_never_lower_an_estimate():
    few, many = (nets_of(5).sampled(num_samples).lipschitz for num_samples in (2, 4096))
    assert (few <= many).all()
    assert (few < many).any()


@pytest.mark.parametrize("num_samples", [64, 100, 1024, 51_200])
@pytest.mark.parametrize("entries", [1, 9 * 784, 999 * 3072])
def test_the_default_chunk_divides_the_samples(num_samples, entries):
    assert num_samples % default_chunk_size(num_samples, entries) == 0


def test_a_sample_count_without_a_useful_divisor_is_refused_with_one_that_has_it():
    with pytest.raises(ValueError, match=r"num_samples=1021 .*chunk_size.*num_samples=\d+") as caught:
        default_chunk_size(1021, 1)
    suggested = int(str(caught.value).rsplit("=", 1)[1])
    assert suggested >= 1021
    assert default_chunk_size(suggested, 1) >= 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(radius=0.0), r"radius=0.0 must be finite and greater than 0"),
        (dict(radius=-1.0), r"radius=-1.0 must be"),
        (dict(radius=float("nan")), r"radius=nan must be"),
        (dict(radius=float("inf")), r"radius=inf must be"),
        (dict(radius="wide"), r"radius='wide' is not a number"),
        (dict(num_samples=100, chunk_size=64), r"num_samples=100 is not a multiple of chunk_size=64"),
        (dict(num_samples=0), r"num_samples=0 must be a whole number of at least 1"),
        (dict(num_samples=64.0), r"num_samples=64.0 must be a whole number"),
        (dict(num_samples=64, chunk_size=-64), r"chunk_size=-64 must be a whole number of at least 1"),
    ],
)
def test_bad_options_are_refused_with_their_value(options, message, linear, key):
    with pytest.raises(ValueError, match=message):
        jm.local_lipschitz(functools.partial(linear.apply, linear.params), key, jnp.zeros(6), 0, **options)


def test_a_chunk_of_none_at_all_is_refused(linear, key):
    logits_fn = functools.partial(linear.apply, linear.params)
    with pytest.raises(ValueError, match="chunk_size=0"):
        jm.local_lipschitz(logits_fn, key, jnp.zeros(6), 0, num_samples=64, chunk_size=0)


def test_an_empty_box_is_refused(linear, key):
    logits_fn = functools.partial(linear.apply, linear.params)
    with pytest.raises(ValueError, match="box"):
        jm.local_lipschitz(logits_fn, key, jnp.zeros(6), 0, num_samples=64, box=(1.0, 0.0))


def test_half_precision_inputs_are_measured(key):
    weights = jnp.array([[1.0, 2.0], [0.0, -1.0]], jnp.bfloat16)
    x = jnp.zeros(2, jnp.bfloat16)
    measure = functools.partial(jm.local_lipschitz, lambda x: weights.astype(x.dtype) @ x, num_samples=64)
    found = jax.jit(measure)(key, x, 0)
    np.testing.assert_allclose(np.float32(found[1]), np.sqrt(10), rtol=0.01)


def test_float32_inputs_are_measured_where_float64_is_on(key):
    with double_precision():
        weights = jnp.array([[1.0, 2.0], [0.0, -1.0]], jnp.float32)
        measure = functools.partial(jm.local_lipschitz, lambda x: weights @ x, num_samples=64)
        found = jax.jit(measure)(key, jnp.zeros(2, jnp.float32), 0)
        np.testing.assert_allclose(found[1], np.sqrt(10), rtol=1e-6)


@pytest.mark.parametrize(("side", "rows"), [(56, 64), (700, 2)])
def test_a_small_chunk_is_filled_up_where_its_samples_are_small_only(side, rows):
    estimate = functools.partial(
        jm.local_lipschitz, lambda x: jnp.tanh(x.reshape(2, -1)).sum(1), num_samples=64, chunk_size=2
    )
    program = str(jax.make_jaxpr(estimate)(jax.random.key(0), jnp.zeros((side, side)), 0))
    held = {rows for rows in (2, 64) if f"f32[{rows},{side},{side}]" in program}
    assert held == {rows}
