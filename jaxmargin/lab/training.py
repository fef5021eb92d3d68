"""Training as pure steps: one epoch is one jitted ``lax.scan`` over data that stays on the device."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmargin.losses import cross_entropy
from jaxmargin.objectives import Objective
from jaxmargin.rewriting import loopable

__all__ = ["Batch", "DivergedError", "TrainState", "evaluator", "fit", "init_state", "train_epoch", "train_step"]

_EVALUATION_BATCH = 512


class TrainState(NamedTuple):
    """All that training carries from step to step."""

    params: Any
    opt_state: Any
    key: jax.Array
    step: jax.Array  # optimiser steps done


class Batch(NamedTuple):
    """Examples of one step; those that only fill the last batch up have weight 0."""

    x: jax.Array  # [b, *d]
    y: jax.Array  # [b]
    weight: jax.Array  # [b], 0 or 1
    memory: jax.Array  # [b], see Objective.refresh


class DivergedError(ArithmeticError):
    """A loss that is no longer finite.

    Attributes:
      step: the first optimiser step whose loss was not finite, counted from 1.
      epoch: the epoch it fell in, counted from 1.
    """

    def __init__(self, step: int, epoch: int) -> None:
        super().__init__(f"the loss is not finite at step {step} (epoch {epoch})")
        self.step, self.epoch = step, epoch


def init_state(params: Any, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step.

    Args:
      params: initial parameters.
      optimizer: an optax optimiser.
      key: a PRNG key for shuffling and dropout.

    Returns:
      TrainState.
    """
    return TrainState(params, optimizer.init(params), key, jnp.zeros((), jnp.int32))


def train_step(
    apply_fn: Callable[..., jax.Array],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, jax.Array]:
    """One step on  mean_i example_loss_i + penalty(params),  then the objective's retraction.

    Args:
      apply_fn: (params, x [*d], key) -> logits [c], the key for dropout.
      objective: what is minimised.
      optimizer: an optax optimiser.
      state: before the step.
      batch: its examples.

    Returns:
      (state after the step, value of the objective before it).
    """
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(batch.y))

    def example_loss(params: Any, key: jax.Array, x: jax.Array, y: jax.Array, memory: jax.Array) -> jax.Array:
        key_dropout, key_loss = jax.random.split(key)
        return objective.example_loss(lambda z: apply_fn(params, z, key_dropout), key_loss, x, y, memory)

    example_losses = loopable(jax.vmap(example_loss, in_axes=(None, 0, 0, 0, 0)))

    def total(params: Any) -> jax.Array:
        losses = example_losses(params, keys, batch.x, batch.y, batch.memory)  # [b]
        return jnp.sum(losses * batch.weight) / jnp.sum(batch.weight) + objective.penalty(params)

    value, gradient = jax.value_and_grad(total)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = objective.retract(optax.apply_updates(state.params, updates))
    return TrainState(params, opt_state, state.key, state.step + 1), value


def train_epoch(
    apply_fn: Callable[..., jax.Array],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    scale: float,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, jax.Array]]:
    """Builds a jitted epoch: a fresh shuffle, then one step a batch, the last partial batch kept.

    Args:
      apply_fn: (params, x [*d], key) -> logits [c].
      objective: what is minimised.
      optimizer: an optax optimiser.
      batch_size: examples a step.
      scale: images / scale is what the network reads.

    Returns:
      epoch(state, images [n, *d] uint8, labels [n]) -> (state, objective values [steps]); the old state is donated.
    """

    def remember(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        if objective.refresh is None:
            return jnp.zeros(len(labels))
        refresh = objective.refresh

        def one(example: tuple[jax.Array, jax.Array]) -> jax.Array:
            return refresh(lambda x: apply_fn(params, x, None), example[0] / scale, example[1])

        return jax.lax.map(one, (images, labels), batch_size=_EVALUATION_BATCH)

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
        with jax.default_matmul_precision("float32"):
            memory = remember(state.params, images, labels)  # [n]
            order = jax.random.permutation(jax.random.fold_in(state.key, -1 - state.step), len(labels))

            def step(state: TrainState, rows: tuple[jax.Array, jax.Array]) -> tuple[TrainState, jax.Array]:
                index = order[rows[0]]
                batch = Batch(images[index] / scale, labels[index], rows[1], memory[index])
                return train_step(apply_fn, objective, optimizer, state, batch)

            return jax.lax.scan(step, state, _batches(len(labels), batch_size))

    return epoch


def evaluator(
    apply_fn: Callable[..., jax.Array], *, scale: float
) -> Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Builds a jitted evaluation over a whole split.

    Args:
      apply_fn: (params, x [*d]) -> logits [c].
      scale: images / scale is what the network reads.

    Returns:
      evaluate(params, images [n, *d] uint8, labels [n]) -> (mean cross-entropy, error in [0, 1]).
    """

    @jax.jit
    def evaluate(params: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        def batch(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
            index, weight = rows
            logits = jax.vmap(functools.partial(apply_fn, params))(images[index] / scale)  # [b, c]
            loss = jax.vmap(cross_entropy)(logits, labels[index])
            wrong = jnp.argmax(logits, 1) != labels[index]
            return jnp.stack([jnp.sum(loss * weight), jnp.sum(wrong * weight)])

        with jax.default_matmul_precision("float32"):
            sums = jax.lax.map(batch, _batches(len(labels), _EVALUATION_BATCH)).sum(0)
        return sums[0] / len(labels), sums[1] / len(labels)

    return evaluate


def fit(
    epoch_fn: Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, jax.Array]],
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    epochs: int,
    first: int = 1,
) -> Iterator[tuple[int, TrainState, float]]:
    """Trains epoch by epoch.

    Args:
      epoch_fn: from ``train_epoch``.
      state: before epoch ``first``; donated.
      images: [n, *d] uint8 on the device.
      labels: [n].
      epochs: the last epoch to run.
      first: the first epoch to run, counted from 1.

    Yields:
      (epoch, state after it, mean objective of its steps); the state is donated when the next one is asked for.

    Raises:
      DivergedError: an objective value or parameter that is not finite.
    """
    for number in range(first, epochs + 1):
        state, values = epoch_fn(state, images, labels)
        finite = np.isfinite(np.asarray(values))
        if not finite.all():
            raise DivergedError((number - 1) * len(finite) + int(np.argmin(finite)) + 1, number)
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params)):
            raise DivergedError(number * len(finite), number)
        yield number, state, float(values.mean())


def _batches(n: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Indices [steps, size] in order, the last row filled up with index 0, and weights that are 0 there."""
    steps = -(-n // size)
    index = np.arange(steps * size).reshape(steps, size)
    return jnp.asarray(np.where(index < n, index, 0)), jnp.asarray((index < n).astype(np.float32))
