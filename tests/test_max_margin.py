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


def soft_losses(params, points, y, hard=False):
    """-(f_y - log sum_k exp f_k) at many points in float64, or the logit margin loss."""
    scores = np.tanh(points @ params["u"].T + params["a"]) @ params["v"].T  # [m, 3]
    others = np.delete(scores, y, 1)
    return (others.max(1) if hard else np.log(np.exp(others).sum(1))) - scores[:, y]


def distance(params, x, y, order, hard=False):
    """The exact distance to where the loss is 0, by rays: (distance, offset). In float64, to about 1e-9."""

    def crossing(angles):
        rays = np.stack([np.cos(angles), np.sin(angles)], 1)
        rays /= np.linalg.norm(rays, order, axis=1, keepdims=True)
        loss = lambda sizes: soft_losses(params, x + sizes[:, None] * rays, y, hard)  # noqa: E731
        grid = np.linspace(0, 6, 151)
        over = np.stack([loss(np.full(len(angles), size)) for size in grid]) >= 0  # [151, m]
        first = np.argmax(over, 0)
        low, high = grid[np.maximum(first - 1, 0)], np.where(over.any(0), grid[first], np.inf)
        low = np.where(np.isinf(high), 0, low)
        for _ in range(50):
            middle = np.where(np.isinf(high), 0, (low + high) / 2)
            beyond = loss(middle) >= 0
            low, high = np.where(beyond, low, middle), np.where(beyond & ~np.isinf(high), middle, high)
        return high, rays

    centre, width = 0.0, np.pi
    for _ in range(5):  # a finer fan around the nearest ray each time
        angles = np.linspace(centre - width, centre + width, 201)
        sizes, rays = crossing(angles)
        best = np.argmin(sizes)
        centre, width = angles[best], width / 40
    return sizes[best], sizes[best] * rays[best]


def right_points(params, n=40, seed=1):
    """Points that are classified rightly and whose soft boundary is between 0.1 and 2 away, with labels."""
    xs = np.random.default_rng(seed).normal(size=(n, 2))
    ys = np.argmax(np.tanh(xs @ params["u"].T + params["a"]) @ params["v"].T, 1)
    found = [(x, int(y)) for x, y in zip(xs, ys, strict=True) if soft_losses(params, x[None], y)[0] < 0]
    return [(x, y) for x, y in found if 0.1 < distance(params, x, y, 2)[0] < 2][:4]


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
    points = right_points(params)
    assert len(points) == 4
    rng = np.random.default_rng(2)
    for x, y in points:
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
    nearest = x - margin(w) * norm.steepest(jnp.asarray(w))
    by_params, by_input = jax.grad(lambda w, z: -soft_logit_margin(logits_fn(w, z), 0), (0, 1))(w, nearest)
    np.testing.assert_allclose(-by_params / norm.dual_size(by_input), jax.grad(margin)(w), rtol=1e-4)


@both_norms
def test_a_step_of_the_objective_moves_the_boundary_away(norm, order):
    params = network()
    objective = objectives.mma(norm=norm, d_max=3.0, num_steps=40, num_halvings=20, clean_weight=0.0)
    for x, y in right_points(params):
        before, _ = distance(params, x, y, order)
        gradients = [gradient_at(objective, as_float32(params), jnp.float32(x), y, seed=seed) for seed in range(3)]
        found = [one for one in gradients if any((leaf != 0).any() for leaf in jax.tree.leaves(one))]
        assert found  # PGD may end in a local maximum short of the boundary, but not from every start
        for gradient in found:
            after, _ = distance(moved(params, gradient, -1e-2), x, y, order)
            assert after > before + 1e-4


def test_the_soft_boundary_is_never_the_farther_one():
    params = network()
    distances = [[distance(params, x, y, 2, hard)[0] for hard in (False, True)] for x, y in right_points(params)]
    assert all(soft <= hard + 1e-9 for soft, hard in distances)
    assert any(soft < hard - 1e-3 for soft, hard in distances)


