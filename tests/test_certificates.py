"""Certificates against distances that are known, and against everything that could be closer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import distance, random_net
from helpers import random_linear, random_params

import jaxmargin as jm
from jaxmargin import models
from jaxmargin.certificates.rounding import double_precision

NORMS = {"l2": (jm.l2, 2), "linf": (jm.linf, 1), "l1": (jm.l1, np.inf)}  # orders of the dual
norms = pytest.mark.parametrize(("norm", "dual"), NORMS.values(), ids=NORMS)
HIDDEN = 5
CNN = models.cnn((8, 8, 1), 3, widths=(4, 8), hidden=16)
MLP = models.mlp((8, 8, 1), 3, hidden=32)
# A cnn compiles slowly.
CASES = {"mlp l2": (MLP, "l2"), "mlp linf": (MLP, "linf"), "mlp l1": (MLP, "l1"), "cnn l2": (CNN, "l2")}
cases = pytest.mark.parametrize(("model", "name"), CASES.values(), ids=CASES)


def params_of(net):
    """A net of tests/exact.py as parameters of ``models.mlp((2,), c)``."""
    layers = (net.hidden, net.hidden_bias), (net.output, net.output_bias)
    return {
        f"Dense_{i}": {"kernel": np.float32(weights.T), "bias": np.float32(bias)}
        for i, (weights, bias) in enumerate(layers)
    }


@functools.cache
def measure(num_classes, **options):
    """Certificates of n networks of one shape, each at its own points: (params [n], xs [n, m, 2])."""
    apply_fn = models.mlp((2,), num_classes, hidden=HIDDEN).apply

    def one(params, x):
        return jm.certified_margin(functools.partial(apply_fn, params), jax.random.key(0), x, 0, **options)

    return jax.jit(jax.vmap(jax.vmap(one, (None, 0))))


def stacked(nets):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(params_of, nets))


def pairs(num_classes, n=60, m=2):
    """n random nets with m points each, (nets, xs [n, m, 2])."""
    rng = np.random.default_rng((3, num_classes))
    nets = [random_net(rng, HIDDEN, num_classes) for _ in range(n)]
    return nets, np.float32(rng.normal(size=(n, m, 2)) * 2)


def digits_like(model, n=12, seed=0):
    """Points of the network's shape with their predicted classes, about as many of each: the boundary is near."""
    params = random_params(model)
    xs = np.float32(np.random.default_rng(seed).uniform(size=(n, *model.input_shape)))
    last = f"Dense_{sum(name.startswith('Dense') for name in params) - 1}"
    logits = jax.vmap(model.apply, (None, 0))(params, xs)
    params = params | {last: params[last] | {"bias": params[last]["bias"] - logits.mean(0)}}
    ys = np.asarray(jax.vmap(model.apply, (None, 0))(params, xs).argmax(1))
    return params, xs, ys


@functools.cache
def certified(model, **options):
    def one(params, key, x, y):
        return jm.certified_margin(functools.partial(model.apply, params), key, x, y, **options)

    return jax.jit(jax.vmap(one, (None, None, 0, 0)))


def _options(name):
    """None for the default, which other tests have compiled."""
    return {} if name == "l2" else {"norm": NORMS[name][0]}


