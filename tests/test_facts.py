"""What is called found is a fact of the classifier as it was given; ``benchmarks.facts`` asks many of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmargin as jm
from jaxmargin.attacks.base import Attack, target_of
from jaxmargin.batching.facts import confirmed

pytestmark = pytest.mark.hurried

XS = np.random.default_rng(0).uniform(size=(16, 8, 8, 1)).astype(np.float32)


class Convolutional(nnx.Module):
    """Convolution, batch normalisation as when measuring, ReLU and a dense layer, computed in a dtype."""

    def __init__(self, dtype):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(1, 8, (3, 3), dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(8, dtype=dtype, rngs=rngs)
        self.dense = nnx.Linear(512, 5, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.dense(x.reshape(len(x), -1)).astype(jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "options", "dtype"),
    [
        (jm.minimum_norm, dict(num_steps=20), jnp.float32),
        (jm.deepfool, {}, jnp.bfloat16),
    ],
    ids=["nearest", "deepfool in half precision"],
)
def test_the_network_itself_misclassifies_all_that_is_found(attack, options, dtype, key):
    net = Convolutional(dtype)
    net.eval()
    ask = nnx.jit(lambda net, x: jnp.argmax(net(x), 1))
    ys = np.asarray(ask(net, XS))
    found = jm.over_batch(attack, *jm.from_nnx(net)[:1], **options)(jm.from_nnx(net)[1], key, XS, ys)
    assert found.found.mean() > 0.5
    at = np.asarray(found.x_adv)[found.found]
    one_by_one = np.concatenate([ask(net, x[None]) for x in at])
    for seen in (ask(net, at), np.argmax(net(at), 1), one_by_one):
        np.testing.assert_array_equal(seen != ys[found.found], True)


# Asked in a program of its own --------------------------------------------------------------------------------------


def line(threshold):
    """Class 1 beyond a threshold of the first coordinate; asks are counted."""

    def classes(xs):
        classes.asked += 1
        return (xs[:, 0] > threshold).astype(int)

    classes.asked = 0
    return classes


def attack_at(*places):
    x_adv = np.float32([[place, 0.0] for place in places])
    return Attack(jnp.asarray(x_adv), jnp.full(len(places), True), jnp.asarray(np.abs(x_adv[:, 0])))


XS_OF_LINE, YS_OF_LINE = np.zeros((3, 2), np.float32), np.zeros(3, int)


def test_what_holds_is_left_alone():
    attack, classes = attack_at(1.1, 1.2, 1.3), line(1.0)
    assert confirmed(attack, XS_OF_LINE, YS_OF_LINE, classes, jm.l2, np.inf, None) is attack
    assert classes.asked == 1


def test_what_does_not_hold_is_tried_farther_out():
    found = confirmed(attack_at(0.999, 1.2, 1.0), XS_OF_LINE, YS_OF_LINE, line(1.0), jm.l2, np.inf, None)
    assert found.found.all()
    assert (np.asarray(found.x_adv)[:, 0] > 1).all()
    np.testing.assert_array_equal(found.distance, np.asarray(found.x_adv)[:, 0])
    assert found.distance[0] < 1.002 and found.distance[2] < 1.00001 and found.distance[1] == np.float32(1.2)


@pytest.mark.parametrize(("epsilon", "box"), [(1.0, None), (np.inf, (-1.0, 1.0))])
def test_what_would_leave_the_ball_or_the_box_is_not_found(epsilon, box):
    found = confirmed(attack_at(1.0, 1.2, 0.5), XS_OF_LINE, YS_OF_LINE, line(1.0), jm.linf, epsilon, box)
    np.testing.assert_array_equal(found.found, [False, True, False])
    np.testing.assert_array_equal(found.distance, np.float32([np.inf, 1.2, np.inf]))


def test_over_batch_asks_the_classifier_that_it_was_given(key):
    """A classifier that sees other classes when it is asked by itself than inside of a search."""
    w = jnp.array([[3.0, 4.0], [0.0, 0.0]])

    def two_faced(w, x):
        return w @ x + jnp.array([0.0 if jax.config.jax_default_matmul_precision == "float32" else 0.1, 0.0])

    x = np.float32([[1.0, 0.5]])
    found = jm.over_batch(jm.deepfool, two_faced, overshoot=1e-4)(w, key, x, np.zeros(1, int))
    logits = w @ found.x_adv[0]
    assert found.found[0] and logits[0] + 0.1 < 0
    assert 1.02 < found.distance[0] < 1.1  # the boundary is 0.02 farther away than the search saw


def test_a_bracket_is_confirmed_too():
    certified, estimated = jnp.full(3, 0.1), jnp.full(3, 1.05)
    flags = jnp.zeros(3, bool)
    bracket = jm.Bracket(
        certified=certified, estimated=estimated, attacked=jnp.float32([0.999, 1.2, 1.0]), contradicts=flags,
        predicted=jnp.zeros(3, int), capped=flags, supported=~flags, x_adv=attack_at(0.999, 1.2, 1.0).x_adv,
    )  # fmt: skip
    found = confirmed(bracket, XS_OF_LINE, YS_OF_LINE, line(1.0), jm.l2, np.inf, None)
    assert (np.asarray(found.x_adv)[:, 0] > 1).all()
    np.testing.assert_allclose(found.attacked, np.asarray(found.x_adv)[:, 0])
    np.testing.assert_array_equal(found.contradicts, [True, False, True])


# What rounding may change -------------------------------------------------------------------------------------------


def test_the_coarsest_precision_on_the_way_to_the_logits_counts():
    def half_inside(x):
        return jax.lax.map(lambda x: jnp.tanh(x.astype(jnp.bfloat16)).astype(jnp.float32), x)

    def rounding(logits_fn):
        return target_of(logits_fn, jnp.ones(3), 0, jm.l2, None).rounding

    assert rounding(jnp.tanh) == 32 * np.finfo(np.float32).eps
    assert rounding(half_inside) == 8 * 2.0**-7
    assert rounding(lambda x: jnp.tanh(x).astype(jnp.float16)) == 8 * 2.0**-10


def test_a_tie_and_what_rounding_may_turn_are_not_misclassified():
    target, high = target_of(lambda x: x, jnp.ones(3), 0, jm.l2, None)._replace(rounding=0.01), np.float32(100)
    for other, wrong in ((90.0, False), (100.0, False), (100.9, False), (102.0, True), (np.inf, False)):
        assert target.misclassified(jnp.float32([high, other, -1e30])) == wrong
    assert target.misclassified(jnp.float32([high, 100.9, 0.0]), 0.5)


# Any precision ------------------------------------------------------------------------------------------------------


@functools.cache
def linear_in(example, weights):
    """(weights, examples, classes, exact distances in l2) of three classes, as the dtypes hold them."""
    rng = np.random.default_rng(0)
    w, xs = jnp.asarray(rng.normal(size=(3, 8)), weights), jnp.asarray(rng.uniform(size=(6, 8)), example)
    logits = np.float64(xs) @ np.float64(w).T
    ys = logits.argmax(1)
    slopes = np.linalg.norm(np.float64(w)[ys][:, None] - np.float64(w), axis=2)
    ratios = (logits.max(1, keepdims=True) - logits) / np.where(slopes > 0, slopes, 1)
    return w, xs, ys, np.min(np.where(slopes > 0, ratios, np.inf), 1)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [jm.ddn, jm.deepfool, jm.fmn])
@pytest.mark.parametrize(
    ("example", "weights"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")],
)
def test_distances_are_right_to_the_coarser_precision(attack, example, weights, key):
    w, xs, ys, distances = linear_in(example, weights)
    found = jm.over_batch(attack, lambda w, x: w @ x)(w, key, xs, ys)
    assert found.x_adv.dtype == example and found.distance.dtype == jnp.float32 and found.found.all()
    coarser = max(float(jnp.finfo(kind).eps) for kind in (example, weights))
    ratios = found.distance / distances
    assert (ratios > 1 - 16 * coarser).all() and np.median(ratios) < 1.05 + 32 * coarser


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1.0, 1e6, 1e15])
@pytest.mark.parametrize("norm", [jm.l2, jm.linf, jm.l1], ids=["l2", "linf", "l1"])
def test_sizes_and_margins_of_many_scales(norm, scale, key):
    w, xs, _, _ = linear_in("float32", "float32")
    order, dual = {jm.l2: (2, 2), jm.linf: (np.inf, 1), jm.l1: (1, np.inf)}[norm]
    np.testing.assert_allclose(norm.size(scale * xs[0]) / scale, np.linalg.norm(xs[0], order), rtol=1e-5)
    found = jm.linear_margin(lambda x: w @ (x / scale), key, scale * xs[0], 0, norm=norm)
    plain = jm.linear_margin(lambda x: w @ x, key, xs[0], 0, norm=norm)
    np.testing.assert_allclose(found.margin / scale, plain.margin, rtol=1e-5)
    np.testing.assert_allclose(found.lipschitz * scale, plain.lipschitz, rtol=1e-5)
    np.testing.assert_allclose(norm.size(norm.project(scale * xs[0], 0.1 * scale)) / scale, 0.1, rtol=1e-5)


def test_half_precision_images_of_many_pixels_have_their_margin(key):
    w = (20 * jax.random.normal(jax.random.key(2), (3, 784))).astype(jnp.float16)
    x = jax.random.uniform(jax.random.key(1), (784,)).astype(jnp.float16)
    logits = np.float64(w) @ np.float64(x)
    best = logits.argmax()
    others = [k for k in range(3) if k != best]
    exact = min((logits[best] - logits[k]) / np.linalg.norm(np.float64(w[best]) - np.float64(w[k])) for k in others)
    found = jm.linear_margin(lambda x: w @ x, key, x, best)
    np.testing.assert_allclose(found.margin, exact, rtol=0.02)


def test_a_radius_far_below_the_entries_is_kept_in_l1():
    projected = jm.l1.project(jnp.full(6, -6554.4653), 0.001953125)
    np.testing.assert_allclose(projected, -0.001953125 / 6, rtol=1e-6)
