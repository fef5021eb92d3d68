"""Networks rewritten for loops against themselves: values, gradients, and what is replaced and what is not."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import random_params

import jaxmargin as jm
from jaxmargin.xla_cpu.convolution import conv_general_dilated, max_pool
from jaxmargin.xla_cpu.rewriting import loopable

pytestmark = pytest.mark.hurried


def array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(actual, expected):
    """Equal up to the rounding of sums of a few hundred float32 products."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), actual, expected)


def pull(apply_fn, *args):
    """The value and, for one fixed cotangent, the gradients of all arguments."""
    out, pullback = jax.vjp(apply_fn, *args)
    return out, pullback(jnp.cos(jnp.arange(float(out.size))).reshape(out.shape).astype(out.dtype))


def pulled(apply_fn, *args):
    """``pull`` of a function as it is rewritten and as it is, in one program."""
    return jax.jit(lambda *args: (pull(loopable(apply_fn), *args), pull(apply_fn, *args)))(*args)


def primitives(apply_fn, *args):
    """Names of the operations of a function, those with derivatives of their own not looked into."""

    def names(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn.primitive.name
            if not eqn.primitive.name.startswith("custom_"):
                for inner in jax.tree.leaves(eqn.params):
                    yield from names(inner) if hasattr(inner, "eqns") else ()

    return set(names(jax.make_jaxpr(apply_fn)(*args).jaxpr))


SLOW = {"conv_general_dilated", "reduce_window_max"}


class Net(nn.Module):
    """``models.cnn`` of small images, as flax has it."""

    widths: tuple[int, int] = (3, 4)

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for width in (16, 16):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(3)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 2), padding=((2, 0), (1, 3)), rngs=rngs)
        self.dense = nnx.Linear(18, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.conv(x)), (2, 3), (2, 3))
        return self.dense(x.reshape(len(x), -1))


def convolve(x, kernel, layout=("NCHW", "OIHW", "NCHW"), strides=(1, 1), padding="SAME", **options):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout, **options)


def pool(x, window=(1, 1, 2, 2), strides=None, padding="VALID", **options):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides or window, padding, **options)


def channels_first(params, x):
    """As equinox writes it: one image, its channels in front."""
    x = jax.nn.relu(convolve(x[None], params["first"], padding=((0, 1), (1, 2))))
    x = pool(x)
    return jnp.tanh(convolve(x, params["second"], padding="VALID")[0])


def linen():
    module, x = Net(), array(8, 9, 2)
    variables = random_params(types.SimpleNamespace(init=lambda key: module.init(key, x[None])))
    return jm.from_linen(module), variables, x


def wrapped(wrapper):
    """A network with a piece of it inside of ``wrapper``, and both inside of a jit."""

    @jax.jit
    def apply_fn(params, x):
        block = wrapper(lambda kernel, x: pool(jnp.sin(convolve(x, kernel))))
        return jnp.tanh(block(params["second"], block(params["first"], x[None])))

    return apply_fn, {"first": array(3, 2, 3, 3), "second": array(2, 3, 2, 2)}, array(2, 8, 9)


