"""Training as pure steps: one epoch, or a part of it, is one jitted ``lax.scan`` over data that stays on the device."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmargin import checks
from jaxmargin.lab.data.loading import scaled
from jaxmargin.losses import cross_entropy
from jaxmargin.models import BATCH
from jaxmargin.objectives import Objective
from jaxmargin.xla_cpu.kernels import jit
from jaxmargin.xla_cpu.rewriting import loopable

__all__ = ["Batch", "DivergedError", "TrainState", "evaluator", "fit", "init_state", "train_epoch", "train_step"]

_EVALUATION_BATCH = 512
# Folded into a key, it gives one that none of the key's children is: those are numbered from 0.
_APART = 2**31


class TrainState(NamedTuple):
    """All that training carries from step to step."""

    params: Any
    opt_state: Any
    key: jax.Array
    step: jax.Array  # optimiser steps done
    example_state: jax.Array  # [n], what the objective remembers of each training example


class Batch(NamedTuple):
    """Examples of one step; those that only fill the last batch up have weight 0."""

    x: jax.Array  # [b, *d]
    y: jax.Array  # [b]
    weight: jax.Array  # [b], 0 or 1
    rows: jax.Array  # [b], their places among the training examples


class DivergedError(ArithmeticError):
    """A loss that is no longer finite.

    Attributes:
      step: the first optimiser step whose loss was not finite, counted from 1.
      epoch: the epoch, or call of parts of epochs, that it fell in, counted from 1.
    """

    def __init__(self, step: int, epoch: int, unit: str = "epoch") -> None:
        super().__init__(f"the loss is not finite at step {step} ({unit} {epoch})")
        self.step, self.epoch = step, epoch


def init_state(params: Any, optimizer: optax.GradientTransformation, key: jax.Array, n: int) -> TrainState:
    """The state before the first step.

    Args:
      params: initial parameters; they are copied, since an epoch takes the memory of its state.
      optimizer: an optax optimiser.
      key: a PRNG key for shuffling, dropout, augmentation and inner attacks.
      n: number of training examples.

    Returns:
      TrainState.

    Raises:
      ValueError: a key that is none, n that is no whole number of at least 1.
    """
    checks.key(key)
    checks.whole("n", n)
    params = jax.tree.map(jnp.copy, params)
    return TrainState(params, optimizer.init(params), jax.random.clone(key), jnp.zeros((), jnp.int32), jnp.zeros(n))


def train_step(
    apply_fn: Callable[..., jax.Array],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, jax.Array]:
    """One step on  mean_i example_loss_i + penalty(params),  then the objective's retraction.

    The objective's inner search comes first, at the parameters before the step and as when measuring. A network with
    batch normalisation averages over the batch in each pass of the loss by itself; its running statistics move on
    once, by the mean of the passes.

    Args:
      apply_fn: (params, x [*d]) or (params, x [*d], key) -> logits [c], the key for dropout; see ``models.Apply`` for
        batch normalisation.
      objective: what is minimised.
      optimizer: an optax optimiser.
      state: before the step.
      batch: its examples.

    Returns:
      (state after the step, value of the objective before it).
    """
    apply_fn = _with_key(apply_fn)
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(batch.y))
    inner_result, example_state = _inner_maximization(apply_fn, objective, state, batch, keys)
    observe = getattr(apply_fn, "observe", None)

    def example_loss(params: Any, key: jax.Array, x: jax.Array, y: jax.Array, found: Any) -> tuple[jax.Array, Any]:
        key_dropout, key_loss = jax.random.split(key)
        seen = []

        def logits_fn(z: jax.Array) -> jax.Array:
            if observe is None:
                return apply_fn(params, z, key_dropout)
            logits: jax.Array
            logits, moved = observe(params, z, key_dropout)
            seen.append(moved)
            return logits

        loss = objective.example_loss(logits_fn, key_loss, x, y, found)
        return loss, jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *seen) if seen else ()

    axes: dict[str, Any] = dict(in_axes=(None, 0, 0, 0, 0), out_axes=(0, None), axis_name=BATCH)
    example_losses = loopable(jax.vmap(example_loss, **axes))

    def total(params: Any) -> tuple[jax.Array, Any]:
        losses, moved = example_losses(params, keys, batch.x, batch.y, inner_result)  # [b]
        return jnp.sum(losses * batch.weight) / jnp.sum(batch.weight) + objective.penalty(params), moved

    (value, moved), gradient = jax.value_and_grad(total, has_aux=True)(state.params)
    optimizer = optax.with_extra_args_support(optimizer)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, value=value)
    params = objective.retract(optax.apply_updates(state.params, updates))
    if observe is not None:
        params = params | {"batch_stats": moved["batch_stats"]}
    return TrainState(params, opt_state, state.key, state.step + 1, example_state), value


def _with_key(apply_fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function of (params, x, key); one of (params, x) alone has no use for the key."""
    places = inspect.signature(apply_fn, follow_wrapped=False).parameters.values()
    positional = [p for p in places if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) >= 3 or any(p.kind is p.VAR_POSITIONAL for p in places):
        return apply_fn
    return functools.wraps(apply_fn)(lambda params, x, key: apply_fn(params, x))


