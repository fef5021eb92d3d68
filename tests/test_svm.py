"""The SVMs against their optimality conditions and scikit-learn, the front against brute force."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from runs.case_study import svm as under_test
from runs.case_study.front import pareto_front
from runs.case_study.svm import hard_margin_svm, linear_margins, mean_difference


def separable(seed, n, p, share=0.5, gap=0.3):
    """Points that a random hyperplane separates by at least `gap`, with about a share of them positive."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=p)
    w /= np.linalg.norm(w)
    ys = np.where(np.arange(n) < max(1, round(share * n)), 1.0, -1.0)
    xs = rng.normal(size=(n, p)) + 1.5
    along = rng.exponential(size=n) + gap
    return xs + np.outer(ys * along - xs @ w + 0.7, w), ys


def digits(first=0, second=1):
    source = load_digits()
    chosen = np.isin(source.target, (first, second))
    return source.data[chosen] / 16, np.where(source.target[chosen] == second, 1.0, -1.0)


def unit(w):
    return w / np.linalg.norm(w)


CASES = {
    "plane": separable(0, 40, 2),
    "space": separable(1, 300, 10),
    "more pixels than points": separable(2, 15, 60),
    "few positives": separable(3, 100, 5, share=0.05),
    "one of each": separable(4, 2, 3),
    "far from the origin": (separable(5, 50, 4)[0] + 100.0, separable(5, 50, 4)[1]),
    "tiny": (1e-4 * separable(6, 50, 4)[0], separable(6, 50, 4)[1]),
    "every point twice": tuple(np.repeat(part, 2, axis=0) for part in separable(7, 30, 3)),
    "a copied column": (separable(8, 40, 3)[0][:, [0, 1, 2, 2]], separable(8, 40, 3)[1]),
    "a grid, many equal distances": (np.indices((6, 5)).reshape(2, -1).T.astype(float), np.repeat([-1.0, 1.0], 15)),
    "digits": digits(),
    "digits 3 and 5": digits(3, 5),
}


@pytest.mark.parametrize("bias", ["free", "penalised"])
@pytest.mark.parametrize("case", CASES)
def test_optimality_conditions_hold(case, bias):
    xs, ys = CASES[case]
    found = hard_margin_svm(xs, ys, bias=bias)
    excess = ys * (xs @ found.w + found.b) - 1
    one = np.ones((len(xs), 1))
    rows = np.hstack([xs, one]) if bias == "penalised" else xs - xs.mean(axis=0)
    length = np.hypot(np.linalg.norm(found.w), found.b if bias == "penalised" else 0.0)
    stretch = np.linalg.norm(rows, axis=1).max() * length  # largest distance over margin; Gram matrices square it
    tolerance = 1e-12 + 16 * np.finfo(float).eps * stretch**2
    assert tolerance < 1e-4
    assert found.alpha.min() >= 0 and (found.alpha[found.support] > 0).all()
    assert excess.min() > -tolerance
    assert np.abs(excess[found.support]).max() < tolerance
    assert np.linalg.norm(found.w - (found.alpha * ys) @ xs) < tolerance * np.linalg.norm(found.w)
    balance = (found.alpha * ys).sum() - (found.b if bias == "penalised" else 0)
    assert abs(balance) < 1e-9 * found.alpha.sum()
    assert max(found.kkt) < tolerance
    assert found.alpha.sum() == pytest.approx(length**2, rel=tolerance)  # no duality gap


