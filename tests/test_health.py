"""The signs of failing attacks: raised where they were planted, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params

import jaxmargin as jm
from jaxmargin.flags import layer_cake, margins_capped, plateau, rises, weak_loss

pytestmark = pytest.mark.hurried


@pytest.fixture(scope="module")
def net():
    """A small mlp on 5 x 5 images in [0, 1] that counts its traces, with points all right."""
    model = jm.models.mlp((5, 5, 1), 4, hidden=32)

    def apply_fn(params, x):
        apply_fn.traced += 1
        return model.apply(params, x)

    apply_fn.traced = 0
    params = random_params(model, seed=2)
    xs = jax.random.uniform(jax.random.key(5), (60, 5, 5, 1))
    ys = jnp.argmax(jax.vmap(apply_fn, (None, 0))(params, xs), 1)
    return apply_fn, params, xs, ys


def raised(flags):
    return {flag.name for flag in flags if flag.raised}


def check(apply_fn, net, params=None, ys=None, **options):
    params, ys = net[1] if params is None else params, net[3] if ys is None else ys
    return jm.health_check(apply_fn, params, net[2], ys, **(dict(num_steps=40) | options))


def capped(net, share):
    """Margins of the net of which that share was cut at the radius."""
    found = jm.over_batch(jm.linear_margin, net[0])(net[1], jax.random.key(0), *net[2:])
    return found._replace(capped=jnp.arange(60) < 60 * share)


@pytest.mark.slow
def test_a_sound_classifier_raises_nothing(net):
    flags = check(net[0], net, margins=capped(net, 0.05))
    assert raised(flags) == set()
    assert len({flag.name for flag in flags}) == len(flags) >= 10
    for flag in flags:
        assert np.isfinite(flag.value)
        assert flag.meaning
        assert flag.remedy


def test_a_scaled_last_layer_saturates_the_cross_entropy_and_capped_margins_are_noticed(net):
    first, last = net[1]["Dense_0"], net[1]["Dense_1"]
    scaled = {"Dense_0": first, "Dense_1": jax.tree.map(lambda leaf: 3000.0 * leaf, last)}
    flags = check(net[0], net, scaled, margins=capped(net, 0.5))
    assert {"saturated loss", "one loss far weaker", "unbounded attack", "margins capped"} <= raised(flags)
    assert flags[-1].value == pytest.approx(0.5)
    assert "zero gradients" not in raised(flags)


@pytest.mark.slow
def test_probabilities_are_noticed_and_their_logarithms_attacked(net):
    flags = check(lambda params, x: jax.nn.softmax(net[0](params, x)), net)
    assert raised(flags) == {"probabilities as logits"}


@pytest.mark.slow
def test_a_rounded_input_a_forward_pass_that_changes_and_inputs_outside_the_box_are_noticed(net):
    noise = iter(range(10**6))
    apply_fn, params, xs, ys = net

    def rounded(params, x):
        return apply_fn(params, jnp.round(6 * x / 255) / 6) * (1 + 1e-2 * next(noise))

    options = dict(epsilons=(51.0, 102.0, 204.0), norm=jm.linf, num_steps=40)
    flags = jm.health_check(rounded, params, 255 * xs, ys, box=(0.0, 1.0), **options)
    assert {"forward pass not repeatable", "inputs outside the box"} <= raised(flags)
    assert {"zero gradients", "gradients mislead"} <= raised(flags)


# Table 1 of Wu and Yu 2019, MNIST at epsilon 0.5, 1, 1.5, 2 and CIFAR-10 at 0.1 to 0.4.
@pytest.mark.parametrize(
    ("epsilons", "clean", "robust", "stuck"),
    [
        ((0.5, 1, 1.5, 2), 0.9824, (0.8926, 0.4923, 0.1578, 0.0506), False),
        ((0.5, 1, 1.5, 2), 0.9601, (0.9118, 0.8101, 0.6293, 0.3844), False),
        ((0.5, 1, 1.5, 2), 0.9929, (0.9721, 0.8783, 0.5830, 0.2696), False),
        ((0.5, 1, 1.5, 2), 0.9914, (0.9595, 0.9048, 0.8872, 0.8752), True),
        ((0.5, 1, 1.5, 2), 0.9925, (0.9790, 0.9760, 0.9751, 0.9733), True),
        ((0.1, 0.2, 0.3, 0.4), 0.5404, (0.3977, 0.2667, 0.1677, 0.0995), False),
        ((0.1, 0.2, 0.3, 0.4), 0.7877, (0.5432, 0.3981, 0.3714, 0.3627), True),
        ((0.1, 0.2, 0.3, 0.4), 0.7812, (0.6959, 0.5984, 0.4902, 0.3865), False),
    ],
)
def test_the_plateaus_of_the_published_table_are_seen(epsilons, clean, robust, stuck):
    assert plateau(epsilons, clean, robust).raised == stuck


def test_a_curve_that_falls_to_nothing_or_stands_still():
    assert not plateau((1, 2, 3), 1.0, (0.5, 0.0, 0.0)).raised
    assert plateau((1, 2), 1.0, (0.5, 0.5)).raised
    assert plateau((1, 2), 0.0, (0.0, 0.0)).value == 0


def test_the_layer_cake_of_true_accuracies_is_at_most_one():
    distances = np.random.default_rng(0).gamma(2.0, size=500)
    epsilons = np.linspace(0.1, 8, 40)
    robust = [(distances > epsilon).mean() for epsilon in epsilons]
    flag = layer_cake(epsilons, robust, distances)
    assert 0.9 < flag.value <= 1
    assert not flag.raised
    assert layer_cake(epsilons, [0.9] * 40, distances).raised
    assert layer_cake([1.0], [0.5], [0.0, 0.0]).value == np.inf


def test_the_layer_cake_of_other_points_allows_for_their_number():
    few, epsilons, robust = [0.5, 0.5, 2.0, 2.0], [1.0, 2.0], [0.9, 0.6]  # 1.25 with a deviation of 0.75
    assert layer_cake(epsilons, robust, few).value == pytest.approx(1.5 / 1.25)
    assert layer_cake(epsilons, robust, few, same_points=False).value == pytest.approx(1.5 / (1.25 + 2 * 0.75 / 2))
    many = layer_cake(epsilons, robust, 10_000 * few, same_points=False)
    assert many.value == pytest.approx(1.5 / 1.25, rel=0.01)
    assert layer_cake(epsilons, [0.95, 0.95], 10_000 * few, same_points=False).raised


def test_a_weak_loss_is_one_that_leaves_points_others_break():
    assert weak_loss([0.9, 0.8], [0.89, 0.7]).value == pytest.approx(0.1)
    assert not weak_loss([0.9], [0.88]).raised


def test_where_nothing_is_right_or_nothing_moves_there_is_an_answer_all_the_same(net):
    apply_fn, params, xs, ys = net
    assert raised(check(apply_fn, net, ys=(ys + 1) % 4)) == set()
    always_first = jax.tree.map(jnp.zeros_like, params)
    always_first["Dense_1"]["bias"] = jnp.array([2.0, 0.0, 0.0, 0.0])
    before = apply_fn.traced
    assert {"zero gradients", "unbounded attack"} <= raised(check(apply_fn, net, always_first, ys=0 * ys))
    assert apply_fn.traced - before == 5  # twice compiled, to see that it repeats, twice by itself, and differentiated


def test_lists_that_do_not_fit_are_refused(net):
    with pytest.raises(ValueError, match="epsilons has 2 entries and robust 1"):
        plateau((1, 2), 1.0, (0.5,))
    with pytest.raises(ValueError, match="epsilons=.* must rise"):
        check(net[0], net, epsilons=(0.5, 0.1))


# What n points can show ---------------------------------------------------------------------------------------------


def test_a_share_of_few_points_is_held_against_its_threshold_as_they_allow():
    def capped(count, n):
        return margins_capped(np.arange(n) < count)  # threshold 10 %

    assert not capped(1, 4).raised and not capped(2, 10).raised and capped(1, 4).n == 4
    assert capped(4, 4).raised and capped(30, 100).raised and not capped(12, 100).raised and capped(130, 1000).raised
    assert not weak_loss([5 / 6], [4 / 6], n=6).raised and weak_loss([5 / 6], [0.0], n=6).raised
    assert weak_loss([0.9, 0.8], [0.89, 0.6], n=1000).raised


def test_of_sets_at_the_threshold_few_raise_a_flag():
    rng = np.random.default_rng(0)
    for n in (5, 20, 100, 1000):
        raised = [margins_capped(rng.uniform(size=n) < 0.1).raised for _ in range(400)]
        assert np.mean(raised) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("n", [2, 3, 5, 20, 100])
def test_a_perfect_attack_raises_no_plateau_on_any_number_of_points(n):
    rng = np.random.default_rng(n)
    raised = 0
    for _ in range(200):
        distances = rng.gamma(4.0, size=n)
        epsilons = np.quantile(distances, (0.25, 0.5, 0.75, 0.95))
        epsilons = np.unique(epsilons) if len(np.unique(epsilons)) == 4 else np.arange(1.0, 5.0)
        robust = [(distances > epsilon).mean() for epsilon in epsilons]
        raised += plateau(epsilons, 1.0, robust, n=n).raised
    assert raised <= 0.05 * 200 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_a_plateau_of_enough_points_is_seen():
    epsilons, robust = (0.5, 1, 1.5, 2), (0.9595, 0.9048, 0.8872, 0.8752)
    assert plateau(epsilons, 0.9914, robust, n=10_000).raised
    assert not plateau(epsilons, 0.9914, robust, n=40).raised and plateau(epsilons, 0.9914, robust, n=40).n == 40


def test_accuracy_that_rises_with_the_radius_is_a_sign():
    assert rises((1, 2, 3), (0.5, 0.2, 0.3)).value == pytest.approx(0.1)
    assert rises((1, 2, 3), (0.5, 0.2, 0.3), n=1000).raised and not rises((1, 2, 3), (0.5, 0.2, 0.3), n=10).raised
    assert not rises((1, 2, 3), (0.5, 0.2, 0.2), n=1000).raised and rises((1,), (0.5,)).value == 0
