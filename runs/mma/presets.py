"""The settings of Ding et al. (2020) and the numbers they published, for ``runs.mma``.

MNIST and CIFAR-10 follow the paper; the digits are not in it: their settings are ours, sized so that the whole study
takes minutes on two CPU cores. lcr and amr, which are not in it either, train with the same optimiser and steps, and
with the coefficients that Wu and Yu give for a CNN, their tau of 10 in the text.
"""

from typing import Any

from jaxmargin import checks
from runs.mma.cell import ENSEMBLE, NORMS, Cell, kind_of

__all__ = ["DATASETS", "cell", "methods", "published"]

DATASETS = ("digits", "mnist", "cifar10")

# Methods of each study: PGD and MMA at the sizes of the paper.
METHODS = {
    ("digits", "l2"): ("pgd-0.25", "pgd-0.5", "pgd-1", "trades-0.5", "mma-0.5", "mma-1", "mma-2"),
    ("digits", "linf"): ("pgd-0.05", "pgd-0.1", "pgd-0.2", "trades-0.1", "mma-0.1", "mma-0.2", "mma-0.4"),
    ("mnist", "l2"): ("pgd-1", "pgd-2", "pgd-3", "trades-2", "mma-2", "mma-4", "mma-6"),
    ("mnist", "linf"): ("pgd-0.1", "pgd-0.2", "pgd-0.3", "pgd-0.4", "trades-0.3", "mma-0.45"),
    ("cifar10", "l2"): ("pgd-0.5", "pgd-1", "pgd-1.5", "pgd-2", "pgd-2.5", "trades-1", "mma-1", "mma-2", "mma-3"),
    ("cifar10", "linf"): (
        *(f"pgd-{n / 255:.5g}" for n in (4, 8, 16, 24)), f"trades-{8 / 255:.5g}",
        *(f"mma-{n / 255:.5g}" for n in (12, 20, 32)),
    ),
}  # fmt: skip

# Attack budgets of the evaluation.
EPSILONS = {
    ("digits", "l2"): (0.25, 0.5, 0.75, 1.0), ("digits", "linf"): (0.05, 0.1, 0.15, 0.2),
    ("mnist", "l2"): (1.0, 2.0, 3.0, 4.0), ("mnist", "linf"): (0.1, 0.2, 0.3, 0.4),
    ("cifar10", "l2"): (0.5, 1.0, 1.5, 2.0, 2.5),
    ("cifar10", "linf"): tuple(n / 255 for n in (4, 8, 12, 16, 20, 24, 28, 32)),
}  # fmt: skip

# Least radius of AN-PGD's search, and radius of the ball of the Lipschitz estimates.
MIN_EPSILON = {
    ("digits", "l2"): 0.1, ("digits", "linf"): 0.02, ("mnist", "l2"): 0.5, ("mnist", "linf"): 0.1,
    ("cifar10", "l2"): 0.5, ("cifar10", "linf"): 0.005,
}  # fmt: skip
RADIUS = {
    ("digits", "l2"): 1.5, ("digits", "linf"): 0.3, ("mnist", "l2"): 5.0, ("mnist", "linf"): 0.4,
    ("cifar10", "l2"): 5.0, ("cifar10", "linf"): 0.2,
}  # fmt: skip

# Mean minimum-norm l2 distances, wrong points 0, of the first 1000 test images; and what is known of linf, accuracies
# at EPSILONS under PGD of 100 steps from ten starts.
PUBLISHED: dict[tuple[str, str, str], dict[str, Any]] = {
    ("mnist", "l2", "std"): dict(average_nearest=1.57),
    ("mnist", "l2", "pgd-1"): dict(average_nearest=1.95),
    ("mnist", "l2", "pgd-2"): dict(average_nearest=2.32),
    ("mnist", "l2", "mma-2"): dict(average_nearest=2.15),
    ("mnist", "l2", "mma-4"): dict(average_nearest=2.67),
    ("mnist", "l2", "mma-6"): dict(average_nearest=2.76),
    ("mnist", "linf", "mma-0.45"): dict(clean_accuracy=0.989, robust_accuracy_published=(0.979, 0.960, 0.926, 0.852)),
    ("cifar10", "l2", "std"): dict(average_nearest=0.09),
    ("cifar10", "l2", "pgd-1"): dict(average_nearest=1.01),
    ("cifar10", "l2", "mma-1"): dict(average_nearest=0.85),
    ("cifar10", "l2", "mma-2"): dict(average_nearest=1.03),
    ("cifar10", "l2", "mma-3"): dict(average_nearest=1.09),
    ("cifar10", "linf", f"mma-{32 / 255:.5g}"): dict(
        clean_accuracy=0.844, robust_accuracy_published=(None, 0.472, *[None] * 6)
    ),
}


