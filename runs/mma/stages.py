"""How a cell of the MMA study is trained and measured, and the card it adds up to."""

import functools
import math
from collections.abc import Callable
from typing import Any, NotRequired

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin.attacks import minimum_norm
from jaxmargin.batching.measurement import Measurement
from jaxmargin.brackets import contradicts
from jaxmargin.lab import robustness
from jaxmargin.lab.cards import Card
from jaxmargin.lab.cells import Setup, Study, trained
from jaxmargin.lab.data.loading import Dataset, margin_points
from jaxmargin.lab.files import Arrays, Record
from jaxmargin.lab.measuring import lifted
from jaxmargin.lab.resuming import Training
from jaxmargin.lab.training import TrainState, evaluator
from jaxmargin.lab.workspace import Workspace
from jaxmargin.lipschitz import lipschitz_margin
from jaxmargin.losses import logit_margin, soft_logit_margin
from jaxmargin.norms import l2
from jaxmargin.objectives.augmentation import crop_and_flip
from jaxmargin.types import ApplyFn
from runs.mma.cell import NORMS, Cell

__all__ = ["MOMENTS", "STUDY", "MmaCard", "set_up"]

# Shares of the training after which distances are measured, for Figure 4.
MOMENTS = (0.1, 0.4, 0.7, 1.0)
_RECORDS = 20  # lines of metrics.jsonl
_augment = functools.partial(crop_and_flip, mode="reflect")  # as the authors' released code
# The grid of a loss landscape has so many places a side, and reaches so many times the largest epsilon.
_GRID, _REACH = 41, 2.0


class MmaCard(Card):
    """The card of a cell; beside it all other settings of ``Cell``, under their names."""

    norm: str
    steps: int
    optimizer: str
    learning_rates: list[list[float]]
    average_robust_accuracy_worst: float  # over the epsilons
    average_accuracy: float  # the same with the clean one
    average_nearest: float | None  # of the nearest misclassified inputs found, 0 where the image itself is wrong
    nearest_quartiles: list[float | None]
    not_found: int
    average_margin: float | None  # None in cards converted from schema 1, which had none
    members: NotRequired[list[str]]  # of an ensemble


def set_up(cell: Cell, data: Dataset, work: Workspace) -> Setup[Cell]:
    """What the stages of a cell start from."""
    model = cell.build_model(data.train.images.shape[1:], data.num_classes)
    uses = ("init", "train", "nearest", "worst_case", "margins", "bounds", "landscape")
    keys = dict(zip(uses, jax.random.split(jax.random.key(cell.seed), len(uses)), strict=True))
    points = {"test": margin_points(len(data.test.labels), cell.points)}
    attacked = np.arange(cell.attack_points)
    return Setup(cell, data, model, model.apply, NORMS[cell.norm], keys, attacked, points, work)


def train(setup: Setup[Cell]) -> Any:
    """The parameters after the last step; now and then a line of metrics.jsonl."""
    cell, data, n = setup.cell, setup.data, setup.cell.validation
    splits = {"validation": [array[:n] for array in data.train], "test": data.test}
    watched = {name: tuple(map(jnp.asarray, split)) for name, split in splits.items() if len(split[1])}
    calls = cell.steps // cell.chunk
    moments = {max(1, round(share * calls)): share for share in MOMENTS}
    due = {*np.linspace(0, calls, _RECORDS + 1, dtype=int)[1:].tolist(), *moments}

    def record(call: int, state: TrainState) -> Record | None:
        return _record(setup, watched, call * cell.chunk, moments.get(call), state.params) if call in due else None

    images, labels = (jnp.asarray(array[n:]) for array in data.train)
    how = Training(
        cell.build_objective(), cell.build_optimizer(), images, labels, scale=data.scale,
        batch_size=cell.batch_size, calls=calls, keep=due, record=record,
        measures={call: (_kept(share),) for call, share in moments.items()}, unit="call", num_steps=cell.chunk,
        augment=_augment if cell.augment else None,
    )  # fmt: skip
    return trained(setup, how)


def _record(
    setup: Setup[Cell], watched: dict[str, tuple[jax.Array, ...]], step: int, moment: float | None, params: Any
) -> Record:
    """Loss and error, and distances at the moments of the figure."""
    line: Record = {"method": setup.cell.method, "seed": setup.cell.seed, "step": step}
    evaluate_split = evaluator(setup.apply_fn, scale=setup.data.scale)
    with setup.work.timed("evaluate"):
        for name, split in watched.items():
            loss, error = evaluate_split(params, *split)
            line |= {f"{name}_loss": float(loss), f"{name}_error": float(error)}
    if moment is not None:
        with setup.work.timed("nearest"):
            line["average_nearest"] = mean_of_found(_nearest_at(setup, params, moment))
    return line


def mean_of_found(distance: np.ndarray) -> float:
    """The mean of those distances [n] that are finite, infinite where none is."""
    finite = distance[np.isfinite(distance)]
    return float(finite.mean()) if len(finite) else math.inf


def _attack(setup: Setup[Cell]) -> Measurement[Any]:
    num_steps = setup.cell.nearest_steps
    return lifted(minimum_norm, setup.apply_fn, norm=setup.norm, num_steps=num_steps, box=robustness.BOX)


def _kept(share: float) -> str:
    """The name under which the distances at a moment are kept."""
    return f"nearest-{share:g}"


