"""How a measure takes a batch of examples together, where that is better than each by itself."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.types import LogitsFn, Result

__all__ = ["Batch", "BatchRule", "batch_rule", "rule_of", "single_example"]

_Measure = TypeVar("_Measure", bound=Callable[..., Any])
_NAME = "batch_rule"  # of the attribute where a measure keeps its rule


class Batch(NamedTuple):
    """Examples that are measured together.

    Attributes:
      indices: [b] their numbers among all examples.
      xs: [b, *d].
      ys: [b].
      valid: [b] bool; where it is False anything may come out.
    """

    indices: jax.Array
    xs: jax.Array
    ys: jax.Array
    valid: jax.Array


class BatchRule(NamedTuple, Generic[Result]):
    """How ``over_batch`` takes the examples of a measure together.

    Attributes:
      run: (logits_fn, key, batch, **options) -> the measure's NamedTuple with fields of length b. It gets every option
        of the measure, its defaults among them.
      batch_size: () -> examples in a batch unless the caller says otherwise.
      divides_samples: whether it takes ``axis_name``, a mapped axis whose devices share the samples of an example.
      rows: on a CPU a batch is a multiple of so many examples, which ``run`` takes side by side (``xla_cpu.rows``).
    """

    run: Callable[..., Result]
    batch_size: Callable[[], int]
    divides_samples: bool = False
    rows: int = 1


def batch_rule(
    run: Callable[..., Any], *, batch_size: Callable[[], int], divides_samples: bool = False, rows: int = 1
) -> Callable[[_Measure], _Measure]:
    """Decorates a measure of one example with its rule for many.

    Args:
      run: as in BatchRule, and so are batch_size, divides_samples and rows.
      batch_size: examples in a batch.
      divides_samples: whether devices can share the samples of an example.
      rows: examples side by side.

    Returns:
      The decorator, which gives the measure itself.
    """

    def decorate(measure: _Measure) -> _Measure:
        setattr(measure, _NAME, BatchRule(run, batch_size, divides_samples, rows))
        return measure

    return decorate


def rule_of(measure: Callable[..., Result]) -> BatchRule[Result] | None:
    """The rule that a measure was decorated with.

    Args:
      measure: a measure of one example.

    Returns:
      BatchRule; None where each example is measured by itself.
    """
    rule: BatchRule[Result] | None = getattr(measure, _NAME, None)
    return rule


def single_example(
    run: Callable[..., Result], logits_fn: LogitsFn, key: jax.Array, x: jax.Array, y: jax.Array, **options: Any
) -> Result:
    """The measure of one example, as a batch of one.

    Args:
      run: as in BatchRule.
      logits_fn: x -> logits [c].
      key: a PRNG key.
      x: one example, [*d].
      y: its class.
      **options: all of the measure's.

    Returns:
      The measure's NamedTuple of one example.

    Raises:
      ValueError: an example that is not of floats, a label that is not one integer.
    """
    checks.example(x)
    checks.label(y)
    checks.key(key)
    if "norm" in options:
        checks.norm(options["norm"])
    checks.class_of("y", y, checks.logits(logits_fn, x))
    xs, ys, valid = jnp.asarray(x)[None], jnp.asarray(y)[None], jnp.ones(1, bool)
    batch = Batch(jnp.zeros(1, int), xs, ys, valid)
    measured: Result = jax.tree.map(lambda leaf: leaf[0], run(logits_fn, key, batch, **options))
    return measured
