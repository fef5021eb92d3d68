"""MMA training against its theory: the slope of the distance, what counts, what is remembered (Ding et al. 2020)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmargin as jm
from jaxmargin import objectives
from jaxmargin.attacks.adaptive_norm_pgd import LONGER
from jaxmargin.lab.training import init_state, train_epoch
from jaxmargin.losses import cross_entropy, logit_margin, soft_logit_margin

pytestmark = pytest.mark.hurried

NORMS = {"l2": (jm.l2, 2), "linf": (jm.linf, np.inf)}
both_norms = pytest.mark.parametrize(("norm", "order"), NORMS.values(), ids=NORMS)


def network(seed=0, hidden=5):
    """A smooth classifier of three classes on the plane, in numpy's float64."""
    rng = np.random.default_rng(seed)
    return {"u": rng.normal(size=(hidden, 2)), "a": rng.normal(size=hidden), "v": rng.normal(size=(3, hidden))}


def logits_of(params, x):
    return params["v"] @ jnp.tanh(params["u"] @ x + params["a"])


def scores_of(params, points):
    """Logits [m, 3] at points [m, 2] in float64."""
    return np.tanh(points @ params["u"].T + params["a"]) @ params["v"].T


def soft_losses(params, points, y, hard=False):
    """-(f_y - log sum_k exp f_k) at many points in float64, or the logit margin loss."""
    scores = scores_of(params, points)
    others = np.delete(scores, y, 1)
    return (others.max(1) if hard else np.log(np.exp(others).sum(1))) - scores[:, y]


def distance(params, x, y, order, hard=False):
    """The exact distance to where the loss is 0, by rays: (distance, offset). In float64, to about 1e-9."""

    def crossing(angles, reach, count):
        rays = np.stack([np.cos(angles), np.sin(angles)], 1)
        rays /= np.linalg.norm(rays, order, axis=1, keepdims=True)
        loss = lambda sizes: soft_losses(params, x + sizes[:, None] * rays, y, hard)  # noqa: E731
        grid = np.linspace(0, reach, count)
        over = np.stack([loss(np.full(len(angles), size)) for size in grid]) >= 0  # [count, m]
        first = np.argmax(over, 0)
        low, high = grid[np.maximum(first - 1, 0)], np.where(over.any(0), grid[first], np.inf)
        low = np.where(np.isinf(high), 0, low)
        for _ in range(50):
            middle = np.where(np.isinf(high), 0, (low + high) / 2)
            beyond = loss(middle) >= 0
            low, high = np.where(beyond, low, middle), np.where(beyond & ~np.isinf(high), middle, high)
        return high, rays

    centre, width, reach, count = 0.0, np.pi, 6.0, 151
    for _ in range(5):  # a finer fan around the nearest ray each time, not much longer than that
        angles = np.linspace(centre - width, centre + width, 201)
        sizes, rays = crossing(angles, reach, count)
        best = np.argmin(sizes)
        centre, width, reach, count = angles[best], width / 40, min(reach, 1.1 * sizes[best]), 41
    return sizes[best], sizes[best] * rays[best]


@functools.cache
def right_points(n=4, seed=1):
    """Points that ``network()`` classifies rightly, their soft boundary between 0.1 and 2 away, with labels."""
    params, rng, found = network(), np.random.default_rng(seed), []
    while len(found) < n:
        x = rng.normal(size=2)
        y = int(np.argmax(scores_of(params, x[None])))
        if soft_losses(params, x[None], y)[0] < 0 and 0.1 < distance(params, x, y, 2)[0] < 2:
            found.append((x, y))
    return found


def as_float32(params):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def moved(params, direction, length):
    return jax.tree.map(lambda leaf, slope: leaf + length * np.asarray(slope, np.float64), params, direction)


@jax.jit
def loss_slopes(params, z, y):
    return jax.grad(lambda params, z: -soft_logit_margin(logits_of(params, z), y), (0, 1))(params, z)


def slope_by_envelope(params, x, offset, y, norm):
    """-(1 / |grad_delta L|_*) grad_theta L(x + delta*), the gradient of the distance in the parameters."""
    by_params, by_input = loss_slopes(as_float32(params), jnp.float32(x + offset), y)
    return jax.tree.map(lambda leaf: -leaf / norm.dual_size(by_input), by_params)


