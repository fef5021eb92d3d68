"""``over_batch``: the one place that maps a measure of one example over many, in batches, compiled once."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin import checks
from jaxmargin.lipschitz import default_rows

__all__ = ["Measurement", "over_batch"]

Array = jax.Array | np.ndarray

# Below 64 rows XLA's CPU backend takes other matrix-product kernels, which round differently (by about 1 ulp).
# Every batch therefore holds at least so many rows, rows being examples times the measure's chunk_size.
_ROWS = 64


def over_batch(
    measure: Callable, apply_fn: Callable, *, batch_size: int | None = None, **options: Any
) -> "Measurement":
    """Lifts a measure of one example to n examples: ``run(params, key, xs, ys)``, jitted, in batches of fixed shape.

    Example i is measured with ``fold_in(key, i)``; neither batch_size nor the measure's chunk_size changes a bit of the
    result on a CPU. Nothing is traced again for other parameters or another n.

    Args:
      measure: a function (logits_fn, key, x, y, *, options) -> NamedTuple, such as ``lipschitz_margin`` or ``pgd``.
      apply_fn: (params, x [*d]) -> logits [c], the classifier of one example, deterministic.
      batch_size: examples measured at once; None takes as many as keep the device busy.
      **options: keyword options of the measure, fixed for all examples.

    Returns:
      A Measurement, called as ``run(params, key, xs [n, *d], ys [n])``, which gives the measure's NamedTuple with
      fields of length n.

    Raises:
      ValueError: an option the measure does not have, batch_size < 1; when called, whatever is wrong with the examples,
        and a result that is NaN.

    >>> import jax, jax.numpy as jnp, jaxmargin as jm
    >>> run = jm.over_batch(jm.linear_margin, lambda w, x: w @ x, norm=jm.l2)
    >>> w, xs = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[1.0, 0.5], [-2.0, 0.0]])
    >>> run(w, jax.random.key(0), xs, jnp.array([0, 1])).margin
    Array([1. , 1.2], dtype=float32)
    """
    known = inspect.signature(measure).parameters
    names = [name for name, parameter in known.items() if parameter.kind is parameter.KEYWORD_ONLY]
    checks.options(measure, options, names)
    default_chunk = known["chunk_size"].default if "chunk_size" in known else 1
    chunk_size = options.get("chunk_size", default_chunk) or default_rows()
    checks.whole("chunk_size", chunk_size)
    if batch_size is not None:
        checks.whole("batch_size", batch_size)
    examples = max(batch_size or default_rows() // chunk_size, -(-_ROWS // chunk_size))

    @jax.jit
    def step(params: Any, key: jax.Array, indices: jax.Array, xs: jax.Array, ys: jax.Array) -> Any:
        def one(index: jax.Array, x: jax.Array, y: jax.Array) -> Any:
            return measure(functools.partial(apply_fn, params), jax.random.fold_in(key, index), x, y, **options)

        with jax.default_matmul_precision("float32"):
            return jax.vmap(one)(indices, xs, ys)

    @jax.jit
    def probe(params: Any, xs: jax.Array) -> jax.Array:
        return jax.lax.map(functools.partial(apply_fn, params), xs)

    return Measurement(probe, step, examples)


class Measurement:
    """A measure lifted to many examples by ``over_batch``; calling it measures them all.

    Attributes:
      batch_size: examples measured at once.
    """

    def __init__(self, probe: Callable, step: Callable, batch_size: int) -> None:
        self._probe, self._step, self.batch_size = probe, step, batch_size

    def __call__(self, params: Any, key: jax.Array, xs: Array, ys: Array) -> Any:
        """Measures n examples.

        Args:
          params: parameters of the classifier.
          key: a PRNG key; example i uses ``fold_in(key, i)``.
          xs: [n, *d] floating-point inputs.
          ys: [n] integer classes.

        Returns:
          The measure's NamedTuple with fields of length n.

        Raises:
          ValueError: see ``over_batch``.
        """
        if not checks.concrete(params, key, xs, ys):
            return self._traced(params, key, xs, ys)
        parts = list(self.batches(params, key, xs, ys))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def batches(self, params: Any, key: jax.Array, xs: Array, ys: Array, first: int = 0) -> Iterator[Any]:
        """Measures n examples batch by batch, for callers that show progress or save what they have.

        Args:
          params: parameters of the classifier.
          key: a PRNG key.
          xs: [n, *d] floating-point inputs.
          ys: [n] integer classes.
          first: index of the first example still to measure; results do not depend on where a run was cut.

        Yields:
          The measure's NamedTuple for up to batch_size examples, in order.
        """
        self._check(params, xs, ys)
        for start in range(first, len(xs), self.batch_size):
            count = min(self.batch_size, len(xs) - start)
            rows = self._rows(start, len(xs))
            result = self._step(params, key, start + np.arange(self.batch_size), xs[rows], ys[rows])
            result = jax.tree.map(lambda leaf: leaf[:count], result)  # noqa: B023
            _refuse_nan(result, start)
            yield result

    def _check(self, params: Any, xs: Array, ys: Array) -> None:
        """All that can be wrong with the examples, and a look at the logits of the first of them."""
        checks.examples(xs, ys)
        first = np.minimum(np.arange(8), len(xs) - 1)
        out = jax.eval_shape(self._probe, params, xs[first])
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), out)
        checks.logits_like(one, jnp.shape(xs)[1:])
        if checks.concrete(params, xs, ys):
            checks.scores(self._probe(params, xs[first]), ys)

    def _rows(self, start: int, n: int) -> np.ndarray:
        """Indices of one batch, the last example repeated to fill it."""
        return np.minimum(start + np.arange(self.batch_size), n - 1)

    def _traced(self, params: Any, key: jax.Array, xs: Array, ys: Array) -> Any:
        """The same inside somebody else's transformation: a loop over batches instead of calls from the host."""
        self._check(params, xs, ys)
        n = len(xs)
        starts = range(0, n, self.batch_size)
        rows = np.stack([self._rows(start, n) for start in starts])  # [batches, batch_size]
        indices = np.arange(rows.size).reshape(rows.shape)
        result = jax.lax.map(lambda batch: self._step(params, key, *batch), (indices, xs[rows], ys[rows]))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], result)


def _refuse_nan(result: Any, start: int) -> None:
    floats = [leaf for leaf in jax.tree.leaves(result) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    bad = [np.isnan(np.asarray(leaf)).reshape(len(leaf), -1).any(1) for leaf in floats]
    if bad and np.logical_or.reduce(bad).any():
        index = start + int(np.argmax(np.logical_or.reduce(bad)))
        raise ValueError(f"the result of example {index} is NaN: apply_fn or its gradient is not finite there")
