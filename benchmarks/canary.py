"""Whether the ways around XLA's CPU compiler (``jaxmargin.xla_cpu``) are still needed: each against doing without it.

``python -m benchmarks.canary`` takes a minute or two on two cores: the paper's MNIST network written in plain flax, its
gradients inside of loops, as it is and rewritten; those gradients compiled with XLA's kernels and without the ones that
are turned off; and whether a row's bits depend on how many others are computed with it. It says which files may go, and
once all may, "delete this folder". Its exit code is 0 either way.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import side_by_side
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report import markdown_table
from jaxmargin.xla_cpu import kernels, loopable, on_cpu

__all__ = ["Row", "main", "verdict"]

REPETITIONS = 3
NEEDED = 1.15  # a workaround is kept as long as it is so many times as fast
TRAINED, SAMPLED = 128, 128  # images of a step, and samples whose gradients are taken


class Row(NamedTuple):
    """One workaround.

    Attributes:
      what: is tried with it and without it.
      file: behind it.
      gain: of the workaround, in words.
      needed: whether it still pays.
    """

    what: str
    file: str
    gain: str
    needed: bool


class Plain(nn.Module):
    """The paper's MNIST network, images [n, 28, 28, 1] -> logits [n, 10], of nothing but flax."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (32, 64):
            x = nn.relu(nn.Conv(width, (3, 3), padding="VALID")(x))
            x = nn.relu(nn.Conv(width, (3, 3), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for width in (200, 200):
            x = nn.relu(nn.Dense(width)(x))
        logits: jax.Array = nn.Dense(10)(x)
        return logits


def main() -> int:
    """Times every workaround against doing without it and prints the table and the verdict."""
    if not on_cpu():
        print(f"{device_name()} needs none of it: run this on a CPU")
        return 0
    rows = [*(timed(*task) for task in (training(), gradients(), pooling(), slow_kernels())), rounding()]
    shown = [
        {"inside a loop": one.what, "file": one.file, "gain": one.gain, "needed": "yes" if one.needed else "no"}
        for one in rows
    ]
    print(f"{device_name()}, jax {jax.__version__}, medians of {REPETITIONS}\n")
    print(f"{markdown_table(shown)}\n{verdict(rows)}")
    return 0


def verdict(rows: list[Row]) -> str:
    """What may be deleted.

    >>> verdict([Row("a", "rewriting", "9 times as fast", True), Row("b", "kernels", "as fast", False)])
    'delete jaxmargin/xla_cpu/kernels.py'
    >>> verdict([Row("a", "rewriting", "as fast", False), Row("b", "kernels", "as fast", False)])
    'delete this folder: jaxmargin/xla_cpu'
    """
    kept = {one.file for one in rows if one.needed}
    gone = [file for file in dict.fromkeys(one.file for one in rows) if file not in kept]
    if not kept:
        return "delete this folder: jaxmargin/xla_cpu"
    return "delete " + ", ".join(f"jaxmargin/xla_cpu/{file}.py" for file in gone) if gone else "all of it is needed"


def timed(what: str, file: str, with_it: Callable[[], object], without_it: Callable[[], object]) -> Row:
    """Times a task with a workaround and without it, in turns."""
    tasks = {"with": with_it, "without": without_it}
    for task in tasks.values():
        task()  # compiles
    seconds = side_by_side(tasks, REPETITIONS)
    ratio = seconds["without"] / seconds["with"]
    return Row(what, file, f"{ratio:.2f} times as fast", ratio > NEEDED)


def called(run: Callable[..., Any], *args: Any) -> Callable[[], object]:
    """A compiled function with its arguments, as a task that ends when its result is there."""
    compiled = jax.jit(run)
    return lambda: jax.block_until_ready(compiled(*args))


def network() -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
    """The plain network and its weights."""
    module = Plain()
    return module.apply, module.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))  # type: ignore[return-value]


def training() -> tuple[str, str, Callable[[], object], Callable[[], object]]:
    """Two steps of SGD in a scan: gradients of the weights."""
    apply_fn, params = network()
    images = jax.random.uniform(jax.random.key(1), (2, TRAINED, 28, 28, 1))
    labels = jax.random.randint(jax.random.key(2), (2, TRAINED), 0, 10)

    def run(apply_fn: Callable[..., jax.Array]) -> Callable[[], object]:
        def step(params: Any, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            def loss(params: Any) -> jax.Array:
                logits, labels = apply_fn(params, batch[0]), batch[1]
                losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean()

            return jax.tree.map(lambda p, g: p - 0.01 * g, params, jax.grad(loss)(params)), None

        return called(lambda params, *batches: jax.lax.scan(step, params, batches)[0], params, images, labels)

    return "training: gradients in a loop", "convolution", run(loopable(apply_fn)), run(apply_fn)


def gradients() -> tuple[str, str, Callable[[], object], Callable[[], object]]:
    """Gradients of the input at chunks of 64 samples, as the estimator takes them."""
    apply_fn, params = network()
    xs = jax.random.uniform(jax.random.key(3), (SAMPLED // 64, 64, 28, 28, 1))

    def run(apply_fn: Callable[..., jax.Array]) -> Callable[[], object]:
        slope = jax.grad(lambda x, params: apply_fn(params, x)[:, 0].sum())
        return called(lambda params, xs: jax.lax.map(lambda x: slope(x, params), xs), params, xs)

    return "estimator: gradients in a loop", "rewriting", run(loopable(apply_fn)), run(apply_fn)


def pooling() -> tuple[str, str, Callable[[], object], Callable[[], object]]:
    """Gradients of a max pool."""
    xs = jax.random.normal(jax.random.key(4), (4, 64, 24, 24, 32))

    def pool(x: jax.Array) -> jax.Array:
        pooled: jax.Array = nn.max_pool(x, (2, 2), (2, 2))
        return pooled

    def run(pool: Callable[..., jax.Array]) -> Callable[[], object]:
        return called(lambda xs: jax.lax.map(jax.grad(lambda x: (pool(x) ** 2).sum()), xs), xs)

    return "max pool in a loop", "rewriting", run(loopable(pool)), run(pool)


def slow_kernels() -> tuple[str, str, Callable[[], object], Callable[[], object]]:
    """The rewritten gradients of the input, compiled without the YNN kernels and with them."""
    apply_fn, params = network()
    xs = jax.random.uniform(jax.random.key(3), (SAMPLED // 64, 64, 28, 28, 1))
    slope = jax.grad(lambda x, params: loopable(apply_fn)(params, x)[:, 0].sum())

    def run(params: Any, xs: jax.Array) -> jax.Array:
        slopes: jax.Array = jax.lax.map(lambda x: slope(x, params), xs)
        return slopes

    without_them = kernels.jit(run)
    return "YNN kernels", "kernels", lambda: jax.block_until_ready(without_them(params, xs)), called(run, params, xs)


def rounding() -> Row:
    """How many of 8 rows of a matrix product get other bits among themselves than among 64."""
    rows, weights = jax.random.normal(jax.random.key(7), (64, 784)), jax.random.normal(jax.random.key(8), (784, 200))
    product = jax.jit(jnp.matmul)
    among, apart = np.asarray(product(rows, weights))[:8], np.asarray(product(rows[:8], weights))
    changed = int((among != apart).any(1).sum())
    return Row("rows round alike", "rows", f"{changed} of 8 rows would have other bits", changed > 0)


if __name__ == "__main__":
    sys.exit(main())
