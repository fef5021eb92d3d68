"""Argument checks: a ``ValueError`` that names the argument, what was wrong with it, and what to do.

Shapes, dtypes and options are known while JAX traces, so those checks also work inside somebody else's ``jit``. Values
(labels in range, finite images) can only be looked at outside of one; under a trace they are taken on trust.
"""

import math
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin.types import Box, LogitsFn

__all__ = [
    "box", "concrete", "distributions", "divisible", "example", "examples", "in_box", "label", "logits", "logits_like",
    "one_of", "options", "positive", "precision", "scores", "whole",
]  # fmt: skip


def concrete(*values: Any) -> bool:
    """True when none of the values is being traced, so that they can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def positive(name: str, value: Any) -> None:
    """Refuses a number that is not finite and above zero (a traced one passes)."""
    if not concrete(value):
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} is not a number: pass one positive number") from None
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}={value} must be finite and greater than 0")


def whole(name: str, value: Any, least: int = 1) -> None:
    """Refuses anything but a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuses an unknown name and lists the known ones."""
    if value not in (known := list(choices)):
        raise ValueError(f"{name}={value!r} is unknown: choose from {', '.join(known)}")


def divisible(name: str, value: int, by_name: str, by: int) -> None:
    """Refuses a count that does not split into equal parts."""
    if value % by:
        raise ValueError(f"{name}={value} is not a multiple of {by_name}={by}: change either of them")


def precision(value: Any) -> None:
    """Refuses what ``jax.default_matmul_precision`` does not know."""
    one_of("precision", value, ["float32", "tensorfloat32", "bfloat16", "highest", "high", "default"])


def box(value: Box | None) -> None:
    """Refuses a box without room; None is no box."""
    if value is None:
        return
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        raise ValueError(f"box={value!r} is not a pair of numbers: pass (low, high), or None for no box") from None
    if not low < high:
        raise ValueError(f"box={value} is empty: pass (low, high) with low < high")


def in_box(name: str, value: Any, box: Box | None) -> None:
    """Refuses inputs outside the box (traced ones pass)."""
    if box is None or not concrete(value):
        return
    least, most = float(np.min(np.asarray(value))), float(np.max(np.asarray(value)))
    if least < box[0] or most > box[1]:
        raise ValueError(f"{name} spans [{least:g}, {most:g}], outside box={box}: scale the inputs or pass their box")


def options(function: Callable[..., Any], given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses keyword options that the function does not have."""
    name = getattr(function, "__name__", repr(function))
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{name} has no option {', '.join(unknown)}: it takes {', '.join(sorted(known))}")


def example(x: Any) -> None:
    """Refuses an input whose gradient would not exist: anything but floating-point numbers."""
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"x has dtype {dtype}: scale the input to floating-point numbers first, e.g. x / 255")


def logits(logits_fn: LogitsFn, x: Any) -> int:
    """The number of classes c, read from the shapes alone.

    Raises:
      ValueError: ``logits_fn(x)`` is not one vector [c] of floating-point numbers, or c < 2.
    """
    return logits_like(jax.eval_shape(logits_fn, x), jnp.shape(x))


def logits_like(out: Any, input_shape: tuple[int, ...]) -> int:
    """``logits`` for an output that is already there, or its shape."""
    if not hasattr(out, "shape") or len(out.shape) != 1:
        shape = getattr(out, "shape", type(out).__name__)
        raise ValueError(
            f"logits have shape {shape} for one example of shape {input_shape}, expected [c]: the classifier takes one"
            " example without a batch axis; wrap a batched one in jaxmargin.from_batched"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"logits have dtype {out.dtype}: return floating-point scores before any argmax")
    if out.shape[0] < 2:
        raise ValueError("logits have c=1 class: a margin needs two; return [-s / 2, s / 2] for one binary score s")
    return int(out.shape[0])


def label(y: Any) -> None:
    """Refuses a label that is not one integer."""
    if jnp.ndim(y) != 0 or not jnp.issubdtype(jnp.result_type(y), jnp.integer):
        raise ValueError(f"y has shape {jnp.shape(y)} and dtype {jnp.result_type(y)}: pass one integer class")


def examples(xs: Any, ys: Any) -> None:
    """Checks a set's shapes and dtypes and, where they are concrete, the inputs' values.

    Raises:
      ValueError: an empty set, lengths that differ, inputs that are not finite floats, labels that are not integers.
    """
    if jnp.ndim(xs) < 2:
        raise ValueError(f"xs has shape {jnp.shape(xs)}: expected [n, *d], the examples stacked along the first axis")
    if jnp.ndim(ys) != 1:
        raise ValueError(f"ys has shape {jnp.shape(ys)}: expected [n], one integer class per example")
    if len(xs) == 0:
        raise ValueError("xs is empty: pass at least one example")
    if len(xs) != len(ys):
        raise ValueError(f"xs holds {len(xs)} examples and ys {len(ys)} labels: pass as many of each")
    example(xs)
    if not jnp.issubdtype(jnp.result_type(ys), jnp.integer):
        raise ValueError(f"labels have dtype {jnp.result_type(ys)}: pass integer classes, not one-hot or float labels")
    if concrete(xs) and not np.isfinite(np.asarray(xs)).all():
        raise ValueError("images are not finite: xs holds NaN or infinity; clean it before measuring")


def scores(scores: Any, ys: Any) -> None:
    """Checks the logits [k, c] of a few examples, and all labels against their classes.

    Raises:
      ValueError: labels outside [0, c), logits that are not finite, or that look like probabilities.
    """
    scores, ys = np.asarray(scores), np.asarray(ys)
    low, high, num_classes = int(ys.min()), int(ys.max()), scores.shape[1]
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels lie in [{low}, {high}], outside [0, {num_classes - 1}], the classes of the logits")
    if not np.isfinite(scores).all():
        raise ValueError("logits are not finite: apply_fn returns NaN or infinity on the first examples; check params")
    if distributions(scores).all() and (scores % 1 > 0).any():  # logits (1, 0) are more likely than such a softmax
        raise ValueError(
            "logits look like probabilities (not negative, sum 1): return the scores before the softmax; a margin"
            " divides their differences by their slopes, and a softmax flattens both"
        )


def distributions(scores: Any) -> Any:
    """[k] bool, which rows of [k, c] are not negative and sum to 1, as after a softmax."""
    return (scores >= 0).all(1) & (abs(scores.sum(1) - 1) < 1e-5 * scores.shape[1])
