"""What all attacks with a radius have in common: the ball, the box, and what is planted in them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmargin as jm

pytestmark = pytest.mark.hurried

ORDERS = {"l2": 2, "linf": np.inf, "l1": 1}
DUALS = {"l2": 2, "linf": 1, "l1": np.inf}
NUM_STEPS = 40
ATTACKS = {
    "pgd": functools.partial(jm.pgd, num_steps=NUM_STEPS, loss="logit_margin"),
    "pgd, best": functools.partial(jm.pgd, num_steps=NUM_STEPS, keep="best", restarts=2, loss="scaled_cross_entropy"),
    "apgd": functools.partial(jm.apgd, num_steps=NUM_STEPS),
    "worst_case": functools.partial(jm.worst_case, num_steps=NUM_STEPS),
    "square": functools.partial(jm.square, num_queries=300),
}
attacks = pytest.mark.parametrize("name", ATTACKS)
# What keeps the best iterate or tries again takes the same steps in every norm; test_worst.py has the others.
PAIRS = [
    *((name, norm) for name in ("pgd", "apgd") for norm in ORDERS),
    ("pgd, best", "l2"), ("worst_case", "linf"), ("square", "l2"), ("square", "linf"),
]  # fmt: skip
pairs = pytest.mark.parametrize(("name", "norm"), PAIRS)
CASES, CLASSES, DIMENSION = 60, 3, 12


def logits_of(params, x):
    """Logits W x + b or, where ``curved``, their tanh."""
    weights, biases, curved = params
    logits = weights @ x + biases
    return jnp.where(curved, jnp.tanh(logits), logits)


@functools.cache
def compiled(name, norm, box):
    """One program an attack, norm and box: (params, keys, xs, ys, epsilons), each with an axis of CASES."""

    def attack(params, key, x, y, epsilon):
        step = dict(step_size=4 * epsilon / NUM_STEPS) if name.startswith("pgd") else {}
        logits_fn = functools.partial(logits_of, params)
        return ATTACKS[name](logits_fn, key, x, y, norm=getattr(jm, norm), epsilon=epsilon, box=box, **step)

    return jax.jit(jax.vmap(attack))


def run(name, norm, weights, biases, xs, ys, epsilons, *, curved=False, box=None):
    params = np.float32(weights), np.float32(biases), np.full(CASES, curved)
    keys = jax.random.split(jax.random.key(1), CASES)
    return compiled(name, norm, box)(params, keys, np.float32(xs), ys, np.float32(epsilons))


@pairs
@pytest.mark.parametrize("box", [None, (0.0, 1.0)], ids=["no box", "box"])
@pytest.mark.parametrize("curved", [False, True], ids=["affine", "curved"])
def test_what_comes_out_lies_in_the_ball_and_in_the_box(name, norm, box, curved):
    rng = np.random.default_rng(0)
    epsilons = 10.0 ** np.linspace(-9, 2, CASES)
    xs = np.float32(rng.uniform(size=(CASES, DIMENSION)))
    for x in xs:
        x[rng.integers(0, DIMENSION, 4)] = rng.integers(0, 2)  # some at the edge
    weights, ys = rng.normal(size=(CASES, CLASSES, DIMENSION)), rng.integers(0, CLASSES, CASES)
    found = run(name, norm, weights, np.zeros((CASES, CLASSES)), xs, ys, epsilons, curved=curved, box=box)
    sizes = np.linalg.norm(np.float64(found.x_adv) - np.float64(xs), ORDERS[norm], axis=1)
    assert (sizes <= np.float64(np.float32(epsilons)) * (1 + 1e-6)).all()
    if box:
        assert found.x_adv.min() >= 0
        assert found.x_adv.max() <= 1
    still = (epsilons < 1e-8)[:, None] & (xs > 0.2)  # below the grid of float32, except at 0
    assert still.sum() > 30
    np.testing.assert_array_equal(np.asarray(found.x_adv)[still], xs[still])


@pairs
def test_a_planted_adversarial_example_is_found(name, norm):
    rng = np.random.default_rng(0)
    w, xs, epsilon = rng.normal(size=(CASES, DIMENSION)), rng.normal(size=(CASES, DIMENSION)), 0.5
    reach = 0.6 if name == "square" else 0.97  # a random search needs room
    # A boundary w z = b behind x, at a share of epsilon: everything beyond is planted. The last two classes are one.
    b = np.einsum("nd,nd->n", w, xs) + reach * epsilon * np.linalg.norm(w, DUALS[norm], axis=1)
    found = run(
        name, norm, np.stack([-w, w, w], 1), np.stack([b, -b, -b], 1), xs, np.zeros(CASES, int), np.full(CASES, epsilon)
    )
    assert np.mean(found.found) >= (0.9 if name == "square" else 1.0)


@pairs
def test_constant_logits_leave_an_attack_with_nothing(name, norm):
    weights, biases = np.zeros((CASES, CLASSES, DIMENSION)), np.tile(np.eye(CLASSES)[0], (CASES, 1))
    ones = np.ones(CASES)
    found = run(name, norm, weights, biases, np.ones((CASES, DIMENSION)), np.zeros(CASES, int), 0.5 * ones)
    assert not found.found.any()
    assert np.isinf(found.distance).all()


@attacks
def test_an_input_outside_of_its_box_is_refused(name, tiny, key):
    run = jm.over_batch(ATTACKS[name].func, tiny.model.apply, epsilon=0.1, box=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"xs spans \[-.*outside box=\(0.0, 1.0\): scale the inputs"):
        run(tiny.params, key, tiny.xs, tiny.ys)


@pytest.mark.slow
def test_apgd_breaks_what_lies_just_beyond_the_nearest_adversarial_example(tiny, key):
    ys, keys = tiny.predicted, jax.random.split(key, len(tiny.xs))
    logits_fn = functools.partial(tiny.model.apply, tiny.params)

    def nearest(key, x, y):
        return jm.minimum_norm(logits_fn, key, x, y).distance

    distances = jax.jit(jax.vmap(nearest))(keys, tiny.xs, ys)

    @jax.jit
    @jax.vmap
    def found(key, x, y, epsilon):
        return jm.apgd(logits_fn, key, x, y, epsilon=epsilon, num_steps=60).found

    def share_found(share):
        return found(jax.random.clone(keys), tiny.xs, ys, share * distances).mean()

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
    blind = jm.over_batch(jm.apgd, rounded, num_steps=20, **options)(weights, key, xs, ys)
    seeing = jm.over_batch(jm.square, rounded, num_queries=500, **options)(weights, jax.random.clone(key), xs, ys)
    assert seeing.found.mean() > blind.found.mean() + 0.3
