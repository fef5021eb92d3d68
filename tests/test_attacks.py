"""What all attacks with a radius have in common: the ball, the box, and what is planted in them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmargin as jm

pytestmark = pytest.mark.hurried

ORDERS = {"l2": 2, "linf": np.inf, "l1": 1}
ATTACKS = {
    "pgd": functools.partial(jm.pgd, num_steps=10, loss="logit_margin"),
    "pgd, best": functools.partial(jm.pgd, num_steps=10, keep="best", restarts=2, loss="scaled_cross_entropy"),
    "apgd": functools.partial(jm.apgd, num_steps=10),
    "worst_case": functools.partial(jm.worst_case, num_steps=10),
    "square": functools.partial(jm.square, num_queries=30),
}
attacks = pytest.mark.parametrize("name", ATTACKS)
PAIRS = [(name, norm) for name in ATTACKS for norm in ORDERS if (name, norm) != ("square", "l1")]
pairs = pytest.mark.parametrize(
    ("name", "norm"),
    [pytest.param(*pair, marks=pytest.mark.slow if pair[0] in ("worst_case", "pgd, best") else ()) for pair in PAIRS],
)


def logits_of(params, x):
    return jnp.tanh(params @ x)


@functools.cache
def compiled(name, norm, box):
    """One compilation an attack, norm and box: hypothesis then varies what is traced."""

    def attack(params, key, x, y, epsilon):
        step = dict(step_size=2.5 * epsilon / 10) if name.startswith("pgd") else {}
        logits_fn = functools.partial(logits_of, params)
        return ATTACKS[name](logits_fn, key, x, y, norm=getattr(jm, norm), epsilon=epsilon, box=box, **step)

    return jax.jit(attack)


@pairs
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.floats(-9, 2), bounded=st.booleans())
def test_what_comes_out_lies_in_the_ball_and_in_the_box(name, norm, seed, exponent, bounded):
    rng = np.random.default_rng(seed)
    epsilon = 10.0**exponent
    x = rng.uniform(size=12).astype(np.float32)
    x[rng.integers(0, 12, 4)] = rng.integers(0, 2)  # some at the edge
    params = jnp.asarray(rng.normal(size=(3, 12)), jnp.float32)
    attack = compiled(name, norm, (0.0, 1.0) if bounded else None)
    found = attack(params, jax.random.key(seed), jnp.asarray(x), rng.integers(0, 3), jnp.float32(epsilon))
    offset = np.float64(found.x_adv) - np.float64(x)
    assert np.linalg.norm(offset, ORDERS[norm]) <= np.float64(np.float32(epsilon)) * (1 + 1e-6)
    if bounded:
        assert found.x_adv.min() >= 0
        assert found.x_adv.max() <= 1
    if epsilon < 1e-8:  # below the grid of float32, except at 0
        np.testing.assert_array_equal(np.asarray(found.x_adv)[x > 0.2], x[x > 0.2])


@pairs
def test_a_planted_adversarial_example_is_found(name, norm):
    rng = np.random.default_rng(0)
    dimension, n = 12, 40
    order = ORDERS[norm]
    weights = rng.normal(size=(n, dimension))
    xs, epsilon = rng.normal(size=(n, dimension)), 0.5
    dual = {2: 2, np.inf: 1, 1: np.inf}[order]
    reach = 0.6 if name == "square" else 0.97  # a random search needs room
    # A boundary w z = b behind x, at a share of epsilon: everything beyond is planted.
    offsets = np.einsum("nd,nd->n", weights, xs) + reach * epsilon * np.linalg.norm(weights, dual, axis=1)

    def one(key, w, b, x):
        options = dict(step_size=0.05) if name.startswith("pgd") else {}
        steps = {"square": dict(num_queries=300), "worst_case": dict(num_steps=40)}.get(name, dict(num_steps=40))
        logits_fn = lambda x: jnp.stack([b - w @ x, w @ x - b])  # noqa: E731
        return ATTACKS[name](logits_fn, key, x, 0, norm=getattr(jm, norm), epsilon=epsilon, **(options | steps))

    keys = jax.random.split(jax.random.key(1), n)
    arrays = (jnp.asarray(array, jnp.float32) for array in (weights, offsets, xs))
    found = jax.jit(jax.vmap(one))(keys, *arrays)
    assert np.mean(found.found) >= (0.9 if name == "square" else 1.0)


@attacks
def test_an_input_outside_of_its_box_is_refused(name, tiny, key):
    run = jm.over_batch(ATTACKS[name].func, tiny.model.apply, epsilon=0.1, box=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"xs spans \[-.*outside box=\(0.0, 1.0\): scale the inputs"):
        run(tiny.params, key, tiny.xs, tiny.ys)


@attacks
def test_logits_that_are_not_finite_are_refused(name, key):
    def broken(params, x):
        return jnp.stack([x[0], 1 / (x[1] - x[1])])

    run = jm.over_batch(ATTACKS[name].func, broken, epsilon=0.1)
    with pytest.raises(ValueError, match="not finite"):
        run({}, key, jnp.ones((3, 2)), np.zeros(3, int))


@attacks
def test_constant_logits_leave_an_attack_with_nothing(name, key):
    options = dict(epsilon=0.5) | ATTACKS[name].keywords
    found = jm.over_batch(ATTACKS[name].func, lambda params, x: jnp.array([1.0, 0.0]) + 0 * x[:2], **options)(
        {}, key, jnp.ones((4, 3)), np.zeros(4, int)
    )
    assert not found.found.any()
    assert np.isinf(found.distance).all()


@pytest.mark.slow
def test_apgd_breaks_what_lies_just_beyond_the_nearest_adversarial_example(tiny, key):
    ys = tiny.predicted
    distances = jm.over_batch(jm.minimum_norm, tiny.model.apply)(tiny.params, key, tiny.xs, ys).distance
    logits_fn = functools.partial(tiny.model.apply, tiny.params)

    @jax.jit
    def share_found(share):
        keys = jax.random.split(jax.random.key(1), len(ys))

        def one(key, x, y, d):
            return jm.apgd(logits_fn, key, x, y, epsilon=share * d, num_steps=60).found

        return jnp.mean(jax.vmap(one)(keys, tiny.xs, ys, distances))

    assert share_found(0.9) == 0
    assert share_found(1.02) > 0.5
    assert share_found(1.2) == 1


def test_square_refuses_what_it_has_no_windows_for(key):
    with pytest.raises(ValueError, match="norm=l1 has no square attack"):
        jm.square(lambda x: x[:2], key, jnp.ones(4), 0, norm=jm.l1, epsilon=1.0)
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 2, 1\): the square attack takes an image"):
        jm.square(lambda x: x.reshape(-1)[:2], key, jnp.ones((1, 2, 2, 1)), 0, epsilon=1.0)


@pytest.mark.slow
def test_square_needs_no_gradients(key):
    """A classifier that rounds its input has none; the attacks with gradients stand still."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)

    def rounded(params, x):
        return jnp.tensordot(params, jnp.round(8 * x) / 8, 3)

    xs = np.float32(np.random.default_rng(3).uniform(size=(30, 8, 8, 1)))
    ys = np.argmax(jax.jit(jax.vmap(rounded, (None, 0)))(weights, xs), 1)
    options = dict(norm=jm.linf, epsilon=0.2, box=(0.0, 1.0))
    blind = jm.over_batch(jm.worst_case, rounded, num_steps=20, **options)(weights, key, xs, ys)
    seeing = jm.over_batch(jm.square, rounded, num_queries=500, **options)(weights, jax.random.clone(key), xs, ys)
    assert seeing.found.mean() > blind.found.mean() + 0.3
