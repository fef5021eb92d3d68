"""One cell of the table, (dataset, model, method, seed): train, follow the margins, attack, write the card.

Everything a cell has finished lies in files: a run that was cut, at any moment, continues where it was and ends with
the same bytes in its parameters, metrics and card (the measured seconds apart).
"""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmargin import checks, health, models, objectives
from jaxmargin.batching.measurement import Measurement
from jaxmargin.brackets import contradicts
from jaxmargin.flags import layer_cake, plateau, weak_loss
from jaxmargin.lab import files
from jaxmargin.lab.data.loading import Dataset, Split, margin_points, spread_points
from jaxmargin.lab.parameters import write_params
from jaxmargin.lab.resuming import Stopwatch, train
from jaxmargin.lab.robustness import bounds, broken_as_published, broken_in_the_worst_case
from jaxmargin.lab.stages import Arrays, lifted, measure, read_arrays
from jaxmargin.lab.training import TrainState, evaluator, init_state, train_epoch
from jaxmargin.lipschitz import lipschitz_margin
from jaxmargin.lipschitz.sampling import default_chunk_size
from jaxmargin.losses import logit_margin
from jaxmargin.margins import Margins, linear_margin, summarize
from jaxmargin.models import Model
from jaxmargin.norms import l2
from jaxmargin.objectives import Objective

__all__ = ["METHODS", "MODELS", "Cell", "run_cell", "schedule"]

MODELS = ("linear", "mlp", "cnn")
METHODS = ("std", "lcr", "amr")

# Epochs at which margins are estimated (Wu and Yu 2019, appendix A); linear models are measured, exactly, at each.
_ESTIMATION_EPOCHS = (1, 10, 20, 30, 40, 50, 80, 120, 160, 200)


@dataclass(frozen=True)
class Cell:
    """All that decides the numbers of one cell."""

    dataset: str
    model: str
    method: str
    preset: str
    seed: int
    epochs: int
    learning_rate: float
    batch_size: int
    lam: float
    beta: float
    tau: float
    form: str
    dropout: float | tuple[float, float]
    points: int
    num_samples: int
    radius: float
    epsilons: tuple[float, ...]
    attack_points: int
    attack_steps: int
    attack_step_size: float
    worst_case_steps: int
    nearest_steps: int

    @property
    def name(self) -> str:
        """The cell's name, which is also the name of its files."""
        return f"{self.dataset}-{self.model}-{self.method}-seed{self.seed}"

    def check(self, data: Dataset) -> None:
        """Refuses, before any work, settings that do not fit the data set."""
        for name, split in (("training", data.train), ("test", data.test)):
            if self.points > (n := len(split.labels)):
                raise ValueError(f"points={self.points} is more than the {n} {name} images of {data.name}")
        if not all(near < far for near, far in zip(self.epsilons, self.epsilons[1:], strict=False)):
            raise ValueError(f"epsilons={self.epsilons} must rise")
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

    def build_margins(self, model: Model) -> Measurement:
        """The measure of the cell's margins: exact for linear models, sampled for the others."""
        if self.model == "linear":
            return lifted(linear_margin, model.apply, norm=l2)
        options: dict[str, Any] = dict(norm=l2, radius=self.radius, num_samples=self.num_samples)
        # A convolutional network gains nothing from points that share samples, and progress bars gain from short calls.
        return lifted(lipschitz_margin, model.apply, batch_size=1 if self.model == "cnn" else None, **options)


@functools.cache
def _network(name: str, input_shape: tuple[int, ...], num_classes: int, **options: Any) -> Model:
    """The same object for the same network, so that cells share what they compile."""
    return getattr(models, name)(input_shape, num_classes, **options)


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