def methods(dataset: str, norm: str) -> tuple[str, ...]:
    """The methods of a study, those of Wu and Yu first.

    Args:
      dataset: "digits", "mnist" or "cifar10".
      norm: "l2" or "linf".

    Returns:
      Their names.

    Raises:
      ValueError: an unknown data set or norm.
    """
    checks.one_of("dataset", dataset, DATASETS)
    checks.one_of("norm", norm, NORMS)
    *pgd, other = (name for name in METHODS[dataset, norm] if kind_of(name)[0] in ("pgd", "trades"))
    return ("std", "lcr", "amr", *pgd, ENSEMBLE, other, *(m for m in METHODS[dataset, norm] if m.startswith("mma")))


def cell(dataset: str, norm: str, method: str, *, seed: int = 0, **changes: Any) -> Cell:
    """One cell of a study with the paper's settings.

    Args:
      dataset: "digits", "mnist" or "cifar10".
      norm: "l2" or "linf".
      method: such as "mma-2".
      seed: of initialisation, shuffling and sampling.
      **changes: fields of Cell to set otherwise, and ``learning_rate``, the first one, from which later ones fall
        as the preset's do; None keeps the preset's.

    Returns:
      Cell.

    Raises:
      ValueError: an unknown name.

    >>> cell("mnist", "l2", "mma-2").attack_steps
    40
    """
    checks.one_of("dataset", dataset, DATASETS)
    checks.one_of("norm", norm, NORMS)
    kind_of(method)
    place = dataset, norm
    preset: dict[str, Any] = dict(epsilons=EPSILONS[place], min_epsilon=MIN_EPSILON[place], radius=RADIUS[place])
    preset |= {"digits": _digits, "mnist": _mnist, "cifar10": _cifar}[dataset]()
    changed = {name: value for name, value in changes.items() if value is not None}
    (_, highest), *_ = rates = preset["learning_rates"]
    scale, steps = changed.pop("learning_rate", highest) / highest, changed.get("steps", preset["steps"])
    # Those of a shorter training fall as much earlier.
    preset["learning_rates"] = tuple((first * steps // preset["steps"], scale * rate) for first, rate in rates)
    settings = preset | changed
    if place == ("mnist", "linf") and settings["trades_step_size"] is None:  # fewer steps go as far
        settings["trades_step_size"] = 0.01 * preset["attack_steps"] / settings["attack_steps"]
    return Cell(dataset=dataset, norm=norm, method=method, seed=seed, **settings)


def published(dataset: str, norm: str, method: str) -> dict[str, Any] | None:
    """What the paper has of a cell, under the keys of a card; None where there is nothing."""
    return PUBLISHED.get((dataset, norm, method))


def _mnist() -> dict[str, Any]:
    return dict(
        model="lenet", steps=100_000, batch_size=50, optimizer="adam", learning_rates=((0, 1e-4),), validation=5000,
        attack_steps=40, trades_beta=1.0, trades_step_size=None, lam=0.1, beta=2e-3, tau=10.0,
        reference=False, augment=False, bfloat16=False, attack_points=1000, worst_case_steps=100, nearest_steps=500,
        points=200, num_samples=8192,
    )  # fmt: skip


def _cifar() -> dict[str, Any]:
    rates = ((0, 0.3), (20_000, 0.09), (30_000, 0.03), (40_000, 0.009))
    return _mnist() | dict(
        model="wrn-28-4", steps=50_000, batch_size=128, optimizer="sgd", learning_rates=rates, attack_steps=10,
        trades_beta=6.0, augment=True, points=50, num_samples=1024,
    )  # fmt: skip


def _digits() -> dict[str, Any]:
    return dict(
        model="small-lenet", steps=1500, batch_size=32, optimizer="adam", learning_rates=((0, 1e-3),), validation=200,
        attack_steps=10, trades_beta=6.0, trades_step_size=None, lam=0.1, beta=1e-3, tau=10.0,
        reference=False, augment=False, bfloat16=False, attack_points=360, worst_case_steps=50, nearest_steps=100,
        points=60, num_samples=1024,
    )  # fmt: skip
