"""MMA training next to PyTorch: the same network, weights, data, search and optimiser, steps a second in one run.

``python -m benchmarks.max_margin`` prints a table of medians over alternating repetitions. A step is algorithm 2 of
Ding et al. 2020: AN-PGD in l2 for the examples that are right, within what each remembers, then Adam on two parts of
cross-entropy on the boundary, where that is nearer than d_max, and one part of cross-entropy at the images.
PyTorch runs eagerly and searches only what is right, we search whole batches. The last columns hold the two against
each other on one batch, from the same weights: they differ by the random starts of the search alone.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import networks, peers
from jaxmargin import checks, models, objectives
from jaxmargin.lab import command_line, data
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report.page import markdown_table
from jaxmargin.lab.training import init_state, train_epoch

__all__ = ["Options", "main"]

NETWORKS = {"lenet": models.lenet, "mlp": models.mlp, "cnn": models.cnn}
SMALL: dict[str, dict[str, Any]] = {"lenet": dict(widths=(16, 32), hidden=128)}  # for the digits, of 8 x 8 pixels
DATASETS = ("digits", "large-digits", "mnist")
RATE, CLEAN_WEIGHT, LONGER = 1e-4, 1 / 3, 1.05
CHECKED = 5  # steps on one batch after which the distances are compared


@dataclass(frozen=True)
class Options:
    """Times MMA training next to PyTorch's."""

    networks: tuple[str, ...] = ("lenet", "mlp")
    """lenet, mlp or cnn."""
    dataset: str = "digits"
    """digits, large-digits (resized to the 28 x 28 pixels of MNIST) or mnist (its first 4,000 images)."""
    steps: int = 20
    """Optimiser steps of one timed call."""
    repetitions: int = 5
    """Timed calls of each; medians are reported."""
    batch_size: int = 50
    """Images a step, by default the paper's on MNIST; those that fill no batch are left out, so that all steps cost the
    same."""
    attack_steps: int = 10
    """Steps of PGD."""
    halvings: int = 10
    """Steps of the bisection."""
    d_max: float = 2.0
    """Distance up to which margins are raised."""
    clean_epochs: int = 10
    """Epochs on the cross-entropy beforehand: most of MMA training is spent where most images are right."""


class Problem(NamedTuple):
    """What both train."""

    network: networks.Trained
    images: np.ndarray  # [n, h, w, c] uint8
    labels: np.ndarray  # [n] int32
    scale: float
    options: Options


class Contender(NamedTuple):
    """Training that goes on where it stopped."""

    train: Callable[[], np.ndarray]  # () -> losses [steps]
    memory: Callable[[], np.ndarray]  # () -> what is remembered of each image [n]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m benchmarks.max_margin")
    return command_line.exit_code(lambda: run(options))


def run(options: Options) -> None:
    """Prints the table."""
    for name in options.networks:
        checks.one_of("networks", name, tuple(NETWORKS))
    checks.one_of("dataset", options.dataset, DATASETS)
    for name in ("steps", "repetitions", "batch_size", "attack_steps", "halvings"):
        checks.whole(name, getattr(options, name))
    checks.whole("clean_epochs", options.clean_epochs, least=0)
    checks.positive("d_max", options.d_max)
    if peers.missing("torch"):
        raise ValueError("torch is not installed: pip install -e '.[lab,peers]'")
    import torch

    where = f"{device_name()}, PyTorch on {peers.torch_device()}, jax {jax.__version__}, torch {torch.__version__}"
    print(f"{options.dataset} on {where}, median of {options.repetitions}\n")
    print(markdown_table([row(name, options) for name in options.networks]))


def row(name: str, options: Options) -> dict[str, str]:
    """Steps a second of each contender on one network, and what shows that they do the same."""
    whole = problem(name, options)
    found = {"network": name}
    contenders = {"jaxmargin": ours(whole, options.steps), "PyTorch": theirs(whole, options.steps)}
    brief = theirs(whole, 1)
    threads = peers.choose_torch_threads(lambda xs, ys: brief.train(), whole.images, whole.labels)
    for it in contenders.values():
        it.train()  # compiles
    seconds = peers.side_by_side({who: it.train for who, it in contenders.items()}, options.repetitions)
    rate = {who: options.steps / median for who, median in seconds.items()}
    found |= {f"{who}, steps/s": f"{value:.2f}" for who, value in rate.items()}
    found |= {"x PyTorch": f"{rate['jaxmargin'] / rate['PyTorch']:.2f}", "its threads": str(threads)}
    return found | agreement(whole)


