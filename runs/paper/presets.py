"""The settings of Wu and Yu (2019) and the numbers they published, for ``runs.paper``.

``text`` follows the words of the paper; ``released`` follows the configuration behind the published numbers, where the
two differ. The digits are not in the paper: their settings are ours, the same under both presets, and sized so that the
whole table takes minutes on two CPU cores.
"""

from typing import Any

from jaxmargin import checks
from runs.paper.cell import METHODS, MODELS, Cell

__all__ = ["DATASETS", "PRESETS", "cell", "published"]

DATASETS = ("digits", "mnist", "cifar10")
PRESETS = ("text", "released")

# Attack budgets: Table 1 for MNIST and CIFAR-10.
EPSILONS = {
    "digits": (0.25, 0.5, 0.75, 1.0),
    "mnist": (0.5, 1.0, 1.5, 2.0),
    "cifar10": (0.1, 0.2, 0.3, 0.4),
}

# Truncation tau of eq. (4), by data set and model. Text: appendix A.
TAU = {
    ("digits", "linear"): 5.0, ("digits", "mlp"): 5.0, ("digits", "cnn"): 10.0,
    ("mnist", "linear"): 5.0, ("mnist", "mlp"): 5.0, ("mnist", "cnn"): 10.0,
    ("cifar10", "linear"): 5.0, ("cifar10", "mlp"): 10.0, ("cifar10", "cnn"): 10.0,
}  # fmt: skip

# Wu and Yu 2019, Table 1: clean accuracy, robust accuracy at the four epsilons, "Avg Margin"; accuracies in percent.
TABLE_1 = {
    ("mnist", "mlp", "std"): (98.24, (89.26, 49.23, 15.78, 5.06), 0.80),
    ("mnist", "mlp", "lcr"): (95.99, (91.12, 80.62, 60.56, 34.07), 1.36),
    ("mnist", "mlp", "amr"): (96.01, (91.18, 81.01, 62.93, 38.44), 1.41),
    ("mnist", "cnn", "std"): (99.14, (95.95, 90.48, 88.72, 87.52), 1.01),
    ("mnist", "cnn", "lcr"): (99.29, (97.21, 87.83, 58.30, 26.96), 1.34),
    ("mnist", "cnn", "amr"): (99.25, (97.90, 97.60, 97.51, 97.33), 1.40),
    ("cifar10", "mlp", "std"): (54.04, (39.77, 26.67, 16.77, 9.95), 0.17),
    ("cifar10", "mlp", "lcr"): (50.09, (46.23, 41.65, 37.09, 32.62), 0.45),
    ("cifar10", "mlp", "amr"): (50.36, (46.28, 42.81, 39.06, 35.67), 0.54),
    ("cifar10", "cnn", "std"): (78.77, (54.32, 39.81, 37.14, 36.27), 0.09),
    ("cifar10", "cnn", "lcr"): (80.54, (70.84, 58.72, 44.82, 32.54), 0.26),
    ("cifar10", "cnn", "amr"): (78.12, (69.59, 59.84, 49.02, 38.65), 0.31),
}


def cell(dataset: str, model: str, method: str, *, preset: str, seed: int = 0, **changes: Any) -> Cell:
    """One cell of the table with the preset's settings.

    Args:
      dataset: "digits", "mnist" or "cifar10".
      model: "linear", "mlp" or "cnn".
      method: "std", "lcr" or "amr".
      preset: "text" or "released".
      seed: of initialisation, shuffling and sampling.
      **changes: fields of Cell to set otherwise; None keeps the preset's.

    Returns:
      Cell.

    Raises:
      ValueError: an unknown name.

    >>> cell("mnist", "cnn", "amr", preset="released").tau
    40.0
    """
    for name, value, choices in (
        ("dataset", dataset, DATASETS),
        ("model", model, MODELS),
        ("method", method, METHODS),
        ("preset", preset, PRESETS),
    ):
        checks.one_of(name, value, choices)
    settings: dict[str, Any] = dict(lam=0.1, tau=TAU[dataset, model], form="ramp", epsilons=EPSILONS[dataset])
    settings |= _digits(model) if dataset == "digits" else _paper(dataset, model, method, preset)
    settings |= {name: value for name, value in changes.items() if value is not None}
    return Cell(dataset=dataset, model=model, method=method, preset=preset, seed=seed, **settings)


def published(dataset: str, model: str, method: str) -> dict[str, Any] | None:
    """The cell's row of Table 1 under the keys of a card, accuracies in [0, 1]; None where there is no such row."""
    if (dataset, model, method) not in TABLE_1:
        return None
    clean, robust, average = TABLE_1[dataset, model, method]
    return {
        "clean_accuracy": round(clean / 100, 4),
        "epsilons": list(EPSILONS[dataset]),
        "robust_accuracy_published": [round(value / 100, 4) for value in robust],
        "average_distance": average,
    }


def _paper(dataset: str, model: str, method: str, preset: str) -> dict[str, Any]:
    settings: dict[str, Any] = dict(
        epochs=1000 if model == "linear" else 200,
        learning_rate=0.01,
        batch_size=128,
        beta=1e-3,
        dropout=0.0,
        points=500,
        num_samples=51_200,
        radius=5.0,
        attack_points=10_000,
        attack_steps=1000,
        attack_step_size=0.01,
        worst_case_steps=100,
        nearest_steps=500,
    )
    if preset == "text":
        return settings
    settings["beta"] = 2e-3  # the released configuration counted the penalty twice
    if method == "amr":
        settings["learning_rate"] = 0.002
    if (dataset, model) == ("cifar10", "cnn"):
        settings["dropout"] = 0.5
        if method == "std":
            settings["learning_rate"] = 0.005
    if (dataset, model) == ("mnist", "cnn"):
        settings["tau"] = 40.0
    return settings


def _digits(model: str) -> dict[str, Any]:
    """1,437 images make few steps an epoch, hence smaller batches; a ball of radius 5 would dwarf 64 pixels."""
    return dict(
        epochs=100 if model == "linear" else 40,
        learning_rate=0.02,
        batch_size=32,
        beta=1e-3,
        dropout=0.0,
        points=60,
        num_samples=1024,
        radius=1.5,
        attack_points=360,
        attack_steps=100,
        attack_step_size=0.02,
        worst_case_steps=50,
        nearest_steps=200,
    )