@pytest.mark.parametrize("case", ["plane", "space", "few positives", "digits"])
def test_free_bias_agrees_with_scikit_learn(case):
    xs, ys = CASES[case]
    other = SVC(kernel="linear", C=1e6, tol=1e-7).fit(xs, ys)
    found = hard_margin_svm(xs, ys)
    assert np.linalg.norm(unit(found.w) - unit(other.coef_[0])) < 1e-4
    assert found.b == pytest.approx(other.intercept_[0], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("case", ["plane", "space", "few positives", "digits"])
def test_penalised_bias_agrees_with_scikit_learn_on_mirrored_points(case):
    # With (x, 1, y) also as (-x, -1, -y) the free intercept is 0 by symmetry: only the penalised b is left.
    xs, ys = CASES[case]
    augmented = np.hstack([xs, np.ones((len(xs), 1))])
    other = SVC(kernel="linear", C=1e6, tol=1e-7).fit(np.vstack([augmented, -augmented]), np.append(ys, -ys))
    found = hard_margin_svm(xs, ys, bias="penalised")
    assert np.linalg.norm(unit(np.append(found.w, found.b)) - unit(other.coef_[0])) < 1e-4


def test_two_points_in_closed_form():
    xs, ys = np.array([[1.0, 0.0], [4.0, 4.0]]), np.array([-1, 1])
    free = hard_margin_svm(xs, ys)
    np.testing.assert_allclose(unit(free.w), [0.6, 0.8], atol=1e-12)
    np.testing.assert_allclose(linear_margins(free.w, free.b, xs, ys), [2.5, 2.5], atol=1e-12)
    rows = ys[:, None] * np.hstack([xs, np.ones((2, 1))])
    penalised = hard_margin_svm(xs, ys, bias="penalised")  # both points active: the shortest v with rows v = 1
    np.testing.assert_allclose(np.append(penalised.w, penalised.b), np.linalg.pinv(rows) @ np.ones(2), atol=1e-12)


def test_free_bias_ignores_where_the_origin_is_and_a_penalised_one_does_not():
    xs, ys = CASES["space"]
    far = xs + 3.0
    assert np.linalg.norm(hard_margin_svm(xs, ys).w - hard_margin_svm(far, ys).w) < 1e-9
    here, there = (hard_margin_svm(points, ys, bias="penalised").w for points in (xs, far))
    assert np.linalg.norm(unit(here) - unit(there)) > 1e-3


def test_free_bias_has_the_larger_minimum_margin():
    xs, ys = digits()
    free, penalised = (hard_margin_svm(xs, ys, bias=bias) for bias in ("free", "penalised"))
    margins = [linear_margins(found.w, found.b, xs, ys).min() for found in (free, penalised)]
    assert margins[0] > margins[1] + 1e-3
    assert margins[0] == pytest.approx(1 / np.linalg.norm(free.w), rel=1e-9)


def test_residuals_show_a_wrong_solution():
    xs, ys = CASES["plane"]
    found = hard_margin_svm(xs, ys)
    moved = under_test._kkt(found.w * 0.9, found.b, found.alpha, xs, ys, "free")
    assert moved.feasibility > 0.01 and moved.stationarity > 0.05 and moved.slackness > 0.01
    shifted = under_test._kkt(found.w, found.b, found.alpha + 0.1 * (ys > 0), xs, ys, "free")
    assert shifted.balance > 0.01


def test_points_that_are_tiny_beside_the_penalised_bias_are_still_told_apart():
    xs, ys = separable(0, 50, 4)
    found = hard_margin_svm(1e-5 * xs, ys, bias="penalised")
    stretch = np.hypot(np.linalg.norm(found.w), found.b)  # all rows have a length near 1
    assert max(found.kkt) < 16 * np.finfo(float).eps * stretch**2 < 1e-3


XOR = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), np.array([-1, -1, 1, 1])
MIXED = np.random.default_rng(0).normal(size=(200, 5)), np.random.default_rng(1).choice([-1.0, 1.0], size=200)
TOUCHING = np.array([[0.0], [1.0], [1.0], [2.0]]), np.array([-1, -1, 1, 1])
BETWEEN = np.array([[0.0], [1.0], [2.0]]), np.array([-1, 1, -1])


@pytest.mark.parametrize("bias", ["free", "penalised"])
@pytest.mark.parametrize("points", [XOR, MIXED, TOUCHING, BETWEEN], ids=["xor", "mixed", "touching", "between"])
def test_inseparable_classes_are_refused(points, bias):
    with pytest.raises(ValueError, match="no hyperplane separates"):
        hard_margin_svm(*points, bias=bias)
    with pytest.raises(ValueError, match="no hyperplane separates"):
        pareto_front(*points)


def test_mean_difference_in_closed_form():
    xs, ys = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]), np.array([-1, -1, 1])
    found = mean_difference(xs, ys)
    np.testing.assert_allclose(found.w, [0.0, 3.0])
    np.testing.assert_allclose(linear_margins(*found, xs, ys), [1.5, 1.5, 1.5])


def test_mean_difference_has_the_largest_average_of_balanced_classes():
    xs, ys = separable(9, 60, 4, share=0.5)
    best = linear_margins(*mean_difference(xs, ys), xs, ys).mean()
    for w in np.random.default_rng(0).normal(size=(200, 4)):
        assert linear_margins(w, 0.3, xs, ys).mean() < best


# The front.


