"""Training epochs next to PyTorch's: the same network, batches, loss and optimiser, seconds side by side in one run.

``python -m benchmarks.training`` prints a table of medians over alternating repetitions. An epoch is the one that
``runs.paper`` trains with: a shuffle, then steps of 128 images of SGD with Nesterov momentum on the cross-entropy.
``--together 4`` also trains that many seeds in one vmapped epoch, which a plain ``jax.jit`` compiles. PyTorch comes
with ``pip install -e ".[lab,peers]"``.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import networks, peers
from jaxmargin import checks, models, objectives
from jaxmargin.lab import command_line
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report.page import markdown_table
from jaxmargin.lab.training import init_state, train_epoch

__all__ = ["Options", "main"]

# Input shape of each network, and the images of one epoch timed here.
NETWORKS = {"mlp": ((28, 28, 1), 8192), "cnn": ((28, 28, 1), 1024), "cifar-cnn": ((32, 32, 3), 512)}
BATCH, RATE, MOMENTUM = 128, 0.01, 0.9


@dataclass(frozen=True)
class Options:
    """Times training epochs next to PyTorch's."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """mlp, cnn or cifar-cnn."""
    repetitions: int = 5
    """Timed epochs of each; medians are reported."""
    together: int = 0
    """Seeds trained in one vmapped epoch, timed as a third contender; 0 leaves it out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m benchmarks.training")
    return command_line.exit_code(lambda: run(options))


def run(options: Options) -> None:
    """Prints the table."""
    for name in options.networks:
        checks.one_of("networks", name, tuple(NETWORKS))
    checks.whole("repetitions", options.repetitions)
    checks.whole("together", options.together, least=0)
    if peers.missing("torch"):
        raise ValueError("torch is not installed: pip install -e '.[lab,peers]'")
    where = f"{device_name()}, PyTorch on {peers.torch_device()}, jax {jax.__version__}"
    print(f"{where}, median of {options.repetitions}\n")
    print(markdown_table([row(name, options) for name in options.networks]))


def row(name: str, options: Options) -> dict[str, str]:
    """Images a second of each contender on one network."""
    shape, count = NETWORKS[name]
    model = (models.mlp if name == "mlp" else models.cnn)(shape)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    labels = rng.integers(0, 10, count).astype(np.int32)
    params = model.init(jax.random.key(0))
    contenders = {
        "jaxmargin": (ours(model, params, images, labels), count),
        "PyTorch": (theirs(name, model, params, images, labels), count),
    }
    if options.together:
        contenders["vmapped"] = ours(model, params, images, labels, options.together), count * options.together
    for epoch, _ in contenders.values():
        epoch()  # compiles
    seconds = peers.side_by_side({who: epoch for who, (epoch, _) in contenders.items()}, options.repetitions)
    rate = {who: contenders[who][1] / median for who, median in seconds.items()}
    found = {"network": name} | {f"{who}, images/s": f"{value:,.0f}" for who, value in rate.items()}
    found["x PyTorch"] = f"{rate['jaxmargin'] / rate['PyTorch']:.2f}"
    if options.together:
        found[f"{options.together} seeds vmapped, x one by one"] = f"{rate['vmapped'] / rate['jaxmargin']:.2f}"
    return found


def ours(
    model: models.Model, params: Any, images: np.ndarray, labels: np.ndarray, seeds: int = 0
) -> Callable[[], object]:
    """One epoch of ``train_epoch``, or of that many seeds at once."""
    optimizer = optax.sgd(RATE, momentum=MOMENTUM, nesterov=True)
    epoch = train_epoch(model.apply, objectives.standard(), optimizer, batch_size=BATCH, scale=255.0)
    data = jnp.asarray(images), jnp.asarray(labels)
    start = functools.partial(init_state, params, optimizer, n=len(labels))
    if not seeds:
        states = [start(jax.random.key(1))]
        run = epoch
    else:
        states = [jax.vmap(start)(jax.random.split(jax.random.key(1), seeds))]
        run = jax.jit(jax.vmap(epoch, in_axes=(0, None, None)))

    def once() -> object:
        states[0], values = run(states[0], *data)
        return jax.block_until_ready(values)

    return once


def theirs(name: str, model: models.Model, params: Any, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """The same epoch as a PyTorch loop with everything on the device."""
    import torch

    trained = networks.Trained(name, model, params, np.asarray(images[:16], np.float32) / 255, labels[:16], 0.0)
    net = peers.torch_network(trained).train().requires_grad_(True)
    device = peers.torch_device()
    xs = torch.from_numpy(peers.channels_first(images)).to(device)
    ys = torch.from_numpy(labels).long().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True)
    loss_of = torch.nn.CrossEntropyLoss()

    def once() -> object:
        for index in torch.randperm(len(xs), device=device).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(net(xs[index].float() / 255), ys[index])
            loss.backward()
            optimizer.step()
        return loss.item()

    return once


if __name__ == "__main__":
    sys.exit(main())
