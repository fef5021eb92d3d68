"""The settings of one cell of the table, (dataset, model, method, seed), and what they build."""

import functools
from dataclasses import dataclass
from typing import Any

from jaxmargin import checks, models, objectives
from jaxmargin.batching.measurement import Measurement
from jaxmargin.lab import cells
from jaxmargin.lab.data.loading import Dataset
from jaxmargin.lab.measuring import lifted
from jaxmargin.lipschitz import lipschitz_margin
from jaxmargin.lipschitz.sampling import default_chunk_size
from jaxmargin.margins import linear_margin
from jaxmargin.models import Model
from jaxmargin.norms import l2
from jaxmargin.objectives import Objective

__all__ = ["METHODS", "MODELS", "Cell", "schedule"]

MODELS = ("linear", "mlp", "cnn")
METHODS = ("std", "lcr", "amr")

# Epochs at which margins are estimated (Wu and Yu 2019, appendix A); linear models are measured, exactly, at each.
_ESTIMATION_EPOCHS = (1, 10, 20, 30, 40, 50, 80, 120, 160, 200)


@dataclass(frozen=True, kw_only=True)
class Cell(cells.Cell):
    """All that decides the numbers of one cell."""

    preset: str
    epochs: int
    learning_rate: float
    lam: float
    beta: float
    tau: float
    form: str
    dropout: float | tuple[float, float]
    attack_step_size: float

    def check(self, data: Dataset) -> None:
        """Refuses, before any work, settings that do not fit the data set."""
        super().check(data)
        for name, split in (("training", data.train), ("test", data.test)):
            if self.points > (n := len(split.labels)):
                raise ValueError(f"points={self.points} is more than the {n} {name} images of {data.name}")
        if self.model != "linear":
            default_chunk_size(self.num_samples, data.train.images[0].size)

    def build_model(self, input_shape: tuple[int, ...], num_classes: int) -> Model:
        """The network of the cell."""
        checks.one_of("model", self.model, MODELS)
        options = {"dropout": self.dropout} if self.model == "cnn" else {}
        return _network(self.model, tuple(input_shape), num_classes, **options)

    def build_objective(self) -> Objective:
        """The objective of the cell."""
        checks.one_of("method", self.method, METHODS)
        if self.method == "std":
            return objectives.standard()
        if self.method == "lcr":
            return objectives.lcr(self.beta)
        return objectives.amr(self.lam, self.beta, self.tau, form=self.form)

    def build_margins(self, model: Model) -> Measurement[Any]:
        """The measure of the cell's margins: exact for linear models, sampled for the others."""
        if self.model == "linear":
            return lifted(linear_margin, model.apply, norm=l2)
        options: dict[str, Any] = dict(norm=l2, radius=self.radius, num_samples=self.num_samples)
        # A convolutional network gains nothing from points that share samples, and progress bars gain from short calls.
        return lifted(lipschitz_margin, model.apply, batch_size=1 if self.model == "cnn" else None, **options)


@functools.cache
def _network(name: str, input_shape: tuple[int, ...], num_classes: int, **options: Any) -> Model:
    """The same object for the same network, so that cells share what they compile."""
    network: Model = getattr(models, name)(input_shape, num_classes, **options)
    return network


def schedule(epochs: int) -> list[int]:
    """The epochs whose margins are estimated and kept point by point.

    Args:
      epochs: the last epoch.

    Returns:
      The paper's epochs up to the last one, and the last one.

    >>> schedule(60)
    [1, 10, 20, 30, 40, 50, 60]
    """
    return sorted({*(epoch for epoch in _ESTIMATION_EPOCHS if epoch <= epochs), epochs})