@both_norms
def test_the_slope_of_the_distance_is_that_of_the_loss_at_the_shortest_perturbation(norm, order):
    params = network()
    rng = np.random.default_rng(2)
    for x, y in right_points():
        _, offset = distance(params, x, y, order)
        slope = slope_by_envelope(params, x, offset, y, norm)
        for _ in range(2):
            direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
            ends = [distance(moved(params, direction, h), x, y, order)[0] for h in (1e-4, -1e-4)]
            expected = sum(np.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (slope, direction)), strict=True))
            np.testing.assert_allclose((ends[0] - ends[1]) / 2e-4, expected, rtol=0.01, atol=1e-3)


@both_norms
def test_on_a_linear_classifier_the_same_slope_is_the_closed_form(norm, order):
    w, x = np.float32([3.0, -1.0]), np.float32([1.0, 0.5])
    dual = {2: 2, np.inf: 1}[order]
    margin = lambda w: jnp.vdot(w, x) / jnp.linalg.norm(w, dual)  # noqa: E731
    logits_fn = lambda w, z: jnp.stack([jnp.vdot(w, z), jnp.zeros(())])  # noqa: E731

    @jax.jit
    def both(w):
        nearest = x - margin(w) * norm.steepest(w)
        by_params, by_input = jax.grad(lambda w, z: -soft_logit_margin(logits_fn(w, z), 0), (0, 1))(w, nearest)
        return -by_params / norm.dual_size(by_input), jax.grad(margin)(w)

    np.testing.assert_allclose(*both(w), rtol=1e-4)


@both_norms
def test_a_step_of_the_objective_moves_the_boundary_away(norm, order):
    params, objective = network(), raising(norm, clean_weight=0.0)
    for x, y in right_points():
        before, _ = distance(params, x, y, order)
        gradients = [search(objective, params, x, y, seed=seed)[-1] for seed in range(3)]
        found = [one for one in gradients if any((leaf != 0).any() for leaf in jax.tree.leaves(one))]
        assert found  # PGD may end in a local maximum short of the boundary, but not from every start
        for gradient in found:
            after, _ = distance(moved(params, gradient, -1e-2), x, y, order)
            assert after > before + 1e-4


def test_the_soft_boundary_is_never_the_farther_one():
    params = network()
    distances = [[distance(params, x, y, 2, hard)[0] for hard in (False, True)] for x, y in right_points()]
    assert all(soft <= hard + 1e-9 for soft, hard in distances)
    assert any(soft < hard - 1e-3 for soft, hard in distances)


def test_with_two_classes_the_soft_margin_is_the_logit_margin():
    logits = jnp.float32([1.5, 0.25])
    np.testing.assert_allclose(soft_logit_margin(logits, 0), logit_margin(logits, 0), rtol=1e-6)


@functools.cache
def raising(norm=jm.l2, d_max=3.0, **options):
    """One objective for equal options, so that its searches are compiled once."""
    return objectives.mma(norm=norm, d_max=d_max, num_steps=40, num_halvings=20, **options)


@functools.partial(jax.jit, static_argnums=0)
def searched(objective, params, x, y, example_state, key):
    """What the search finds, the new state, the loss, and its gradient in the parameters."""
    example = (key, x, y)
    inner_result, state = objective.inner_maximization(
        functools.partial(logits_of, params), *example, example_state, jnp.array(0)
    )
    loss = lambda params: objective.example_loss(functools.partial(logits_of, params), *example, inner_result)  # noqa: E731
    return inner_result, state, *jax.value_and_grad(loss)(params)


def search(objective, params, x, y, example_state=1.0, seed=0):
    state = jnp.float32(example_state)
    return searched(objective, as_float32(params), jnp.float32(x), jnp.asarray(y), state, jax.random.key(seed))


@jax.jit
def cross_entropies(params, zs, y):
    return jax.vmap(lambda z: cross_entropy(logits_of(params, z), y))(zs)


def test_a_margin_beyond_d_max_has_no_gradient_and_is_remembered_as_such():
    x, y = right_points()[0]
    d = distance(network(), x, y, 2)[0]
    _, state, _, gradient = search(raising(d_max=0.5 * d, clean_weight=0.0), network(), x, y, example_state=0.4 * d)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(state, LONGER * 0.5 * d, rtol=1e-5)
    *_, gradient = search(raising(jm.l2, clean_weight=0.0), network(), x, y)
    assert d < 3
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(gradient))


