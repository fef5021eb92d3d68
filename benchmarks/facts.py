"""Whether what attacks call found is so for the classifier as it was given, however its owner computes it.

``python -m benchmarks.facts`` attacks small networks of every kind with every attack and asks the network itself,
compiled and eagerly, in a batch and one by one. Its exit code is 1 where an input that was found is none.
"""

import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxmargin as jm
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report import markdown_table

__all__ = ["ATTACKS", "NETWORKS", "Network", "main"]

POINTS = 32
KINDS = ("dense", "conv", "batch norm", "group norm", "residual", "recurrent", "attention")
ATTACKS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "minimum_norm": (jm.minimum_norm, dict(num_steps=30)),
    "ddn": (jm.ddn, dict(num_steps=30)),
    "fmn": (jm.fmn, dict(num_steps=30)),
    "deepfool": (jm.deepfool, {}),
    "pgd": (jm.pgd, dict(epsilon=0.3, step_size=0.05, num_steps=20, keep="best")),
    "apgd": (jm.apgd, dict(epsilon=0.3, num_steps=20)),
    "worst_case": (jm.worst_case, dict(epsilon=0.3, num_steps=10)),
    "square": (jm.square, dict(epsilon=0.5, num_queries=50)),
}


class Network(nn.Module):
    """A network of one kind, images [n, 8, 8, 1] -> logits [n, 10], computed in a dtype; its parameters are float32."""

    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(features: int) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype)

        def conv(features: int) -> nn.Conv:
            return nn.Conv(features, (3, 3), dtype=self.dtype)

        match self.kind:
            case "dense":
                x = nn.relu(dense(128)(nn.relu(dense(128)(x.reshape(len(x), -1)))))
            case "conv":
                for features in (8, 16):
                    x = nn.max_pool(nn.relu(conv(features)(x)), (2, 2), (2, 2))
            case "batch norm":
                x = nn.relu(nn.BatchNorm(use_running_average=True, dtype=self.dtype)(conv(8)(x)))
            case "group norm":
                x = nn.relu(nn.GroupNorm(4, dtype=self.dtype)(conv(8)(x)))
            case "residual":
                x = conv(8)(x)
                for _ in range(3):
                    x = x + conv(8)(nn.relu(conv(8)(nn.relu(x))))
            case "recurrent":
                states: jax.Array = nn.RNN(nn.LSTMCell(32, dtype=self.dtype))(x.reshape(-1, 8, 8))  # type: ignore
                x = states[:, -1]
            case "attention":
                x = dense(16)(x.reshape(-1, 8, 8))
                x = nn.LayerNorm(dtype=self.dtype)(x + nn.MultiHeadDotProductAttention(4, dtype=self.dtype)(x, x))
        logits: jax.Array = dense(10)(x.reshape(len(x), -1))
        return logits


NETWORKS = {
    **{kind: Network(kind) for kind in KINDS},
    "dense, bfloat16": Network("dense", jnp.bfloat16),
    "conv, bfloat16": Network("conv", jnp.bfloat16),
    "dense, float16": Network("dense", jnp.float16),
}


def share_of_facts(network: Network, attack: str) -> tuple[float, float]:
    """How many of the points are found, and of these the share of facts, the least of four ways to ask."""
    xs = np.random.default_rng(0).uniform(size=(POINTS, 8, 8, 1)).astype(np.float32)
    params = network.init(jax.random.key(0), xs)
    apply, compiled = network.apply, jax.jit(network.apply)
    ys = np.argmax(np.asarray(compiled(params, xs)), 1)
    measure, options = ATTACKS[attack]
    made = jm.over_batch(measure, jm.from_batched(apply), **options)(params, jax.random.key(0), xs, ys)
    found, inputs = np.asarray(made.found), np.asarray(made.x_adv)
    asked = [
        np.concatenate([np.asarray(way(params, part)).argmax(1) for part in np.split(inputs, pieces)])
        for way in (compiled, apply)
        for pieces in (1, POINTS)
    ]
    return float(found.mean()), min((float(np.mean(seen[found] != ys[found])) for seen in asked), default=1.0)


def main() -> int:
    """Prints the table and returns the exit code."""
    rows, least = [], 1.0
    for name, network in NETWORKS.items():
        for attack in ATTACKS:
            found, facts = share_of_facts(network, attack)
            rows.append({"network": name, "attack": attack, "found %": 100 * found, "facts %": 100 * facts})
            print(*rows[-1].values(), sep=", ", file=sys.stderr)
            least = min(least, facts)
    print(f"{device_name()}, jax {jax.__version__}, {POINTS} points\n\n{markdown_table(rows)}")
    return int(least < 1)


if __name__ == "__main__":
    sys.exit(main())
