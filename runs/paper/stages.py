"""How a cell of the table is trained and measured, and the card it adds up to."""

import functools
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmargin import flags, health
from jaxmargin.brackets import contradicts
from jaxmargin.lab import files, robustness
from jaxmargin.lab.cards import Card
from jaxmargin.lab.cells import Setup, Study, trained
from jaxmargin.lab.data.loading import Dataset, margin_points, spread_points
from jaxmargin.lab.files import Arrays, Record
from jaxmargin.lab.resuming import Training
from jaxmargin.lab.training import TrainState, evaluator
from jaxmargin.lab.workspace import Workspace
from jaxmargin.losses import logit_margin
from jaxmargin.margins import Margins, summarize
from jaxmargin.norms import l2
from runs.paper.cell import Cell, schedule

__all__ = ["SPLITS", "STUDY", "PaperCard"]

SPLITS = ("train", "test")


class Flag(TypedDict):
    """A sign of a failing attack, see ``flags.Flag``."""

    name: str
    raised: bool
    value: float | None  # None where it is infinite
    threshold: float
    meaning: str
    remedy: str
    n: NotRequired[int | None]  # older cards do not say


class PaperCard(Card):
    """The card of a cell; beside it all other settings of ``Cell``, under their names."""

    preset: str
    epochs: int
    margin_method: str
    train_accuracy: float
    robust_accuracy_published: list[float]
    logit_margin_quartiles: list[float]
    average_margin: float
    minimum_margin: float
    capped_fraction: float
    train_average_margin: float
    train_average_distance: float
    train_minimum_margin: float
    flags: list[Flag]


def set_up(cell: Cell, data: Dataset, work: Workspace) -> Setup[Cell]:
    """What the stages of a cell start from."""
    model = cell.build_model(data.train.images.shape[1:], data.num_classes)
    key_init, key_train, key_margins, key_attack = jax.random.split(jax.random.key(cell.seed), 4)
    key_published, key_worst, key_bounds = jax.random.split(key_attack, 3)
    keys = dict(init=key_init, train=key_train, margins=key_margins, published=key_published, worst_case=key_worst)
    return Setup(
        cell, data, model, model.apply, l2, keys | dict(bounds=key_bounds),
        attacked=spread_points(len(data.test.labels), cell.attack_points),
        points={name: margin_points(len(getattr(data, name).labels), cell.points) for name in SPLITS}, work=work,
    )  # fmt: skip


def train(setup: Setup[Cell]) -> Any:
    """The parameters after the last epoch; a line of metrics.jsonl for each."""
    cell, data = setup.cell, setup.data
    splits = {name: tuple(map(jnp.asarray, getattr(data, name))) for name in SPLITS}
    optimizer = optax.sgd(cell.learning_rate, momentum=0.9, nesterov=True)
    record = functools.partial(_record, setup, splits)
    images, labels = splits["train"]
    how = Training(
        cell.build_objective(), optimizer, images, labels, scale=data.scale, batch_size=cell.batch_size,
        calls=cell.epochs, keep=schedule(cell.epochs), record=record,
        measures={epoch: tuple(_kept(split, epoch) for split in SPLITS) for epoch in schedule(cell.epochs)},
    )  # fmt: skip
    return trained(setup, how)


def _record(setup: Setup[Cell], splits: dict[str, tuple[jax.Array, ...]], epoch: int, state: TrainState) -> Record:
    """Loss and error on both splits, and margins where they are due."""
    cell, evaluate = setup.cell, evaluator(setup.apply_fn, scale=setup.data.scale)
    line: Record = {name: getattr(cell, name) for name in ("dataset", "model", "method", "seed")} | {"epoch": epoch}
    with setup.work.timed("evaluate"):
        for name, split in splits.items():
            loss, error = evaluate(state.params, *split)
            line |= {f"{name}_loss": float(loss), f"{name}_error": float(error)}
    if epoch in schedule(cell.epochs) or cell.model == "linear":
        with setup.work.timed("margins"):
            for name in SPLITS:
                found = _summary(_margins_at(setup, state.params, name, epoch))
                line |= {f"{name}_{field}": value for field, value in found.items()}
    return line


def _kept(split: str, epoch: int) -> str:
    """The name under which the margins of an estimation epoch are kept."""
    return f"margins-{split}-{epoch:04d}"


def _margins_at(setup: Setup[Cell], params: Any, split: str, epoch: int) -> Arrays:
    """The margins of a split's points; those of the estimation epochs are kept."""
    xs, ys = setup.data.inputs(split, setup.points[split])
    kept = _kept(split, epoch) if epoch in schedule(setup.cell.epochs) else None
    said = f"{split} margins at epoch {epoch}"
    return setup.work.measure(
        setup.cell.build_margins(setup.model), params, setup.keys["margins"], xs, ys, name=kept, said=said
    )


