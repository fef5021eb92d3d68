"""``over_batch``: the one place that maps a measure of one example over many, in batches, compiled once."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmargin import checks
from jaxmargin.batching.chunks import CONVOLVING_ROWS, ROWS, by_rows
from jaxmargin.batching.rules import Batch, rule_of
from jaxmargin.xla_cpu.equations import convolves
from jaxmargin.xla_cpu.kernels import without_slow_kernels
from jaxmargin.xla_cpu.rewriting import loopable

__all__ = ["Measurement", "over_batch"]

Array = jax.Array | np.ndarray


def over_batch(
    measure: Callable,
    apply_fn: Callable,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> "Measurement":
    """Lifts a measure of one example to n examples: ``run(params, key, xs, ys)``, jitted, in batches of fixed shape.

    Nothing is traced again for other parameters or another n. Example i has ``fold_in(key, i)``, except in measures
    that share their samples between examples (``lipschitz_margin``), which use the key itself. On a CPU neither
    batch_size nor chunk_size nor mesh changes a bit of the result, with one exception: a mesh of several CPU devices
    may move the last bits of the minimum-norm attacks and of ``bracket``.

    Args:
      measure: a function (logits_fn, key, x, y, *, options) -> NamedTuple, such as ``lipschitz_margin`` or ``pgd``.
      apply_fn: (params, x [*d]) -> logits [c], the classifier of one example, deterministic.
      batch_size: examples that one device takes in one call; None takes as many as keep it busy. Where a
        CPU takes examples side by side it is rounded up to a multiple of so many.
      mesh: devices that share the work: examples are divided among its axis "points", and the samples of each example
        among its axis "samples"; either may be missing. None uses one device. On several hosts
        (``jax.distributed.initialize``) every host makes the same call with the same arguments and gets the whole
        result.
      **options: keyword options of the measure, fixed for all examples.

    Returns:
      A Measurement, called as ``run(params, key, xs [n, *d], ys [n])``, which gives the measure's NamedTuple with
      fields of length n. Numbers may be left open until then, ``run(..., epsilon=0.5)``: a sweep compiles once.

    Raises:
      ValueError: an option the measure does not have, batch_size < 1, a mesh with other axes; when called, whatever
        is wrong with the examples, and a result that is NaN.

    >>> import jax, jax.numpy as jnp, jaxmargin as jm
    >>> run = jm.over_batch(jm.linear_margin, lambda w, x: w @ x, norm=jm.l2)
    >>> w, xs = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[1.0, 0.5], [-2.0, 0.0]])
    >>> run(w, jax.random.key(0), xs, jnp.array([0, 1])).margin
    Array([1. , 1.2], dtype=float32)
    """
    apply_fn = loopable(apply_fn)
    known = {name: p for name, p in inspect.signature(measure).parameters.items() if p.kind is p.KEYWORD_ONLY}
    checks.options(measure, options, known)
    if batch_size is not None:
        checks.whole("batch_size", batch_size)
    rule = rule_of(measure)
    if rule is not None:  # it has no defaults of its own
        options = {name: p.default for name, p in known.items() if p.default is not p.empty} | options
    devices = _axes(mesh, rule is not None and rule.divides_samples)
    if devices.get("samples", 1) > 1:
        options = options | {"axis_name": "samples"}

    def step(rows: int, given: _Given, n: jax.Array, indices: jax.Array, xs: jax.Array, ys: jax.Array) -> Any:
        logits_fn, chosen = functools.partial(apply_fn, given.params), options | given.values

        def one(index: jax.Array, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
            key = jax.random.fold_in(given.key, index)
            return measure(logits_fn, key, x, y, **chosen), jnp.isfinite(logits_fn(x)).all()

        with jax.default_matmul_precision("float32"):
            if rule is None:
                return by_rows(jax.vmap(one), (indices, xs, ys), n - indices[0], rows)
            finite = jax.lax.map(lambda x: jnp.isfinite(logits_fn(x)).all(), xs)
            return rule.run(logits_fn, given.key, Batch(indices, xs, ys, indices < n), **chosen), finite

    @jax.jit
    def probe(params: Any, xs: jax.Array) -> jax.Array:
        return jax.lax.map(functools.partial(apply_fn, params), xs)

    if batch_size is None:
        batch_size = rule.batch_size() if rule else _side_by_side()
    if jax.default_backend() == "cpu":
        rows = ROWS if rule is None else rule.rows
        batch_size = -(-batch_size // rows) * rows
    steps = (
        _divided(functools.partial(step, ROWS), mesh),
        _divided(functools.partial(step, CONVOLVING_ROWS), mesh, without_slow_kernels()),
    )
    checks.box(box := options.get("box"))
    needed = {name for name, p in known.items() if p.default is p.empty} - set(options)
    refuse = functools.partial(_refuse_values, measure, known, needed)
    return Measurement(refuse, probe, steps, batch_size, mesh=mesh, box=box)


class _Given(NamedTuple):
    """What is the same for all examples of a call."""

    params: Any
    key: jax.Array
    values: dict[str, jax.Array]


def _given(params: Any, key: jax.Array, values: dict[str, Any]) -> _Given:
    return _Given(params, key, {name: jnp.asarray(value, jnp.float32) for name, value in values.items()})


def _refuse_values(measure: Callable, known: Iterable[str], needed: set[str], values: dict[str, Any]) -> None:
    """Refuses options of a call that the measure does not have, misses those it needs, and wants them positive."""
    checks.options(measure, values, known)
    if missing := sorted(needed - set(values)):
        name = getattr(measure, "__name__", repr(measure))
        raise ValueError(f"{name} needs the option {', '.join(missing)}: pass it to over_batch or with the examples")
    for name, value in values.items():
        checks.positive(name, value)


def _side_by_side() -> int:
    """Examples that keep the default device busy: on a CPU those that it takes side by side."""
    return ROWS if jax.default_backend() == "cpu" else 8192


def _divided(step: Callable, mesh: Mesh | None, compiler_options: dict[str, str] | None = None) -> Callable:
    """``step`` compiled, its examples divided among the devices of a mesh and its result whole on each of them."""
    if mesh is None:
        return jax.jit(step, compiler_options=compiler_options)
    mesh = Mesh(mesh.devices, mesh.axis_names)  # its axes as JAX divides them, whatever types the caller's have
    mine = PartitionSpec("points") if "points" in mesh.axis_names else PartitionSpec()
    whole = PartitionSpec()
    given = whole, whole, mine, mine, mine
    shared = jax.shard_map(step, mesh=mesh, in_specs=given, out_specs=mine, check_vma=False)
    return jax.jit(shared, out_shardings=NamedSharding(mesh, whole), compiler_options=compiler_options)


def _axes(mesh: Mesh | None, shares_samples: bool) -> dict[str, int]:
    """Devices along each axis of a mesh."""
    if mesh is None:
        return {}
    known = ["points", "samples"] if shares_samples else ["points"]
    if unknown := [name for name in mesh.axis_names if name not in known]:
        raise ValueError(
            f"mesh has the axis {unknown[0]!r}, which this measure cannot be divided along: name its axes"
            f" {' and '.join(known)}, as in jax.make_mesh((jax.device_count(),), ('points',))"
        )
    return dict(mesh.shape)


class Measurement:
    """A measure lifted to many examples by ``over_batch``; calling it measures them all.

    Attributes:
      batch_size: examples that one device takes in one call.
    """

    def __init__(
        self,
        refuse: Callable[[dict[str, Any]], None],
        probe: Any,
        steps: tuple[Callable, Callable],
        batch_size: int,
        *,
        mesh: Mesh | None,
        box: tuple[float, float] | None,
    ) -> None:
        self._refuse, self._probe, self.batch_size = refuse, probe, batch_size
        self._mesh, self._box = mesh, box
        self._step, self._convolving_step = steps  # the second one cannot be called inside of another jit
        self._convolves: bool | None = None  # not known before the first call

    def __call__(self, params: Any, key: jax.Array, xs: Array, ys: Array, **values: float | jax.Array) -> Any:
        """Measures n examples.

        Args:
          params: parameters of the classifier.
          key: a PRNG key; example i uses ``fold_in(key, i)``.
          xs: [n, *d] floating-point inputs.
          ys: [n] integer classes.
          **values: positive numbers for options of the measure, such as epsilon, that need no compilation of their own.

        Returns:
          The measure's NamedTuple with fields of length n.

        Raises:
          ValueError: see ``over_batch``.
        """
        if checks.concrete(params, key, xs, ys, values):
            parts = list(self.batches(params, key, xs, ys, 0, **values))
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        # Inside somebody else's transformation: a loop over the batches instead of calls from the host.
        self._refuse(values)
        size, n, given = self._check(params, xs, ys), len(xs), _given(params, key, values)
        indices = np.arange(-(-n // size) * size).reshape(-1, size)  # [batches, size]
        rows = np.minimum(indices, n - 1)
        result = jax.lax.map(lambda batch: self._step(given, n, *batch)[0], (indices, xs[rows], ys[rows]))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], result)

    def batches(
        self, params: Any, key: jax.Array, xs: Array, ys: Array, first: int = 0, **values: float | jax.Array
    ) -> Iterator[Any]:
        """Measures n examples batch by batch, for callers that show progress or save what they have.

        Args:
          params: parameters of the classifier.
          key: a PRNG key.
          xs: [n, *d] floating-point inputs.
          ys: [n] integer classes.
          first: index of the first example still to measure; results do not depend on where a run was cut.
          **values: as when called.

        Yields:
          The measure's NamedTuple for the examples of one batch, in order.
        """
        self._refuse(values)
        size, n = self._check(params, xs, ys), len(xs)
        if self._convolves is None:
            self._convolves = convolves(self._probe.trace(params, _few(xs)).jaxpr)
        step = self._convolving_step if self._convolves else self._step
        given, xs, ys = self._everywhere(_given(params, key, values), xs, ys)
        for start in range(first, n, size):
            indices = start + np.arange(size)
            rows = np.minimum(indices, n - 1)  # the last example fills its batch up
            measured = step(given, n, indices, xs[rows], ys[rows])
            result, finite = jax.tree.map(lambda leaf: leaf[: n - start], measured)  # noqa: B023
            _refuse_nan(result, finite, start)
            yield result

    def _check(self, params: Any, xs: Array, ys: Array) -> int:
        """Refuses what is wrong with the examples or the logits of the first of them; returns the size of a batch."""
        checks.examples(xs, ys)
        checks.in_box("xs", xs, self._box)
        few = _few(xs)
        out = jax.eval_shape(self._probe, params, few)
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), out)
        checks.logits_like(one, jnp.shape(xs)[1:])
        if checks.concrete(params, xs, ys):
            checks.scores(self._probe(params, few), ys)
        return self.batch_size * (1 if self._mesh is None else self._mesh.shape.get("points", 1))

    def _everywhere(self, *trees: Any) -> tuple[Any, ...]:
        """Arrays as every host of a mesh of several hosts may use them: whole, and the same on all devices."""
        if self._mesh is None or not self._mesh.is_multi_process:
            return trees
        whole = NamedSharding(self._mesh, PartitionSpec())

        def place(leaf: Any) -> jax.Array:
            if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                return jax.device_put(np.asarray(leaf), whole)
            data = jax.device_put(np.asarray(jax.random.key_data(leaf)), whole)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

        return jax.tree.map(place, trees)


def _few(xs: Array) -> Array:
    """The first examples, always as many, to look at before any work."""
    return xs[np.minimum(np.arange(8), len(xs) - 1)]


def _refuse_nan(result: Any, finite: jax.Array, start: int) -> None:
    """Names the first example whose logits are not finite or whose result holds NaN."""
    floats = [leaf for leaf in jax.tree.leaves(result) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    bad = ~np.asarray(finite)  # [b]
    for leaf in floats:
        bad |= np.isnan(np.asarray(leaf)).reshape(len(leaf), -1).any(1)
    if bad.any():
        index = start + int(np.argmax(bad))
        raise ValueError(f"the result of example {index} is NaN: apply_fn or its gradient is not finite there")
