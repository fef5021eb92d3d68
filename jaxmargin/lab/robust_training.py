"""One cell of the MMA study, (data set, norm, method, seed): train, follow the distances, attack, write the card.

Like a cell of ``experiments`` it continues from wherever it was cut. The methods are those of both papers, on one
network.
"""

import functools
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmargin import checks, models, objectives
from jaxmargin.adapters import ensemble
from jaxmargin.attacks import minimum_norm
from jaxmargin.audit import contradicts
from jaxmargin.augmentation import crop_and_flip
from jaxmargin.lab import tracking
from jaxmargin.lab.data import Dataset, Split, margin_points
from jaxmargin.lab.evaluation import Arrays, lifted, measure
from jaxmargin.lab.parameters import read_params, write_params
from jaxmargin.lab.resuming import Stopwatch, train
from jaxmargin.lab.robustness import BOX, bounds, broken_in_the_worst_case
from jaxmargin.lab.training import TrainState, evaluator, init_state, train_epoch
from jaxmargin.lipschitz import default_chunk_size
from jaxmargin.losses import soft_logit_margin
from jaxmargin.margins import Margins, lipschitz_margin
from jaxmargin.models import Model
from jaxmargin.norms import Norm, l2, linf
from jaxmargin.objectives import Objective

__all__ = ["ENSEMBLE", "MOMENTS", "NETWORKS", "NORMS", "RobustCell", "kind_of", "run_ensemble", "run_robust_cell"]

NETWORKS = ("lenet", "small-lenet", "wrn-28-4")
NORMS: dict[str, Norm] = {"l2": l2, "linf": linf}
# Kinds of methods; those of the second row are followed by a size in input units: "pgd-1.5", "mma-2".
PLAIN, SIZED = ("std", "lcr", "amr"), ("pgd", "trades", "mma")
ENSEMBLE = "pgd-ens"
# Shares of the training after which distances are measured, for Figure 4.
MOMENTS = (0.1, 0.4, 0.7, 1.0)
# The grid of a loss landscape has so many places a side, and reaches so many times the largest epsilon.
_GRID, _REACH = 41, 2.0
_RECORDS = 20  # lines of metrics.jsonl
_STAGES = ("distance", "worst", "margin", "bounds", "plane")  # each has its own random numbers


