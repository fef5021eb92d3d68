"""Our attacks next to foolbox's: the same network and points, distances, accuracies and seconds in one run.

``python -m benchmarks.attacks`` prints three tables: PGD at equal steps, minimum-norm distances against the best of
foolbox's, and robust accuracy at several epsilons. Foolbox comes with ``pip install -e ".[lab,peers]"``.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmargin as jm
from benchmarks import networks, peers
from jaxmargin import checks
from jaxmargin.lab import command_line
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report.page import markdown_table

__all__ = ["Options", "main"]

Attack = Callable[[np.ndarray, np.ndarray], np.ndarray]
BOX = (0.0, 1.0)


@dataclass(frozen=True)
class Options:
    """Times l2 attacks next to foolbox's and compares what they find."""

    networks: tuple[str, ...] = ("mlp", "cnn")
    """Networks, as in benchmarks.networks."""
    dataset: str = "digits"
    """digits (resized), mnist or cifar10."""
    points: int = 384
    """Test points attacked in one call; a CPU takes them 128 at a time."""
    num_steps: int = 20
    """Steps of PGD; both sides' cost is proportional to them."""
    nearest_points: int = 100
    """Test points whose nearest adversarial example is looked for."""
    nearest_steps: int = 500
    """Steps of DDN, FMN and each of the steps of Carlini and Wagner's attack."""
    worst_steps: int = 100
    """Steps of each attempt of the worst case, and of foolbox's PGD in ten starts."""
    epsilons: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Radii of the l2 balls; PGD takes the second one."""
    repetitions: int = 3
    """Timed calls of PGD; medians are reported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    options = command_line.parse(Options, arguments, prog="python -m benchmarks.attacks")
    return command_line.exit_code(lambda: run(options))


def run(options: Options) -> None:
    """Prints the three tables."""
    checks.one_of("dataset", options.dataset, networks.DATASETS)
    if peers.missing("foolbox") or peers.missing("torch"):
        raise ValueError("foolbox is not installed: pip install -e '.[lab,peers]'")
    where = f"{options.dataset} on {device_name()}, PyTorch on {peers.torch_device()}, jax {jax.__version__}"
    trained = [networks.trained(name, options.dataset) for name in options.networks]
    print(f"{where}\n\nPGD: {options.points} points x {options.num_steps} steps, median of {options.repetitions}\n")
    print(markdown_table([pgd_row(network, options) for network in trained]))
    print(f"\nNearest adversarial example: {options.nearest_points} points, {options.nearest_steps} steps\n")
    print(markdown_table([row for network in trained for row in nearest_rows(network, options)]))
    print(f"\nRobust accuracy at epsilon {options.epsilons}: attempts of {options.worst_steps} steps\n")
    print(markdown_table([row for network in trained for row in worst_rows(network, options)]))


def pgd_row(network: networks.Trained, options: Options) -> dict[str, str]:
    """Steps a second of PGD with one start."""
    xs, ys = network.images[: options.points], network.labels[: options.points]
    attacks = {"jaxmargin": our_pgd(network, options), "foolbox": foolbox_pgd(network, options)}
    robust = {who: 1 - float(np.mean(attack(xs, ys))) for who, attack in attacks.items()}  # compiles
    seconds = peers.side_by_side({who: partial(attack, xs, ys) for who, attack in attacks.items()}, options.repetitions)
    rate = {who: len(xs) * options.num_steps / median for who, median in seconds.items()}
    row = {"network": network.name} | {f"{who}, steps/s": f"{value:,.0f}" for who, value in rate.items()}
    row |= {"ratio": f"{rate['jaxmargin'] / rate['foolbox']:.1f}"}
    return row | {f"robust, {who}": f"{100 * value:.1f} %" for who, value in robust.items()}


def nearest_rows(network: networks.Trained, options: Options) -> list[dict[str, str]]:
    """Distances and seconds of each minimum-norm attack, and of the best of each side."""
    right = np.flatnonzero(predictions(network, network.images) == network.labels)[: options.nearest_points]
    xs, ys = network.images[right], network.labels[right]
    found = {f"jaxmargin {name}": timed(attack, xs, ys) for name, attack in our_nearest(network, options).items()}
    found |= {f"foolbox {name}": timed(attack, xs, ys) for name, attack in foolbox_nearest(network, options).items()}
    theirs = [pair for name, pair in found.items() if name.startswith("foolbox")]
    best = np.min([distances for distances, _ in theirs], 0)
    found["foolbox, best of all"] = best, sum(seconds for _, seconds in theirs)
    return [
        {
            "network": network.name,
            "attack": name,
            "median distance": f"{np.median(distances):.4f}",
            "median ratio to foolbox's best": f"{np.median(distances / best):.4f}",
            "nearer %": f"{100 * np.mean(distances < best * 0.999):.0f}",
            "farther %": f"{100 * np.mean(distances > best * 1.001):.0f}",
            "seconds": f"{seconds:.1f}",
        }
        for name, (distances, seconds) in found.items()
    ]


def worst_rows(network: networks.Trained, options: Options) -> list[dict[str, str]]:
    """Robust accuracy at every epsilon, and the seconds for all of them."""
    xs, ys = network.images[: options.points], network.labels[: options.points]
    rows = []
    for who, attack in (
        ("jaxmargin worst_case", our_worst(network, options)),
        ("foolbox PGD, 10 starts", foolbox_worst(network, options)),
    ):
        robust, seconds = timed(attack, xs, ys)
        shown = {
            f"{epsilon:g} %": f"{100 * value:.1f}" for epsilon, value in zip(options.epsilons, robust, strict=True)
        }
        rows.append({"network": network.name, "attack": who} | shown | {"seconds": f"{seconds:.1f}"})
    return rows