# Exact distances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 4])
@norms
def test_an_affine_network_is_measured_exactly(norm, dual, num_classes, key):
    linear = random_linear(num_classes)
    params = {"Dense_0": {"kernel": linear.params[0].T, "bias": linear.params[1]}}
    found = certified(models.linear((6,), num_classes), norm=norm)(params, key, np.float32(linear.xs), linear.ys)
    exact = np.abs(linear.margins(dual))
    assert found.distance.dtype == jnp.float32
    assert (np.float64(found.distance) <= exact).all()
    np.testing.assert_allclose(found.distance, exact, rtol=1e-6)
    np.testing.assert_array_equal(found.predicted, np.argmax(linear.xs @ linear.weights.T + linear.biases, 1))
    assert found.supported.all()


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5])
def test_no_certificate_is_beyond_the_exact_distance(num_classes):
    nets, xs = pairs(num_classes)
    exact = np.array([[distance(net, np.float64(x)) for x in points] for net, points in zip(nets, xs, strict=True)])
    found = measure(num_classes, radius=20.0)(stacked(nets), xs)
    for bound in (found.distance, found.spectral, found.relaxed):
        assert (np.float64(bound) <= exact).all()
    assert (found.distance == np.maximum(found.spectral, found.relaxed)).all()
    finite = np.isfinite(exact) & (exact < 20)
    assert finite.mean() > 0.7
    assert np.median(found.relaxed[finite] / exact[finite]) > 0.7
    assert np.median(found.spectral[finite] / exact[finite]) > 0.1
    assert (found.distance > 0).all()