def published(setup: Setup[Cell], params: Any) -> Arrays:
    """The attack of the paper."""
    cell = setup.cell
    return robustness.found_as_published(setup, params, num_steps=cell.attack_steps, step_size=cell.attack_step_size)


def worst_case(setup: Setup[Cell], params: Any) -> Arrays:
    """The worst case over attacks, the published one among them."""
    return robustness.found_in_the_worst_case(setup, params, setup.kept(published, params)["found_published"])


def logits(setup: Setup[Cell], params: Any) -> Arrays:
    """How large the logits of the attacked images are."""

    def margin(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        return logit_margin(setup.apply_fn(params, one[0]), one[1])

    with jax.default_matmul_precision("float32"):
        inputs = setup.data.inputs("test", setup.attacked)
        return {"logit_margin": np.asarray(jax.jit(lambda *both: jax.lax.map(margin, both))(*inputs))}


def margins(setup: Setup[Cell], params: Any) -> Arrays:
    """The margins of the points themselves at every estimation epoch, [epochs, points] each, from while it trained."""
    epochs = schedule(setup.cell.epochs)
    arrays = {"epochs": np.asarray(epochs), "attack_index": setup.attacked}
    for name in SPLITS:
        found = [files.read_arrays(setup.work.measured(_kept(name, epoch))) for epoch in epochs]
        arrays[f"{name}_index"] = setup.points[name]
        arrays |= {f"{name}_{field}": np.stack([one[field] for one in found]) for field in Margins._fields}
    return arrays


def bounds(setup: Setup[Cell], params: Any) -> Arrays:
    """Certified and attacked distances of the test points whose margins were estimated last."""
    return robustness.bounds_of(setup, params, setup.kept(margins, params)["test_predicted"][-1])


def card(setup: Setup[Cell], params: Any, arrays: Arrays) -> dict[str, Any]:
    """What the card says beside settings and provenance."""
    exact, last = setup.cell.model == "linear", files.read_records(setup.work.metrics)[-1]
    train, test = (_summary({f: arrays[f"{name}_{f}"][-1] for f in Margins._fields}) for name in SPLITS)
    robust = {name: (1 - arrays[f"found_{name}"].mean(0)).tolist() for name in ("published", "worst")}
    estimated = np.abs(arrays["test_margin"][-1])
    return {
        "n_train": len(setup.data.train.labels),
        "num_samples": 0 if exact else setup.cell.num_samples,
        "margin_method": "exact" if exact else "sampled Lipschitz constants",
        "clean_accuracy": 1 - last["test_error"],
        "train_accuracy": 1 - last["train_error"],
        **{f"robust_accuracy_{name}": accuracy for name, accuracy in robust.items()},
        "logit_margin_quartiles": np.quantile(arrays["logit_margin"], (0.25, 0.5, 0.75)).tolist(),
        **{name: test[name] for name in ("average_margin", "average_distance", "minimum_margin", "capped_fraction")},
        **{f"train_{name}": train[name] for name in ("average_margin", "average_distance", "minimum_margin")},
        "average_certified": float(np.mean(arrays["certified"])),
        "average_attacked": float(np.mean(arrays["attacked"])),
        "contradicted_fraction": float(np.mean(contradicts(estimated, arrays["attacked"]))),
        "flags": [flag._asdict() for flag in _flags(setup, params, arrays, 1 - last["test_error"], robust)],
    }


def _flags(
    setup: Setup[Cell], params: Any, arrays: Arrays, clean: float, robust: dict[str, list[float]]
) -> list[flags.Flag]:
    """What the logits, the accuracies and the distances say of the published attack."""
    epsilons, right, n = setup.cell.epsilons, arrays["test_margin"][-1] > 0, len(setup.attacked)
    with setup.work.timed("logits"), jax.default_matmul_precision("float32"):
        gradients = health.saturation(setup.apply_fn, params, *setup.data.inputs("test", setup.attacked))
    return [
        *gradients,
        flags.plateau(epsilons, clean, robust["published"], n=n),
        flags.rises(epsilons, robust["published"], n=n),
        flags.weak_loss(robust["published"], robust["worst"], n=n),
        flags.layer_cake(
            epsilons, robust["published"], np.where(right, arrays["attacked"], 0.0), same_points=False
        ),
    ]  # fmt: skip


def _summary(found: Arrays) -> dict[str, float]:
    summary = summarize(Margins(*(jnp.asarray(found[field]) for field in Margins._fields)))
    return {
        "minimum_margin": float(summary.minimum),
        "average_margin": float(summary.average),
        "average_distance": float(summary.average_unsigned),
        "margin_accuracy": float(summary.accuracy),
        "capped_fraction": float(summary.capped_fraction),
    }


STUDY: Study[Cell] = Study("paper", set_up, train, (published, worst_case, logits, margins, bounds), card)
