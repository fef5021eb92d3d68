"""AN-PGD: the boundary of the soft logit margin, held against closed forms on linear classifiers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmargin as jm
from jaxmargin.attacks.adaptive_norm_pgd import LONGER
from jaxmargin.losses import soft_logit_margin

pytestmark = pytest.mark.hurried

D_MAX = 3.0
NORMS = {"l2": (jm.l2, 2), "linf": (jm.linf, 1), "l1": (jm.l1, np.inf)}  # with the order of the dual


def binary(seed=0, n=12):
    """Two-class linear classifiers, whose soft margin is the logit margin: (weights [4], bias), points, labels."""
    rng = np.random.default_rng(seed)
    w, xs = rng.normal(size=4), rng.normal(size=(n, 4))
    return np.float32(w), np.float32(xs), (xs @ w > 0).astype(int)


def logits_fn(w, x):
    return jnp.stack([-0.5 * jnp.vdot(w, x), 0.5 * jnp.vdot(w, x)])


@functools.cache
def search(**options):
    """One compilation a norm and number of steps: radii and classifiers are traced."""

    def one(w, epsilon, key, x, y):
        return jm.attacks.an_pgd(functools.partial(logits_fn, w), key, x, y, epsilon=epsilon, d_max=D_MAX, **options)

    return jax.jit(jax.vmap(one, (None, None, 0, 0, 0)))


def found_by(norm, epsilon, *, xs, ys, w, **options):
    keys = jax.random.split(jax.random.key(0), len(xs))
    return search(norm=norm, **options)(w, epsilon, keys, xs, ys)


@pytest.mark.parametrize("name", ["l2", "linf"])
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 2.0])
def test_the_distance_on_a_linear_classifier_is_the_closed_form_from_any_radius(name, epsilon):
    norm, dual = NORMS[name]
    w, xs, ys = binary()
    exact = np.abs(xs @ w) / np.linalg.norm(w, dual)
    assert (exact < D_MAX).all() and (exact > 0.5).any() and (exact < 0.5).any()
    found = found_by(norm, epsilon, xs=xs, ys=ys, w=w, num_steps=100, num_halvings=24)
    assert found.found.all()
    assert (found.distance >= exact * (1 - 1e-5)).all()
    # On the sphere each step takes 1/41 of what is left of the random start across the direction: not much in l2.
    assert (found.distance <= exact * (1.1 if name == "l2" else 1.001)).all()


def test_the_point_lies_on_the_boundary_within_the_resolution_and_at_its_distance():
    w, xs, ys = binary()
    found = found_by(jm.l2, 0.5, xs=xs, ys=ys, w=w, num_halvings=10)
    margins = jax.vmap(lambda x, y: soft_logit_margin(logits_fn(w, x), y))(found.x_adv, ys)
    resolution = np.linalg.norm(w) * LONGER * D_MAX / 2**10
    assert (margins <= 1e-6).all() and (margins > -resolution - 1e-6).all()
    np.testing.assert_allclose(found.distance, np.linalg.norm(found.x_adv - xs, axis=1), rtol=1e-5)


def test_a_boundary_beyond_the_end_is_not_found_and_the_point_lies_at_the_end():
    w, xs, ys = binary()
    far = xs + 10 * D_MAX * np.outer(2 * ys - 1, w) / np.linalg.norm(w)
    found = found_by(jm.l2, 1.0, xs=np.float32(far), ys=ys, w=w)
    assert not found.found.any()
    np.testing.assert_allclose(found.distance, LONGER * D_MAX, rtol=1e-5)


def test_the_box_holds_the_point_and_its_distance_counts():
    w = np.float32([1.0, 0.2, 0.0, 0.0])
    xs, ys = np.float32([[0.9, 0.9, 0.5, 0.5], [0.6, 0.3, 0.1, 1.0]]), np.array([1, 1])
    shifted = lambda x: logits_fn(w, x - jnp.float32([0.5, 0.5, 0.0, 0.0]))  # noqa: E731
    run = functools.partial(jm.attacks.an_pgd, shifted, epsilon=0.5, d_max=2.0, box=(0.0, 1.0), num_steps=40)
    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 2), xs, ys)
    assert ((found.x_adv >= 0) & (found.x_adv <= 1)).all()
    np.testing.assert_allclose(found.distance, np.linalg.norm(found.x_adv - xs, axis=1), rtol=1e-5)


def test_the_released_code_overstates_the_distance_where_the_box_shortens_the_direction():
    """x1 + x2 falls fastest to (0, 0), 0.6 away and well inside of the ball of radius 1; the boundary is 0.4 away."""
    x, y = jnp.float32([0.6, 0.0]), jnp.array(1)
    shifted = lambda x: logits_fn(jnp.ones(2), x - jnp.float32([0.2, 0.0]))  # noqa: E731
    options = dict(epsilon=1.0, box=(0.0, 1.0), d_max=2.0, num_steps=40, num_halvings=20)

    @jax.jit
    def both(key):
        search = functools.partial(jm.attacks.an_pgd, shifted, x=x, y=y, **options)
        return [search(key=jax.random.clone(key), reference=reference) for reference in (False, True)]

    ours, theirs = both(jax.random.key(0))
    np.testing.assert_allclose(ours.distance, 0.4, rtol=1e-3)
    np.testing.assert_allclose(jnp.linalg.norm(theirs.x_adv - x), 0.4, rtol=1e-3)
    np.testing.assert_allclose(theirs.distance, 0.4 / 0.6, rtol=1e-3)


def test_both_agree_where_nothing_shortens_the_direction():
    w, xs, ys = binary()
    options = dict(xs=xs, ys=ys, w=w, num_steps=40, num_halvings=20)
    ours, theirs = (found_by(jm.l2, 0.3, reference=reference, **options) for reference in (False, True))
    np.testing.assert_allclose(ours.distance, theirs.distance, rtol=1e-3, atol=1e-4)


def test_the_soft_boundary_is_never_farther_than_the_classifiers(tiny):
    """d_SLM <= d: where the prediction changes, the soft margin has changed its sign already."""
    ys = tiny.predicted
    soft = jax.jit(jax.vmap(lambda x, y: soft_logit_margin(tiny.model.apply(tiny.params, x), y)))
    nearest = jm.over_batch(jm.minimum_norm, tiny.model.apply, num_steps=100)
    found = nearest(tiny.params, jax.random.key(0), tiny.xs, ys)
    assert found.found.all() and (soft(tiny.xs, ys) > 0).any()
    assert (soft(found.x_adv, ys) < 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(epsilon=0.0), "epsilon=0.0 must be"),
        (dict(d_max=-1.0), "d_max=-1.0 must be"),
        (dict(epsilon=2.2), "epsilon=2.2 exceeds 1.05 d_max = 2.1"),
        (dict(num_steps=0), "num_steps=0"),
        (dict(num_halvings=1.5), "num_halvings=1.5"),
        (dict(box=(1.0, 0.0)), "box"),
    ],
)
def test_bad_options_are_refused(options, message):
    w, xs, ys = binary()
    with pytest.raises(ValueError, match=message):
        jm.attacks.an_pgd(
            functools.partial(logits_fn, w), jax.random.key(0), xs[0], ys[0], **dict(epsilon=1.0, d_max=2.0) | options
        )