def agreement(whole: Problem) -> dict[str, str]:
    """The loss of the first step, and the mean of what is remembered after a few, on one batch: ours / PyTorch's."""
    size = whole.options.batch_size
    batch = whole._replace(images=whole.images[:size], labels=whole.labels[:size])
    contenders = [ours(batch, CHECKED), theirs(batch, CHECKED)]
    losses = [it.train()[0] for it in contenders]
    memories = [it.memory() for it in contenders]
    return {
        "searched": f"{np.mean(memories[0] > 0):.0%}",
        "first loss": " / ".join(f"{loss:.4f}" for loss in losses),
        f"distance after {CHECKED} steps": " / ".join(f"{memory.mean():.4f}" for memory in memories),
    }


def problem(name: str, options: Options) -> Problem:
    """The network after its clean epochs, and whole batches of its training set."""
    source = loaded(options.dataset)
    images, labels = source.train
    used = len(labels) // options.batch_size * options.batch_size
    if not used:
        raise ValueError(f"batch_size={options.batch_size} exceeds the {len(labels)} training images")
    model = NETWORKS[name](images.shape[1:], **SMALL.get(name, {}) if options.dataset == "digits" else {})
    train, test = (
        (np.asarray(split.images / source.scale, np.float32), split.labels) for split in (source.train, source.test)
    )
    network = networks.Trained(name, model, model.init(jax.random.key(0)), *test, math.nan)
    if options.clean_epochs:
        network = networks.fitted(name, model, train, test, epochs=options.clean_epochs)
    return Problem(network, images[:used], labels[:used], source.scale, options)


def loaded(name: str) -> data.Dataset:
    """The first images of a data set."""
    source = data.load(name.removeprefix("large-"))
    train, test = (data.Split(*(np.array(part[: networks.SUBSET["train"]]) for part in it)) for it in source[1:3])
    if name == "large-digits":
        train, test = (it._replace(images=enlarged(it.images / source.scale)) for it in (train, test))
        source = source._replace(scale=255.0)
    return source._replace(train=train, test=test)


def enlarged(images: np.ndarray) -> np.ndarray:
    """[n, h, w, 1] in [0, 1] -> [n, 28, 28, 1] uint8, bilinear."""
    return np.asarray(jnp.round(255 * jax.image.resize(images, (len(images), 28, 28, 1), "bilinear")), np.uint8)


def ours(problem: Problem, steps: int) -> Contender:
    """``train_epoch`` on the objective ``mma``."""
    options, model = problem.options, problem.network.model
    search: dict[str, Any] = dict(num_steps=options.attack_steps, num_halvings=options.halvings, box=(0.0, 1.0))
    objective = objectives.mma(d_max=options.d_max, clean_weight=CLEAN_WEIGHT, **search)
    optimizer = optax.adam(RATE)
    size: dict[str, Any] = dict(batch_size=options.batch_size, scale=problem.scale)
    epoch = train_epoch(model.apply, objective, optimizer, num_steps=steps, **size)
    params = jax.tree.map(jnp.copy, problem.network.params)  # an epoch donates its state
    states = [init_state(params, optimizer, jax.random.key(1), len(problem.labels))]
    images, labels = jnp.asarray(problem.images), jnp.asarray(problem.labels)

    def train() -> np.ndarray:
        states[0], values = epoch(states[0], images, labels)
        return np.asarray(jax.block_until_ready(values))

    return Contender(train, lambda: np.asarray(states[0].example_state))


# PyTorch -------------------------------------------------------------------------------------------------------------


