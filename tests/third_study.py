"""A whole study beside those of ``runs``, as CONTRIBUTING says: TRADES and its strength, measured as both papers do.

In ``runs`` the parts would be files of their own: cell, presets, stages, tables, publish, comparison and __main__.
"""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmargin import checks, models, objectives
from jaxmargin.lab import cells, command_line, data, publishing, robustness, tables
from jaxmargin.lab.cells import Setup, Study, run_cell, trained
from jaxmargin.lab.data.loading import margin_points, spread_points
from jaxmargin.lab.measuring import lifted
from jaxmargin.lab.report import Section
from jaxmargin.lab.resuming import Training
from jaxmargin.lab.training import evaluator
from jaxmargin.margins import linear_margin
from jaxmargin.norms import l2

METHODS = ("std", "trades")


# cell.py ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Cell(cells.Cell):
    """All that decides the numbers of one cell."""

    epochs: int
    strength: float

    def build_objective(self):
        """The objective of the cell's method."""
        checks.one_of("method", self.method, METHODS)
        if self.method == "std":
            return objectives.standard()
        options = dict(norm=l2, num_steps=self.attack_steps, box=robustness.BOX)
        return objectives.trades(epsilon=self.epsilons[0], beta=self.strength, **options)


# presets.py ---------------------------------------------------------------------------------------------------------
def preset(method, seed=0, **changes):
    """Zhang et al. 2019, on the digits: settings of our own."""
    sizes = dict(points=5, attack_points=20, worst_case_steps=5, nearest_steps=10, num_samples=64, attack_steps=3)
    settings = dict(model="linear", epochs=2, batch_size=32, strength=6.0, epsilons=(0.25, 0.5), radius=1.5)
    return Cell(dataset="digits", method=method, seed=seed, **(settings | sizes | changes))


# stages.py ----------------------------------------------------------------------------------------------------------
def set_up(cell, images, work):
    """What the stages of a cell start from."""
    uses = ("init", "train", "margins", "worst_case", "bounds")
    keys = dict(zip(uses, jax.random.split(jax.random.key(cell.seed), len(uses)), strict=True))
    model, n = _network(images.train.images.shape[1:]), len(images.test.labels)
    points = {"test": margin_points(n, cell.points)}
    return Setup(cell, images, model, model.apply, l2, keys, spread_points(n, cell.attack_points), points, work)


_network = functools.cache(models.linear)


def train(setup):
    """The parameters after the last epoch."""
    cell, on_device = setup.cell, tuple(map(jnp.asarray, setup.data.train))

    def record(epoch, state):
        with setup.work.timed("evaluate"):
            loss, error = evaluator(setup.apply_fn, scale=setup.data.scale)(state.params, *on_device)
        return {"method": cell.method, "epoch": epoch, "train_loss": float(loss), "train_error": float(error)}

    sizes = dict(scale=setup.data.scale, batch_size=cell.batch_size, calls=cell.epochs, keep=(cell.epochs,))
    return trained(setup, Training(cell.build_objective(), optax.adam(1e-2), *on_device, record=record, **sizes))


def evaluate(setup, params):
    """The error on all test images."""
    on_device = map(jnp.asarray, setup.data.test)
    return {"test_error": np.asarray(evaluator(setup.apply_fn, scale=setup.data.scale)(params, *on_device)[1])}


def margins(setup, params):
    """The margins of some test points."""
    run, inputs = lifted(linear_margin, setup.apply_fn, norm=l2), setup.data.inputs("test", setup.points["test"])
    return setup.work.measure(run, params, setup.keys["margins"], *inputs, name="margins", said="margins")


def worst_case(setup, params):
    """Any attack on the attacked images."""
    nothing = np.zeros((len(setup.attacked), len(setup.cell.epsilons)), bool)
    return robustness.found_in_the_worst_case(setup, params, nothing)


def bounds(setup, params):
    """Certified and attacked distances of the same points."""
    return robustness.bounds_of(setup, params, setup.kept(margins, params)["predicted"])


def card(setup, params, arrays):
    """What the card says beside settings and provenance."""
    averages = {f"average_{name}": float(arrays[name].mean()) for name in ("margin", "certified", "attacked")}
    return averages | {
        "n_train": len(setup.data.train.labels),
        "clean_accuracy": 1 - float(arrays["test_error"]),
        "robust_accuracy_worst": (1 - arrays["found_worst"].mean(0)).tolist(),
        "average_distance": float(np.abs(arrays["margin"]).mean()),
        "contradicted_fraction": 0.0,
    }


STUDY = Study("third_study", set_up, train, (evaluate, margins, worst_case, bounds), card)


# tables.py and publish.py -------------------------------------------------------------------------------------------
def row(cards):
    """The row of the cards that differ by the seed."""
    robust = tables.beside([100 * one["robust_accuracy_worst"][-1] for one in cards])
    return {"method": cards[0]["method"], "strength": f"{cards[0]['strength']:g}", "worst %": robust}


def publish(workdir):
    """Writes the table and the report of a workdir."""
    found = publishing.read_finished(workdir, lambda card: (METHODS.index(card["method"]), card["seed"]))
    cards = [cell.card for cell in found]
    table = tables.seeds_share(cards, row)
    sections = [
        Section("Table", "", table),
        Section("Between bounds", "", tables.brackets(cards)),
        Section("Costs", "", tables.costs(cards, ["epochs", "strength"])),
    ]
    about = dict(title="A third study", introduction="TRADES and its strength.", sections=sections)
    return publishing.write(workdir, found, table=table, figures={}, **about)


# __main__.py --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Options(command_line.RunOptions):
    """Trains the digits with and without TRADES."""

    strength: float | None = None
    """Of TRADES; by default the paper's 6."""
    points: int | None = None
    """Test points whose margins are measured; by default 5."""


def main(arguments=None):
    """Runs the study and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m runs.third_study")
    return command_line.exit_code(lambda: run(options), minutes=options.minutes)


def run(options):
    """Runs every cell that is not finished, and publishes the workdir."""
    changes = command_line.overrides(options, Cell)
    chosen = [preset(method, seed, **changes) for method in METHODS for seed in options.seeds]
    images, workdir = data.load("digits"), Path(options.workdir or "out/third-study")
    settings = {cell.name: asdict(cell) for cell in chosen}
    command_line.run_cells(
        chosen, images, lambda cell: run_cell(STUDY, cell, images, workdir),
        describe=lambda cell: f"{cell.epochs} epochs", publish=publish, workdir=workdir, settings=settings,
    )  # fmt: skip
