"""Signs that a robustness measured by attacks is not there: each a number, the threshold it should not pass, a remedy.

The functions here judge numbers that are there already; ``health`` measures them. A share of n points is held against
its threshold as n points allow: it is raised where a share as large as the threshold would show so many in fewer than
one set of twenty.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmargin.types import Array

__all__ = ["Flag", "layer_cake", "margins_capped", "plateau", "rises", "share_bounds", "weak_loss"]


_CHANCE = 0.05  # of a flag that n points raise although the share is no larger than the threshold


class Flag(NamedTuple):
    """One sign.

    Attributes:
      name: of the sign, in words.
      raised: whether value passes threshold.
      value: what was measured.
      threshold: the largest value that raises no suspicion.
      meaning: what the value is.
      remedy: what to do where it is raised.
      n: number of points that it rests on; None where that is not known, and taken for as many as it takes.
    """

    name: str
    raised: bool
    value: float
    threshold: float
    meaning: str
    remedy: str
    n: int | None = None

    @staticmethod
    def judge(
        name: str, value: float, threshold: float, meaning: str, remedy: str, n: int | None = None, sets: int = 1
    ) -> "Flag":
        """The flag of a value, raised where that passes the threshold; a share of n points, where n show it.

        Args:
          name: of the sign.
          value: what was measured.
          threshold: the largest value that raises no suspicion.
          meaning: what the value is.
          remedy: what to do where it is raised.
          n: number of points whose share the value is; None for any other value.
          sets: how many shares it is the largest of.

        Returns:
          Flag.
        """
        lowest = value if n is None else share_bounds(round(value * n), n, _CHANCE / sets)[0]
        return Flag(name, bool(value > threshold and lowest > threshold), value, threshold, meaning, remedy, n)


def share_bounds(count: int, n: int, chance: float) -> tuple[float, float]:
    """Bounds of a share of which n points show count, each missed with a chance (Clopper and Pearson 1934).

    Args:
      count: of the n points.
      n: number of points.
      chance: that the share is below the lower bound, and that it is above the upper one.

    Returns:
      (low, high).

    >>> [round(end, 3) for end in share_bounds(1, 6, 0.05)]
    [0.009, 0.582]
    """
    from scipy.special import betaincinv  # here, since it takes longer to load than the rest of the core

    count = min(max(count, 0), n)
    low = float(betaincinv(count, n - count + 1, chance)) if count else 0.0
    return low, float(betaincinv(count + 1, n - count, 1 - chance)) if count < n else 1.0


def plateau(epsilons: Sequence[float], clean: float, robust: Sequence[float], *, n: int | None = None) -> Flag:
    """Whether accuracy falls more and more slowly as the radius grows, although there is much left to lose.

    The rate at which the accuracy a is lost, log(a_{i-1} / a_i) / (epsilon_i - epsilon_{i-1}), rises where an attack
    works: the points that are left are nearer and nearer to their own distance.

    Args:
      epsilons: [e] radii, rising.
      clean: accuracy without attack, in [0, 1].
      robust: [e] accuracies under attack.
      n: number of points that were attacked; None for as many as it takes.

    Returns:
      Flag: its value is the largest rate over the last one that begins above an accuracy of 5 %; it is raised where
      this holds of the least that the one and the most that the other can be on n points.

    Raises:
      ValueError: lengths that differ.

    >>> plateau([0.5, 1.0, 1.5, 2.0], 0.991, [0.96, 0.905, 0.887, 0.875]).raised
    True
    """
    _refuse_lengths(epsilons=epsilons, robust=robust)
    accuracy = np.asarray([clean, *robust], float)
    some = accuracy[:-1] > 0.05
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = (np.log(accuracy[:-1] / accuracy[1:]) / np.diff([0.0, *epsilons]))[some]
        value = float(rates.max() / rates[-1]) if some.any() and rates.max() > 0 else 0.0
    flag = Flag.judge(
        "plateau over epsilon", 1.0 if np.isnan(value) else value, 2.0,
        "largest rate at which accuracy falls with epsilon, over the last one",
        "attack with losses that cannot saturate (worst_case) and compare",
    )  # fmt: skip
    if n is None or not flag.raised:
        return flag._replace(n=n)
    steps = np.flatnonzero(some)
    bounds = [_rate_bounds(accuracy[i], accuracy[i + 1], n, _CHANCE / (len(steps) + 1)) for i in steps]
    widths = np.diff([0.0, *epsilons])[steps]
    least = max(low / width for (low, _), width in zip(bounds, widths, strict=True))
    return flag._replace(n=n, raised=bool(least > flag.threshold * bounds[-1][1] / widths[-1]))


def _rate_bounds(before: float, after: float, n: int, chance: float) -> tuple[float, float]:
    """Bounds of log(before / after), of accuracies on n points of which those that were right before can be lost."""
    right = round(before * n)
    low, high = share_bounds(right - round(after * n), right, chance)
    return -float(np.log1p(-low)) if low < 1 else np.inf, -float(np.log1p(-high)) if high < 1 else np.inf


def rises(epsilons: Sequence[float], robust: Sequence[float], *, n: int | None = None) -> Flag:
    """Whether accuracy rises somewhere with the radius, which that of a classifier cannot.

    Args:
      epsilons: [e] radii, rising.
      robust: [e] accuracies under attack, of the same points.
      n: number of points that were attacked; None for as many as it takes.

    Returns:
      Flag: its value is the largest rise from a radius to a larger one.

    Raises:
      ValueError: lengths that differ.

    >>> rises([0.5, 1.0, 1.5], [0.4, 0.2, 0.3]).raised
    True
    """
    _refuse_lengths(epsilons=epsilons, robust=robust)
    lowest = np.minimum.accumulate(np.asarray(robust, float))
    return Flag.judge(
        "accuracy rises with epsilon", float(np.max(np.asarray(robust) - lowest)), 0.01,
        "largest rise of the accuracy under attack from a radius to a larger one",
        "a larger ball holds the smaller one: attack with more steps, and count what was found at a smaller radius",
        n, len(lowest),
    )  # fmt: skip


def weak_loss(published: Sequence[float], worst: Sequence[float], *, n: int | None = None) -> Flag:
    """Whether one attack is far weaker than the worst case.

    Args:
      published: [e] accuracies under the attack in question, in [0, 1].
      worst: [e] accuracies under the worst case at the same radii.
      n: number of points that were attacked, the same in both; None for as many as it takes.

    Returns:
      Flag: its value is the largest difference.

    Raises:
      ValueError: lengths that differ.

    >>> round(weak_loss([0.95, 0.9], [0.6, 0.1]).value, 2)
    0.8
    """
    _refuse_lengths(published=published, worst=worst)
    return Flag.judge(
        "one loss far weaker", max(a - b for a, b in zip(published, worst, strict=True)), 0.15,
        "accuracy under the attack minus that in the worst case over losses",
        "report the worst case; the attack's loss saturates or goes for the wrong class",
        n, len(worst),
    )  # fmt: skip


def layer_cake(
    epsilons: Sequence[float], robust: Sequence[float], distances: Array, *, same_points: bool = True
) -> Flag:
    """Whether accuracy under attack adds up to more than the distances at which points were attacked.

    The integral of the robust accuracy over epsilon is the mean distance, of the wrong ones 0, cut at the last epsilon.

    Args:
      epsilons: [e] radii, rising.
      robust: [e] accuracies under attack.
      distances: [n] distances at which an attack changed the prediction, 0 where it is wrong, infinite where none did.
      same_points: whether the accuracies are of these n points, not of others of their kind.

    Returns:
      Flag: its value is the ratio of the two, the integral taken as low as the accuracies allow, and the mean distance
      of other points two of its standard errors higher.

    Raises:
      ValueError: lengths that differ.

    >>> layer_cake([1.0, 2.0], [0.9, 0.9], [0.5, 0.5, 1.0]).raised
    True
    """
    _refuse_lengths(epsilons=epsilons, robust=robust)
    widths = np.diff([0.0, *epsilons])
    least = float(np.sum(widths * np.asarray(robust)))  # falling: its value at the end of each step is its smallest
    cut = np.minimum(np.asarray(distances), epsilons[-1])
    mean = float(np.mean(cut) + (0 if same_points else 2 * np.std(cut) / np.sqrt(len(cut))))
    value = least / mean if mean > 0 else (np.inf if least > 0 else 0.0)
    return Flag.judge(
        "layer cake", value, 1.3,
        "integral of the accuracy under attack over epsilon, relative to the mean distance of found adversarials",
        "believe the distances: the attack behind the accuracies misses what minimum_norm finds",
    )._replace(n=len(cut))  # fmt: skip


def margins_capped(capped: Array) -> Flag:
    """Whether many margins were cut at the radius of the ball.

    Args:
      capped: [n] bool.

    Returns:
      Flag: its value is their share.
    """
    return Flag.judge(
        "margins capped", float(jnp.mean(capped)), 0.1,
        "share of margins cut at the radius of the ball",
        "measure again with a larger radius",
        len(capped),
    )  # fmt: skip


def _refuse_lengths(**lists: Sequence[float]) -> None:
    (first, one), (second, two) = lists.items()
    if len(one) != len(two) or not len(one):
        raise ValueError(f"{first} has {len(one)} entries and {second} {len(two)}: pass as many of each, at least one")