def theirs(problem: Problem, steps: int) -> Contender:
    """The same steps as a PyTorch loop with everything on the device, which waits for a step's losses only at the end.

    The step's own forward pass tells which examples are right, the search goes to those alone, and the boundary costs
    a pass only for those nearer than d_max.
    """
    import torch
    from torch.nn.functional import cross_entropy

    options, device = problem.options, peers.torch_device()
    net = peers.torch_network(problem.network).train().requires_grad_(True)
    images = torch.from_numpy(peers.channels_first(problem.images)).to(device)
    labels = torch.from_numpy(problem.labels).long().to(device)
    memory = torch.zeros(len(labels), device=device)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    batches = _endless(len(labels), options.batch_size, device)

    def step(rows: Any) -> Any:
        x, y = images[rows].float() / problem.scale, labels[rows]
        logits = net(x)
        clean = cross_entropy(logits, y, reduction="none")  # [b]
        right = _soft_margin(logits.detach(), y) > 0
        x_right, y_right, rows_right = x[right], y[right], rows[right]
        epsilon = memory[rows_right].clamp_min(options.d_max / 10)
        x_adv, distance, found = _an_pgd(net, x_right, y_right, epsilon, options)
        memory[rows] = 0.0
        memory[rows_right] = torch.where(found, distance, LONGER * options.d_max)
        near = found & (distance < options.d_max)
        margin_loss = cross_entropy(net(x_adv[near]), y_right[near], reduction="sum")
        margin_loss = (margin_loss + (clean * ~right).sum()) / len(rows)
        loss = (1 - CLEAN_WEIGHT) * margin_loss + CLEAN_WEIGHT * clean.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def train() -> np.ndarray:
        losses: np.ndarray = torch.stack([step(next(batches)) for _ in range(steps)]).cpu().numpy()
        return losses

    return Contender(train, lambda: memory.cpu().numpy())


def _endless(n: int, size: int, device: str) -> Iterator[Any]:
    """Batches of row numbers, shuffled anew each epoch."""
    import torch

    while True:
        yield from torch.randperm(n, device=device).split(size)


def _an_pgd(net: Any, x: Any, y: Any, epsilon: Any, options: Options) -> tuple[Any, Any, Any]:
    """(x_adv [n, *d], its distance [n], whether there is a boundary [n]) of n examples that are right."""
    z = _descend(net, x, y, epsilon[:, None, None, None], options.attack_steps)
    return _bisect(net, x, y, z, LONGER * options.d_max, options.halvings)


def _descend(net: Any, x: Any, y: Any, epsilon: Any, num_steps: int) -> Any:
    """The last iterate of PGD on the soft logit margin, from a uniform point of the ball."""
    import torch

    start = torch.randn_like(x)
    share = torch.rand_like(epsilon) ** (1 / x[0].numel()) if len(x) else epsilon
    z = _into_ball(x + epsilon * share * start / _length(start), x, epsilon)
    for _ in range(num_steps):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(_soft_margin(net(z), y).sum(), z)
        z = _into_ball(z.detach() - 2.5 / num_steps * epsilon * gradient / _length(gradient), x, epsilon)
    return z


def _bisect(net: Any, x: Any, y: Any, z: Any, longest: float, halvings: int) -> tuple[Any, Any, Any]:
    """Where the soft logit margin vanishes from x through z: before z if z is over, else between z and ``longest``."""
    import torch

    with torch.no_grad():
        reached = _length(z - x)
        direction = (z - x) / reached
        over = _is_over(net, z, y)
        low, high = torch.where(over, 0.0, reached), torch.where(over, reached, longest)
        for _ in range(halvings):
            middle = (low + high) / 2
            beyond = _is_over(net, (x + middle * direction).clamp(0, 1), y)
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        x_adv = (x + high * direction).clamp(0, 1)
        return x_adv, _length(x_adv - x).flatten(), (over | (high < longest)).flatten()


def _soft_margin(logits: Any, y: Any) -> Any:
    """[n] f_y - log sum_{k != y} exp f_k."""
    rows = y[:, None]
    return (logits.gather(1, rows) - logits.scatter(1, rows, -math.inf).logsumexp(1, keepdim=True))[:, 0]


def _is_over(net: Any, z: Any, y: Any) -> Any:
    """[n, 1, 1, 1] whether z lies on the boundary or beyond."""
    return (_soft_margin(net(z), y) <= 0)[:, None, None, None]


def _into_ball(z: Any, x: Any, epsilon: Any) -> Any:
    """Into the box, then into the ball around x, which stays in the box."""
    offset = z.clamp(0, 1) - x
    return x + offset * (epsilon / _length(offset)).clamp_max(1)


def _length(v: Any) -> Any:
    """[n, 1, 1, 1] l2 norms, never 0."""
    return v.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]


if __name__ == "__main__":
    sys.exit(main())