def _nearest_at(setup: Setup[Cell], params: Any, share: float) -> np.ndarray:
    """Distances of the attacked images to the nearest misclassified input in the box, 0 where wrong, [n]."""
    key = jax.random.fold_in(setup.keys["nearest"], round(100 * share))
    found = setup.work.measure(
        _attack(setup), params, key, *setup.data.inputs("test", setup.attacked),
        name=_kept(share), said=f"distances at {share:.0%}", fields=("distance",),
    )  # fmt: skip
    return found["distance"]


def evaluate(setup: Setup[Cell], params: Any) -> Arrays:
    """The error on all test images."""
    _, error = evaluator(setup.apply_fn, scale=setup.data.scale)(params, *map(jnp.asarray, setup.data.test))
    return {"test_error": np.asarray(error)}


def nearest(setup: Setup[Cell], params: Any) -> Arrays:
    """Distances of the attacked images at the moments of training, [moments, n]; of an ensemble only at the end."""
    shares = [share for share in MOMENTS if setup.work.measured(_kept(share)).exists()] or [MOMENTS[-1]]
    return {"moments": np.asarray(shares), "nearest": np.stack([_nearest_at(setup, params, one) for one in shares])}


def worst_case(setup: Setup[Cell], params: Any) -> Arrays:
    """The worst case over attacks, the minimum-norm ones among them."""
    distance = setup.kept(nearest, params)["nearest"][-1]
    return robustness.found_in_the_worst_case(setup, params, distance[:, None] <= np.asarray(setup.cell.epsilons))


def margins(setup: Setup[Cell], params: Any) -> Arrays:
    """Estimated margins of test points, which do not know the box."""
    cell, index = setup.cell, setup.points["test"]
    sampled: dict[str, Any] = dict(norm=setup.norm, radius=cell.radius, num_samples=cell.num_samples, batch_size=1)
    run, inputs = lifted(lipschitz_margin, setup.apply_fn, **sampled), setup.data.inputs("test", index)
    found = setup.work.measure(run, params, setup.keys["margins"], *inputs, name="margins", said="margins")
    return {"index": index, "margin": found["margin"], "predicted": found["predicted"]}


def bounds(setup: Setup[Cell], params: Any) -> Arrays:
    """Certified and attacked distances of the same test points."""
    return robustness.bounds_of(setup, params, setup.kept(margins, params)["predicted"])


@functools.cache
def _heights(apply_fn: ApplyFn) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(params, xs [m, *d], y) -> the soft margin loss and the logit margin at each, [m] both."""

    def one(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = apply_fn(params, x)
        return -soft_logit_margin(logits, y), logit_margin(logits, y)

    return jax.jit(lambda params, xs, y: jax.lax.map(lambda x: one(params, x, y), xs, batch_size=_GRID))


def landscape(setup: Setup[Cell], params: Any) -> Arrays:
    """Loss and margin in a plane through the first image that is right: along its attack, and at random."""
    distance = setup.kept(nearest, params)["nearest"][-1]
    chosen = np.flatnonzero((distance > 0) & np.isfinite(distance))[:1]
    if not len(chosen):
        return {}
    x, y = setup.data.inputs("test", chosen)
    key_nearest, key_other = (jax.random.fold_in(setup.keys["landscape"], i) for i in range(2))
    with jax.default_matmul_precision("float32"):
        found = _attack(setup)(params, key_nearest, x, y)
        if not found.found[0]:
            return {}
        along = found.x_adv[0] - x[0]
        other = jax.random.normal(key_other, along.shape)
        along = along / l2.size(along)
        other = other - jnp.vdot(other, along) * along
        ends = _REACH * setup.cell.epsilons[-1] * np.linspace(-1, 1, _GRID)
        lengths = np.asarray(ends, np.float32)[:, None, None, None]
        first, second = (lengths * (vector / setup.norm.size(vector))[None] for vector in (along, other))
        places = (x[None] + first[:, None] + second[None]).reshape(-1, *along.shape)
        heights = _heights(setup.apply_fn)(params, places, y[0])
    loss, margin = (np.asarray(height).reshape(_GRID, _GRID) for height in heights)
    return {"plane_image": chosen, "plane_ends": ends, "plane_loss": loss, "plane_margin": margin}


def card(setup: Setup[Cell], params: Any, arrays: Arrays) -> dict[str, Any]:
    """What the card says beside settings and provenance."""
    robust = (1 - arrays["found_worst"].mean(0)).tolist()
    clean, distance = 1 - float(arrays["test_error"]), arrays["nearest"][-1]
    estimated, attacked = np.abs(arrays["margin"]), arrays["attacked"]
    shows_layers = getattr(setup.apply_fn, "layers", None) is not None  # without them nothing can be certified
    return {
        "n_train": len(setup.data.train.labels) - setup.cell.validation,
        "clean_accuracy": clean,
        "robust_accuracy_worst": robust,
        "average_robust_accuracy_worst": float(np.mean(robust)),
        "average_accuracy": float(np.mean([clean, *robust])),
        "average_nearest": mean_of_found(distance),
        "nearest_quartiles": np.quantile(distance, (0.25, 0.5, 0.75), method="inverted_cdf").tolist(),
        "not_found": int(np.sum(~np.isfinite(distance))),
        "average_margin": float(np.mean(arrays["margin"])),
        "average_distance": float(np.mean(estimated)),
        "average_certified": float(np.mean(arrays["certified"])) if shows_layers else None,
        "average_attacked": float(np.mean(attacked)),
        "contradicted_fraction": float(np.mean(contradicts(estimated, attacked))),
    }


STUDY: Study[Cell] = Study("mma", set_up, train, (evaluate, nearest, worst_case, margins, bounds, landscape), card)