def run_cell(cell: Cell, data: Dataset, workdir: Path, paper: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs a cell to its card, from wherever an earlier run was cut; a finished cell is only read.

    Args:
      cell: what to run.
      data: its data set.
      workdir: gets cards/NAME.json, cards/NAME.npz and cells/NAME/.
      paper: the published numbers of the cell, kept in the card.

    Returns:
      The card.

    Raises:
      ValueError: settings that do not fit the data set.
      DivergedError: the loss is no longer finite; the message names the step and the last good checkpoint.
    """
    path = workdir / "cards" / f"{cell.name}.json"
    if path.exists():
        return files.read_json(path)
    cell.check(data)
    run = _Run(cell, data, workdir / "cells" / cell.name)
    params = run.train()
    robust = run.attack(params)
    logits = run.logits(params)
    arrays = run.margins() | run.bounds(params)
    card = files.plain(run.card(robust, logits, arrays, paper))
    files.write_arrays(path.with_suffix(".npz"), arrays)
    files.write_json(path, card)
    return card


class _Run:
    """The stages of one cell; each finds in the folder what an earlier run left."""

    def __init__(self, cell: Cell, data: Dataset, folder: Path) -> None:
        self.cell, self.data, self.folder = cell, data, folder
        self.model = cell.build_model(data.train.images.shape[1:], data.num_classes)
        self.measurement = cell.build_margins(self.model)
        self.clock = Stopwatch(folder)
        self.evaluate = evaluator(self.model.apply, scale=data.scale)
        keys = jax.random.split(jax.random.key(cell.seed), 4)
        self.key_init, self.key_train, self.key_margin, key_attack = keys
        self.key_published, self.key_worst, self.key_bounds = jax.random.split(key_attack, 3)
        self.attacked = spread_points(len(data.test.labels), cell.attack_points)
        self.splits = {"train": data.train, "test": data.test}
        self.index = {name: margin_points(len(split.labels), cell.points) for name, split in self.splits.items()}
        self.on_device = {name: tuple(map(jnp.asarray, split)) for name, split in self.splits.items()}

    def train(self) -> Any:
        """Trains to the last epoch; returns the parameters."""
        cell, last = self.cell, self.cell.epochs
        optimizer = optax.sgd(cell.learning_rate, momentum=0.9, nesterov=True)
        state = init_state(self.model.init(self.key_init), optimizer, self.key_train, len(self.data.train.labels))
        options: dict[str, Any] = dict(batch_size=cell.batch_size, scale=self.data.scale)
        epoch_fn = train_epoch(self.model.apply, cell.build_objective(), optimizer, **options)
        state = train(
            epoch_fn, state, *self.on_device["train"], epochs=last, folder=self.folder, label=cell.name,
            clock=self.clock, keep=schedule(last), resume=self._resume_metrics, record=self._record,
        )  # fmt: skip
        write_params(self.folder / "params.npz", state.params)
        return state.params

    def attack(self, params: Any) -> dict[str, list[float]]:
        """Robust accuracies on test images, one number an epsilon: as published, and in the worst case."""
        cell = self.cell
        xs, ys = self._inputs(self.data.test, self.attacked)
        options: dict[str, Any] = dict(epsilons=cell.epsilons, folder=self.folder, label=cell.name)
        with self.clock.stage("attack"):
            published = broken_as_published(
                self.model.apply, params, self.key_published, xs, ys,
                num_steps=cell.attack_steps, step_size=cell.attack_step_size, **options,
            )  # fmt: skip
        with self.clock.stage("worst_case"):
            worst = broken_in_the_worst_case(
                self.model.apply, params, self.key_worst, xs, ys,
                num_steps=cell.worst_case_steps, before=published, **options,
            )  # fmt: skip
        return {name: (1 - found.mean(0)).tolist() for name, found in (("published", published), ("worst", worst))}

    def logits(self, params: Any) -> dict[str, Any]:
        """What the logits of the attacked images say of the published attack: how large, and whether they saturate."""
        xs, ys = self._inputs(self.data.test, self.attacked)

        def margin(one: tuple[jax.Array, jax.Array]) -> jax.Array:
            return logit_margin(self.model.apply(params, one[0]), one[1])

        with self.clock.stage("logits"), jax.default_matmul_precision("float32"):
            margins = np.asarray(jax.jit(lambda *both: jax.lax.map(margin, both))(xs, ys))
            flags = health.saturation(self.model.apply, params, xs, ys)
        return {"quartiles": np.quantile(margins, (0.25, 0.5, 0.75)).tolist(), "flags": flags}

    def bounds(self, params: Any) -> Arrays:
        """Certified and attacked distances of the test points whose margins were estimated last."""
        cell = self.cell
        xs, _ = self._inputs(self.data.test, self.index["test"])
        predicted = read_arrays(self._margin_path(cell.epochs, "test"))["predicted"]
        with self.clock.stage("bounds"):
            found = bounds(
                self.model.apply, params, self.key_bounds, xs, predicted,
                radius=cell.radius, num_steps=cell.nearest_steps, folder=self.folder, label=cell.name,
            )  # fmt: skip
        return {f"test_{name}": distance for name, distance in found.items()}

    def margins(self) -> Arrays:
        """The margins of the points themselves at every estimation epoch, [epochs, points] each."""
        epochs = schedule(self.cell.epochs)
        arrays = {"epochs": np.asarray(epochs), "attack_index": self.attacked}
        for name in self.splits:
            found = [read_arrays(self._margin_path(epoch, name)) for epoch in epochs]
            arrays[f"{name}_index"] = self.index[name]
            arrays |= {f"{name}_{field}": np.stack([one[field] for one in found]) for field in Margins._fields}
        return arrays

    def card(
        self, robust: dict[str, list[float]], logits: dict[str, Any], arrays: Arrays, paper: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The result card."""
        final = {name: self._summary({f: arrays[f"{name}_{f}"][-1] for f in Margins._fields}) for name in self.splits}
        last = files.read_records(self.folder / "metrics.jsonl")[-1]
        estimated, attacked = np.abs(arrays["test_margin"][-1]), arrays["test_attacked"]
        contradicted = contradicts(estimated, attacked)
        right = arrays["test_margin"][-1] > 0
        flags = [
            *logits["flags"],
            plateau(self.cell.epsilons, 1 - last["test_error"], robust["published"]),
            weak_loss(robust["published"], robust["worst"]),
            layer_cake(
                self.cell.epsilons, robust["published"], np.where(right, attacked, 0.0), same_points=False
            ),
        ]
        return asdict(self.cell) | {
            "n_train": len(self.data.train.labels),
            "n_test": len(self.data.test.labels),
            "n_margin": self.cell.points,
            "num_samples": 0 if self.cell.model == "linear" else self.cell.num_samples,
            "margin_method": "exact" if self.cell.model == "linear" else "sampled Lipschitz constants",
            "clean_accuracy": 1 - last["test_error"],
            "train_accuracy": 1 - last["train_error"],
            "n_attack": len(self.attacked),
            "robust_accuracy": robust["published"],
            "worst_case_accuracy": robust["worst"],
            "logit_margin_quartiles": logits["quartiles"],
            "average_margin": final["test"]["average_margin_unsigned"],
            "average_margin_signed": final["test"]["average_margin"],
            "minimum_margin": final["test"]["minimum_margin"],
            "capped_fraction": final["test"]["capped_fraction"],
            "train_average_margin": final["train"]["average_margin_unsigned"],
            "train_average_margin_signed": final["train"]["average_margin"],
            "train_minimum_margin": final["train"]["minimum_margin"],
            "average_certified": float(np.mean(arrays["test_certified"])),
            "average_attacked": float(np.mean(arrays["test_attacked"])),
            "contradicted_fraction": float(np.mean(contradicted)),
            "flags": [flag._asdict() for flag in flags],
            "paper": paper,
            "device": files.device_name(),
            "versions": files.versions(),
            "seconds": self.clock.seconds(),
        }

    def _resume_metrics(self, done: int, state: TrainState) -> None:
        """Drops what was logged after the checkpoint, and logs its own epoch where the cut came before that."""
        if not files.cut_records(self.folder / "metrics.jsonl", "epoch", done) and done:
            self._record(done, state)

    def _record(self, epoch: int, state: TrainState) -> None:
        """One line of metrics.jsonl: loss and error on both splits, and margins where they are due."""
        cell, params = self.cell, state.params
        record: dict[str, Any] = {name: getattr(cell, name) for name in ("dataset", "model", "method", "seed")}
        record["epoch"] = epoch
        with self.clock.stage("evaluate"):
            for name, (images, labels) in self.on_device.items():
                loss, error = self.evaluate(params, images, labels)
                record |= {f"{name}_loss": float(loss), f"{name}_error": float(error)}
        kept = epoch in schedule(cell.epochs)
        if kept or cell.model == "linear":
            with self.clock.stage("margins"):
                for name, split in self.splits.items():
                    points = Split(split.images[self.index[name]], split.labels[self.index[name]])
                    path = self._margin_path(epoch, name).name if kept else None
                    label = f"{name} margins at epoch {epoch}"
                    found = self._measure(self.measurement, params, self.key_margin, points, path, label)
                    record |= {f"{name}_{field}": value for field, value in self._summary(found).items()}
        files.append_record(self.folder / "metrics.jsonl", record)

    def _measure(
        self, run: Measurement, params: Any, key: jax.Array, split: Split, name: str | None, label: str
    ) -> Arrays:
        path = self.folder / name if name else None
        return measure(run, params, key, *self._inputs(split), path=path, label=f"{self.cell.name} {label}")

    def _inputs(self, split: Split, chosen: slice | np.ndarray = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(split.images[chosen], np.float32) / self.data.scale, np.asarray(split.labels[chosen])

    def _margin_path(self, epoch: int, split: str) -> Path:
        return self.folder / f"margins-{split}-{epoch:04d}.npz"

    def _summary(self, found: Arrays) -> dict[str, float]:
        summary = summarize(Margins(*(jnp.asarray(found[field]) for field in Margins._fields)))
        return {
            "minimum_margin": float(summary.minimum),
            "average_margin": float(summary.average),
            "average_margin_unsigned": float(summary.average_unsigned),
            "margin_accuracy": float(summary.accuracy),
            "capped_fraction": float(summary.capped_fraction),
        }
