"""How fast the sampled Lipschitz margin is, next to PyTorch, ART and plain JAX: same weights, same samples, one run.

``python -m benchmarks.estimator`` trains each network, lets everybody measure the same points once, which compiles and
shows whether the margins agree, and then times them in alternation. Rates count points x samples, each with the slopes
of all rival classes. Writes ``estimator.csv`` and ``estimator.png`` and prints the tables. The peers come with
``pip install -e ".[lab,peers]"``; one that is not installed is left out.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import networks, peers
from benchmarks.networks import Trained
from benchmarks.peers import side_by_side, timed
from jaxmargin import checks
from jaxmargin.lab import command_line
from jaxmargin.lab.data.loading import margin_points
from jaxmargin.lab.figures import drawing, plots
from jaxmargin.lab.files import write_bytes
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report.page import csv_table, markdown_table
from jaxmargin.xla_cpu import on_cpu

__all__ = ["Options", "main"]

EXACT, DEFAULT, JAX, TORCH, ART = "jaxmargin, exact", "jaxmargin, default", "plain JAX", "PyTorch loop", "ART CLEVER"
COLOURS = {EXACT: "#56b4e9", DEFAULT: "#0072b2", JAX: "#999933", TORCH: "#d55e00", ART: "#cc79a7"}
PACKAGES = {TORCH: "torch", ART: "art"}


@dataclass(frozen=True)
class Options:
    """Times jaxmargin's margin estimator next to its peers."""

    networks: tuple[str, ...] = networks.NETWORKS
    """Networks to measure: mlp cnn linear cifar-cnn (the cnn at the shape of CIFAR-10)."""
    num_samples: int = 2048
    """Ball samples a point, the same for all; a multiple of peers.CHUNK (64 on a CPU)."""
    points: int = 2
    """Test images measured in a call."""
    repetitions: int = 3
    """Timed calls of each; medians are reported."""
    radius: float = 5.0
    """Of the ball."""
    dataset: str = "digits"
    """Trains on digits (embedded, resized), mnist or cifar10."""
    out: str = "out/benchmarks"
    """Folder for estimator.csv and estimator.png."""


class Entrant(NamedTuple):
    """One who takes part on one network.

    Attributes:
      run: (xs, ys) -> anything, as it is timed.
      margins: [n] what it makes of the common samples.
      points: how many points it is given; slow ones get fewer.
      note: what else a reader should know.
    """

    run: Callable[[np.ndarray, np.ndarray], Any]
    margins: np.ndarray
    points: int
    note: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m benchmarks.estimator")
    return command_line.exit_code(lambda: run(options))


def run(options: Options) -> None:
    """Measures every network, prints the tables, writes the CSV and the picture."""
    checks.divisible("num_samples", options.num_samples, "the samples that peers take together", peers.CHUNK)
    for who in (who for who, package in PACKAGES.items() if peers.missing(package)):
        print(f"{who} is left out: {PACKAGES[who]} is not installed (pip install -e '.[lab,peers]')")
    rows: list[dict[str, Any]] = []
    counted: dict[str, int] = {}
    roof = 0.0
    for name in options.networks:
        network = networks.trained(name, options.dataset)
        print(f"{name}: {100 * network.accuracy:.1f} % of the test images right", flush=True)
        rows += measure(network, options)
        roof = max(roof, matmul_rate())
        if not name.endswith("linear"):  # exact mode takes one of its samples
            counted[name] = networks.flops(network) * network.model.num_classes  # forward and c - 1 gradients, alike
    exact = {row["network"]: row["samples/s"] for row in rows if row["who"] == EXACT}
    shares = [share_of_roof(name, operations, exact[name], roof) for name, operations in counted.items()]
    heading = f"{options.dataset}, {options.num_samples:,} samples a point, on {machine()}"
    print(f"\n{heading}, median of {options.repetitions}\n\n{markdown_table([shown(row) for row in rows])}")
    if shares:
        print(f"Exact mode against the machine's own float32 matrix products\n\n{markdown_table(shares)}")
    folder = Path(options.out)
    facts = {name: getattr(options, name) for name in ("dataset", "num_samples", "radius", "repetitions")}
    facts |= {"device": device_name(), "versions": versions()}
    write_bytes(folder / "estimator.csv", csv_table([row | facts for row in rows]).encode())
    print(f"written: {folder / 'estimator.csv'}, {plots.save(picture(rows, heading), folder / 'estimator.png')}")


def measure(network: Trained, options: Options) -> list[dict[str, Any]]:
    """The table's rows of one network."""
    chosen = margin_points(len(network.labels), options.points)
    xs, ys = network.images[chosen], network.labels[chosen]
    field = entrants(network, xs, ys, options)
    runs = {who: partial(one.run, xs[: one.points], ys[: one.points]) for who, one in field.items()}
    median = side_by_side(runs, options.repetitions)
    rate = {who: one.points * options.num_samples / median[who] for who, one in field.items()}
    rows: list[dict[str, Any]] = []
    for who, one in field.items():
        difference = np.abs(one.margins - field[EXACT].margins[: len(one.margins)]).max()
        row: dict[str, Any] = {"network": network.name, "who": who, "samples/s": rate[who]}
        row |= {f"x {peer}": rate[who] / rate[peer] if peer in rate else None for peer in (TORCH, ART)}
        rows.append(row | {"largest difference": float(difference), "points": one.points, "note": one.note})
    return rows