def _inner_maximization(
    apply_fn: Callable[..., jax.Array], objective: Objective, state: TrainState, batch: Batch, keys: jax.Array
) -> tuple[Any, jax.Array]:
    """What the inner search found for the examples of a batch, [b] each, and the example_state [n] after it."""
    remembered = state.example_state[batch.rows]
    if objective.inner_maximization is None:
        return remembered, state.example_state
    search = objective.inner_maximization
    fast = loopable(apply_fn)  # the search loops, where its convolutions must be fast too

    def one(params: Any, key: jax.Array, x: jax.Array, y: jax.Array, example_state: jax.Array) -> tuple[Any, jax.Array]:
        key_search = jax.random.fold_in(key, _APART)
        return search(lambda z: fast(params, z, None), key_search, x, y, example_state, state.step)

    run = loopable(jax.vmap(one, in_axes=(None, 0, 0, 0, 0)))
    inner_result, found = run(state.params, keys, batch.x, batch.y, remembered)
    # What only fills the last batch up writes beyond the end, that is nowhere.
    rows = jnp.where(batch.weight > 0, batch.rows, len(state.example_state))
    return inner_result, state.example_state.at[rows].set(found, mode="drop")


def train_epoch(
    apply_fn: Callable[..., jax.Array],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    scale: float,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    num_steps: int | None = None,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, jax.Array]]:
    """Builds a jitted epoch: a fresh shuffle, then one step a batch, the last partial batch kept.

    Args:
      apply_fn: (params, x [*d]) or (params, x [*d], key) -> logits [c].
      objective: what is minimised.
      optimizer: an optax optimiser.
      batch_size: examples a step.
      scale: images / scale is what the network reads.
      augment: (key, image [*d]) -> image, drawn anew at each step; None for none.
      num_steps: steps of one call, which may end or begin within an epoch; None for those of an epoch.

    Returns:
      epoch(state, images [n, *d] uint8, labels [n]) -> (state, objective values [steps]); the old state is donated. It
      raises ValueError for labels that are no integers within the classes of the logits.

    Raises:
      ValueError: batch_size or num_steps that are no whole numbers of at least 1, a scale that is not above 0.
    """
    checks.whole("batch_size", batch_size)
    checks.positive("scale", scale)
    if num_steps is not None:
        checks.whole("num_steps", num_steps)
    apply_fn = _with_key(apply_fn)
    looked_at: list[jax.Array] = []

    @functools.partial(jit, donate_argnums=0)
    def epoch(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
        index, weights = _batches(len(labels), batch_size)
        steps = len(index)
        begin = functools.partial(_refreshed, apply_fn, objective, images, labels, scale)

        def shuffled(step: jax.Array) -> jax.Array:
            return jax.random.permutation(jax.random.fold_in(state.key, -1 - step // steps * steps), len(labels))

        def step(carry: tuple[TrainState, jax.Array], _: None) -> tuple[tuple[TrainState, jax.Array], jax.Array]:
            state, order = carry
            if num_steps is not None:
                first = state.step % steps == 0
                order = jax.lax.cond(first, shuffled, lambda step: order, state.step)
                state = jax.lax.cond(first, begin, lambda state: state, state)
            rows = order[index[state.step % steps]]
            chosen = images[rows]
            if augment is not None:
                key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _APART)
                chosen = jax.vmap(augment)(jax.random.split(key, batch_size), chosen)
            batch = Batch(scaled(chosen, scale), labels[rows], weights[state.step % steps], rows)
            state, value = train_step(apply_fn, objective, optimizer, state, batch)
            return (state, order), value

        with jax.default_matmul_precision("float32"):
            state = begin(state) if num_steps is None else state
            carry, values = jax.lax.scan(step, (state, shuffled(state.step)), length=num_steps or steps)
        return carry[0], values

    def checked(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
        if not looked_at or looked_at[0] is not labels:
            _refuse_labels(apply_fn, state.params, images, labels, scale)
            looked_at[:] = [labels]
        after: tuple[TrainState, jax.Array] = epoch(state, images, labels)
        return after

    return checked


def _refuse_labels(
    apply_fn: Callable[..., jax.Array], params: Any, images: jax.Array, labels: jax.Array, scale: float
) -> None:
    """Refuses labels that are no integers within the classes of the logits."""
    example = jax.eval_shape(lambda images: scaled(images[0], scale), images)
    logits = jax.eval_shape(lambda params, x: apply_fn(params, x, None), params, example)
    checks.integers("labels", labels)
    checks.labels(labels, checks.logits_like(logits, example.shape))


def _refreshed(
    apply_fn: Callable[..., jax.Array],
    objective: Objective,
    images: jax.Array,
    labels: jax.Array,
    scale: float,
    state: TrainState,
) -> TrainState:
    """The state with what the objective remembers of the training set before an epoch."""
    if objective.refresh is None:
        return state
    refresh = objective.refresh

    def one(example: tuple[jax.Array, jax.Array]) -> jax.Array:
        return refresh(lambda x: apply_fn(state.params, x, None), scaled(example[0], scale), example[1])

    return state._replace(example_state=jax.lax.map(one, (images, labels), batch_size=_EVALUATION_BATCH))


@functools.lru_cache(maxsize=64)
def evaluator(
    apply_fn: Callable[..., jax.Array], *, scale: float
) -> Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Builds a jitted evaluation over a whole split, the same one for the same arguments.

    Args:
      apply_fn: (params, x [*d]) -> logits [c].
      scale: images / scale is what the network reads.

    Returns:
      evaluate(params, images [n, *d] uint8, labels [n]) -> (mean cross-entropy, error in [0, 1]).
    """

    @jit
    def evaluate(params: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        def batch(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
            index, weight = rows
            logits = jax.vmap(functools.partial(apply_fn, params))(scaled(images[index], scale))  # [b, c]
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
    unit: str = "epoch",
) -> Iterator[tuple[int, TrainState, float]]:
    """Trains epoch by epoch.

    Args:
      epoch_fn: from ``train_epoch``.
      state: before epoch ``first``; donated.
      images: [n, *d] uint8 on the device.
      labels: [n].
      epochs: the last epoch to run.
      first: the first epoch to run, counted from 1.
      unit: what one is called where ``epoch_fn`` does parts of epochs.

    Yields:
      (epoch, state after it, mean objective of its steps); the state is donated when the next one is asked for.

    Raises:
      DivergedError: an objective value or parameter that is not finite.
    """
    for number in range(first, epochs + 1):
        state, values = epoch_fn(state, images, labels)
        finite = np.isfinite(np.asarray(values))
        if not finite.all():
            raise DivergedError((number - 1) * len(finite) + int(np.argmin(finite)) + 1, number, unit)
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params)):
            raise DivergedError(number * len(finite), number, unit)
        yield number, state, float(values.mean())


def _batches(n: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Indices [steps, size] in order, the last row filled up from the first on, and weights that are 0 there."""
    steps = -(-n // size)
    index = np.arange(steps * size).reshape(steps, size)
    return jnp.asarray(index % n), jnp.asarray((index < n).astype(np.float32))
