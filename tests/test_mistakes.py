"""Typical mistakes with every measure: an error that names the argument, its value and the remedy, before any work.

A new measure is covered by its name in MEASURES.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmargin as jm
from jaxmargin.lab.training import init_state, train_epoch

pytestmark = pytest.mark.hurried

MEASURES = {
    "linear_margin": {}, "lipschitz_margin": dict(num_samples=64), "radial_margin": dict(num_samples=64),
    "block_maxima": dict(num_blocks=2, block_size=64), "certified_margin": {}, "bracket": dict(num_samples=64),
    "pgd": dict(epsilon=0.5), "apgd": dict(epsilon=0.5), "worst_case": dict(epsilon=0.5), "square": dict(epsilon=0.5),
    "ddn": {}, "fmn": {}, "deepfool": {}, "minimum_norm": {},
}  # fmt: skip
measures = pytest.mark.parametrize("name", MEASURES)

W = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
XS, YS = np.float32([[0.5, 0.25], [0.125, 1.0]]), np.array([0, 2])


def linear(w, x):
    return w @ x


def refused(name, parts, apply_fn=linear, key=None, xs=XS, ys=YS, call=None, **options):
    """What over_batch says, when it is built or called."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        run = jm.over_batch(getattr(jm, name), apply_fn, **MEASURES[name] | options)
        run(W, jax.random.key(0) if key is None else key(), xs, ys, **call or {})
    for part in parts:
        assert part in str(caught.value)


def test_every_public_measure_is_here():
    first = ["logits_fn", "key", "x", "y"]
    public = {name for name in jm.__all__ if inspect.isfunction(getattr(jm, name))}
    found = {name for name in public if list(inspect.signature(getattr(jm, name)).parameters)[:4] == first}
    assert found - {"bisect_boundary"} == set(MEASURES)


@measures
@pytest.mark.parametrize("norm", ["l2", 2, np.inf, None])
def test_a_norm_that_is_none(name, norm):
    said = [f"norm={norm!r} is not a norm", "jaxmargin.l2"]
    refused(name, said, norm=norm)
    with pytest.raises(ValueError, match="is not a norm: pass jaxmargin.l2"):
        getattr(jm, name)(lambda x: W @ x, jax.random.key(0), XS[0], 0, **MEASURES[name], norm=norm)


@measures
@pytest.mark.parametrize(
    ("key", "said"),
    [(lambda: 0, "key is int 0"), (lambda: np.zeros(3, np.uint32), "uint32[3]"), (lambda: "seed", "str 'seed'")],
    ids=["number", "three words", "text"],
)
def test_a_key_that_is_none(name, key, said):
    refused(name, [said, "pass jax.random.key(0)"], key=key)


@measures
@pytest.mark.parametrize(
    ("examples", "parts"),
    [
        (dict(xs=XS.tolist()), ["xs is a list", "np.asarray(xs)"]),
        (dict(ys=YS.tolist()), ["ys is a list", "np.asarray(ys)"]),
        (dict(xs=XS[0]), ["xs has shape (2,)", "[n, *d]"]),
        (dict(xs=XS[:0], ys=YS[:0]), ["xs is empty"]),
        (dict(xs=XS[:, :0]), ["xs has shape (2, 0)", "without entries"]),
        (dict(ys=YS[:1]), ["xs holds 2 examples and ys 1 labels"]),
        (dict(xs=XS.astype(np.uint8)), ["x has dtype uint8", "x / 255"]),
        (dict(xs=XS * np.nan), ["images are not finite"]),
        (dict(ys=np.array([0, 3])), ["labels lie in [0, 3], outside [0, 2]"]),
        (dict(ys=np.array([-1, 1])), ["labels lie in [-1, 1], outside [0, 2]"]),
        (dict(ys=np.float32(YS)), ["labels have dtype float32", "integer classes"]),
        (dict(ys=np.eye(3)[YS]), ["ys has shape (2, 3)", "one integer class per example"]),
    ],
)
def test_examples_that_are_none(name, examples, parts):
    refused(name, parts, **examples)