@pytest.mark.parametrize("scale", [2.0**-14, 2.0**14])
def test_huge_and_tiny_logits_are_certified_as_well(scale):
    nets, xs = pairs(3)
    scaled = [
        net._replace(output=net.output * scale, hidden=net.hidden * scale, hidden_bias=net.hidden_bias * scale,
                     output_bias=net.output_bias * scale**2)
        for net in nets
    ]  # fmt: skip
    np.testing.assert_array_equal(measure(3)(stacked(scaled), xs).predicted, measure(3)(stacked(nets), xs).predicted)
    for one, other in zip(measure(3)(stacked(scaled), xs), measure(3)(stacked(nets), xs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_far_from_the_origin_rounding_breaks_no_certificate():
    far = 2.0**13
    nets, xs = pairs(3)
    nets = [type(net)(*(np.round(part * 64) / 64 for part in net)) for net in nets]  # few bits: shifts are exact
    xs = np.float32(np.round(xs * 64) / 64)
    shifted = [net._replace(hidden_bias=net.hidden_bias - net.hidden @ [far, far]) for net in nets]
    exact = np.array([[distance(net, np.float64(x)) for x in points] for net, points in zip(nets, xs, strict=True)])
    here, there = measure(3)(stacked(nets), xs), measure(3)(stacked(shifted), np.float32(xs + far))
    assert (np.float64(xs + np.float32(far)) == np.float64(xs) + far).all()
    assert (np.float64(there.distance) <= exact).all()
    same = here.predicted == there.predicted  # the network itself is float32, and loses digits here
    assert same.mean() > 0.95
    np.testing.assert_allclose(there.distance[same], here.distance[same], rtol=1e-5)


def crown(net, x, radius):
    """Zhang et al. 2018 for one hidden layer in l2: the smallest lower bound of f_p - f_k on B(x, radius)."""
    p = np.argmax(net.logits(x[None])[0])
    value, reach = net.hidden @ x + net.hidden_bias, radius * np.linalg.norm(net.hidden, axis=1)
    low, high = value - reach, value + reach
    crossing = (low < 0) & (high > 0)
    upper = np.where(crossing, high / (high - low), low >= 0)
    lower = np.where(crossing, high > -low, low >= 0)
    bounds = []
    for k in set(range(len(net.output))) - {p}:
        v = net.output[p] - net.output[k]
        slope = v * np.where(v > 0, lower, upper)
        offset = np.sum(np.where((v < 0) & crossing, -v * upper * low, 0))
        constant = slope @ net.hidden_bias + offset + net.output_bias[p] - net.output_bias[k]
        gradient = slope @ net.hidden
        bounds.append(gradient @ x + constant - radius * np.linalg.norm(gradient))
    return min(bounds)


def test_one_hidden_layer_gets_the_bound_of_crown():
    nets, xs = pairs(3)
    found = measure(3, num_steps=30)(stacked(nets), xs)
    for net, points, radii in zip(nets, np.float64(xs), np.float64(found.relaxed), strict=True):
        for x, radius in zip(points, radii, strict=True):
            assert crown(net, x, radius) > 0
            assert radius > 4.99 or crown(net, x, radius * 1.001) < 0


# Everything that could be closer --------------------------------------------------------------------------------------


@cases
def test_no_attack_is_closer_than_a_certificate(model, name, key):
    norm = NORMS[name][0]
    params, xs, ys = digits_like(model)
    found = certified(model, **_options(name))(params, key, xs, ys)
    assert found.supported.all()
    assert (found.distance > 0).all()
    assert (found.relaxed > found.spectral).mean() > 0.5
    epsilon = {"l2": 2.0, "linf": 0.3, "l1": 10.0}[name]
    options = dict(norm=norm, epsilon=epsilon, step_size=epsilon / 20, num_steps=40, loss="logit_margin")
    attack = jm.over_batch(jm.pgd, model.apply, **options)(params, key, xs, ys)
    assert attack.found.any()
    assert (attack.distance >= found.distance).all()


@cases
def test_the_class_is_the_same_all_over_the_certified_ball(model, name, key):
    norm = NORMS[name][0]
    params, xs, ys = digits_like(model)
    found = certified(model, **_options(name))(params, key, xs, ys)
    offsets = jax.vmap(lambda key: norm.sample_ball(key, model.input_shape))(jax.random.split(key, 400))
    offsets = offsets / jax.vmap(norm.size)(offsets)[:, None, None, None]
    run = jax.jit(jax.vmap(jax.vmap(lambda z: model.apply(params, z))))
    zs = xs[:, None] + np.asarray(found.distance)[:, None, None, None, None] * np.asarray(offsets)[None]
    assert (run(zs).argmax(2) == ys[:, None]).all()


@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
def test_scaling_the_last_layer_moves_no_certificate(model, key):
    params, xs, ys = digits_like(model)
    last = f"Dense_{len([name for name in params if name.startswith('Dense')]) - 1}"
    reference = certified(model)(params, key, xs, ys)
    for scale in (0.25, 4.0, 64.0, 1024.0):  # powers of two: others would round the weights
        scaled = params | {last: jax.tree.map(lambda leaf: leaf * scale, params[last])}  # noqa: B023
        found = certified(model)(scaled, key, xs, ys)
        for name in ("distance", "spectral", "relaxed"):
            np.testing.assert_allclose(getattr(found, name), getattr(reference, name), rtol=2e-6)


def test_more_steps_never_lower_a_certificate_and_a_larger_radius_hardly_does(key):
    params, xs, ys = digits_like(MLP)
    few, many = (certified(MLP, num_steps=steps)(params, key, xs, ys).relaxed for steps in (1, 16))
    assert (few <= many).all()
    assert (few < many).any()
    default = certified(MLP)(params, key, xs, ys).relaxed
    np.testing.assert_allclose(default, many, rtol=2e-2)  # ten halvings of the logarithm of 5 over the first guess
    small = certified(MLP, radius=0.01)(params, key, xs, ys).relaxed
    assert (small <= 0.01).all()
    assert (small > 0.0099)[many > 0.01].all()


# Corners -------------------------------------------------------------------------------------------------------------


def test_a_label_does_not_matter(key):
    params, xs, ys = digits_like(MLP)
    first, second = (certified(MLP)(params, key, xs, labels) for labels in (ys, (ys + 1) % 3))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_black_box_and_an_unknown_norm_are_not_supported(key):
    params, xs, ys = digits_like(MLP)
    boxed = jm.over_batch(jm.certified_margin, lambda params, x: MLP.apply(params, x))(params, key, xs, ys)
    other = certified(MLP, norm=jm.l2._replace(size=lambda x: 2 * jm.l2.size(x)))(params, key, xs, ys)
    for found in (boxed, other):
        assert not found.supported.any()
        assert (found.distance == 0).all()
        assert (found.spectral == 0).all()
        assert (found.relaxed == 0).all()
        np.testing.assert_array_equal(found.predicted, ys)


def test_constant_logits_are_infinitely_far_from_any_boundary_and_a_tie_is_on_it(key):
    params, xs, ys = digits_like(MLP)
    flat = jax.tree.map(jnp.zeros_like, params)
    apart = {**flat, "Dense_1": {**flat["Dense_1"], "bias": jnp.array([0.0, 1.0, 0.5])}}
    assert (certified(MLP)(flat, key, xs, ys).distance == 0).all()
    found = certified(MLP)(apart, key, xs, ys)
    assert (found.distance == np.inf).all()
    assert (found.predicted == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("layer", ["Conv_0", "Conv_3", "Dense_0", "Dense_2"])
def test_weights_that_are_not_finite_give_nan(layer, bad, key):
    params, xs, ys = digits_like(CNN)
    for part in ("kernel", "bias"):
        broken = params | {layer: params[layer] | {part: params[layer][part].at[..., 0].set(bad)}}
        found = certified(CNN)(broken, key, xs, ys)
        assert np.isnan(found.distance).all()


def test_float64_stays_inside(key):
    params, xs, ys = digits_like(MLP)
    logits_fn = functools.partial(MLP.apply, params)
    for x in (xs[0], jnp.asarray(xs[0]), np.float64(xs[0]), jnp.full((8, 8, 1), 0.5) * 1.0):
        found = jm.certified_margin(logits_fn, key, x, 0)
        assert found.distance.dtype == jnp.float32
        assert found.predicted.dtype == jnp.int32
    assert jnp.ones(1).dtype == jnp.float32
    with double_precision():
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        found = jm.certified_margin(functools.partial(MLP.apply, double), key, jnp.asarray(np.float64(xs[0])), 0)
    assert found.distance.dtype == jnp.float64
    np.testing.assert_allclose(found.distance, certified(MLP)(params, key, xs, ys).distance[0], rtol=1e-5)


def test_what_depends_on_the_weights_alone_is_worked_out_once_for_all_examples(key):
    params, xs, _ = digits_like(CNN, n=7)

    def one(params, x):
        return jm.certified_margin(functools.partial(CNN.apply, params), key, x, 0)

    program = str(jax.make_jaxpr(jax.vmap(one, (None, 0)))(params, xs))
    # Of the first convolution, 1 x 4 channels at the 10 x 6 frequencies of its torus.
    assert "f64[60,1,1]" in program
    assert "f64[7,60,1,1]" not in program


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_steps=0), "num_steps=0 must be a whole number"),
        (dict(num_steps=2.0), "num_steps=2.0 must be a whole number"),
        (dict(radius=0.0), "radius=0.0 must be finite"),
        (dict(radius=np.inf), "radius=inf must be finite"),
    ],
)
def test_bad_options_are_refused(options, message, key):
    params, xs, ys = digits_like(MLP)
    with pytest.raises(ValueError, match=message):
        jm.over_batch(jm.certified_margin, MLP.apply, **options)(params, key, xs, ys)


def test_over_a_batch_and_in_chunks_of_it_nothing_changes(key):
    params, xs, ys = digits_like(MLP, n=70)
    run = jm.over_batch(jm.certified_margin, MLP.apply, batch_size=64)
    for one, other in zip(run(params, key, xs, ys), certified(MLP)(params, key, xs, ys), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    with pytest.raises(ValueError, match="NaN"):
        run(jax.tree.map(lambda leaf: leaf * np.nan, params), key, xs, ys)


def test_many_examples_take_no_more_memory_than_a_few_beyond_what_they_return(key):
    model = models.mlp((28, 28, 1))
    params, xs = random_params(model), np.zeros((1000, 28, 28, 1), np.float32)

    def taken(n):
        compiled = certified(model).lower(params, key, xs[:n], np.zeros(n, int)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert taken(1000) < taken(200) + 800 * 784 * 8 * 4  # the inputs themselves, in float64, a few times
