"""``over_batch``: the one place that maps a measure of one example over many, in batches, compiled once."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin import checks
from jaxmargin.lipschitz import default_rows, stable_rows

__all__ = ["Measurement", "over_batch"]

Array = jax.Array | np.ndarray


def over_batch(
    measure: Callable, apply_fn: Callable, *, batch_size: int | None = None, **options: Any
) -> "Measurement":
    """Lifts a measure of one example to n examples: ``run(params, key, xs, ys)``, jitted, in batches of fixed shape.

    Example i is measured with ``fold_in(key, i)``, and nothing is traced again for other parameters or another n.
    Measures that fill the device by themselves (those with a chunk_size) go through a batch one example after the
    other, the others take it side by side. On a CPU neither batch_size nor chunk_size changes a bit of the result, with
    one exception: an attack on hidden layers written as W @ x, not x @ W, rounds differently in batches of hundreds.

    Args:
      measure: a function (logits_fn, key, x, y, *, options) -> NamedTuple, such as ``lipschitz_margin`` or ``pgd``.
      apply_fn: (params, x [*d]) -> logits [c], the classifier of one example, deterministic.
      batch_size: examples of one call to the device; None takes 1 of a measure with chunks, else as many as keep the
        device busy.
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
    checks.options(measure, options, [name for name, p in known.items() if p.kind is p.KEYWORD_ONLY])
    chunked = "chunk_size" in known
    if batch_size is not None:
        checks.whole("batch_size", batch_size)

    def one(params: Any, key: jax.Array, index: jax.Array, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        logits_fn = functools.partial(apply_fn, params)
        finite = jnp.isfinite(logits_fn(x)).all()
        return measure(logits_fn, jax.random.fold_in(key, index), x, y, **options), finite

    @jax.jit
    def step(params: Any, key: jax.Array, n: jax.Array, indices: jax.Array, xs: jax.Array, ys: jax.Array) -> Any:
        with jax.default_matmul_precision("float32"):
            if not chunked:
                return jax.vmap(functools.partial(one, params, key))(indices, xs, ys)
            shapes = jax.eval_shape(one, params, key, indices[0], xs[0], ys[0])
            blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

            def unless_filling(row: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
                return jax.lax.cond(row[0] < n, lambda: one(params, key, *row), lambda: blank)

            return jax.lax.map(unless_filling, (indices, xs, ys))

    @jax.jit
    def probe(params: Any, xs: jax.Array) -> jax.Array:
        return jax.lax.map(functools.partial(apply_fn, params), xs)

    return Measurement(probe, step, batch_size or (1 if chunked else default_rows()), alone=chunked)


class Measurement:
    """A measure lifted to many examples by ``over_batch``; calling it measures them all.

    Attributes:
      batch_size: examples of one call to the device.
    """

    def __init__(self, probe: Callable, step: Callable, batch_size: int, *, alone: bool) -> None:
        self._probe, self._step, self.batch_size, self._alone = probe, step, batch_size, alone

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
        if checks.concrete(params, key, xs, ys):
            parts = list(self.batches(params, key, xs, ys))
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        # Inside somebody else's transformation: a loop over the batches instead of calls from the host.
        size, n = self._check(params, xs, ys), len(xs)
        indices = np.arange(-(-n // size) * size).reshape(-1, size)  # [batches, size]
        rows = np.minimum(indices, n - 1)
        result = jax.lax.map(lambda batch: self._step(params, key, n, *batch)[0], (indices, xs[rows], ys[rows]))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], result)

    def batches(self, params: Any, key: jax.Array, xs: Array, ys: Array, first: int = 0) -> Iterator[Any]:
        """Measures n examples batch by batch, for callers that show progress or save what they have.

        Args:
          params: parameters of the classifier.
          key: a PRNG key.
          xs: [n, *d] floating-point inputs.
          ys: [n] integer classes.
          first: index of the first example still to measure; results do not depend on where a run was cut.

        Yields:
          The measure's NamedTuple for the examples of one batch, in order.
        """
        size, n = self._check(params, xs, ys), len(xs)
        for start in range(first, n, size):
            indices = start + np.arange(size)
            rows = np.minimum(indices, n - 1)  # the last example fills its batch up
            measured = self._step(params, key, n, indices, xs[rows], ys[rows])
            result, finite = jax.tree.map(lambda leaf: leaf[: n - start], measured)  # noqa: B023
            _refuse_nan(result, finite, start)
            yield result

    def _check(self, params: Any, xs: Array, ys: Array) -> int:
        """Refuses what is wrong with the examples or the logits of the first of them; returns the size of a batch."""
        checks.examples(xs, ys)
        first = np.minimum(np.arange(8), len(xs) - 1)
        out = jax.eval_shape(self._probe, params, xs[first])
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), out)
        num_classes = checks.logits_like(one, jnp.shape(xs)[1:])
        if checks.concrete(params, xs, ys):
            checks.scores(self._probe(params, xs[first]), ys)
        return self.batch_size if self._alone else max(self.batch_size, stable_rows(min(xs[0].size, num_classes)))


def _refuse_nan(result: Any, finite: jax.Array, start: int) -> None:
    """Names the first example whose logits are not finite or whose result holds NaN."""
    floats = [leaf for leaf in jax.tree.leaves(result) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    bad = ~np.asarray(finite)  # [b]
    for leaf in floats:
        bad |= np.isnan(np.asarray(leaf)).reshape(len(leaf), -1).any(1)
    if bad.any():
        index = start + int(np.argmax(bad))
        raise ValueError(f"the result of example {index} is NaN: apply_fn or its gradient is not finite there")