def test_a_wrong_example_counts_with_its_own_cross_entropy_and_is_forgotten():
    params, x = network(), np.float32([0.3, -0.2])
    y = int(np.argmin(scores_of(params, x[None])[0]))
    inner_result, state, value, _ = search(raising(), params, x, y)
    np.testing.assert_array_equal(inner_result.x_adv, x)
    assert inner_result.counts and state == 0
    np.testing.assert_allclose(value, cross_entropies(as_float32(params), x[None], y)[0], rtol=1e-6)


def test_a_right_example_counts_two_thirds_at_the_boundary_and_one_third_at_itself():
    x, y = right_points()[1]
    inner_result, state, value, _ = search(raising(), network(), x, y)
    at = cross_entropies(as_float32(network()), jnp.stack([inner_result.x_adv, jnp.float32(x)]), y)
    np.testing.assert_allclose(value, 2 / 3 * at[0] + 1 / 3 * at[1], rtol=1e-5)
    np.testing.assert_allclose(at[0], np.log(2), atol=0.02)  # where the soft margin is 0
    np.testing.assert_allclose(state, np.linalg.norm(inner_result.x_adv - x), rtol=1e-5)


def test_the_search_begins_at_the_distance_remembered_but_not_below_the_least():
    """One step of PGD from the point goes 2.5 epsilon or to the ball's end, and the bisection starts from there."""
    w, x = jnp.float32([1.0, 0.0]), jnp.float32([1.0, 0.0])
    logits_fn = lambda z: jnp.stack([jnp.vdot(w, z), jnp.zeros(())])  # noqa: E731
    objective = objectives.mma(d_max=4.0, min_epsilon=0.5, num_steps=50, num_halvings=1)

    @jax.jit
    def half(remembered):
        example = (jax.random.key(0), x, jnp.array(0), remembered)
        inner_result, _ = objective.inner_maximization(logits_fn, *example, jnp.array(0))
        return jnp.linalg.norm(inner_result.x_adv - x)

    halves = {remembered: float(half(jnp.float32(remembered))) for remembered in (0.0, 0.5, 2.0)}
    assert halves[0.0] == halves[0.5]
    np.testing.assert_allclose(halves[0.5], (0.5 + LONGER * 4.0) / 2, rtol=0.02)  # the upper half of [0.5, 4.2]
    np.testing.assert_allclose(halves[2.0], 2.0, rtol=0.02)  # the upper half of [0, 2], whose middle is 1


@pytest.mark.parametrize("batch_size", [16, 70])
def test_the_distance_of_every_example_is_kept_in_the_training_state(batch_size):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (70, 3)), jnp.uint8)
    w = np.float32([1.0, -2.0, 0.5])
    margins = np.asarray(images / 255.0) @ w
    labels = jnp.asarray(np.where(np.arange(70) % 5 == 0, margins > 0, margins <= 0), jnp.int32)  # every fifth is wrong
    apply_fn = lambda w, x, key=None: jnp.stack([jnp.vdot(w, x), jnp.zeros(())])  # noqa: E731
    objective = objectives.mma(d_max=5.0, min_epsilon=0.1, num_steps=60, num_halvings=20)
    epoch = train_epoch(apply_fn, objective, optax.sgd(0.0), batch_size=batch_size, scale=255.0)
    state = init_state(jnp.asarray(w), optax.sgd(0.0), jax.random.key(0), 70)
    state, _ = epoch(state, images, labels)
    exact = np.where(np.arange(70) % 5 == 0, 0.0, np.abs(margins) / np.linalg.norm(w))
    np.testing.assert_allclose(state.example_state, exact, rtol=0.1, atol=1e-4)
    state, _ = epoch(state, images, labels)
    np.testing.assert_allclose(state.example_state, exact, rtol=0.1, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(d_max=0.0), "d_max=0.0 must be"),
        (dict(d_max=float("inf")), "d_max=inf must be"),
        (dict(min_epsilon=0.0), "min_epsilon=0.0 must be"),
        (dict(min_epsilon=3.0), r"min_epsilon=3.0 exceeds d_max=2.0"),
        (dict(num_steps=0), "num_steps=0"),
        (dict(num_halvings=0), "num_halvings=0"),
        (dict(clean_weight=1.0), r"clean_weight=1.0 must lie in \[0, 1\)"),
        (dict(clean_weight=-0.1), r"clean_weight=-0.1 must lie"),
        (dict(box=(1.0, 0.0)), "box"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        objectives.mma(**dict(d_max=2.0) | options)
