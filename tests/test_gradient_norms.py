"""Faster forms of slopes against the general one, which knows nothing of a network's layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params

import jaxmargin as jm
from jaxmargin import models
from jaxmargin.layers import layers_of
from jaxmargin.lipschitz.gradient_norms import gradient_norms_of

pytestmark = pytest.mark.hurried

NORMS = pytest.mark.parametrize("norm", [jm.l2, jm.linf, jm.l1], ids=["l2", "linf", "l1"])
NETWORKS = {
    "wide": models.mlp((4, 3), 5, hidden=40),
    "narrow": models.mlp((6, 5), 5, hidden=7),  # here the Gram form is the cheaper one
    "linear": models.linear((4, 3), 5),
}


def sizes(logits_fn, model, norm, box=None):
    """[m, s] slopes of three differences at 100 samples, through the form that gradient_norms_of chooses."""

    @jax.jit
    def run(key, x):
        norms = gradient_norms_of(logits_fn, key, x.shape, x.dtype, norm=norm, radius=2.0, box=box)
        norm_of = norms.at(norms.features(x), norms.perturbations(jnp.arange(100)))
        return jnp.stack([norm_of(jnp.eye(5)[0] - jnp.eye(5)[k]) for k in range(1, 4)])

    x = np.random.default_rng(1).normal(size=model.input_shape)
    return np.asarray(run(jax.random.key(0), jnp.asarray(x, jnp.float32)))


@NORMS
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_shows_its_layers_has_the_slopes_of_a_black_box(name, norm):
    model = NETWORKS[name]
    params = random_params(model)
    shown = functools.partial(model.apply, params)
    hidden = lambda x: model.apply(params, x)  # noqa: E731
    assert layers_of(shown) is not None
    assert layers_of(hidden) is None
    np.testing.assert_allclose(sizes(shown, model, norm), sizes(hidden, model, norm), rtol=2e-5)


def test_the_gram_form_never_meets_the_inputs_again():
    model, found = NETWORKS["narrow"], {}
    params = random_params(model)
    shown = functools.partial(model.apply, params)
    for name, logits_fn in (("shown", shown), ("hidden", lambda x: shown(x))):

        def run(key, x, v, logits_fn=logits_fn):
            norms = gradient_norms_of(logits_fn, key, x.shape, x.dtype, norm=jm.l2, radius=2.0, box=None)
            return norms.at(norms.features(x), jnp.ones((64, *norms.features(x).shape)))(v)

        program = str(jax.make_jaxpr(run)(jax.random.key(0), jnp.zeros(model.input_shape), jnp.ones(5)))
        found[name] = "f32[64,6,5]" in program or "f32[64,30]" in program
    assert found == {"shown": False, "hidden": True}


def test_a_box_is_kept_by_a_network_that_shows_its_layers():
    model = NETWORKS["wide"]
    params = random_params(model)
    boxed = sizes(functools.partial(model.apply, params), model, jm.l2, box=(0.0, 0.5))
    np.testing.assert_allclose(boxed, sizes(lambda x: model.apply(params, x), model, jm.l2, box=(0.0, 0.5)), rtol=1e-6)
    assert (boxed != sizes(functools.partial(model.apply, params), model, jm.l2)).any()


@pytest.mark.parametrize(("name", "constant"), [("wide", False), ("linear", True)])
def test_only_an_affine_network_has_constant_slopes(name, constant):
    model = NETWORKS[name]
    logits_fn = functools.partial(model.apply, random_params(model))
    options = dict(norm=jm.l2, radius=1.0, box=None)
    norms = gradient_norms_of(logits_fn, jax.random.key(0), model.input_shape, jnp.float32, **options)
    assert norms.constant is constant


def test_a_margin_of_an_affine_network_is_exact_and_rests_on_one_sample(key):
    model = NETWORKS["linear"]
    params = random_params(model)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(20, 4, 3)), jnp.float32)
    ys = np.zeros(20, int)
    sampled = jm.over_batch(jm.lipschitz_margin, model.apply, radius=50.0)(params, key, xs, ys)
    exact = jm.over_batch(jm.linear_margin, model.apply)(params, key, xs, ys)
    np.testing.assert_allclose(sampled.margin, exact.margin, rtol=1e-5, atol=1e-6)
    assert (sampled.samples == 1).all()
    assert (sampled.remainder == 0).all()


def test_a_network_that_begins_with_a_convolution_is_a_black_box_here(key):
    model = models.cnn((8, 8, 1), 3, widths=(4, 8), hidden=16)
    params = random_params(model)
    norms = gradient_norms_of(
        functools.partial(model.apply, params), key, (8, 8, 1), jnp.float32, norm=jm.l2, radius=1.0, box=None
    )
    assert norms.features(jnp.zeros((8, 8, 1))).shape == (8, 8, 1)


@pytest.mark.parametrize(
    "logits_fn",
    [
        lambda x: x,
        functools.partial(lambda params, x: x, {}),
        functools.partial(NETWORKS["wide"].apply),
        functools.partial(NETWORKS["wide"].apply, {}, jnp.zeros(3)),
    ],
    ids=["function", "partial", "without params", "with an input"],
)
def test_anything_else_shows_no_layers(logits_fn):
    assert layers_of(logits_fn) is None