@dataclass(frozen=True)
class RobustCell:
    """All that decides the numbers of one cell."""

    dataset: str
    model: str
    norm: str
    method: str
    seed: int
    steps: int
    batch_size: int
    optimizer: str
    learning_rates: tuple[tuple[int, float], ...]
    validation: int
    attack_steps: int
    min_epsilon: float
    trades_beta: float
    trades_step_size: float | None
    lam: float
    beta: float
    tau: float
    augment: bool
    bfloat16: bool
    epsilons: tuple[float, ...]
    attack_points: int
    worst_case_steps: int
    nearest_steps: int
    points: int
    num_samples: int
    radius: float

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
        checks.whole("steps", self.steps, least=10)
        if self.validation >= (n := len(data.train.labels)):
            raise ValueError(f"validation={self.validation} leaves none of the {n} training images of {data.name}")
        if self.points > (n := len(data.test.labels)):
            raise ValueError(f"points={self.points} is more than the {n} test images of {data.name}")
        default_chunk_size(self.num_samples, data.train.images[0].size)
        if self.bfloat16 and self.model != "wrn-28-4":
            raise ValueError(f"bfloat16 is for wrn-28-4, not for {self.model}: leave it out")
        if not all(near < far for near, far in zip(self.epsilons, self.epsilons[1:], strict=False)):
            raise ValueError(f"epsilons={self.epsilons} must rise")
        self.build_objective()

    def build_model(self, input_shape: tuple[int, ...], num_classes: int) -> Model:
        """The network of the cell."""
        return _network(self.model, tuple(input_shape), num_classes, self.bfloat16)

    def build_objective(self) -> Objective:
        """The objective of the cell's method."""
        kind, size = kind_of(self.method)
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
      method: such as "std" or "mma-2".

    Returns:
      (kind, size).

    Raises:
      ValueError: an unknown kind, or a size that is missing, not wanted, not positive or not in its shortest form.

    >>> kind_of("pgd-1.5")
    ('pgd', 1.5)
    """
    kind, _, size = method.partition("-")
    if method in PLAIN:
        return kind, math.inf
    known = [*PLAIN, *(f"{one}-SIZE" for one in SIZED), ENSEMBLE]
    try:
        value = float(size)
    except ValueError:
        value = math.nan
    if kind not in SIZED or not 0 < value < math.inf or f"{value:g}" != size:
        raise ValueError(f"method {method!r} is unknown: choose from {', '.join(known)}, sizes like 0.5 or 2")
    return kind, value


def run_robust_cell(
    cell: RobustCell, data: Dataset, workdir: Path, paper: dict[str, float] | None = None
) -> dict[str, Any]:
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
        return tracking.read_json(path)
    cell.check(data)
    run = _Training(cell, data, workdir / "cells" / cell.name)
    params = run.train()
    return _write_card(path, run.evaluation(run.model.apply), params, {"paper": paper})


def run_ensemble(cell: RobustCell, members: Sequence[RobustCell], data: Dataset, workdir: Path) -> dict[str, Any]:
    """The card of finished cells that vote; they are of one network.

    Args:
      cell: the ensemble's settings, of method ENSEMBLE.
      members: its cells, finished.
      data: their data set.
      workdir: theirs too.

    Returns:
      The card.

    Raises:
      ValueError: a member's parameters are of another network.
    """
    path, folder = workdir / "cards" / f"{cell.name}.json", workdir / "cells" / cell.name
    names = [member.method for member in members]
    if path.exists() and (card := tracking.read_json(path))["members"] == names:
        return card
    if (folder / "members.json").exists() and tracking.read_json(folder / "members.json") != names:
        shutil.rmtree(folder)  # what others voted
    tracking.write_json(folder / "members.json", names)
    run = _Training(cell, data, folder)
    like = jax.eval_shape(run.model.init, jax.random.key(0))
    params = [read_params(workdir / "cells" / member.name / "params.npz", like) for member in members]
    return _write_card(path, run.evaluation(_vote(run.model.apply)), params, {"members": names, "paper": None})


_vote = functools.cache(ensemble)


def _write_card(path: Path, evaluation: "_Evaluation", params: Any, more: dict[str, Any]) -> dict[str, Any]:
    arrays = evaluation.arrays(params)
    card = tracking.plain(evaluation.card(params, arrays) | more)
    tracking.write_arrays(path.with_suffix(".npz"), arrays)
    tracking.write_json(path, card)
    return card


@functools.cache
def _soft_losses(apply_fn: Callable[[Any, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """(params, xs [m, *d], y) -> the soft margin loss at each, [m]."""
    return jax.jit(
        lambda params, xs, y: jax.lax.map(lambda x: -soft_logit_margin(apply_fn(params, x), y), xs, batch_size=_GRID)
    )


class _Training:
    """A cell's training; it finds in the folder what an earlier run left."""

    def __init__(self, cell: RobustCell, data: Dataset, folder: Path) -> None:
        self.cell, self.data, self.folder = cell, data, folder
        self.model = cell.build_model(data.train.images.shape[1:], data.num_classes)
        self.clock = Stopwatch(folder)
        self.key_init, self.key_train, *keys = jax.random.split(jax.random.key(cell.seed), 2 + len(_STAGES))
        self.keys = dict(zip(_STAGES, keys, strict=True))

    def evaluation(self, apply_fn: Callable[[Any, jax.Array], jax.Array]) -> "_Evaluation":
        return _Evaluation(self.cell, self.data, self.folder, apply_fn, self.clock, self.keys)

    def train(self) -> Any:
        """Trains to the last step; returns the parameters."""
        cell, data = self.cell, self.data
        images, labels = (jnp.asarray(array[cell.validation :]) for array in data.train)
        splits = {"validation": Split(*(array[: cell.validation] for array in data.train)), "test": data.test}
        on_device = {name: tuple(map(jnp.asarray, split)) for name, split in splits.items() if len(split.labels)}
        optimizer, evaluate = cell.build_optimizer(), evaluator(self.model.apply, scale=data.scale)
        evaluation = self.evaluation(self.model.apply)
        calls = cell.steps // cell.chunk
        moments = {max(1, round(share * calls)): share for share in MOMENTS}
        due = {*np.linspace(0, calls, _RECORDS + 1, dtype=int)[1:].tolist(), *moments}
        path = self.folder / "metrics.jsonl"

        def record(call: int, state: TrainState) -> None:
            if call not in due:
                return
            line: dict[str, Any] = {"method": cell.method, "seed": cell.seed, "step": call * cell.chunk}
            with self.clock.stage("evaluate"):
                for name, split in on_device.items():
                    loss, error = evaluate(state.params, *split)
                    line |= {f"{name}_loss": float(loss), f"{name}_error": float(error)}
            if call in moments:
                distance = evaluation.distances(state.params, moments[call])
                line["average_distance"] = _mean(distance)
            tracking.append_record(path, line)

        def resume(done: int, state: TrainState) -> None:
            records = [line for line in tracking.read_records(path) if line["step"] <= done * cell.chunk]
            tracking.write_records(path, records)
            if done in due and (not records or records[-1]["step"] < done * cell.chunk):
                record(done, state)

        epoch_fn = train_epoch(
            self.model.apply, cell.build_objective(), optimizer, batch_size=cell.batch_size, scale=data.scale,
            num_steps=cell.chunk, augment=crop_and_flip if cell.augment else None,
        )  # fmt: skip
        state = init_state(self.model.init(self.key_init), optimizer, self.key_train, len(labels))
        state = train(
            epoch_fn, state, images, labels, epochs=calls, folder=self.folder, label=cell.name, clock=self.clock,
            keep=due, resume=resume, record=record, unit="call",
        )  # fmt: skip
        write_params(self.folder / "params.npz", state.params)
        return state.params