NETWORKS = {
    "linen": linen,
    "nnx": lambda: (*jm.from_nnx(Nnx(nnx.Rngs(0))), array(5, 8, 2)),
    "channels first": lambda: (
        channels_first,
        {"first": array(3, 2, 3, 2), "second": array(2, 3, 2, 2)},
        array(2, 6, 7),
    ),
    "jit": lambda: wrapped(jax.jit),
    "remat": lambda: wrapped(jax.checkpoint),
    "remat with a policy": lambda: wrapped(
        functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
    ),
    "strides and dilation": lambda: (
        lambda kernel, x: convolve(x, kernel, strides=(3, 2), rhs_dilation=(1, 2)),
        array(4, 3, 2, 3),
        array(2, 3, 9, 8),
    ),
    "odd layout": lambda: (
        lambda kernel, x: convolve(x, kernel, layout=("HCNW", "IWHO", "CWHN")),
        array(2, 3, 2, 4),
        array(6, 2, 3, 5),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_their_values_and_gradients_and_lose_what_is_slow(name):
    apply_fn, params, x = NETWORKS[name]()
    assert primitives(apply_fn, params, x) & SLOW
    assert not primitives(loopable(apply_fn), params, x) & SLOW
    close(*pulled(apply_fn, params, x))


@pytest.mark.parametrize("name", ["remat", "remat with a policy"])
def test_what_was_to_be_computed_again_still_is(name):
    apply_fn, params, x = NETWORKS[name]()
    assert primitives(loopable(apply_fn), params, x) & {"checkpoint", "remat", "remat2"}


LEFT = {
    "dilation of the image": lambda x, k: convolve(x, k, lhs_dilation=(2, 1), padding=((1, 1), (1, 1))),
    "groups": lambda x, k: convolve(x, k[:, :2], feature_group_count=2),
    "groups of images": lambda x, k: convolve(x, k, batch_group_count=2),
    "cropping": lambda x, k: convolve(x, k, padding=((-1, 0), (0, 1))),
    "another type": lambda x, k: convolve(x, k, preferred_element_type=jnp.float32).astype(x.dtype),
    "sequences": lambda x, k: convolve(x[:, :, 0], k[:, :, 0], ("NCH", "OIH", "NCH"), (1,)),
    "overlapping windows": lambda x, k: pool(x, (1, 1, 3, 3), (1, 1, 2, 2)) + k.sum(),
    "distant windows": lambda x, k: pool(x, (1, 1, 1, 2), (1, 1, 2, 2)) + k.sum(),
    "padded windows": lambda x, k: pool(x, padding=((0, 0), (0, 0), (1, 0), (0, 1))) + k.sum(),
    "dilated windows": lambda x, k: pool(x, window_dilation=(1, 1, 2, 1)) + k.sum(),
}


@pytest.mark.parametrize("name", LEFT)
def test_other_convolutions_and_pools_are_left_alone(name):
    apply_fn, x, kernel = LEFT[name], array(2, 4, 6, 6), array(4, 4, 3, 3)
    if name == "another type":
        x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    assert str(jax.make_jaxpr(loopable(apply_fn))(x, kernel)) == str(jax.make_jaxpr(apply_fn)(x, kernel))


def test_what_is_left_alone_works_beside_what_is_replaced():
    def apply_fn(x, kernel):
        x = jax.nn.relu(convolve(x, kernel, lhs_dilation=(1, 2), padding=((1, 1), (1, 1))))
        return convolve(pool(x, (1, 1, 2, 2), (1, 1, 1, 1)), kernel)

    x, kernel = array(2, 3, 7, 7), array(3, 3, 3, 3, seed=1)
    assert primitives(loopable(apply_fn), x, kernel) & SLOW == SLOW
    assert "custom_jvp_call" in primitives(loopable(apply_fn), x, kernel)  # that of relu
    close(*pulled(apply_fn, x, kernel))


def test_a_function_without_convolutions_is_called_as_it_is():
    calls = []

    def apply_fn(params, x):
        calls.append(x)
        return {"logits": jax.nn.softmax(params["w"] @ x)}, None

    params, x = {"w": array(3, 4)}, array(4)
    out = loopable(apply_fn)(params, x)
    assert calls[-1] is x
    jax.tree.map(np.testing.assert_array_equal, out, apply_fn(params, x))


def test_a_network_that_shows_its_layers_stays_itself():
    model = jm.models.cnn((8, 8, 1), 3, widths=(2, 2), hidden=4)
    assert loopable(model.apply) is model.apply


@pytest.mark.parametrize("window", [(1, 2, 2, 1), (1, 1, 2, 2), (1, 3, 2, 1), (2, 1, 1, 2), (1, 1, 1, 1)], ids=str)
def test_pools_keep_their_gradients_even_where_values_are_equal_or_nan(window):
    x = array(2, 6, 7, 5).round().at[1, 2, 3, 4].set(jnp.nan)  # most blocks hold their largest value more than once

    def apply_fn(x):
        return jnp.cumsum(pool(x, window), 0)

    assert not primitives(loopable(apply_fn), x) & SLOW
    actual, expected = pulled(apply_fn, x)
    np.testing.assert_array_equal(actual[0], expected[0])
    without_nan = [np.asarray(gradient)[[0]] for (gradient,) in (actual[1], expected[1])]  # the second image has one
    np.testing.assert_array_equal(*without_nan)


def test_bfloat16_stays_bfloat16():
    x, kernel = array(1, 2, 4, 4).astype(jnp.bfloat16), array(3, 2, 3, 3).astype(jnp.bfloat16)
    actual, expected = pulled(convolve, x, kernel)
    assert not primitives(loopable(convolve), x, kernel) & SLOW
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=0.02, atol=0.1)  # 8 bits; sums of 27 to 48


def test_integers_are_left_alone():
    x, kernel = jnp.arange(32).reshape(1, 2, 4, 4), jnp.arange(16).reshape(2, 2, 2, 2)
    np.testing.assert_array_equal(loopable(convolve)(x, kernel), convolve(x, kernel))


# Every transformation around them -------------------------------------------------------------------------------------


def gradient(apply_fn):
    """params, x -> the gradient of one image with respect to both."""
    return jax.grad(lambda params, x: jnp.sum(jnp.tanh(apply_fn(params, x))), (0, 1))


@pytest.mark.parametrize(
    ("loop", "name"),
    [(jax.lax.map, "remat"), (lambda f, xs: jax.vmap(f)(xs), "channels first")],
    ids=["map", "vmap"],
)
def test_gradients_are_right_when_mapped_and_over_the_parameters_of_a_surrounding_trace(loop, name):
    apply_fn, params, x = NETWORKS[name]()
    xs = np.stack([x, x[::-1], -x])

    def run(rewrite, params, xs):
        closed = rewrite(lambda x: apply_fn(params, x))  # holds the tracers of params
        return loop(lambda x: (closed(x), gradient(rewrite(apply_fn))(params, x)), xs)

    close(*jax.jit(lambda *args: (run(loopable, *args), run(lambda apply_fn: apply_fn, *args)))(params, xs))


def test_our_own_convolutions_under_vmap_have_one_kernel_gradient_for_all_examples():
    size = 17  # no multiple of what is taken together
    kernel, xs = array(3, 3, 2, 3), array(size, 8, 8, 2)

    def one(kernel, x):
        x = conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return max_pool(jnp.tanh(x))

    def each(kernel, xs):
        return jax.vmap(one, in_axes=(None, 0))(kernel, xs)

    def traced(apply_fn):
        return str(jax.make_jaxpr(jax.grad(lambda kernel: apply_fn(kernel, xs).sum()))(kernel))

    per_example = f"f32[{size},3,3,2,3]"
    assert per_example in traced(each) and per_example not in traced(loopable(each))
    close(*pulled(each, kernel, xs))


def test_without_a_jit_it_gives_the_same():
    def apply_fn(params, x):
        return pool(convolve(x[None], params["kernel"]))

    params, x = {"kernel": np.asarray(array(3, 2, 3, 3))}, array(2, 4, 6)
    expected = jax.jit(lambda params, x: (apply_fn(params, x), gradient(apply_fn)(params, x)))(params, x)
    close((loopable(apply_fn)(params, x), gradient(loopable(apply_fn))(params, x)), expected)


def test_keys_are_arguments_like_others():
    def apply_fn(params, x, key):
        x = convolve(x[None], params)
        return x * jax.random.bernoulli(key, 0.5, x.shape)

    args = array(2, 2, 3, 3), array(2, 4, 4)
    assert not primitives(loopable(apply_fn), *args, jax.random.key(0)) & SLOW
    close(*(jax.jit(f)(*args, jax.random.key(0)) for f in (loopable(apply_fn), apply_fn)))


def test_results_keep_their_structure():
    def apply_fn(params, x):
        y = convolve(x[None], params["kernel"])
        return {"y": y, "both": (x, [y.sum(), None]), "number": 3.0}

    params, x = {"kernel": array(2, 2, 3, 3)}, array(2, 4, 4)
    actual, expected = loopable(apply_fn)(params, x), apply_fn(params, x)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    close(actual, expected)


# Where it is used -----------------------------------------------------------------------------------------------------


def test_a_flax_network_has_the_margins_of_ours():
    model = jm.models.cnn((8, 8, 1), 3, widths=(3, 4), hidden=16)
    params, xs, ys = random_params(model), array(3, 8, 8, 1), np.arange(3)

    def margins(apply_fn, params):
        run = jm.over_batch(jm.lipschitz_margin, apply_fn, radius=2.0, num_samples=64, exact=True)
        return run(params, jax.random.key(0), xs, ys)

    ours, theirs = margins(model.apply, params), margins(jm.from_linen(Net()), {"params": params})
    np.testing.assert_array_equal(theirs.predicted, ours.predicted)
    np.testing.assert_allclose(theirs.margin, ours.margin, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(theirs.lipschitz, ours.lipschitz, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators take convolutions as they are")
def test_over_batch_rewrites_on_a_cpu():
    seen = []

    def measure(logits_fn, key, x, y):
        seen.append(primitives(logits_fn, x))
        return logits_fn(x)

    measure_all = jm.over_batch(measure, lambda kernel, x: convolve(x[None], kernel, padding="VALID").ravel())
    measure_all(array(3, 1, 4, 4), jax.random.key(0), array(2, 1, 4, 4), np.arange(2))
    assert seen and not any(names & SLOW for names in seen)
