"""The settings of one cell of the MMA study: (data set, norm, method, seed), and what they build."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax

from jaxmargin import checks, models, objectives
from jaxmargin.lab import cells
from jaxmargin.lab.data.loading import Dataset
from jaxmargin.lab.robustness import BOX
from jaxmargin.lipschitz.sampling import default_chunk_size
from jaxmargin.models import Model
from jaxmargin.norms import Norm, l2, linf
from jaxmargin.objectives import Objective

__all__ = ["ENSEMBLE", "NETWORKS", "NORMS", "Cell", "kind_of"]

NETWORKS = ("lenet", "small-lenet", "wrn-28-4")
NORMS: dict[str, Norm] = {"l2": l2, "linf": linf}
# Kinds of methods; those of the second row are followed by a size in input units: "pgd-1.5", "mma-2".
PLAIN, SIZED = ("std", "lcr", "amr"), ("pgd", "trades", "mma")
ENSEMBLE = "pgd-ens"


@dataclass(frozen=True, kw_only=True)
class Cell(cells.Cell):
    """All that decides the numbers of one cell."""

    norm: str
    steps: int
    optimizer: str
    learning_rates: tuple[tuple[int, float], ...]
    validation: int
    min_epsilon: float
    reference: bool
    trades_beta: float
    trades_step_size: float | None
    lam: float
    beta: float
    tau: float
    augment: bool
    bfloat16: bool

    @property
    def name(self) -> str:
        """The cell's name, which is also the name of its files."""
        return f"{self.dataset}-{self.norm}-{self.method}-seed{self.seed}"

    @property
    def chunk(self) -> int:
        """Steps of one compiled call, between two of which training can be cut; there are at least ten calls."""
        return max(size for size in (100, 50, 20, 10, 5, 2, 1) if self.steps % size == 0 and self.steps >= 10 * size)

    def check(self, data: Dataset) -> None:
        """Refuses, before any work, settings that do not fit the data set or one another."""
        super().check(data)
        checks.whole("steps", self.steps, least=10)
        if self.validation >= (n := len(data.train.labels)):
            raise ValueError(f"validation={self.validation} leaves none of the {n} training images of {data.name}")
        for name, count in (("points", self.points), ("attack_points", self.attack_points)):
            if count > (n := len(data.test.labels)):
                raise ValueError(f"{name}={count} is more than the {n} test images of {data.name}")
        default_chunk_size(self.num_samples, data.train.images[0].size)
        if self.bfloat16 and self.model != "wrn-28-4":
            raise ValueError(f"bfloat16 is for wrn-28-4, not for {self.model}: leave it out")
        if self.method != ENSEMBLE:
            self.build_objective()

    def build_model(self, input_shape: tuple[int, ...], num_classes: int) -> Model:
        """The network of the cell."""
        return _network(self.model, tuple(input_shape), num_classes, self.bfloat16)

    def build_objective(self) -> Objective:
        """The objective of the cell's method, which is not an ensemble."""
        kind, size = kind_of(self.method)
        if kind == ENSEMBLE:
            raise ValueError(f"method {ENSEMBLE!r} is not trained: its members are")
        if kind == "std":
            return objectives.standard()
        if kind == "lcr":
            return objectives.lcr(self.beta)
        if kind == "amr":
            return objectives.amr(self.lam, self.beta, self.tau)
        options: dict[str, Any] = dict(norm=NORMS[self.norm], num_steps=self.attack_steps, box=BOX)
        if kind == "pgd":
            return objectives.adversarial(epsilon=size, **options)
        if kind == "trades":
            return objectives.trades(epsilon=size, beta=self.trades_beta, step_size=self.trades_step_size, **options)
        options["reference"] = self.reference
        return objectives.mma(d_max=size, min_epsilon=min(self.min_epsilon, size), **options)

    def build_optimizer(self) -> optax.GradientTransformation:
        """The optimiser of the paper: Adam, or SGD with momentum 0.9 and weight decay 2e-4; rates by steps."""
        checks.one_of("optimizer", self.optimizer, ("adam", "sgd"))
        rates = optax.join_schedules(
            [optax.constant_schedule(rate) for _, rate in self.learning_rates],
            [first for first, _ in self.learning_rates[1:]],
        )
        if self.optimizer == "adam":
            return optax.adam(rates)
        return optax.chain(optax.add_decayed_weights(2e-4), optax.sgd(rates, momentum=0.9))


@functools.cache
def _network(name: str, input_shape: tuple[int, ...], num_classes: int, bfloat16: bool) -> Model:
    """The same object for the same network, so that cells share what they compile."""
    checks.one_of("model", name, NETWORKS)
    if name == "wrn-28-4":
        return models.wide_resnet(input_shape, num_classes, dtype=jnp.bfloat16 if bfloat16 else None)
    if name == "small-lenet":
        return models.lenet(input_shape, num_classes, widths=(8, 16), hidden=64)
    return models.lenet(input_shape, num_classes)


def kind_of(method: str) -> tuple[str, float]:
    """A method's kind and its size in input units, infinity where it has none.

    Args:
      method: such as "std", "mma-2" or "pgd-ens", which is a kind of its own.

    Returns:
      (kind, size).

    Raises:
      ValueError: an unknown kind, or a size that is missing, not wanted, not positive or not in its shortest form.

    >>> kind_of("pgd-1.5")
    ('pgd', 1.5)
    """
    kind, _, size = method.partition("-")
    if method in (*PLAIN, ENSEMBLE):
        return method, math.inf
    known = [*PLAIN, *(f"{one}-SIZE" for one in SIZED), ENSEMBLE]
    try:
        value = float(size)
    except ValueError:
        value = math.nan
    if kind not in SIZED or not 0 < value < math.inf or f"{value:g}" != size:
        raise ValueError(f"method {method!r} is unknown: choose from {', '.join(known)}, sizes like 0.5 or 2")
    return kind, value