def predictions(network: networks.Trained, xs: np.ndarray) -> np.ndarray:
    """[n] predicted classes."""
    return np.asarray(jax.lax.map(lambda x: jnp.argmax(network.model.apply(network.params, x)), jnp.asarray(xs)))


def timed(attack: Attack, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, float]:
    """What an attack finds, and its seconds once it is compiled."""
    found = attack(xs, ys)
    return found, peers.timed(attack, xs, ys)


def our_pgd(network: networks.Trained, options: Options) -> Attack:
    """(xs, ys) -> [n] whether PGD succeeded."""
    step_size = 2.5 * options.epsilons[1] / options.num_steps
    run = jm.over_batch(jm.pgd, network.model.apply, num_steps=options.num_steps, step_size=step_size, box=BOX)
    return lambda xs, ys: np.asarray(run(network.params, jax.random.key(0), xs, ys, epsilon=options.epsilons[1]).found)


def our_nearest(network: networks.Trained, options: Options) -> dict[str, Attack]:
    """By name, (xs, ys) -> [n] distances."""

    def lifted(measure: Callable[..., Any], **settings: Any) -> Attack:
        run = jm.over_batch(measure, network.model.apply, norm=jm.l2, box=BOX, **settings)
        return lambda xs, ys: np.asarray(run(network.params, jax.random.key(0), xs, ys).distance)

    steps = dict(num_steps=options.nearest_steps)
    return {
        "ddn": lifted(jm.ddn, **steps), "fmn": lifted(jm.fmn, **steps), "deepfool": lifted(jm.deepfool),
        "minimum_norm": lifted(jm.minimum_norm, **steps),
    }  # fmt: skip


def our_worst(network: networks.Trained, options: Options) -> Attack:
    """(xs, ys) -> [e] robust accuracies; who stands the largest epsilon is attacked at no smaller one."""
    run = jm.over_batch(jm.worst_case, network.model.apply, norm=jm.l2, num_steps=options.worst_steps, box=BOX)

    def attack(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        broken, distance, robust = np.ones(len(xs), bool), np.full(len(xs), np.inf), []
        for epsilon in reversed(options.epsilons):
            asked = np.flatnonzero(broken & (distance > epsilon))
            if len(asked):
                found = run(network.params, jax.random.key(0), xs[asked], ys[asked], epsilon=epsilon)
                broken[asked], distance[asked] = np.asarray(found.found), np.asarray(found.distance)
            robust.append(1 - float(np.mean(broken)))
        return np.array(robust[::-1])

    return attack


def foolbox_model(network: networks.Trained) -> Any:
    """The same network in PyTorch, as foolbox takes it."""
    import foolbox

    return foolbox.PyTorchModel(peers.torch_network(network), bounds=BOX, device=peers.torch_device())


def tensors(xs: np.ndarray, ys: np.ndarray) -> tuple[Any, Any]:
    """Images and labels as PyTorch's tensors."""
    import torch

    device = peers.torch_device()
    return torch.from_numpy(peers.channels_first(xs)).to(device), torch.from_numpy(np.array(ys)).long().to(device)


def foolbox_pgd(network: networks.Trained, options: Options) -> Attack:
    """(xs, ys) -> [n] whether foolbox's PGD succeeded."""
    import foolbox

    model, epsilon = foolbox_model(network), options.epsilons[1]
    step_size = 2.5 * epsilon / options.num_steps
    attack = foolbox.attacks.L2ProjectedGradientDescentAttack(abs_stepsize=step_size, steps=options.num_steps)
    return lambda xs, ys: attack(model, *tensors(xs, ys), epsilons=epsilon)[2].cpu().numpy()


def foolbox_nearest(network: networks.Trained, options: Options) -> dict[str, Attack]:
    """By name, (xs, ys) -> [n] distances of foolbox's minimum-norm attacks."""
    import foolbox

    model = foolbox_model(network)
    attacks = {
        "DDN": foolbox.attacks.DDNAttack(steps=options.nearest_steps),
        "FMN": foolbox.attacks.L2FMNAttack(steps=options.nearest_steps),
        "DeepFool": foolbox.attacks.L2DeepFoolAttack(),
        "C&W": foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=options.nearest_steps),
    }

    def distances(attack: Any) -> Attack:
        def run(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
            images, labels = tensors(xs, ys)
            _, clipped, success = attack(model, images, labels, epsilons=None)
            sizes = (clipped - images).flatten(1).norm(dim=1)
            return np.where(success.cpu().numpy(), sizes.cpu().numpy(), np.inf)

        return run

    return {name: distances(attack) for name, attack in attacks.items()}


def foolbox_worst(network: networks.Trained, options: Options) -> Attack:
    """(xs, ys) -> [e] robust accuracies under foolbox's PGD from ten starts."""
    import foolbox

    model = foolbox_model(network)
    attack = foolbox.attacks.L2ProjectedGradientDescentAttack(
        rel_stepsize=2.5 / options.worst_steps, steps=options.worst_steps
    )

    def run(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        success = attack.repeat(10)(model, *tensors(xs, ys), epsilons=list(options.epsilons))[2]
        accuracy: np.ndarray = 1 - success.float().mean(1).cpu().numpy()
        return accuracy

    return run


if __name__ == "__main__":
    sys.exit(main())