def entrants(network: Trained, xs: np.ndarray, ys: np.ndarray, options: Options) -> dict[str, Entrant]:
    """All who take part, each of whom has measured the points once."""
    key, samples, radius = jax.random.key(2), options.num_samples, options.radius
    drawn = peers.offsets(key, samples, network.model.input_shape, radius)
    field: dict[str, Entrant] = {}
    for who, exact in ((EXACT, True), (DEFAULT, False)):
        estimate = peers.ours(network, key, samples, radius, exact=exact)
        found = estimate(xs, ys)
        note = "" if exact else f"{float(found.rivals.mean()):.1f} of {network.model.num_classes - 1} rivals to the end"
        note = "affine: one sample says all" if network.name.endswith("linear") else note
        field[who] = Entrant(estimate, np.asarray(found.margin), len(xs), note)
    plain = peers.plain_jax(network, drawn, radius)
    field[JAX] = Entrant(plain, plain(xs, ys), len(xs), "")
    if not peers.missing("torch"):
        brief = peers.torch_loop(network, drawn[: 4 * peers.CHUNK], radius)
        threads = peers.choose_torch_threads(brief, xs[:1], ys[:1])
        loop = peers.torch_loop(network, drawn, radius)
        field[TORCH] = Entrant(loop, loop(xs, ys), len(xs), f"{threads} threads" if threads > 1 else "1 thread")
    if not peers.missing("torch") and not peers.missing("art"):
        few = slice(1 if network.name == "cifar-cnn" else len(xs))
        margins, scores = peers.art_on_samples(network, drawn, radius)(xs[few], ys[few])
        note = f"its score is {np.median(scores / margins):.3f} of that margin"
        field[ART] = Entrant(peers.art_clever(network, samples, radius), margins, len(margins), note)
    return field


def share_of_roof(name: str, operations: int, samples_a_second: float, roof: float) -> dict[str, Any]:
    """How much of the machine's matrix product rate exact mode reaches, given the operations of a sample."""
    rate = operations * samples_a_second
    row = {"network": name, "MFLOP a sample": operations / 1e6, "GFLOP/s": rate / 1e9}
    return row | {"matmul GFLOP/s": roof / 1e9, "share %": 100 * rate / roof}


def matmul_rate() -> float:
    """Floating-point operations a second of the best float32 matrix product of a few sizes."""
    best = 0.0
    for size in (512, 1024, 2048) if on_cpu() else (4096, 8192, 16384):
        a, b = jax.random.normal(jax.random.key(0), (2, size, size))
        with jax.default_matmul_precision("float32"):
            product = jax.jit(jnp.matmul)
            calls = [timed(lambda a, b: jax.block_until_ready(product(a, b)), a, b) for _ in range(6)]  # noqa: B023
        best = max(best, 2 * size**3 / min(calls[1:]))
    return best


def machine() -> str:
    """The devices and the versions that decide a rate."""
    torch_on = "" if peers.missing("torch") else f", PyTorch on {peers.torch_device()}"
    return f"{device_name()}{torch_on}, {versions()}"


def versions() -> str:
    """Versions of all who take part."""
    packages = {"jax": "jax", "torch": "torch", "art": "adversarial-robustness-toolbox"}
    return ", ".join(f"{name} {version(package)}" for name, package in packages.items() if not peers.missing(name))


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is printed."""
    ratios = {name: None if row[name] is None else f"{row[name]:.2f}" for name in (f"x {TORCH}", f"x {ART}")}
    return (
        row
        | ratios
        | {"samples/s": f"{row['samples/s']:,.0f}", "largest difference": f"{row['largest difference']:.1e}"}
    )


def picture(rows: list[dict[str, Any]], heading: str) -> Figure:
    """Bars of the rates, a panel a network."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure, panels = drawing.panels(heading, names, xlabel="samples/s", ylabel="", height=2.9)
    order = [who for who in COLOURS if any(row["who"] == who for row in rows)][::-1]
    for panel, name in zip(panels, names, strict=True):
        mine = {row["who"]: row["samples/s"] for row in rows if row["network"] == name}
        places = [order.index(who) for who in mine]
        bars = panel.barh(places, list(mine.values()), color=[COLOURS[who] for who in mine], height=0.72)
        panel.bar_label(bars, [f"{rate:,.0f}" for rate in mine.values()], padding=3, fontsize=8)
        panel.set_xlim(min(mine.values()) / 3, max(mine.values()) * 12)
        drawing.log_axis(panel.xaxis)
        panel.set_yticks(range(len(order)), order if panel is panels[0] else [""] * len(order))
        panel.grid(False, axis="y")
    return figure


if __name__ == "__main__":
    sys.exit(main())