def test_with_two_classes_the_soft_margin_is_the_logit_margin():
    logits = jnp.float32([1.5, 0.25])
    np.testing.assert_allclose(soft_logit_margin(logits, 0), logit_margin(logits, 0), rtol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def slopes(objective, params, x, y, example_state, key):
    """The gradient of one example's loss in the parameters, after the search."""
    example = (key, x, y)
    inner_result, _ = objective.inner_maximization(
        functools.partial(logits_of, params), *example, example_state, jnp.array(0)
    )
    loss = lambda params: objective.example_loss(functools.partial(logits_of, params), *example, inner_result)  # noqa: E731
    return jax.grad(loss)(params)


def gradient_at(objective, params, x, y, example_state=1.0, seed=0):
    return slopes(objective, params, x, jnp.asarray(y), jnp.asarray(example_state), jax.random.key(seed))


def inner_maximum(objective, params, x, y, example_state=1.0, seed=0):
    logits_fn = functools.partial(logits_of, params)
    example = (jax.random.key(seed), x, jnp.asarray(y), jnp.asarray(example_state))
    return objective.inner_maximization(logits_fn, *example, jnp.array(0))


def test_a_margin_beyond_d_max_has_no_gradient_and_is_remembered_as_such():
    params = network()
    x, y = right_points(params)[0]
    d = distance(params, x, y, 2)[0]
    reach = objectives.mma(d_max=0.5 * d, num_steps=20, clean_weight=0.0)
    gradient = gradient_at(reach, as_float32(params), jnp.float32(x), y, example_state=0.4 * d)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))
    _, example_state = inner_maximum(reach, as_float32(params), jnp.float32(x), y, example_state=0.4 * d)
    np.testing.assert_allclose(example_state, LONGER * 0.5 * d, rtol=1e-5)
    farther = objectives.mma(d_max=2 * d, num_steps=40, num_halvings=20, clean_weight=0.0)
    gradient = gradient_at(farther, as_float32(params), jnp.float32(x), y)
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(gradient))


def test_a_wrong_example_counts_with_its_own_cross_entropy_and_is_forgotten():
    params = as_float32(network())
    x = jnp.float32([0.3, -0.2])
    y = int(jnp.argmin(logits_of(params, x)))
    objective = objectives.mma(d_max=2.0)
    inner_result, example_state = inner_maximum(objective, params, x, y)
    np.testing.assert_array_equal(inner_result.x_adv, x)
    assert inner_result.counts and example_state == 0
    value = objective.example_loss(functools.partial(logits_of, params), jax.random.key(0), x, y, inner_result)
    np.testing.assert_allclose(value, cross_entropy(logits_of(params, x), y), rtol=1e-6)


def test_a_right_example_counts_two_thirds_at_the_boundary_and_one_third_at_itself():
    params = network()
    x, y = right_points(params)[1]
    objective = objectives.mma(d_max=3.0, num_steps=40)
    inner_result, example_state = inner_maximum(objective, as_float32(params), jnp.float32(x), y)
    logits_fn = functools.partial(logits_of, as_float32(params))
    value = objective.example_loss(logits_fn, jax.random.key(0), jnp.float32(x), y, inner_result)
    at = [cross_entropy(logits_fn(jnp.asarray(z)), y) for z in (inner_result.x_adv, jnp.float32(x))]
    np.testing.assert_allclose(value, 2 / 3 * at[0] + 1 / 3 * at[1], rtol=1e-5)
    np.testing.assert_allclose(at[0], np.log(2), atol=0.02)  # where the soft margin is 0
    np.testing.assert_allclose(example_state, np.linalg.norm(inner_result.x_adv - x), rtol=1e-5)


def test_the_search_begins_at_the_distance_remembered_but_not_below_the_least():
    """One step of PGD from the point goes 2.5 epsilon or to the ball's end, and the bisection starts from there."""
    w = jnp.float32([1.0, 0.0])
    logits_fn = lambda z: jnp.stack([jnp.vdot(w, z), jnp.zeros(())])  # noqa: E731
    objective = objectives.mma(d_max=4.0, min_epsilon=0.5, num_steps=50, num_halvings=1)
    x, halves = jnp.float32([1.0, 0.0]), {}
    for remembered in (0.0, 0.5, 2.0):
        example = (jax.random.key(0), x, jnp.array(0), jnp.asarray(remembered))
        inner_result, _ = objective.inner_maximization(logits_fn, *example, jnp.array(0))
        halves[remembered] = float(jnp.linalg.norm(inner_result.x_adv - x))
    assert halves[0.0] == halves[0.5]
    np.testing.assert_allclose(halves[0.5], (0.5 + LONGER * 4.0) / 2, rtol=0.02)  # the upper half of [0.5, 4.2]
    np.testing.assert_allclose(halves[2.0], 2.0, rtol=0.02)  # the upper half of [0, 2], whose middle is 1


@pytest.mark.parametrize("batch_size", [10, 16, 70])
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