def _mean(distance: np.ndarray) -> float:
    """Of the distances found; NaN where none was."""
    finite = distance[np.isfinite(distance)]
    return float(finite.mean()) if len(finite) else math.nan


class _Evaluation:
    """What a trained classifier, or an ensemble of them, is measured by."""

    def __init__(
        self,
        cell: RobustCell,
        data: Dataset,
        folder: Path,
        apply_fn: Callable[[Any, jax.Array], jax.Array],
        clock: Stopwatch,
        keys: dict[str, jax.Array],
    ) -> None:
        self.cell, self.data, self.folder, self.apply_fn = cell, data, folder, apply_fn
        self.clock, self.keys, self.norm = clock, keys, NORMS[cell.norm]
        self.nearest = lifted(minimum_norm, apply_fn, norm=self.norm, num_steps=cell.nearest_steps, box=BOX)
        self.attacked = self._inputs(slice(min(cell.attack_points, len(data.test.labels))))
        self.index = margin_points(len(data.test.labels), cell.points)

    def _inputs(self, chosen: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.data.test
        return np.asarray(images[chosen], np.float32) / self.data.scale, np.asarray(labels[chosen])

    def distances(self, params: Any, share: float) -> np.ndarray:
        """Distances of the attacked images to the nearest misclassified input in the box, 0 where wrong, [n]."""
        key = jax.random.fold_in(self.keys["distance"], round(100 * share))
        with self.clock.stage("distance"):
            return measure(
                self.nearest, params, key, *self.attacked, path=self._moment(share),
                label=f"{self.cell.name} distances at {share:.0%}", fields=("distance",),
            )["distance"]  # fmt: skip

    def _moment(self, share: float) -> Path:
        return self.folder / f"moment-{share:g}.npz"

    def arrays(self, params: Any) -> Arrays:
        """Everything that is kept point by point."""
        shares = [share for share in MOMENTS if self._moment(share).exists()] or [MOMENTS[-1]]
        found = [self.distances(params, share) for share in shares]
        with self.clock.stage("worst_case"):
            broken = broken_in_the_worst_case(
                self.apply_fn, params, self.keys["worst"], *self.attacked, epsilons=self.cell.epsilons,
                num_steps=self.cell.worst_case_steps, before=found[-1][:, None] <= np.asarray(self.cell.epsilons),
                folder=self.folder, label=self.cell.name, norm=self.norm,
            )  # fmt: skip
        return {
            "moments": np.asarray(shares), "distance": np.stack(found), "broken": broken,
            **self._brackets(params), **self._landscape(params, found[-1]),
        }  # fmt: skip

    def _brackets(self, params: Any) -> Arrays:
        """Estimated, certified and attacked distances of the same test points, none of which knows the box."""
        cell = self.cell
        xs, ys = self._inputs(self.index)
        sampled: dict[str, Any] = dict(norm=self.norm, radius=cell.radius, num_samples=cell.num_samples, batch_size=1)
        estimate = lifted(lipschitz_margin, self.apply_fn, **sampled)
        with self.clock.stage("margins"):
            margins = measure(
                estimate, params, self.keys["margin"], xs, ys,
                path=self.folder / "margins.npz", label=f"{cell.name} margins", fields=Margins._fields,
            )  # fmt: skip
        with self.clock.stage("bounds"):
            found = bounds(
                self.apply_fn, params, self.keys["bounds"], xs, margins["predicted"], radius=cell.radius,
                num_steps=cell.nearest_steps, folder=self.folder, label=cell.name, norm=self.norm,
            )  # fmt: skip
        return {"index": self.index, "margin": margins["margin"], **found}

    def _landscape(self, params: Any, distance: np.ndarray) -> Arrays:
        """The soft margin loss in a plane through the first image that is right: along its attack, and at random."""
        chosen = np.flatnonzero((distance > 0) & np.isfinite(distance))[:1]
        if not len(chosen):
            return {}
        x, y = (array[chosen] for array in self.attacked)
        with self.clock.stage("landscape"), jax.default_matmul_precision("float32"):
            nearest = self.nearest(params, jax.random.fold_in(self.keys["plane"], 0), x, y)
            along = nearest.x_adv[0] - x[0]
            other = jax.random.normal(jax.random.fold_in(self.keys["plane"], 1), along.shape)
            along = along / l2.size(along)
            other = other - jnp.vdot(other, along) * along
            ends = _REACH * self.cell.epsilons[-1] * np.linspace(-1, 1, _GRID)
            lengths = np.asarray(ends, np.float32)[:, None, None, None]
            first, second = (lengths * (vector / self.norm.size(vector))[None] for vector in (along, other))
            places = (x[None] + first[:, None] + second[None]).reshape(-1, *along.shape)
            values = _soft_losses(self.apply_fn)(params, places, y[0])
        return {"plane_image": chosen, "plane_ends": ends, "plane_loss": np.asarray(values).reshape(_GRID, _GRID)}

    def card(self, params: Any, arrays: Arrays) -> dict[str, Any]:
        """The result card."""
        cell, data = self.cell, self.data
        _, error = evaluator(self.apply_fn, scale=data.scale)(params, *map(jnp.asarray, data.test))
        robust = (1 - arrays["broken"].mean(0)).tolist()
        clean = 1 - float(error)
        distance = arrays["distance"][-1]
        estimated, attacked = np.abs(arrays["margin"]), arrays["attacked"]
        shows_layers = getattr(self.apply_fn, "layers", None) is not None  # without them nothing can be certified
        return asdict(cell) | {
            "n_train": len(data.train.labels) - cell.validation,
            "n_test": len(data.test.labels),
            "n_attack": len(self.attacked[1]),
            "n_margin": cell.points,
            "clean_accuracy": clean,
            "robust_accuracy": robust,
            "average_robust_accuracy": float(np.mean(robust)),
            "average_accuracy": float(np.mean([clean, *robust])),
            "average_distance": _mean(distance),
            "distance_quartiles": np.quantile(distance, (0.25, 0.5, 0.75), method="inverted_cdf").tolist(),
            "not_found": int(np.sum(~np.isfinite(distance))),
            "average_margin": float(np.mean(estimated)),
            "average_certified": float(np.mean(arrays["certified"])) if shows_layers else None,
            "average_attacked": float(np.mean(attacked)),
            "contradicted_fraction": float(np.mean(contradicts(estimated, attacked))),
            "device": tracking.device_name(),
            "versions": tracking.versions(),
            "seconds": self.clock.seconds(),
        }
