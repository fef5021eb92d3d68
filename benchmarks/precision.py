"""What relaxed products do to margins: ``python -m benchmarks.precision`` rounds their operands as an accelerator does.

``precision="tensorfloat32"`` keeps 10 bits of the mantissa of every operand of a matrix product or convolution,
``precision="bfloat16"`` 7. Here the same is done on any device, forwards and backwards, and the margins are compared
with those of float32, point by point on the same samples.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmargin as jm
from benchmarks.networks import DATASETS, trained
from jaxmargin import checks
from jaxmargin.lab import command_line
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report.page import markdown_table
from jaxmargin.layers import Layer
from jaxmargin.margins import gap_over_slope
from jaxmargin.xla_cpu.convolution import conv_general_dilated, max_pool

__all__ = ["main"]

BITS = {"float32": 23, "tensorfloat32": 10, "bfloat16": 7}


@dataclass(frozen=True)
class Options:
    """Margins with the operands of all products rounded."""

    networks: tuple[str, ...] = ("mlp", "cnn")
    """Networks, as in benchmarks.networks."""
    dataset: str = "digits"
    """digits (resized), mnist or cifar10."""
    num_samples: int = 1024
    """Samples a point."""
    points: int = 20
    """Test points."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the margins with each precision and prints the table."""
    options = command_line.parse(Options, arguments, prog="python -m benchmarks.precision")
    return command_line.exit_code(lambda: run(options))


def run(options: Options) -> None:
    """Prints, for every network and precision, how far the margins move."""
    checks.one_of("dataset", options.dataset, DATASETS)
    rows = []
    for name in options.networks:
        net = trained(name, options.dataset)
        xs = jnp.asarray(net.images[: options.points])
        margins = {p: np.asarray(distances(net, bits, xs, options.num_samples)) for p, bits in BITS.items()}
        for precision in list(BITS)[1:]:
            change = np.abs(margins[precision] / margins["float32"] - 1)
            shown = {"largest change": f"{change.max():.1e}", "mean change": f"{change.mean():.1e}"}
            average = {"average margin": f"{margins[precision].mean():.5f}"}
            exact = {"of float32": f"{margins['float32'].mean():.5f}"}
            rows.append({"network": name, "precision": precision, **shown, **average, **exact})
    print(f"{options.dataset} on {device_name()}, {options.num_samples:,} samples at each of {options.points} points\n")
    print(markdown_table(rows))


def distances(net: Any, bits: int, xs: jax.Array, num_samples: int) -> jax.Array:
    """[n] unsigned margins, their slopes from products of operands with so many bits, their logits from float32."""
    layers = net.layers(net.params)

    @jax.jit
    def one(key: jax.Array, x: jax.Array) -> jax.Array:
        logits = net.model.apply(net.params, x)
        predicted = jnp.argmax(logits)
        rounded_fn = functools.partial(rounded, layers, bits)
        constants = jm.local_lipschitz(rounded_fn, key, x, predicted, num_samples=num_samples)
        ratios = gap_over_slope(logits[predicted] - logits, constants)  # [c]
        return jnp.minimum(jnp.min(jnp.where(jnp.arange(len(logits)) == predicted, jnp.inf, ratios)), 5.0)

    return jnp.stack([one(jax.random.key(0), x) for x in xs])


def rounded(layers: tuple[Layer, ...], bits: int, x: jax.Array) -> jax.Array:
    """The logits [c] of one input, every product's operands rounded."""
    for layer in layers:
        if layer.kind in ("dense", "conv"):
            product = jnp.matmul if layer.kind == "dense" else functools.partial(_convolved, layer.padding)
            x = rounding(product, bits)(x, layer.kernel) + layer.bias
        elif layer.kind != "dropout":
            steps: dict[str, Callable[..., Any]] = dict(relu=jax.nn.relu, max_pool=max_pool, flatten=jnp.ravel)
            x = steps[layer.kind](x)
    return x


def rounding(product: Callable[..., Any], bits: int) -> Callable[..., Any]:
    """A bilinear product with operands, and gradients with factors, of so many bits of mantissa."""

    def short(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits)

    @jax.custom_vjp
    def multiply(x: jax.Array, weights: jax.Array) -> jax.Array:
        rounded: jax.Array = product(short(x), short(weights))
        return rounded

    def forward(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, Any]:
        return multiply(x, weights), (short(x), short(weights))

    def backward(saved: Any, g: jax.Array) -> Any:
        return jax.vjp(product, *saved)[1](short(g))

    multiply.defvjp(forward, backward)
    return multiply


def _convolved(padding: str | None, x: jax.Array, kernel: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return conv_general_dilated(x[None], kernel, (1, 1), padding or "VALID", dimension_numbers=layout)[0]


if __name__ == "__main__":
    sys.exit(main())
