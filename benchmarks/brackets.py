"""Whether the bracket holds on trained networks, how often estimates leave it, and what scaling the logits changes.

``python -m benchmarks.brackets`` prints two tables. The first one: certified, estimated and attacked distances of test
points, the estimates from few and many samples and from the radial sampler. The second one: the last layer times 1, 3,
10, 30 and 100 moves no boundary; what moves all the same is an artefact of the attack.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import jaxmargin as jm
from benchmarks import networks
from jaxmargin.attacks import PUBLISHED
from jaxmargin.lab import command_line
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report.page import markdown_table

__all__ = ["Options", "main"]

SCALES = (1, 3, 10, 30, 100)


@dataclass(frozen=True)
class Options:
    """Brackets the l2 distances of trained networks and scales their logits."""

    networks: tuple[str, ...] = ("mlp", "cnn")
    """Networks, as in benchmarks.networks."""
    dataset: str = "digits"
    """digits (resized), mnist or cifar10."""
    points: int = 100
    """Test points, the first ones that are classified right."""
    num_samples: tuple[int, ...] = (1024, 51_200)
    """Ball samples of the estimates."""
    radius: float = 5.0
    """Of the ball."""
    num_steps: int = 500
    """Steps of the minimum-norm attacks and of PGD."""
    epsilon: float = 1.0
    """Radius of the attacks on scaled networks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m benchmarks.brackets")
    return command_line.exit_code(lambda: run(options))


def run(options: Options) -> None:
    """Prints both tables."""
    print(f"{options.dataset} on {device_name()}, jax {jax.__version__}: {options.points} test points\n")
    brackets, scales = [], []
    for name in options.networks:
        network = networks.trained(name, options.dataset)
        predicted = jax.lax.map(lambda x: network.model.apply(network.params, x).argmax(), network.images)  # noqa: B023
        right = np.flatnonzero(np.asarray(predicted) == network.labels)[: options.points]
        points = network.images[right], network.labels[right]
        brackets += bracket_rows(network, *points, options)
        scales += scale_rows(network, *points, options)
    print(markdown_table(brackets))
    print(f"\nLast layer scaled, epsilon {options.epsilon:g}\n")
    print(markdown_table(scales))


def measured(
    measure: Callable[..., Any], network: networks.Trained, xs: np.ndarray, ys: np.ndarray, **options: Any
) -> Any:
    """A measure's result with numpy's arrays, and its seconds, compilation included."""
    begin = time.perf_counter()
    found = jm.over_batch(measure, network.model.apply, **options)(network.params, jax.random.key(0), xs, ys)
    found = jax.tree.map(np.asarray, found)
    return found, time.perf_counter() - begin


def bracket_rows(network: networks.Trained, xs: np.ndarray, ys: np.ndarray, options: Options) -> list[dict[str, str]]:
    """One row for each way to a distance."""
    attack, attack_seconds = measured(jm.minimum_norm, network, xs, ys, norm=jm.l2, num_steps=options.num_steps)
    sampling: dict[str, Any] = dict(norm=jm.l2, radius=options.radius)
    certificate, seconds = measured(jm.certified_margin, network, xs, ys, norm=jm.l2, radius=options.radius)
    found = {
        "certified, spectral norms": (certificate.spectral, seconds),
        "certified, linear relaxation": (certificate.relaxed, seconds),
    }
    for count in options.num_samples:
        margins, seconds = measured(jm.lipschitz_margin, network, xs, ys, num_samples=count, **sampling)
        found[f"estimated, {count:,} samples"] = np.abs(margins.margin), seconds
    margins, seconds = measured(jm.radial_margin, network, xs, ys, num_samples=options.num_samples[0], **sampling)
    found[f"estimated, {options.num_samples[0]:,} radial samples"] = np.abs(margins.margin), seconds
    found["attacked"] = attack.distance, attack_seconds
    return [
        {
            "network": network.name, "distance": name,
            "average": f"{np.mean(values):.4f}", "median": f"{np.median(values):.4f}",
            "median share of attacked": f"{np.median(values / attack.distance):.3f}",
            "above attacked %": f"{100 * np.mean(values > attack.distance * (1 + 1e-4)):.1f}",
            "seconds": f"{seconds:.1f}",
        }
        for name, (values, seconds) in found.items()
    ]  # fmt: skip


def scale_rows(network: networks.Trained, xs: np.ndarray, ys: np.ndarray, options: Options) -> list[dict[str, str]]:
    """One row for each factor of the last layer."""
    last = max((name for name in network.params if name.startswith("Dense")), key=lambda name: int(name.split("_")[1]))
    attack: dict[str, Any] = PUBLISHED | dict(num_steps=options.num_steps, epsilon=options.epsilon)
    attack["step_size"] = 2.5 * options.epsilon / options.num_steps
    rows = []
    for scale in SCALES:
        params = network.params | {last: jax.tree.map(lambda leaf: scale * leaf, network.params[last])}  # noqa: B023
        scaled = network._replace(params=params)
        published, _ = measured(jm.pgd, scaled, xs, ys, **attack)
        worst, _ = measured(jm.worst_case, scaled, xs, ys, epsilon=options.epsilon, box=(0.0, 1.0))
        margins, _ = measured(jm.lipschitz_margin, scaled, xs, ys, num_samples=1024, radius=options.radius)
        certificate, _ = measured(jm.certified_margin, scaled, xs, ys, radius=options.radius)
        rows.append({
            "network": network.name, "times": str(scale),
            "accuracy as published %": f"{100 * (1 - published.found.mean()):.1f}",
            "worst case %": f"{100 * (1 - worst.found.mean()):.1f}",
            "average estimated": f"{np.abs(margins.margin).mean():.5f}",
            "average certified": f"{certificate.distance.mean():.5f}",
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main())
