"""Whether the bits of a result depend on how the work was cut: every measure, in batches and chunks of several sizes.

``python -m benchmarks.bits`` takes some minutes on two cores; the suite tries the cases most likely to fail. Its exit
code is 1 where a bit differs, on a CPU, where the README promises that none does.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmargin as jm
from jaxmargin import models
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report import markdown_table
from jaxmargin.types import ApplyFn

__all__ = ["MEASURES", "main"]

Cut = dict[str, Any]
CHUNKS: tuple[Cut, ...] = (dict(chunk_size=16, batch_size=1), dict(chunk_size=128, batch_size=7), {})
BATCHES: tuple[Cut, ...] = (dict(batch_size=7), dict(batch_size=1500))

# (measure, its options, ways to cut the work)
MEASURES: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[Cut, ...]]] = {
    "lipschitz_margin": (jm.lipschitz_margin, dict(radius=2.0, num_samples=1024), CHUNKS),
    "lipschitz_margin, exact": (jm.lipschitz_margin, dict(radius=2.0, num_samples=1024, exact=True), CHUNKS),
    "radial_margin": (jm.radial_margin, dict(radius=2.0, num_samples=1024), CHUNKS),
    "block_maxima": (jm.block_maxima, dict(radius=2.0, num_blocks=2, block_size=512), CHUNKS),
    "linear_margin": (jm.linear_margin, {}, (dict(batch_size=1), dict(batch_size=200), {})),
    "pgd": (jm.pgd, dict(epsilon=0.5, step_size=0.1, num_steps=10), BATCHES),
    "apgd": (jm.apgd, dict(epsilon=0.5, num_steps=20), BATCHES),
    "square": (jm.square, dict(epsilon=0.5, num_queries=50), BATCHES),
    "worst_case": (jm.worst_case, dict(epsilon=0.8, num_steps=20), BATCHES),
    "minimum_norm": (jm.minimum_norm, dict(num_steps=20), BATCHES),
    "certified_margin": (jm.certified_margin, {}, BATCHES),
    "bracket": (jm.bracket, dict(num_samples=256, num_steps=20), (dict(batch_size=2), dict(batch_size=700))),
}


class Network(NamedTuple):
    """A classifier with random weights, and points of it."""

    apply_fn: ApplyFn
    params: Any
    xs: np.ndarray
    ys: np.ndarray


def networks(n: int = 72) -> dict[str, Network]:
    """Few inputs are the hard case: XLA's CPU backend sums small arrays in another order than large ones."""
    shapes = {"mlp": models.mlp((4, 3), 4, hidden=16), "cnn": models.cnn((8, 8, 1), 3, widths=(4, 8), hidden=16)}
    found = {}
    for name, model in shapes.items():
        xs = np.random.default_rng(0).normal(size=(n, *model.input_shape)).astype(np.float32)
        params = jax.jit(model.init)(jax.random.key(0))
        ys = np.asarray(jnp.argmax(jax.jit(jax.vmap(model.apply, (None, 0)))(params, xs), 1))
        found[name] = Network(model.apply, params, xs, ys)
    model, mlp = shapes["mlp"], found["mlp"]
    found["black box"] = mlp._replace(apply_fn=lambda params, x: model.apply(params, x))
    return found


def differing(network: Network, name: str) -> int:
    """How many bytes of a measure's result differ from those of the first way to cut the work."""
    measure, options, cuts = MEASURES[name]
    found = []
    for cut in cuts:
        run = jm.over_batch(measure, network.apply_fn, **options, **cut)
        leaves = jax.tree.leaves(run(network.params, jax.random.key(0), network.xs, network.ys))
        found.append(np.concatenate([np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in leaves]))
    return sum(int(np.sum(one != found[0])) for one in found[1:])


def main() -> int:
    """Prints the table and returns the exit code."""
    rows: list[dict[str, str | int]] = []
    for name, (_, _, cuts) in MEASURES.items():
        for of, network in networks().items():
            rows.append({"measure": name, "network": of, "cuts": len(cuts), "bytes apart": differing(network, name)})
            print(*rows[-1].values(), sep=", ", file=sys.stderr)
    print(f"{device_name()}, jax {jax.__version__}\n\n{markdown_table(rows)}")
    return int(any(row["bytes apart"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