def brute_force(xs, ys, minimum, angles=100_001):
    """The best average over all directions of the plane, each with its best admissible bias."""
    turn = np.linspace(0, 2 * np.pi, angles)
    along = np.stack([np.cos(turn), np.sin(turn)], axis=1) @ xs.T  # [angles, n]
    lowest = (minimum - along[:, ys > 0]).max(axis=1)  # the smallest b that the positive points allow
    highest = (-minimum - along[:, ys < 0]).min(axis=1)
    b = np.where(ys.mean() > 0, highest, lowest)
    average = (along * ys).mean(axis=1) + ys.mean() * b
    return average[lowest <= highest].max(initial=-np.inf)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_front_is_what_brute_force_finds(seed, share):
    xs, ys = separable(seed, 20, 2, share=share)
    largest = 1 / np.linalg.norm(hard_margin_svm(xs, ys).w)
    minimums = largest - np.array([4.0, 1.5, 0.6, 0.2, 0.05, 0.01]) * largest
    front = pareto_front(xs, ys, minimums=minimums)
    np.testing.assert_allclose(front.minimum, np.sort(minimums), rtol=1e-9, atol=1e-9 * largest)
    for minimum, average in zip(front.minimum, front.average, strict=True):
        found = brute_force(xs, ys, minimum)
        # A grid finds no more than the maximum, and misses it by its steps: at a corner, one of 6e-5 rad in the angle.
        assert found <= average + 1e-9
        assert average - found < 6e-5 * 3 * np.abs(xs).max() / min(1.0, largest)


@pytest.mark.parametrize("case", CASES)
def test_front_is_certified_falls_and_ends_at_the_svm(case):
    xs, ys = CASES[case]
    front, svm = pareto_front(xs, ys, num_points=15), hard_margin_svm(xs, ys)
    scale = np.abs(front.average).max()
    assert front.gap.min() >= 0 and front.gap.max() <= 1e-6 * scale
    np.testing.assert_allclose(np.linalg.norm(front.w, axis=1), 1.0)
    for w, b, minimum, average in zip(front.w, front.b, front.minimum, front.average, strict=True):
        margins = linear_margins(w, b, xs, ys)
        assert margins.min() == pytest.approx(minimum, abs=1e-9 * scale)
        assert margins.mean() == pytest.approx(average, abs=1e-9 * scale)
    assert (np.diff(front.average) <= 1e-9 * scale).all()
    rise, run = np.diff(front.average), np.diff(front.minimum)
    assert (rise[1:] * run[:-1] <= rise[:-1] * run[1:] + 1e-9 * scale * (run[:-1] + run[1:])).all()  # concave
    np.testing.assert_allclose(front.w[-1], unit(svm.w), atol=1e-9)
    assert front.minimum[-1] == pytest.approx(1 / np.linalg.norm(svm.w), rel=1e-9)


def test_no_classifier_lies_above_the_front():
    xs, ys = digits()
    rng, ends = np.random.default_rng(0), [hard_margin_svm(xs, ys), mean_difference(xs, ys)]
    for _ in range(30):
        mix = rng.uniform(-0.2, 1.2)
        w = mix * unit(ends[0].w) + (1 - mix) * unit(ends[1].w) + 0.02 * rng.normal(size=xs.shape[1])
        margins = linear_margins(w, rng.normal(scale=0.1) - w @ xs.mean(axis=0), xs, ys)
        front = pareto_front(xs, ys, minimums=[margins.min()])
        assert margins.mean() <= front.average[0] + 1e-9


def test_bias_alone_raises_the_average_of_unequal_classes():
    xs, ys = separable(10, 40, 2, share=0.8)
    front = pareto_front(xs, ys, minimums=[-1000.0, -500.0])
    assert (front.average[0] - front.average[1]) / 500 == pytest.approx(abs(ys.mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda xs, ys: hard_margin_svm(xs, ys, bias="none"), "bias='none' is unknown: choose from free, penalised"),
        (lambda xs, ys: hard_margin_svm(xs, (ys + 1) / 2), "labels are -1 and [+]1"),
        (lambda xs, ys: hard_margin_svm(xs, np.ones_like(ys)), "both must occur"),
        (lambda xs, ys: hard_margin_svm(xs[0], ys), r"shapes \(2,\) and \(40,\)"),
        (lambda xs, ys: hard_margin_svm(xs, ys[1:]), "pass points .n, p. and labels .n."),
        (lambda xs, ys: hard_margin_svm(xs * np.nan, ys), "nan or infinity"),
        (lambda xs, ys: linear_margins([0.0, 0.0], 1.0, xs, ys), "w=0 has no decision boundary"),
        (lambda xs, ys: mean_difference(xs * 0, ys), "the same mean"),
        (lambda xs, ys: pareto_front(xs, ys, minimums=[1e6]), "up to the largest minimum margin"),
        (lambda xs, ys: pareto_front(xs, ys, minimums=[np.nan]), "up to the largest minimum margin"),
        (lambda xs, ys: pareto_front(xs, ys, minimums=[]), "up to the largest minimum margin"),
        (lambda xs, ys: pareto_front(xs, ys, num_points=1), "num_points=1 must be at least 2"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call(*CASES["plane"])