@measures
@pytest.mark.parametrize(
    ("apply_fn", "parts"),
    [
        (lambda w, x: (w @ x, {}), ["returns a tuple", "f(params, x)[0]"]),
        (lambda w, x: {"logits": w @ x}, ["returns a dict"]),
        (jm.from_batched(lambda w, xs: (xs @ w.T, {})), ["batched classifier returns a tuple", "from_batched(lambda"]),
        (lambda w, x: (w @ x)[0], ["logits have shape ()", "[-s / 2, s / 2]"]),
        (lambda w, x: (w @ x)[:1], ["c=1 class", "[-s / 2, s / 2]"]),
        (lambda w, xs: xs @ w.T @ xs.T @ xs, ["apply_fn fails on one example of shape (2,)", "from_batched"]),
        (lambda w, x: jnp.argmax(w @ x)[None], ["logits have dtype int32", "before any argmax"]),
        (lambda w, x: jax.nn.softmax(w @ x), ["look like probabilities", "before the softmax"]),
        (lambda w, x: w @ x / 0, ["logits are not finite", "check params"]),
    ],
    ids=["tuple", "dict", "batched tuple", "score", "one class", "batched", "classes", "softmax", "infinite"],
)
def test_classifiers_that_are_none(name, apply_fn, parts):
    refused(name, parts, apply_fn=apply_fn)


@measures
def test_options_that_it_does_not_have_or_cannot_take_so(name):
    refused(name, ["has no option radios", "it takes"], radios=1.0)
    refused(name, ["norm is compiled into the measure", "pass it to over_batch"], call=dict(norm=jm.linf))
    refused(name, ["batch_size=0 must be a whole number"], batch_size=0)
    if "box" in inspect.signature(getattr(jm, name)).parameters:
        refused(name, ["box=(1.0, 0.0) is empty", "low < high"], box=(1.0, 0.0))
        refused(name, ["box=(0.0, inf) is not finite", "None for no box"], box=(0.0, np.inf))
        refused(name, ["box=3 is not a pair of numbers"], box=3)


@measures
@pytest.mark.parametrize("y", [-1, 3])
def test_a_class_that_is_not_there(name, y):
    with pytest.raises(ValueError, match=rf"y={y} is outside \[0, 2\], the classes of the logits"):
        getattr(jm, name)(lambda x: W @ x, jax.random.key(0), XS[0], y, **MEASURES[name])


def test_a_reference_that_is_no_class_is_refused_and_nan_under_a_trace(key):
    def constants(reference):
        return jm.local_lipschitz(lambda x: W @ x, jax.random.clone(key), jnp.zeros(2), reference, num_samples=64)

    for reference in (-1, 3):
        with pytest.raises(ValueError, match=rf"reference={reference} is outside \[0, 2\]"):
            constants(reference)
        assert np.isnan(jax.jit(constants)(reference)).all()
    np.testing.assert_allclose(jax.jit(constants)(1), [np.sqrt(5), 0, np.sqrt(10)], rtol=1e-6)


def test_measure_and_classifier_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"measure=linear takes 2 arguments .* wants a function \(logits_fn, key"):
        jm.over_batch(linear, jm.pgd, epsilon=1.0)


def test_labels_are_looked_at_inside_of_a_jit_too(key):
    run = jm.over_batch(jm.linear_margin, linear)
    margins = jax.jit(lambda w: run(w, key, XS, YS).margin)(W)
    np.testing.assert_array_equal(margins, run(W, jax.random.clone(key), XS, YS).margin)
    with pytest.raises(ValueError, match=r"labels lie in \[0, 7\]"):
        jax.jit(lambda w: run(w, jax.random.clone(key), XS, np.array([0, 7])).margin)(W)
    scanned = jax.lax.scan(lambda carry, w: (carry, run(w, jax.random.clone(key), XS, YS).margin), 0, W[None])[1]
    np.testing.assert_allclose(scanned[0], margins, rtol=1e-6)


def test_what_rounding_moved_out_of_the_box_is_clipped(key):
    xs = np.float32([[-3e-8, 1.0], [0.5, 1 + 1.2e-7]])
    found = jm.over_batch(jm.deepfool, linear, box=(0.0, 1.0))(W, key, xs, np.array([2, 2]))
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    with pytest.raises(ValueError, match="outside box"):
        jm.over_batch(jm.deepfool, linear, box=(0.0, 1.0))(W, jax.random.clone(key), xs - np.float32(1e-4), YS)


