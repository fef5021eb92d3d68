"""Convolution gradients inside loops: ours against flax's plain layer, on the MNIST cnn, side by side in one run.

``python -m benchmarks.convolutions`` prints a table of medians over alternating repetitions: training (a scan over
steps of 128 images) and the Lipschitz estimator (all 9 rival classes), with jaxmargin's convolution and with JAX's own.
``train_epoch`` rewrites those of any network and chooses how to compile them, so flax's column trains in a scan
written here and compiled by a plain ``jax.jit``.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxmargin as jm
from benchmarks.peers import side_by_side
from jaxmargin import models, objectives
from jaxmargin.lab.files import device_name
from jaxmargin.lab.report.page import markdown_table
from jaxmargin.lab.training import init_state, train_epoch
from jaxmargin.models import sequential

__all__ = ["main"]

SHAPE, IMAGES, BATCH, SAMPLES, REPETITIONS = (28, 28, 1), 256, 128, 128, 3


def main() -> int:
    """Times both forms and prints the table."""
    tasks = {(task, form): build(task, form) for task in ("training", "estimator") for form in ("jaxmargin", "flax")}
    for run in tasks.values():
        run()  # compiles
    seconds = side_by_side(tasks, REPETITIONS)
    rows = []
    for task, count, unit in (("training", IMAGES, "images/s"), ("estimator", SAMPLES, "samples/s")):
        rate = {form: count / seconds[task, form] for form in ("jaxmargin", "flax")}
        ratio = f"{rate['jaxmargin'] / rate['flax']:.1f}"
        rows.append({"inside a loop": f"{task}, {unit}", **{f: f"{r:,.0f}" for f, r in rate.items()}, "ratio": ratio})
    print(f"MNIST cnn on {device_name()}, jax {jax.__version__}, median of {REPETITIONS}\n\n{markdown_table(rows)}")
    return 0


def build(task: str, form: str) -> Callable[[], object]:
    """One timed task with the convolution of one form, as a function of nothing."""
    ours = sequential.conv_general_dilated
    chosen: Any = ours if form == "jaxmargin" else jax.lax.conv_general_dilated

    def traced(run: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            sequential.conv_general_dilated = chosen  # read while tracing
            try:
                return jax.block_until_ready(run())
            finally:
                sequential.conv_general_dilated = ours

        return call

    model = models.cnn(SHAPE)
    params = model.init(jax.random.key(0))
    if task == "estimator":
        estimate = jm.over_batch(jm.lipschitz_margin, model.apply, num_samples=SAMPLES, chunk_size=64, batch_size=1)
        xs, ys = jax.random.uniform(jax.random.key(1), (1, *SHAPE)), jnp.zeros(1, jnp.int32)
        return traced(lambda: estimate(params, jax.random.key(2), xs, ys))
    optimizer = optax.sgd(0.01, momentum=0.9, nesterov=True)
    images = jax.random.randint(jax.random.key(1), (IMAGES, *SHAPE), 0, 256).astype(jnp.uint8)
    labels = jax.random.randint(jax.random.key(2), (IMAGES,), 0, 10)
    if form == "flax":
        plain = plain_epoch(model, optimizer)
        return traced(lambda: plain(params, optimizer.init(params), images, labels))
    epoch = train_epoch(model.apply, objectives.standard(), optimizer, batch_size=BATCH, scale=255.0)

    def train() -> object:
        copy = jax.tree.map(jnp.copy, params)  # the epoch donates it
        state = init_state(copy, optimizer, jax.random.key(3), len(labels))
        return epoch(state, images, labels)

    return traced(train)


def plain_epoch(model: models.Model, optimizer: optax.GradientTransformation) -> Callable[..., object]:
    """An epoch as anybody would write it: a jitted scan over batches."""

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = jax.vmap(model.apply, in_axes=(None, 0))(params, images / 255)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry: tuple[Any, Any], batch: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, Any], jax.Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def epoch(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> object:
        batches = images.reshape(-1, BATCH, *SHAPE), labels.reshape(-1, BATCH)
        return jax.lax.scan(step, (params, state), batches)

    return epoch


if __name__ == "__main__":
    sys.exit(main())
