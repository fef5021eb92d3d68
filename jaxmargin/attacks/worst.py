"""The worst case over losses and restarts: the attempts that follow are spent on the examples that survive."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.attacks import auto_pgd
from jaxmargin.attacks.base import LOSSES, Attack, Target, random_start, target_of
from jaxmargin.attacks.work_queue import run_queue
from jaxmargin.batching.rules import Batch, batch_rule, single_example
from jaxmargin.losses import targeted_dlr
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box, LogitsFn
from jaxmargin.xla_cpu import on_cpu
from jaxmargin.xla_cpu.rows import ROWS

__all__ = ["worst_case"]

_TARGETED = {"targeted_dlr": targeted_dlr}
_NEEDS = {"dlr": 3, "targeted_dlr": 4}  # classes


class _Found(NamedTuple):
    """What the attempts on n examples have found: the first attempt that succeeded, and where."""

    attempt: jax.Array  # [n], more than there are as long as none did
    x_adv: jax.Array  # [n, *d]


class _State(NamedTuple):
    """One attempt on one example."""

    search: auto_pgd.Search
    attempt: jax.Array
    x: jax.Array
    y: jax.Array
    target: jax.Array


def _of_batch(
    logits_fn: LogitsFn,
    key: jax.Array,
    batch: Batch,
    *,
    norm: Norm,
    epsilon: float | jax.Array,
    num_steps: int,
    losses: tuple[str, ...],
    restarts: int,
    box: Box | None,
    workers: int | None = None,
) -> Attack:
    """``worst_case`` of n examples; search number i is attempt i // n on example i % n."""
    target = target_of(logits_fn, batch.xs[0], batch.ys[0], norm, box, num_steps=num_steps, restarts=restarts)
    num_classes, xs = target.num_classes, batch.xs.astype(target.x.dtype)
    checks.positive("epsilon", epsilon)
    raised = [_loss(name, num_classes) for name in _named(losses)]
    n, attempts = len(batch.xs), len(raised) * restarts
    bits = jax.random.key_data(key)  # mapped over examples, a condition on them would pass for a second use of a key
    workers = _workers() if workers is None else workers

    def target_at(x: jax.Array, y: jax.Array) -> Target:
        return target._replace(x=x, y=y)

    def init(index: jax.Array, found: _Found) -> _State:
        attempt, example = index // n, index % n
        x, y = xs[example], batch.ys[example]
        key_all = jax.random.wrap_key_data(bits, impl=jax.random.key_impl(key))
        key_start = jax.random.fold_in(jax.random.fold_in(key_all, batch.indices[example]), attempt)
        project = target_at(x, y).projection(norm, epsilon, box)
        search = auto_pgd.init(project(random_start(key_start, x, norm, epsilon)), epsilon)
        over = ~batch.valid[example] | (found.attempt[example] < attempts)
        search = search._replace(step=jnp.where(over, num_steps, 0).astype(search.step.dtype))
        rank = (attempt // len(raised)) % (num_classes - 1)
        return _State(search, attempt, x, y, others[example, rank])

    def step(state: _State) -> _State:
        def loss(logits: jax.Array) -> jax.Array:
            value: jax.Array = jax.lax.switch(state.attempt % len(raised), raised, logits, state.y, state.target)
            return value

        mine = target_at(state.x, state.y)
        value_and_grad, project = auto_pgd.value_and_grad_of(mine, loss), mine.projection(norm, epsilon, box)
        return state._replace(search=auto_pgd.step(value_and_grad, project, norm, epsilon, num_steps, state.search))

    with jax.default_matmul_precision("float32"):
        others = jax.lax.map(lambda one: _others(target.logits_fn(one[0]), one[1]), (xs, batch.ys))  # [n, c]
        found = run_queue(
            init, lambda state: auto_pgd.should_continue(state.search, num_steps), step,
            functools.partial(_record, attempts),
            _Found(jnp.full(n, attempts), xs), count=n * attempts, workers=workers,
        )  # fmt: skip
        ends = xs, batch.ys, found.x_adv
        attack: Attack = jax.lax.map(lambda end: target_at(*end[:2]).outcome(end[2], norm), ends)
        return attack


def _record(attempts: int, found: _Found, indices: jax.Array, states: _State) -> _Found:
    """What was found, and what the searches that ended found: of each example the first of its attempts that did."""
    n, search = len(found.attempt), states.search
    won = (indices < n * attempts) & (search.found | jnp.isnan(search.best_value))
    examples = jnp.where(won, indices % n, n)  # n falls off the end
    attempt = found.attempt.at[examples].min(states.attempt, mode="drop")
    first = won & (states.attempt == attempt[indices % n]) & (states.attempt < found.attempt[indices % n])
    x_adv = found.x_adv.at[jnp.where(first, examples, n)].set(search.best, mode="drop")
    return _Found(attempt, x_adv)


def _workers() -> int:
    """Searches side by side that keep the device busy."""
    return ROWS if on_cpu() else 2048


@batch_rule(_of_batch, batch_size=lambda: 4 * _workers())
def worst_case(
    logits_fn: LogitsFn,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    *,
    norm: Norm = l2,
    epsilon: float | jax.Array,
    num_steps: int = 100,
    losses: tuple[str, ...] = ("logit_margin", "scaled_cross_entropy", "targeted_dlr"),
    restarts: int = 2,
    box: Box | None = None,
) -> Attack:
    """Auto-PGD with several losses and restarts, one attempt after the other until one succeeds.

    The targeted loss of restart r goes for the class of the (r + 1)-th largest logit at x among the others. Lifted by
    ``over_batch``, an example that is misclassified makes room for the next one, so that survivors alone cost time.

    Args:
      logits_fn: x -> logits [c].
      key: a PRNG key for the starts.
      x: one example, [*d].
      y: its class.
      norm: the norm of the ball.
      epsilon: its radius, in input units.
      num_steps: steps of one attempt.
      losses: names as in ``pgd``, or "targeted_dlr"; where there are too few classes for one, the logit margin is taken
        in its place.
      restarts: attempts with each loss.
      box: (low, high) of valid inputs; None for none.

    Returns:
      Attack; where nothing is found, x_adv = x.

    Raises:
      ValueError: epsilon, num_steps or restarts not positive, no loss or an unknown one, a box that is empty or does
        not hold x.

    Reference:
      Croce and Hein 2020, Reliable evaluation of adversarial robustness.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    >>> attack = worst_case(lambda x: w @ x, jax.random.key(0), jnp.array([1.0, 0.5]), 0, epsilon=1.01)
    >>> bool(attack.found), bool(1.0 < attack.distance <= 1.01)
    (True, True)
    """
    options: dict[str, Any] = dict(norm=norm, epsilon=epsilon, num_steps=num_steps, losses=losses, restarts=restarts)
    return single_example(_of_batch, logits_fn, key, x, y, box=box, workers=1, **options)


def _named(losses: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(losses, str) or not losses:
        raise ValueError(f"losses={losses!r}: pass a tuple of names, such as ('logit_margin', 'scaled_cross_entropy')")
    for name in losses:
        checks.one_of("losses", name, [*LOSSES, *_TARGETED])
    return tuple(losses)


def _loss(name: str, num_classes: int) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """The loss (logits, y, target) -> scalar of that name, or the logit margin where it needs more classes."""
    if num_classes < _NEEDS.get(name, 2):
        name = "logit_margin"
    if name in _TARGETED:
        return _TARGETED[name]
    loss = LOSSES[name]
    return lambda logits, y, target: loss(logits, y)


def _others(logits: jax.Array, y: jax.Array) -> jax.Array:
    """[c] the other classes, the largest logit first, y last."""
    return jnp.argsort(jnp.where(jnp.arange(len(logits)) == y, jnp.inf, -logits))
