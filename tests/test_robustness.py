"""Splits under attack: the published sweep, the worst case with its shortcuts, and the bounds of points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params

import jaxmargin as jm
from jaxmargin.attacks import PUBLISHED
from jaxmargin.lab.cells import Cell, Setup
from jaxmargin.lab.data.loading import Dataset, Split
from jaxmargin.lab.robustness import bounds_of, found_as_published, found_in_the_worst_case, pgd_sweep
from jaxmargin.lab.workspace import Workspace

pytestmark = pytest.mark.hurried

EPSILONS = (0.7, 1.0, 1.4)


@pytest.fixture(scope="module")
def problem():
    model = jm.models.mlp((5, 5, 1), 4, hidden=32)
    params = random_params(model, seed=2)
    xs = np.asarray(jax.random.uniform(jax.random.key(5), (60, 5, 5, 1)))
    ys = np.array(jnp.argmax(jax.vmap(model.apply, (None, 0))(params, xs), 1))
    ys[::9] = (ys[::9] + 1) % 4  # some of them wrong
    return model, params, xs, ys


@pytest.fixture
def set_up(problem, tmp_path):
    """Makes the setup of a cell whose test images are the problem's, for one use of a key."""
    model, _, xs, ys = problem
    everything = np.arange(len(xs))

    def make(use, key, **sizes):
        settings = dict(dataset="toy", model="mlp", method="std", seed=0, batch_size=1, epsilons=EPSILONS, points=60)
        settings |= dict(
            attack_points=60, attack_steps=1, worst_case_steps=1, nearest_steps=1, num_samples=1, radius=5.0
        )
        data, work = Dataset("toy", Split(xs, ys), Split(xs, ys), 4, 1.0), Workspace(tmp_path, "")
        cell, points = Cell(**settings | sizes), {"test": everything}
        return Setup(cell, data, model, model.apply, jm.l2, {use: key}, everything, points, work)

    return make


def test_the_sweep_is_the_published_attack_at_each_epsilon(problem, set_up):
    model, params, xs, ys = problem
    options = dict(num_steps=15, step_size=0.2)
    key = jax.random.key(1)
    sweep = jm.over_batch(pgd_sweep, model.apply, epsilons=EPSILONS, **options)(params, key, xs, ys)
    run = jm.over_batch(jm.pgd, model.apply, **(PUBLISHED | options))
    for i, epsilon in enumerate(EPSILONS):
        one = run(params, jax.random.clone(key), xs, ys, epsilon=epsilon)
        np.testing.assert_array_equal(sweep.found[:, i], one.found)
    assert 0 < sweep.found[:, 0].mean() < sweep.found[:, 2].mean()
    kept = found_as_published(set_up("published", jax.random.clone(key)), params, **options)
    np.testing.assert_array_equal(kept["found_published"], sweep.found)


def test_the_worst_case_is_as_bad_as_attacking_everything_everywhere(problem, set_up, tmp_path):
    model, params, xs, ys = problem
    before = np.zeros((len(xs), 3), bool)
    before[5, 0] = True  # broken by another attack at the smallest epsilon: broken at all
    setup = set_up("worst_case", jax.random.key(1), worst_case_steps=30)
    found = found_in_the_worst_case(setup, params, before)["found_worst"]
    assert found[5].all()
    assert (np.diff(found.astype(int), axis=1) >= 0).all()
    run = jm.over_batch(jm.worst_case, model.apply, num_steps=30, box=(0.0, 1.0))
    for i, epsilon in enumerate(EPSILONS):
        everywhere = np.array(run(params, jax.random.key(2), xs, ys, epsilon=epsilon).found)
        everywhere[5] = True
        assert (found[:, i] != everywhere).sum() <= 2  # the starts are others
    assert found[::9].all()
    assert 0.1 < found[:, 0].mean() < found[:, 2].mean()
    # Asked again it reads its files; and the smaller epsilons were asked of fewer points.
    asked = [len(np.load(tmp_path / "measures" / f"worst_case-{epsilon:g}.npz")["found"]) for epsilon in EPSILONS]
    assert asked[0] <= asked[1] <= asked[2] < len(xs)


def test_bounds_are_those_of_the_prediction(problem, set_up):
    model, params, xs, ys = problem
    predicted = np.asarray(jnp.argmax(jax.vmap(model.apply, (None, 0))(params, xs), 1))
    found = bounds_of(set_up("bounds", jax.random.key(0), nearest_steps=50), params, predicted)
    assert (found["certified"] > 0).all()
    assert (found["certified"] <= found["attacked"]).all()
    assert np.isfinite(found["attacked"]).all()
    assert (jnp.asarray(found["certified"]) > 0.3 * found["attacked"]).mean() > 0.5