def test_margins_that_are_none():
    yes, ones = jnp.ones(2, bool), jnp.ones((2, 3))
    for bad, function in ((np.nan, jm.summarize), (np.nan, jm.histogram), (np.inf, jm.histogram)):
        with pytest.raises(ValueError, match="margins"):
            function(jm.Margins(jnp.array([1.0, bad]), YS, yes, ones))
    assert jm.summarize(jm.Margins(jnp.array([1.0, np.inf]), YS, yes, ones)).average == np.inf
    with pytest.raises(ValueError, match="bins=10000000000 is more than a histogram can show"):
        jm.histogram(jm.Margins(jnp.ones(2), YS, yes, ones), bins=10**10)


def test_a_certificate_of_another_function_is_none(key):
    model = jm.models.linear((2,), 3)

    def lying(scale):
        def apply_fn(w, x):
            return w @ x

        apply_fn.layers = lambda w: model.layers({"Dense_0": {"kernel": scale * w.T, "bias": jnp.zeros(3)}})
        return apply_fn

    honest, other = (jm.over_batch(jm.certified_margin, lying(scale))(W, key, XS, YS) for scale in (1.0, 0.01))
    assert honest.supported.all() and (honest.distance > 0).all()
    assert not other.supported.any() and (other.distance == 0).all()


# Training -----------------------------------------------------------------------------------------------------------

IMAGES = jnp.zeros((5, 2), jnp.uint8)


def trained(labels, apply_fn=linear, optimizer=None):
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    epoch = train_epoch(apply_fn, jm.objectives.standard(), optimizer, batch_size=2, scale=1.0)
    return epoch(init_state(W, optimizer, jax.random.key(1), 5), IMAGES, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (jnp.array([-1, 1, 1, -1, 1]), r"labels lie in \[-1, 1\], outside \[0, 2\]"),
        (jnp.array([1, 2, 3, 1, 2]), r"labels lie in \[1, 3\], outside \[0, 2\]"),
        (jnp.eye(3)[jnp.zeros(5, int)], r"labels have dtype float32 and shape \(5, 3\): pass integer classes"),
        ([0, 1, 2, 0, 1], "labels is a list: pass an array"),
    ],
)
def test_labels_of_training_are_looked_at(labels, message):
    with pytest.raises(ValueError, match=message):
        trained(labels)


def test_what_training_starts_from_survives():
    params, key = jax.tree.map(jnp.copy, {"w": W}), jax.random.key(1)
    epoch = train_epoch(lambda p, x: p["w"] @ x, jm.objectives.standard(), optax.sgd(0.1), batch_size=2, scale=1.0)
    losses = [epoch(init_state(params, optax.sgd(0.1), key, 5), IMAGES, jnp.zeros(5, int))[1] for _ in range(2)]
    np.testing.assert_array_equal(*losses)
    np.testing.assert_array_equal(params["w"], W)


def test_a_function_of_params_and_x_trains_like_one_with_a_key():
    labels = jnp.array([0, 1, 2, 0, 1])
    plain, keyed = trained(labels), trained(labels, lambda w, x, key: w @ x)
    np.testing.assert_array_equal(plain[0].params, keyed[0].params)


def test_an_optimiser_that_asks_for_the_loss_gets_it():
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, accumulation_size=1))
    state, losses = trained(jnp.array([0, 1, 2, 0, 1]), optimizer=optimizer)
    assert np.isfinite(losses).all()
    assert state.opt_state[1].best_value < np.inf


def test_a_classifier_without_gradients_is_told_to_be_attacked_without(key):
    def looping(w, x):
        return jax.lax.while_loop(lambda turn: turn[0] < 1, lambda turn: (turn[0] + 1, w @ x), (0, w @ x))[1]

    flag = jm.health_check(looping, W, XS, YS)[-1]
    assert flag.name == "zero gradients" and flag.raised and "square" in flag.remedy
