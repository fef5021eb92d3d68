"""Argument checks: a ``ValueError`` that names the argument, what was wrong with it, and what to do.

Shapes, dtypes and options are known while JAX traces, so those checks also work inside somebody else's ``jit``. Values
(labels in range, finite images) can only be looked at outside of one; under a trace they are taken on trust.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin.types import Box, LogitsFn

__all__ = [
    "array", "box", "class_of", "concrete", "distributions", "divisible", "example", "examples", "in_box", "integers",
    "key", "label", "labels", "logits", "logits_like", "measure", "norm", "one_of", "options", "positive", "precision",
    "scores", "whole",
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


def array(name: str, value: Any) -> None:
    """Refuses what has no shape and dtype, such as a list of lists."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise ValueError(f"{name} is a {type(value).__name__}: pass an array, such as np.asarray({name})")


def norm(value: Any) -> None:
    """Refuses anything but one of the package's norms, or another value of their type."""
    if not hasattr(value, "dual_size"):
        raise ValueError(f"norm={value!r} is not a norm: pass jaxmargin.l2, jaxmargin.linf or jaxmargin.l1")


def key(value: Any) -> None:
    """Refuses anything but one PRNG key."""
    dtype = getattr(value, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and jnp.ndim(value) == 0
    if not typed and not (dtype == np.uint32 and jnp.shape(value) in ((2,), (4,))):
        said = f"{type(value).__name__} {value!r}" if dtype is None else f"{dtype}{list(jnp.shape(value))}"
        raise ValueError(f"key is {said}, not one PRNG key: pass jax.random.key(0)")


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
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"box={value} is not finite: pass the limits that inputs have, or None for no box")


def in_box(name: str, value: Any, box: Box | None) -> None:
    """Refuses inputs outside the box (traced ones pass), but for what rounding moved there."""
    if box is None or not concrete(value):
        return
    least, most = float(np.min(np.asarray(value))), float(np.max(np.asarray(value)))
    rounding = 8 * float(jnp.finfo(jnp.result_type(value)).eps) * max(map(abs, box))
    if least < box[0] - rounding or most > box[1] + rounding:
        raise ValueError(f"{name} spans [{least:g}, {most:g}], outside box={box}: scale the inputs or pass their box")


def measure(function: Callable[..., Any]) -> None:
    """Refuses what is no measure of (logits_fn, key, x, y), such as a classifier."""
    parameters = inspect.signature(function).parameters.values()
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(places) < 4 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        name = getattr(function, "__name__", repr(function))
        raise ValueError(
            f"measure={name} takes {len(places)} arguments and no measure does: over_batch(measure, apply_fn) wants a"
            " function (logits_fn, key, x, y, *, options) first, such as lipschitz_margin"
        )


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
    shape = getattr(out, "shape", None)
    said = f"logits have shape {type(out).__name__ if shape is None else shape}"
    said += f" for one example of shape {input_shape}, expected [c]: "
    if shape is None:
        raise ValueError(
            f"{said}the classifier returns a {type(out).__name__}; return the logits alone, as in lambda params, x:"
            " f(params, x)[0]"
        )
    if shape == ():
        raise ValueError(f"{said}return [-s / 2, s / 2] for one binary score s")
    if len(shape) != 1:
        raise ValueError(
            f"{said}the classifier takes one example without a batch axis; wrap a batched one in jaxmargin.from_batched"
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


def integers(name: str, value: Any) -> None:
    """Refuses what is not one integer an example."""
    array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.integer) or jnp.ndim(value) != 1:
        said = f"dtype {value.dtype} and shape {jnp.shape(value)}"
        raise ValueError(f"{name} have {said}: pass integer classes [n], not one-hot or float labels")


def class_of(name: str, value: Any, num_classes: int) -> None:
    """Refuses a number that is none of the classes (a traced one passes)."""
    if concrete(value) and not 0 <= int(value) < num_classes:
        raise ValueError(f"{name}={int(value)} is outside [0, {num_classes - 1}], the classes of the logits")


def labels(ys: Any, num_classes: int) -> None:
    """Refuses labels outside of the classes (traced ones pass)."""
    if not concrete(ys):
        return
    low, high = int(np.min(np.asarray(ys))), int(np.max(np.asarray(ys)))
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels lie in [{low}, {high}], outside [0, {num_classes - 1}], the classes of the logits")


def examples(xs: Any, ys: Any) -> None:
    """Checks a set's shapes and dtypes and, where they are concrete, the inputs' values.

    Raises:
      ValueError: an empty set, lengths that differ, inputs that are not finite floats, labels that are not integers.
    """
    array("xs", xs)
    array("ys", ys)
    if jnp.ndim(xs) < 2:
        raise ValueError(f"xs has shape {jnp.shape(xs)}: expected [n, *d], the examples stacked along the first axis")
    if jnp.ndim(ys) != 1:
        raise ValueError(f"ys has shape {jnp.shape(ys)}: expected [n], one integer class per example")
    if len(xs) == 0:
        raise ValueError("xs is empty: pass at least one example")
    if 0 in jnp.shape(xs):
        raise ValueError(f"xs has shape {jnp.shape(xs)}: an example without entries has no margin")
    if len(xs) != len(ys):
        raise ValueError(f"xs holds {len(xs)} examples and ys {len(ys)} labels: pass as many of each")
    example(xs)
    integers("labels", ys)
    if concrete(xs) and not np.isfinite(np.asarray(xs)).all():
        raise ValueError("images are not finite: xs holds NaN or infinity; clean it before measuring")


def scores(scores: Any, ys: Any) -> None:
    """Checks the logits [k, c] of a few examples, and all labels against their classes.

    Raises:
      ValueError: labels outside [0, c), logits that are not finite, or that look like probabilities.
    """
    scores = np.asarray(scores)
    labels(ys, scores.shape[1])
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
