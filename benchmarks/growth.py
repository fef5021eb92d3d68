"""How the estimator's cost grows with points, samples, classes, input size and devices, and what memory it takes.

``python -m benchmarks.growth`` prints a table, and writes ``growth.csv`` and ``growth.png``. Everything is measured on
an MLP of one hidden layer trained on the embedded digits, or for many classes on noisy copies of random patterns.
Devices and peak memory need a fresh process each, which this module starts with ``--child``.
"""

import functools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxmargin as jm
from benchmarks import networks
from benchmarks.networks import Trained
from benchmarks.peers import timed
from jaxmargin.lab import command_line
from jaxmargin.lab.figures import drawing, plots, style
from jaxmargin.lab.files import write_bytes
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report.page import csv_table, markdown_table

__all__ = ["Options", "main"]

RADIUS = 5.0
POINTS = (1, 4, 16, 64)
SAMPLES = (1024, 4096, 16_384, 51_200)
CLASSES = (10, 30, 100, 300, 1000)
SIZES = (8, 16, 32, 64)
DEVICES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Options:
    """Shows how the cost of jaxmargin's margin estimator grows."""

    num_samples: int = 1024
    """Ball samples a point, where they are not what grows."""
    repetitions: int = 3
    """Timed calls; medians are reported."""
    out: str = "out/benchmarks"
    """Folder for growth.csv and growth.png."""
    child: str = ""
    """For this module itself: one measurement as JSON, whose result is printed as JSON."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m benchmarks.growth")
    if options.child:
        print(json.dumps(in_child(**json.loads(options.child))))
        return 0
    return command_line.exit_code(lambda: run(options))


def run(options: Options) -> None:
    """Measures everything, prints the table, writes the CSV and the picture."""
    mlp = networks.trained("mlp")
    rows: list[dict[str, Any]] = []
    parts: tuple[Callable[[], list[dict[str, Any]]], ...] = (
        lambda: by_points(mlp, options),
        lambda: by_samples(mlp, options),
        lambda: by_classes(options),
        lambda: by_size(options),
        lambda: by_devices(options),
        by_memory,
    )
    for part in parts:
        rows += part()
        print(f"{rows[-1]['what']}: done", file=sys.stderr, flush=True)
    heading = f"Cost of a point on {device_name()}, jax {jax.__version__}, median of {options.repetitions}"
    print(f"{heading}\n\n{markdown_table(rows)}")
    print("Forced devices share the same cores: what they show is the price of dividing, not a gain.")
    folder = Path(options.out)
    write_bytes(folder / "growth.csv", csv_table(rows).encode())
    print(f"written: {folder / 'growth.csv'}, {plots.save(picture(rows, heading), folder / 'growth.png')}")


# What grows ----------------------------------------------------------------------------------------------------------


def by_points(mlp: Trained, options: Options) -> list[dict[str, Any]]:
    """More points in a call share the samples, and what the first layer makes of them."""
    cells = [(n, *cost(mlp, n, options.num_samples, options.repetitions, exact=exact)) for exact, n in both(POINTS)]
    return table("points", cells, len(POINTS))


def by_samples(mlp: Trained, options: Options) -> list[dict[str, Any]]:
    """More samples a point; the default mode drops rivals as it goes."""
    cells = [(s, *cost(mlp, 2, s, options.repetitions, exact=exact)) for exact, s in both(SAMPLES)]
    return table("samples", cells, len(SAMPLES))


def by_classes(options: Options) -> list[dict[str, Any]]:
    """More classes: exact mode takes c - 1 gradients a sample, the default those of the rivals that may decide."""
    found = {c: many_classes(c) for c in CLASSES}
    cells = [(c, *cost(found[c], 1, options.num_samples, 1, exact=exact)) for exact, c in both(CLASSES)]
    return table("classes", cells, len(CLASSES))


def by_size(options: Options) -> list[dict[str, Any]]:
    """Larger images: from 40 x 40 on, gradients are measured without being carried to the input."""
    found = {size: networks.trained("mlp", shape=(size, size, 1)) for size in SIZES}
    repetitions = options.repetitions
    cells = [(d, *cost(found[d], 2, options.num_samples, repetitions, exact=exact)) for exact, d in both(SIZES)]
    return table("input size", cells, len(SIZES))


def by_devices(options: Options) -> list[dict[str, Any]]:
    """The points divided among devices that the host pretends to have: they share its cores."""
    cells = []
    for devices in DEVICES:
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
        wish = dict(points=64, num_samples=options.num_samples, devices=devices, repetitions=options.repetitions)
        cells.append((devices, child(wish, flags)["seconds"] / 64, None))
    return table("forced devices", cells, len(DEVICES))


def by_memory() -> list[dict[str, Any]]:
    """The largest memory that a process had in all, and before it began to measure; and what XLA sets aside."""
    few, many = (SAMPLES[0], SAMPLES[-1])
    said = {
        samples: child(dict(points=1, num_samples=samples, devices=1, repetitions=1), {}) for samples in (few, many)
    }
    return [
        {
            "what": "samples, memory",
            "value": samples,
            "mode": "default",
            "ratio": found["peak_mib"] / said[few]["peak_mib"],
            "peak MiB": found["peak_mib"],
            "before MiB": found["before_mib"],
            "XLA's temporaries MiB": found["temporary_mib"],
        }
        for samples, found in said.items()
    ]


# How it is measured --------------------------------------------------------------------------------------------------


def both(values: Sequence[int]) -> list[tuple[bool, int]]:
    """All values in exact mode, then all in the default one."""
    return [(exact, value) for exact in (True, False) for value in values]


def cost(network: Trained, points: int, num_samples: int, repetitions: int, *, exact: bool) -> tuple[float, float]:
    """(seconds a point, rivals a point that saw all samples)."""
    estimate = estimator(network, num_samples, exact=exact)
    xs, ys = network.images[:points], network.labels[:points]
    rivals = float(estimate(xs, ys).rivals.mean())  # compiles
    return statistics.median(timed(estimate, xs, ys) for _ in range(repetitions)) / points, rivals


def estimator(network: Trained, num_samples: int, *, exact: bool = False, **options: Any) -> Callable[..., Any]:
    """(xs, ys) -> Margins, there when it returns."""
    options |= dict(norm=jm.l2, radius=RADIUS, num_samples=num_samples, exact=exact)
    estimate = jm.over_batch(jm.lipschitz_margin, network.model.apply, **options)
    return lambda xs, ys: jax.block_until_ready(estimate(network.params, jax.random.key(2), xs, ys))


def many_classes(num_classes: int) -> Trained:
    """An MLP that tells that many random patterns apart under noise."""
    generator = np.random.default_rng(0)
    patterns = generator.uniform(size=(num_classes, 14, 14, 1))

    def split(copies: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.tile(np.arange(num_classes), copies)
        noise = generator.normal(scale=0.2, size=(len(labels), *patterns.shape[1:]))
        return np.clip(patterns[labels] + noise, 0, 1).astype(np.float32), labels.astype(np.int32)

    model = jm.models.mlp(patterns.shape[1:], num_classes, hidden=256)
    return networks.fitted(f"{num_classes} classes", model, split(max(10, 1000 // num_classes)), split(1), epochs=10)


def child(wish: dict[str, Any], environment: dict[str, str]) -> dict[str, float]:
    """Measures in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.growth", "--child", json.dumps(wish)]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_child(*, points: int, num_samples: int, devices: int, repetitions: int) -> dict[str, float]:
    """Seconds of a call; the process's largest memory, in all and before it began; XLA's temporaries. Untrained."""
    shape = (28, 28, 1)
    model = jm.models.mlp(shape)
    params = model.init(jax.random.key(0))
    xs, ys = np.random.default_rng(0).uniform(size=(points, *shape)).astype(np.float32), np.zeros(points, np.int32)
    network = Trained("mlp", model, params, xs, ys, 0.0)
    mesh = jax.make_mesh((devices,), ("points",)) if devices > 1 else None
    estimate = estimator(network, num_samples, batch_size=max(1, points // max(DEVICES)), mesh=mesh)
    before = peak_mib()
    estimate(xs, ys)  # compiles
    seconds = statistics.median(timed(estimate, xs, ys) for _ in range(repetitions))
    found = {"seconds": seconds, "before_mib": before, "peak_mib": peak_mib()}
    return found | {"temporary_mib": temporaries(network, num_samples) / 2**20}


def peak_mib() -> float:
    """The largest memory that this process has had (Linux's ru_maxrss would begin with that of the parent)."""
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(peak[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def temporaries(network: Trained, num_samples: int) -> int:
    """Bytes that XLA sets aside for one point, besides arguments and result."""

    def one(params: Any, key: jax.Array, x: jax.Array, y: jax.Array) -> jm.Margins:
        logits_fn = functools.partial(network.model.apply, params)
        return jm.lipschitz_margin(logits_fn, key, x, y, norm=jm.l2, radius=RADIUS, num_samples=num_samples)

    arguments = (network.params, jax.random.key(2), network.images[0], network.labels[0])
    analysis: Any = jax.jit(one).lower(*arguments).compile().memory_analysis()
    size: int = analysis.temp_size_in_bytes
    return size


def table(what: str, cells: Sequence[tuple[int, float, float | None]], length: int) -> list[dict[str, Any]]:
    """Rows of (value, seconds a point, rivals), ``length`` values in exact mode first where there are two modes."""
    rows: list[dict[str, Any]] = []
    for start in range(0, len(cells), length):
        mode = "exact" if start == 0 and len(cells) > length else "default"
        for value, seconds, rivals in cells[start : start + length]:
            row: dict[str, Any] = {"what": what, "value": value, "mode": mode, "seconds a point": seconds}
            rows.append(row | {"ratio": seconds / cells[start][1], "rivals": rivals})
    return rows


def picture(rows: list[dict[str, Any]], heading: str) -> Figure:
    """Small panels, one for each thing that grows, both axes logarithmic."""
    names = list(dict.fromkeys(row["what"] for row in rows if "seconds a point" in row))
    figure, panels = drawing.panels(heading, names, xlabel="", ylabel="", height=3.2)
    panels[0].set_ylabel("seconds a point")
    looks = {"exact": style.Look("#56b4e9", "s"), "default": style.Look("#0072b2", "o")}
    for panel, name in zip(panels, names, strict=True):
        for mode, look in looks.items():
            mine = [row for row in rows if (row["what"], row["mode"]) == (name, mode)]
            values, seconds = (np.array([row[key] for row in mine], float) for key in ("value", "seconds a point"))
            drawing.line(panel, mode, values, seconds, look)
        low, high = panel.dataLim.intervaly
        middle, span = (low * high) ** 0.5, max(1.5 * (high / low) ** 0.5, 4.0)  # small changes shall look small
        panel.set_ylim(middle / span, middle * span)
        drawing.log_axis(panel.xaxis)
        drawing.log_axis(panel.yaxis)
        ticks = sorted({row["value"] for row in rows if row["what"] == name})
        panel.set_xticks(ticks, [f"{tick // 1000}k" if tick > 1000 else str(tick) for tick in ticks])
    drawing.legend(figure)
    return figure


if __name__ == "__main__":
    sys.exit(main())
