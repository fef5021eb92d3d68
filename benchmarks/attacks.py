"""How fast the paper's PGD is next to foolbox's: the same network, points and steps, in one run.

``python -m benchmarks.attacks`` prints a table of medians over alternating repetitions. Foolbox comes with
``pip install -e ".[lab,peers]"``.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmargin as jm
from benchmarks import networks, peers
from jaxmargin import checks
from jaxmargin.lab.reports import markdown_table
from jaxmargin.lab.tracking import device_name
from runs import command_line

__all__ = ["Options", "main"]


@dataclass(frozen=True)
class Options:
    """Times l2 PGD on cross-entropy next to foolbox."""

    networks: tuple[str, ...] = ("mlp", "cnn")
    """Networks, as in benchmarks.networks."""
    dataset: str = "digits"
    """digits (resized), mnist or cifar10."""
    points: int = 256
    """Test points attacked in one call."""
    num_steps: int = 20
    """Steps of the attack; both sides' cost is proportional to them."""
    epsilon: float = 1.0
    """Radius of the l2 ball."""
    repetitions: int = 3
    """Timed calls of each; medians are reported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m benchmarks.attacks")
    return command_line.exit_code(lambda: run(options))


def run(options: Options) -> None:
    """Prints, for every network, point-steps a second of both and the robust accuracy both find."""
    checks.one_of("dataset", options.dataset, networks.DATASETS)
    if peers.missing("foolbox") or peers.missing("torch"):
        raise ValueError("foolbox is not installed: pip install -e '.[lab,peers]'")
    rows = []
    for name in options.networks:
        network = networks.trained(name, options.dataset)
        xs, ys = network.images[: options.points], network.labels[: options.points]
        attacks = {"jaxmargin": ours(network, options), "foolbox": foolbox_pgd(network, options)}
        robust = {who: 1 - float(np.mean(attack(xs, ys))) for who, attack in attacks.items()}  # compiles
        seconds: dict[str, list[float]] = {who: [] for who in attacks}
        for _ in range(options.repetitions):
            for who, attack in attacks.items():
                seconds[who].append(peers.timed(attack, xs, ys))
        rate = {who: len(xs) * options.num_steps / statistics.median(times) for who, times in seconds.items()}
        row = {"network": name} | {f"{who}, steps/s": f"{value:,.0f}" for who, value in rate.items()}
        row |= {"ratio": f"{rate['jaxmargin'] / rate['foolbox']:.1f}"}
        rows.append(row | {f"robust, {who}": f"{100 * value:.1f} %" for who, value in robust.items()})
    where = f"{options.dataset} on {device_name()}, PyTorch on {peers.torch_device()}, jax {jax.__version__}"
    print(f"{where}: {options.points} points x {options.num_steps} steps, median of {options.repetitions}\n")
    print(markdown_table(rows))


def ours(network: networks.Trained, options: Options) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """jaxmargin's attack as (xs, ys) -> [n] whether it succeeded."""
    settings: dict[str, Any] = dict(norm=jm.l2, epsilon=options.epsilon, num_steps=options.num_steps, box=(0.0, 1.0))
    settings |= dict(step_size=2.5 * options.epsilon / options.num_steps, loss="cross_entropy")
    attack = jm.over_batch(jm.pgd, network.model.apply, **settings)
    return lambda xs, ys: np.asarray(attack(network.params, jax.random.key(0), jnp.asarray(xs), jnp.asarray(ys)).found)


def foolbox_pgd(network: networks.Trained, options: Options) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Foolbox's attack on the same network in PyTorch, as (xs, ys) -> [n] whether it succeeded."""
    import foolbox
    import torch

    device = peers.torch_device()
    model = foolbox.PyTorchModel(peers.torch_network(network), bounds=(0, 1), device=device)
    step_size = 2.5 * options.epsilon / options.num_steps
    attack = foolbox.attacks.L2ProjectedGradientDescentAttack(abs_stepsize=step_size, steps=options.num_steps)

    def run(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(peers.channels_first(xs)).to(device)
        labels = torch.from_numpy(np.array(ys)).long().to(device)
        _, _, success = attack(model, images, labels, epsilons=options.epsilon)
        return success.cpu().numpy()

    return run


if __name__ == "__main__":
    sys.exit(main())
