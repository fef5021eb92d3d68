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

D_MAX, NUM_HALVINGS = 3.0, 16
BOX = (0.0, 1.0)
NORMS = {"l2": (jm.l2, 2), "linf": (jm.linf, 1), "l1": (jm.l1, np.inf)}  # with the order of the dual


def binary(seed=0, n=12):
    """Two-class linear classifiers, whose soft margin is the logit margin: (weights [4], bias), points, labels."""
    rng = np.random.default_rng(seed)
    w, xs = rng.normal(size=4), rng.normal(size=(n, 4))
    return np.float32(w), np.float32(xs), (xs @ w > 0).astype(int)


def logits_fn(params, x):
    w, centre = params
    return jnp.stack([-0.5, 0.5]) * jnp.vdot(w, x - centre)


@functools.cache
def search(**options):
    """One compilation for equal options: radii and classifiers are traced."""

    def one(params, epsilon, key, x, y):
        logits = functools.partial(logits_fn, params)
        return jm.attacks.an_pgd(logits, key, x, y, epsilon=epsilon, d_max=D_MAX, num_halvings=NUM_HALVINGS, **options)

    return jax.jit(jax.vmap(one, (None, None, 0, 0, 0)))


def found_by(norm, epsilon, *, xs, ys, w, centre=(0, 0, 0, 0), num_steps=100, **options):
    """What is found from each point; a few of them take turns to fill the batch."""
    rows, keys = np.arange(12) % len(xs), jax.random.split(jax.random.key(0), 12)
    params = np.float32(w), np.float32(centre)
    run = search(norm=norm, num_steps=num_steps, **options)
    found = run(params, jnp.float32(epsilon), keys, np.float32(xs)[rows], ys[rows])
    return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(xs)], found)


@pytest.mark.parametrize("name", ["l2", "linf"])
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 2.0])
def test_the_distance_on_a_linear_classifier_is_the_closed_form_from_any_radius(name, epsilon):
    norm, dual = NORMS[name]
    w, xs, ys = binary()
    exact = np.abs(xs @ w) / np.linalg.norm(w, dual)
    assert (exact < D_MAX).all() and (exact > 0.5).any() and (exact < 0.5).any()
    found = found_by(norm, epsilon, xs=xs, ys=ys, w=w)
    assert found.found.all()
    assert (found.distance >= exact * (1 - 1e-5)).all()
    # On the sphere each step takes 1/41 of what is left of the random start across the direction: not much in l2.
    assert (found.distance <= exact * (1.1 if name == "l2" else 1.001)).all()


def test_the_point_lies_on_the_boundary_within_the_resolution_and_at_its_distance():
    w, xs, ys = binary()
    found = found_by(jm.l2, 0.5, xs=xs, ys=ys, w=w)
    margins = found.x_adv @ w * (2 * ys - 1)  # of two classes the soft margin is the logit margin
    resolution = np.linalg.norm(w) * LONGER * D_MAX / 2**NUM_HALVINGS
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
    found = found_by(jm.l2, 0.5, xs=xs, ys=ys, w=w, centre=[0.5, 0.5, 0, 0], box=BOX)
    assert ((found.x_adv >= 0) & (found.x_adv <= 1)).all()
    np.testing.assert_allclose(found.distance, np.linalg.norm(found.x_adv - xs, axis=1), rtol=1e-5)


def test_the_released_code_overstates_the_distance_where_the_box_shortens_the_direction():
    """The sum falls fastest to 0, 0.6 away and well inside of the ball of radius 1; the boundary is 0.4 away."""
    xs, ys, w = np.float32([[0.6, 0.0, 0.0, 0.0]]), np.array([1]), [1, 1, 1, 1]
    options = dict(xs=xs, ys=ys, w=w, centre=[0.2, 0, 0, 0], box=BOX)
    ours, theirs = (found_by(jm.l2, 1.0, reference=reference, **options) for reference in (False, True))
    np.testing.assert_allclose(ours.distance, 0.4, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(theirs.x_adv - xs), 0.4, rtol=1e-3)
    np.testing.assert_allclose(theirs.distance, 0.4 / 0.6, rtol=1e-3)


def test_both_agree_where_nothing_shortens_the_direction():
    w, xs, ys = binary()
    # So near to the middle that the box does not bind.
    options = dict(xs=0.5 + 0.1 * xs, ys=ys, w=w, centre=[0.5] * 4, box=BOX)
    ours, theirs = (found_by(jm.l2, 0.3, reference=reference, **options) for reference in (False, True))
    assert ours.found.all()
    assert ((ours.x_adv > 0) & (ours.x_adv < 1)).all()
    np.testing.assert_allclose(ours.distance, theirs.distance, rtol=1e-3, atol=1e-4)


def test_the_soft_boundary_is_never_farther_than_the_classifiers(tiny):
    """d_SLM <= d: where the prediction changes, the soft margin has changed its sign already."""
    tiny_logits = functools.partial(tiny.model.apply, tiny.params)

    @jax.jit
    @jax.vmap
    def margins(key, x, y):
        """Soft, at the point and where the prediction has only just changed."""
        far = jm.deepfool(tiny_logits, key, x, y)
        near = jm.attacks.bisect_boundary(tiny_logits, x, y, far.x_adv)
        return near.found, *(soft_logit_margin(tiny_logits(z), y) for z in (x, near.x_adv))

    found, before, after = margins(jax.random.split(jax.random.key(0), 9), tiny.xs, tiny.predicted)
    assert found.all() and (before > 0).any()
    assert (after < 0).all()


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
            functools.partial(logits_fn, (w, 0 * w)), jax.random.key(0), xs[0], ys[0],
            **dict(epsilon=1.0, d_max=2.0) | options,
        )  # fmt: skip
